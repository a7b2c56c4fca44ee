"""Hosts as containers: systemd-nspawn over the system image, each with its memory limit, /proc and network.

Everything of them lies in one folder::

    ssh/{id_ed25519,id_ed25519.pub,known_hosts}   how Ansible reaches them
    ssh/hosts/<name>                              a host's SSH key, kept while the testbed exists
    hosts/<name>/{root,upper,work}                its file system: the image below, ``upper`` on top
    hosts/<name>/{settings.json,console.log}
    home                                          /home of the head
    lxcfs                                         what gives each host its own /proc files

A host that boots starts from the image afresh, like a diskless node.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import time
import uuid
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Callable, Dict, Iterator, List, Optional, Tuple

from . import cgroups

PROC_FILES = ("loadavg", "meminfo", "stat", "swaps")  # not uptime: start times of processes count from the machine's


class ContainerError(Exception):
    """A container that can't be started or stopped; the message says what to do."""


@dataclass
class Container:
    """One host. ``memory_mib`` is what it has; ``binds`` are SOURCE or SOURCE:TARGET; ``nice`` holds for all in it."""

    name: str
    node_class: str
    address: str
    memory_mib: int
    binds: List[str] = field(default_factory=list)
    nice: int = 0


@dataclass
class Testbed:
    """What the containers share."""

    base: Path
    store: Path
    bridge: str
    address: str
    prefix: int
    containers: List[Container] = field(default_factory=list)
    group: str = "failavoid"  # the control group, or slice, that all of it runs in

    @property
    def groups(self) -> cgroups.Groups:
        """The control groups of the testbed."""
        return cgroups.Groups(self.group)

    def folder(self, name: str) -> Path:
        """Return where a container's files are."""
        return self.base / "hosts" / name


def run(*words: str, check: bool = True) -> str:
    """Run a command and return its output. Raises ContainerError with its complaint."""
    result = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if check and result.returncode != 0:
        complaint = (result.stderr or result.stdout).strip()
        raise ContainerError(f"'{' '.join(words)}' failed (status {result.returncode}): {complaint}")
    return result.stdout


# -- what the containers share -----------------------------------------------------------------------------


