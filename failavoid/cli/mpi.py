"""Open MPI's command line for a job, and the files it needs."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from failavoid.cli.settings import CliError, CliSettings
from failavoid.shared.messages import Job

LIBRARY = "/opt/failavoid/lib"  # in guests: Python path of the barrier wrapper
PRELOADED = Path(LIBRARY) / "libfailavoid-mpi.so"  # the wrapper for every program; in guests if it is here
KEEP_S = 600  # connections to guests are kept for the user's next job

# what a job's ranks need to know; mpirun hands nothing else of the environment on
ALWAYS = ("FAILAVOID_JOB", "FAILAVOID_EVERY", "PYTHONPATH")
IF_SET = ("FAILAVOID_LIMIT_S",)

# Open MPI's daemon and the ranks of its guest share what they know in memory files (PMIx's ds21), for nodes with many
# ranks. To make them is a third of what a daemon does until its ranks run; a guest has few ranks.
PMIX_STORE = "PMIX_MCA_gds"


@dataclass(frozen=True)
class Target:
    """A guest as SSH finds it."""

    address: str
    host_key: str


def targets(known_hosts: str) -> list[Target]:
    """The guests of a job (or its hosts) in the order of its ranks, from its known_hosts."""
    found = []
    for line in known_hosts.splitlines():
        names, _, host_key = line.partition(" ")
        if host_key:
            found.append(Target(names.split(",")[0], host_key))
    return found


def ssh_config(guests: list[Target], key: Path | None, known_hosts: Path, masters: Path) -> str:
    """Settings of SSH for the guests of a job; without ``key``, for hosts that know their users.

    A kept connection is named by the guest's host key: a later guest of the same address is never asked for over it.
    """
    lines = []
    for guest in guests:
        digest = hashlib.sha256(guest.host_key.encode()).hexdigest()[:16]
        lines += [f"Host {guest.address}", f"  ControlPath {masters / digest}"]
    lines += [
        "Host *",
        *([f"  IdentityFile {key}", "  IdentitiesOnly yes"] if key else []),
        f"  UserKnownHostsFile {known_hosts}",
        "  GlobalKnownHostsFile /dev/null",
        "  StrictHostKeyChecking yes",
        "  BatchMode yes",
        "  ForwardX11 no",
        "  LogLevel ERROR",
        "  ControlMaster auto",
        f"  ControlPersist {KEEP_S}",
    ]
    return "\n".join(lines) + "\n"


def prepare(job: Job, ranks: int, key: Path, folder: Path, masters: Path, settings: CliSettings) -> list[str]:
    """Write the files of a job into ``folder``; returns the command without the program. ``ranks`` 0: one a core."""
    guests = targets(job.known_hosts)
    if len(guests) != len(job.guests or job.hosts):
        raise CliError(
            f"the SSH host keys of {' '.join(job.hosts)} are not known on the head: an administrator sees to it"
        )
    ranks = ranks or len(guests) * job.request.guest_vcpus
    slots = -(-ranks // len(guests))
    (folder / "known_hosts").write_text(job.known_hosts)
    (folder / "hosts").write_text("".join(f"{guest.address} slots={slots}\n" for guest in guests))
    own_key = key if job.resource == "guests" else None
    (folder / "ssh_config").write_text(ssh_config(guests, own_key, folder / "known_hosts", masters))
    return mpirun(ranks, folder, settings)


def mpirun(ranks: int, folder: Path, settings: CliSettings) -> list[str]:
    """The launcher with what the site and a job in guests need."""
    command = ["mpirun", "-n", str(ranks), "--hostfile", str(folder / "hosts"), "--oversubscribe", "--bind-to", "none"]
    wanted = {
        "plm_rsh_agent": f"ssh -F {folder / 'ssh_config'}",
        "plm_rsh_no_tree_spawn": "1",  # guests hold no key for one another
        # sshd waits two minutes for a login, and emulated guests that share cores are slow
        "plm_rsh_num_concurrent": "32",
        # guests talk TCP alone: it is what survives a move
        "pml": "ob1",
        "btl": "tcp,self",
    }
    if settings.mpi_network:
        wanted |= {f"{framework}_if_include": settings.mpi_network for framework in ("btl_tcp", "oob_tcp")}
    for name, value in wanted.items():
        command += ["--mca", name, value]
    return [*command, *settings.mpi_arguments]


def handed_on(environment: dict[str, str]) -> list[str]:
    """The options that hand variables on to the ranks."""
    names = [*ALWAYS, *(name for name in IF_SET if name in environment)]
    names.append(PMIX_STORE if PMIX_STORE in environment else f"{PMIX_STORE}=hash")
    if PRELOADED.exists():
        others = environment.get("LD_PRELOAD")
        names.append(f"LD_PRELOAD={PRELOADED}{':' + others if others else ''}")
    return [word for name in names for word in ("-x", name)]


def environment_of(job: Job, every: int, given: dict[str, str]) -> dict[str, str]:
    """The environment of the launcher: the user's, and what tells ranks of their job."""
    path = [folder for folder in given.get("PYTHONPATH", "").split(":") if folder]
    if LIBRARY not in path:
        path.append(LIBRARY)
    return {**given, "FAILAVOID_JOB": job.id, "FAILAVOID_EVERY": str(every), "PYTHONPATH": ":".join(path)}