@contextlib.contextmanager
def locked() -> Iterator[None]:
    """Keep two runs from making or removing hosts at once. Raises ContainerError."""
    with Path("/run/failavoid-testbed.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ContainerError("another run is making or removing the hosts; wait for it to end") from None
        yield
        Path(lock.name).unlink()


def prepare(testbed: Testbed) -> List[str]:
    """Make keys, bridge and lxcfs where they are missing. Return what was made."""
    made = []
    testbed.base.mkdir(mode=0o755, parents=True, exist_ok=True)
    (testbed.base / "ssh" / "hosts").mkdir(mode=0o700, parents=True, exist_ok=True)
    (testbed.base / "home").mkdir(mode=0o755, exist_ok=True)
    if not (testbed.base / "ssh/id_ed25519.pub").exists():
        _make_key(testbed.base / "ssh/id_ed25519", "failavoid testbed")
        made.append("SSH key")
    for container in testbed.containers:
        if not (testbed.base / "ssh/hosts" / f"{container.name}.pub").exists():
            _make_key(testbed.base / "ssh/hosts" / container.name, container.name)
            made.append(f"SSH host key of {container.name}")
    if _write_known_hosts(testbed):
        made.append("known_hosts")
    for container in testbed.containers:
        names = testbed.folder(container.name) / "root/etc/hosts"
        if names.exists() and names.read_text() != _hosts_file(testbed):
            names.write_text(_hosts_file(testbed))
            made.append(f"names in {container.name}")
    if not Path("/sys/class/net", testbed.bridge).exists():
        run("ip", "link", "add", testbed.bridge, "type", "bridge", "forward_delay", "0")
        made.append(f"bridge {testbed.bridge}")
    shown = json.loads(run("ip", "-json", "-4", "address", "show", "dev", testbed.bridge) or "[]")
    addresses = [(a["local"], a["prefixlen"]) for item in shown for a in item.get("addr_info", [])]
    if (testbed.address, testbed.prefix) not in addresses:
        run("ip", "address", "add", f"{testbed.address}/{testbed.prefix}", "dev", testbed.bridge)
    run("ip", "link", "set", testbed.bridge, "up")
    if not lxcfs_works(testbed):
        _start_lxcfs(testbed)
        made.append("lxcfs")
    return made


def _make_key(path: Path, comment: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
    run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", str(path))


def _write_known_hosts(testbed: Testbed) -> bool:
    lines = []
    for container in testbed.containers:
        key = (testbed.base / "ssh/hosts" / f"{container.name}.pub").read_text().split()
        lines.append(f"{container.address} {key[0]} {key[1]}\n")
    path, text = testbed.base / "ssh/known_hosts", "".join(lines)
    if path.exists() and path.read_text() == text:
        return False
    path.write_text(text)
    return True


def lxcfs_works(testbed: Testbed) -> bool:
    """Tell whether the lxcfs of the testbed answers."""
    try:
        return bool((testbed.base / "lxcfs/proc/meminfo").read_text())
    except OSError:
        return False


def _start_lxcfs(testbed: Testbed) -> None:
    folder = testbed.base / "lxcfs"
    unmount(folder)
    folder.mkdir(exist_ok=True)
    pid_file = testbed.base / "lxcfs.pid"  # a file of its own: the default belongs to the machine's lxcfs
    command = ["lxcfs", "--enable-loadavg", f"--pidfile={pid_file}", str(folder)]
    testbed.groups.start("lxcfs", command, testbed.base / "lxcfs.log")
    if not wait_for(lambda: lxcfs_works(testbed), 10):
        tail = (testbed.base / "lxcfs.log").read_text().splitlines()[-3:]
        raise ContainerError(f"lxcfs does not start: {' / '.join(tail) or 'it says nothing'}. Is /dev/fuse there?")


# -- a container -------------------------------------------------------------------------------------------


def leader(testbed: Testbed, name: str) -> Optional[int]:
    """Return the process id of a running container's init, or None."""
    for nspawn in _nspawns(testbed.folder(name)):
        with contextlib.suppress(OSError):
            for child in Path(f"/proc/{nspawn}/task/{nspawn}/children").read_text().split():
                status = Path("/proc", child, "status").read_text()
                if status.partition("\nNSpid:")[2].partition("\n")[0].split()[-1] == "1":
                    return int(child)
    return None


def settings(testbed: Testbed, container: Container) -> Dict[str, object]:
    """Return what a running container was started with, the image aside."""
    return {
        **asdict(container),
        "bridge": testbed.bridge,
        "prefix": testbed.prefix,
        "store": str(testbed.store),
    }


def is_current(testbed: Testbed, container: Container) -> bool:
    """Tell whether a container runs with the declared settings and its own /proc."""
    path = testbed.folder(container.name) / "settings.json"
    try:
        if json.loads(path.read_text()) != settings(testbed, container):
            return False
    except (OSError, ValueError):
        return False
    return sees_own_memory(testbed, container)


def sees_own_memory(testbed: Testbed, container: Container) -> bool:
    """Tell whether the container's /proc/meminfo shows its own memory."""
    pid = leader(testbed, container.name)
    if pid is None:
        return False
    text = run("nsenter", f"--target={pid}", "--mount", "--pid", "--cgroup", "cat", "/proc/meminfo", check=False)
    total = [int(line.split()[1]) for line in text.splitlines() if line.startswith("MemTotal:")]
    return total == [container.memory_mib * 1024]


def start(testbed: Testbed, container: Container) -> None:
    """Start a container from the current image; ``await_ready`` waits for it."""
    stop(testbed, container.name)
    folder = testbed.folder(container.name)
    if cable(container.name) is not None:
        raise ContainerError(
            f"{container.name}: another container of that name runs on this machine, on the bridge"
            f" {cable(container.name)}; end it, or name this host differently"
        )
    image = (testbed.store / "current").resolve()
    tree = image / "classes" / container.node_class
    if not tree.is_dir():
        raise ContainerError(f"{container.name}: the image {image.name} has no class {container.node_class!r}")
    for name in ("root", "upper", "work"):
        (folder / name).mkdir(parents=True)
        (folder / name).chmod(0o755)
    _write_upper(testbed, container, folder / "upper")
    lower = f"{tree}:{(image / 'root').resolve()}"
    options = f"lowerdir={lower},upperdir={folder}/upper,workdir={folder}/work"
    run("mount", "-t", "overlay", "-o", options, f"failavoid-{container.name}", str(folder / "root"))
    binds = ["/dev/net/tun", f"{testbed.base}/lxcfs:/var/lib/lxcfs", *container.binds]
    if Path("/dev/kvm").exists():
        binds.append("/dev/kvm")
    command = [
        *("nice", "-n", str(container.nice)),
        "systemd-nspawn",
        "--quiet",
        "--boot",
        "--register=no",
        "--keep-unit",
        f"--machine={container.name}",
        f"--directory={folder}/root",
        f"--network-bridge={testbed.bridge}",
        "--resolv-conf=off",
        "--timezone=off",
        "--link-journal=no",
        "--console=pipe",
        "--capability=all",
        "--system-call-filter=@known",
        *[f"--bind={bind}" for bind in binds],
    ]
    testbed.groups.start(container.name, command, folder / "console.log", container.memory_mib << 20)
    (folder / "settings.json").write_text(json.dumps(settings(testbed, container)))


def _hosts_file(testbed: Testbed) -> str:
    return "127.0.0.1 localhost\n" + "".join(f"{c.address} {c.name}\n" for c in testbed.containers)


def _write_upper(testbed: Testbed, container: Container, upper: Path) -> None:
    """Write what an installer would leave on this one machine: names, keys, network, its own /proc."""
    key = testbed.base / "ssh/hosts" / container.name
    files = {
        "etc/hostname": f"{container.name}\n",
        "etc/hosts": _hosts_file(testbed),
        "etc/machine-id": f"{uuid.uuid4().hex}\n",
        "etc/resolv.conf": "# no name server: names are in /etc/hosts\n",
        "etc/ssh/ssh_host_ed25519_key": key.read_text(),
        "etc/ssh/ssh_host_ed25519_key.pub": key.with_suffix(".pub").read_text(),
        "root/.ssh/authorized_keys": (testbed.base / "ssh/id_ed25519.pub").read_text(),
        "etc/systemd/network/10-br0.netdev": "[NetDev]\nName=br0\nKind=bridge\n[Bridge]\nForwardDelaySec=0\n",
        "etc/systemd/network/20-uplink.network": "[Match]\nName=host0\n[Network]\nBridge=br0\nLLDP=no\n",
        "etc/systemd/network/30-br0.network": "[Match]\nName=br0\n[Network]\n"
        f"Address={container.address}/{testbed.prefix}\nLinkLocalAddressing=no\nIPv6AcceptRA=no\nLLDP=no\n",
        "etc/systemd/system/own-proc.service": _PROC_UNIT,
        "usr/local/sbin/own-proc": _PROC_SCRIPT.format(
            files=" ".join(PROC_FILES), total_kb=container.memory_mib * 1024
        ),
    }
    for name, text in files.items():
        path = upper / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o644)
    (upper / "root").chmod(0o700)
    (upper / "root/.ssh").chmod(0o700)
    (upper / "etc/ssh/ssh_host_ed25519_key").chmod(0o600)
    (upper / "usr/local/sbin/own-proc").chmod(0o755)
    wants = upper / "etc/systemd/system/sysinit.target.wants"
    wants.mkdir(parents=True)
    (wants / "own-proc.service").symlink_to("/etc/systemd/system/own-proc.service")


_PROC_UNIT = """\
[Unit]
Description=Show this host's own memory and load in /proc
DefaultDependencies=no
Before=sysinit.target
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/usr/local/sbin/own-proc
"""

_PROC_SCRIPT = """\
#!/bin/sh
# Put this host's own figures, which lxcfs keeps, over those of the machine; try again until it holds.
for attempt in $(seq 1 50); do
  for name in {files}; do
    grep -q " /proc/$name fuse.lxcfs " /proc/self/mounts || mount --bind "/var/lib/lxcfs/proc/$name" "/proc/$name"
  done
  grep -q '^MemTotal: *{total_kb} kB' /proc/meminfo && exit 0
  sleep 0.1
done
echo "/proc/meminfo does not show this host's {total_kb} kB" >&2
exit 1
"""


def await_ready(testbed: Testbed, container: Container, patience_s: float = 180.0) -> None:
    """Wait until a container answers on SSH and sees its own memory. Raises ContainerError."""
    folder = testbed.folder(container.name)
    if not wait_for(lambda: answers_ssh(container.address), patience_s):
        tail = (folder / "console.log").read_text(errors="replace").splitlines()[-8:]
        state = "runs" if leader(testbed, container.name) else "has ended"
        raise ContainerError(
            f"{container.name}: no SSH at {container.address} after {patience_s:.0f} s; its container {state}."
            f" The end of {folder}/console.log: {' / '.join(tail) or '(empty)'}"
        )
    if not wait_for(lambda: sees_own_memory(testbed, container), 10):
        raise ContainerError(
            f"{container.name}: /proc/meminfo does not show its own {container.memory_mib} MiB; see"
            f" 'systemctl status own-proc' in it, and {testbed.base}/lxcfs.log"
        )


def answers_ssh(address: str) -> bool:
    """Tell whether an SSH server greets at ``address``."""
    try:
        with socket.create_connection((address, 22), timeout=2) as connection:
            return connection.recv(4) == b"SSH-"
    except OSError:
        return False


def wait_for(condition: Callable[[], bool], patience_s: float, pause_s: float = 0.1) -> bool:
    """Call ``condition`` until it is true or ``patience_s`` seconds have passed."""
    deadline = time.monotonic() + patience_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(pause_s)
    return True


def undeclared(testbed: Testbed) -> List[str]:
    """Return the containers that are there, whole or in part, and are not declared."""
    there = {path.name for path in (testbed.base / "hosts").glob("*")} | set(testbed.groups.groups())
    return sorted(there - {c.name for c in testbed.containers} - {"lxcfs"})


def stop(testbed: Testbed, name: str) -> bool:
    """End a container at once and remove its files, whatever is left of it. Return whether there was anything.

    Raises ContainerError or CgroupError when it does not end; its files stay then, so that the next try finds it.
    """
    folder = testbed.folder(name)
    there = folder.exists() or name in testbed.groups.groups()
    for pid in _nspawns(folder):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    testbed.groups.remove(name)
    if not wait_for(lambda: not _nspawns(folder), 10):
        alive = ", ".join(map(str, _nspawns(folder)))
        raise ContainerError(f"host {name} does not end (process {alive}, killed 10 s ago); look at it with ps")
    if cable(name) == testbed.bridge:
        run("ip", "link", "delete", f"vb-{name}", check=False)
    unmount(folder)
    if folder.exists():
        shutil.rmtree(folder)
    if cable(name) is None:
        with contextlib.suppress(OSError):
            Path("/run/systemd/nspawn/propagate", name).rmdir()
    return there


def cable(name: str) -> Optional[str]:
    """Return the bridge that a container's network cable ends in, or None."""
    master = Path("/sys/class/net", f"vb-{name}", "master")
    return master.readlink().name if master.is_symlink() else None


def _nspawns(folder: Path) -> List[int]:
    return [
        pid
        for pid, words in _commands()
        if Path(words[0]).name == "systemd-nspawn" and any(w.startswith(f"--directory={folder}/") for w in words)
    ]


def _commands() -> Iterator[Tuple[int, List[str]]]:
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            yield int(process.name), (process / "cmdline").read_bytes().decode(errors="replace").split("\0")


def unmount(folder: Path) -> None:
    """Unmount all that is mounted at or below ``folder``."""
    points = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        point = line.split()[4].encode().decode("unicode_escape")
        if point == str(folder) or point.startswith(f"{folder}/"):
            points.append(point)
    for point in reversed(points):
        if subprocess.run(["umount", point], capture_output=True).returncode != 0:
            run("umount", "--lazy", point)


# -- cleaning ----------------------------------------------------------------------------------------------


def clean(testbed: Testbed) -> List[str]:
    """Remove everything of the testbed, whatever is left of it. Return what there was.

    A host that does not end keeps no other from being removed. Raises ContainerError that names all such hosts.
    """
    gone = []
    troubles = []
    for name in undeclared(replace(testbed, containers=[])):
        try:
            if stop(testbed, name):
                gone.append(f"host {name}")
        except (ContainerError, cgroups.CgroupError, OSError) as error:
            troubles.append(str(error))
    if troubles:
        raise ContainerError(f"not all of the testbed could be removed; try again. {'; '.join(troubles)}")
    for pid in _ssh_masters(testbed.base):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    if "lxcfs" in testbed.groups.groups():
        testbed.groups.remove("lxcfs")
        gone.append("lxcfs")
    unmount(testbed.base)
    testbed.groups.remove_parent()
    _remove_traces()
    if Path("/sys/class/net", testbed.bridge, "bridge").exists():
        for port in Path("/sys/class/net", testbed.bridge, "brif").glob("vb-*"):
            run("ip", "link", "delete", port.name, check=False)
        run("ip", "link", "delete", testbed.bridge)
        gone.append(f"bridge {testbed.bridge}")
    if testbed.base.exists():
        shutil.rmtree(testbed.base)
        gone.append(str(testbed.base))
    return gone


def _ssh_masters(base: Path) -> List[int]:
    return [pid for pid, words in _commands() if words[0].startswith(f"ssh: {base}/") and "[mux]" in words[0]]


def _remove_traces() -> None:
    """Remove what systemd-nspawn and lxcfs leave in /run, unless others of their kind still run."""
    for lock in Path("/run/systemd/nspawn/locks").glob("inode-*"):
        with contextlib.suppress(OSError), lock.open() as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            lock.unlink()
    folders = ["/run/systemd/nspawn/locks", "/run/systemd/nspawn/propagate", "/run/systemd/nspawn"]
    if not any(Path(words[0]).name == "lxcfs" for _, words in _commands()):
        folders += ["/run/lxcfs/controllers", "/run/lxcfs/root", "/run/lxcfs"]
    for folder in folders:
        with contextlib.suppress(OSError):
            Path(folder).rmdir()
