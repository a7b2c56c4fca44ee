"""Launches the guests of a job, by playbooks/launch.yml, and removes those that are in the way.

A guest outlives its job, so that the same user's next job starts at once.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from failavoid.playbook_runner import OnEvent, PlaybookResult, run_playbook
from failavoid.resource_manager import placement
from failavoid.resource_manager.settings import Settings
from failavoid.resource_manager.store import State, Store
from failavoid.shared.messages import Guest, Job, JobRequest
from failavoid.shared.names import check_name
from failavoid.shared.tokens import mint

log = logging.getLogger(__name__)

BOOT_S = 900.0
SECONDS_A_GUEST = 30.0  # on top: many guests share cores while they boot
LOCKED = "is locked by"  # what a host says of a guest that somebody acts on
LOCKED_LOOK_S = 5.0
LOGS = 300
GUEST_AUTHORITY = "/run/failavoid/authority.pem"  # where guest-identity writes the authority
ENDED = ("completed", "failed")


class LaunchError(Exception):
    """Guests that could not be started or removed; the message names them and says why."""


@dataclass(frozen=True)
class Image:
    """The current system image: digests, and how a guest of it is booted."""

    digest: str
    root: str
    init: str
    arguments: str


def current_image(store: Path) -> Image:
    """Read what the image store's current manifest says. Raises LaunchError."""
    try:
        manifest = json.loads((store / "current" / "manifest.json").read_text())
        guest = manifest["classes"]["guest"]
        return Image(manifest["digest"], manifest["root"], guest["init"], guest.get("kernel_arguments", ""))
    except (OSError, ValueError, KeyError) as error:
        raise LaunchError(
            f"{store}/current has no usable system image ({error}): run playbooks/sysimage.yml"
        ) from error


class Launcher:
    """Brings up what a job needs; each job in a thread of its caller's."""

    def __init__(self, settings: Settings, store: Store, secret: bytes) -> None:
        self._settings = settings
        self._store = store
        self._secret = secret

    def allocate(self, ident: str, request: JobRequest) -> Job:
        """Take hosts for a job and note the guests it will have. Raises NoRoomError or LaunchError."""
        image = current_image(Path(self._settings.sysimage))
        terms = self._terms(request, image)
        with self._store.change() as state:
            hosts = placement.choose_hosts(state, request, self._settings.spares, self._settings.reserve_kb, terms)
            job = Job(ident, request, "allocating", created=time.time(), image=image.digest)
            state.forget_old_jobs()
            state.jobs[ident] = job
            for host in hosts:
                host.pool, host.reason = "allocated", ident
                idle = sorted(
                    guest.name
                    for guest in state.guests.values()
                    if guest.host == host.name and placement.fits(state, guest, request, terms)
                )[: request.guests_per_host]
                for name in idle:
                    state.guests[name].job = ident
                job.guests += idle
                for _ in range(request.guests_per_host - len(idle)):
                    job.guests.append(self._new_guest(state, host.name, request, ident).name)
        return job

    def launch(self, ident: str, afresh: bool = False) -> None:
        """Start the guests that a job still lacks; the job is ready or failed afterwards.

        ``afresh``: an earlier life of this service may have begun to start them.
        """
        trouble = ""
        try:
            if afresh:
                self._remove_on_hosts(self._guests_of(ident, "booting"))
            self._remove_strangers(ident)
            self._start_missing(ident)
        except (LaunchError, placement.NoRoomError) as error:
            trouble = f"its guests could not be started: {error}"
        except Exception as error:  # whatever it was, the user must read it and the hosts be free again
            log.exception("job %s could not be launched", ident)
            trouble = f"its guests could not be started: {type(error).__name__}: {error}"
        with self._store.change() as state:
            job = state.jobs[ident]
            if job.state == "allocating" and not trouble:
                job.state = "ready"
                job.known_hosts = "".join(
                    f"{state.guests[name].address},{name} {state.public_keys[name]}\n" for name in job.guests
                )
                return
        self.end(ident, "failed", 1, trouble)
        self.clear(ident)

    def end(self, ident: str, how: str, exit_status: int | None, message: str) -> None:
        """Note a job's end; its guests stay for the next job, its hosts are free again.

        While its guests are being started the hosts stay with the job: `launch` ends with `clear`.
        """
        with self._store.change() as state:
            job = state.jobs[ident]
            if job.state in ENDED:
                return
            launching = job.state == "allocating"
            job.state, job.exit_status, job.message, job.ended = how, exit_status, message, time.time()
            if not launching:
                release(state, ident)
        log.info("job %s %s %s", ident, how, message)

    def clear(self, ident: str) -> None:
        """Remove the guests of an ended job that did not come up, and free its hosts."""
        absent = self._guests_of(ident, "booting")
        try:
            self._remove_on_hosts(absent)
        except Exception as error:  # they stay in the picture, as lost, until a host is rid of them
            log.warning("guests of job %s could not be removed: %s", ident, error)
            absent = []
        with self._store.change() as state:
            for guest in absent:
                state.forget(guest.name)
            release(state, ident)

    def remove(self, names: Iterable[str]) -> None:
        """Remove guests that no job uses; nobody can use them from now on. Raises LaunchError."""
        with self._store.change() as state:
            guests = [state.guests[name] for name in names if name in state.guests and not state.guests[name].job]
            for guest in guests:
                guest.state = "lost"
        self._remove_on_hosts(guests)
        with self._store.change() as state:
            for guest in guests:
                state.forget(guest.name)

    def idle_on(self, hosts: set[str]) -> list[str]:
        """Names of the guests on these hosts that no job uses."""
        return [g.name for g in self._store.membership().guests if g.host in hosts and g.job is None]

    def run_on_host(self, playbook: str, host: str, variables: dict[str, Any]) -> str:
        """Run a playbook on one host; returns why it failed, or nothing."""
        result = self._run(playbook, f"{Path(playbook).stem}-{host}", variables, 60.0)
        if result.ok and result.host_results:
            return ""
        return "; ".join(result.failures) or f"the playbook did nothing, see {result.log}"

    def _guests_of(self, ident: str, state: str) -> list[Guest]:
        return [g for g in self._store.membership().guests if g.job == ident and g.state == state]

    def _new_guest(self, state: State, host: str, request: JobRequest, job: str) -> Guest:
        name = f"g{self._store.next_number('guest'):04d}"
        address = placement.free_address(self._settings.guest_network, (g.address for g in state.guests.values()))
        place = placement.place(state, state.hosts[host], name)
        guest = Guest(
            name,
            str(uuid.uuid4()),
            host,
            address,
            request.guest_memory_kb,
            place.cores,
            place.numa_node,
            request.user,
            job=job,
        )
        state.guests[name] = guest
        return guest

    def _remove_strangers(self, ident: str) -> None:
        """Remove idle guests from the job's hosts: their memory is the job's now."""
        hosts = {guest.host for guest in self._store.membership().guests if guest.job == ident}
        self.remove(self.idle_on(hosts))

    def _remove_on_hosts(self, guests: list[Guest]) -> None:
        """Run remove.yml; a guest that its host still acts on is waited for. Raises LaunchError."""
        deadline = time.monotonic() + BOOT_S
        while guests:
            result = self._run(
                "remove.yml",
                f"remove-{guests[0].name}",
                {"remove_guests": [{"name": g.name, "host": g.host, "uuid": g.uuid} for g in guests]},
            )
            if result.ok and result.host_results:
                return
            words = "; ".join(result.failures) or f"the playbook did nothing, see {result.log}"
            if LOCKED not in words or time.monotonic() > deadline:
                raise LaunchError(words)
            time.sleep(LOCKED_LOOK_S)

    def _start_missing(self, ident: str) -> None:
        membership = self._store.membership()
        job = next(job for job in membership.jobs if job.id == ident)
        guests = [guest for guest in membership.guests if guest.job == ident]
        missing = [guest for guest in guests if guest.state == "booting"]
        if not missing:
            return
        image = current_image(Path(self._settings.sysimage))
        identities, public_keys = {}, {}
        addresses = {guest.name: guest.address for guest in guests}
        for guest in missing:
            private, public_keys[guest.name] = _host_key()
            identities[guest.name] = self._identity(guest, job.request, private, addresses)
        terms = self._terms(job.request, image)

        def up(_host: str, _task: str, result: dict[str, Any]) -> None:
            """A host's guests are ready as soon as it says so: others may take longer."""
            with self._store.change() as state:
                for name in _running(result) & public_keys.keys():
                    state.guests[name].state, state.guests[name].image = "ready", image.digest
                    state.public_keys[name], state.terms[name] = public_keys[name], terms

        result = self._run(
            "launch.yml",
            ident,
            {"launch_guests": [self._launched(guest, image) for guest in missing], "launch_identities": identities},
            BOOT_S + SECONDS_A_GUEST * len(missing),
            up,
        )
        absent = [guest.name for guest in self._guests_of(ident, "booting")]
        if not result.ok or absent:
            words = "; ".join(result.failures) or f"guests {', '.join(absent)} were not started, see {result.log}"
            raise LaunchError(words)

    def _launched(self, guest: Guest, image: Image) -> dict[str, Any]:
        boot = f"{self._settings.boot}/{image.root}"
        mask = placement.netmask(self._settings.prefix)
        return {
            "host": check_name("host", guest.host),
            "name": check_name("guest", guest.name),
            "uuid": guest.uuid,
            "memory_kb": guest.memory_kb,
            "vcpus": len(guest.cores),
            "cores": guest.cores,
            "numa_node": guest.numa_node,
            "address": guest.address,
            "user": guest.user,
            "image": image.digest,
            "kernel": f"{boot}/vmlinuz",
            "initrd": f"{boot}/initrd.img",
            "cmdline": (
                f"console=ttyS0 net.ifnames=0 ip={guest.address}:::{mask}:{guest.name}:eth0:off "
                f"nfsroot={self._settings.head_address}:{self._settings.sysimage},vers=3,nolock,tcp "
                f"failavoid.image={image.digest} failavoid.class=guest init={image.init} {image.arguments}"
            ).strip(),
        }

    def _identity(self, guest: Guest, request: JobRequest, ssh_key: str, addresses: dict[str, str]) -> dict[str, Any]:
        head = self._settings.head_address
        return {
            **self._common(request),
            "name": guest.name,
            "uuid": guest.uuid,
            "address": guest.address,
            "ssh_host_key": ssh_key,
            "agent": {
                "node": guest.name,
                "kind": "guest",
                "token": mint(self._secret, "guest", guest.name, guest.uuid),
                "monitor": f"{head}:7411",
                "controller": f"https://{head}:7413",
                "authority": GUEST_AUTHORITY,
                "interval_s": self._settings.guest_interval_s,
            },
            "hosts": {**addresses, "head": head},
        }

    def _common(self, request: JobRequest) -> dict[str, Any]:
        """The part of an identity that all guests of a job share."""
        return {
            "authority": self._authority(),
            "prefix": self._settings.prefix,
            "user": {"name": request.user, "uid": request.uid, "gid": request.gid},
            "authorized_keys": [request.public_key],
            "root_authorized_keys": self._settings.guest_root_keys,
            "mounts": self._settings.guest_mounts,
        }

    def _authority(self) -> str:
        """The site's authority (PEM), by which guests know the services. Raises LaunchError."""
        try:
            return Path(self._settings.tls.authority).read_text()
        except OSError as error:
            raise LaunchError(
                f"guests can't be told the site's authority: {self._settings.tls.authority}: {error.strerror}; "
                "the role hypervisor installs it (tasks_from head.yml)"
            ) from error

    def _terms(self, request: JobRequest, image: Image) -> str:
        """A digest of what a guest is told at its boot: one that was told something else can't serve this job."""
        told = [
            self._common(request),
            image.digest,
            self._settings.head_address,
            self._settings.guest_interval_s,
            mint(self._secret, "guest", "terms"),  # with another secret its token is worth nothing
        ]
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]

    def _run(
        self,
        playbook: str,
        ident: str,
        variables: dict[str, Any],
        timeout: float = 300.0,
        on_event: OnEvent | None = None,
    ) -> PlaybookResult:
        logs = Path(self._settings.state) / "logs"
        for old in sorted(logs.glob("*.log"), key=lambda path: path.stat().st_mtime)[:-LOGS]:
            old.unlink(missing_ok=True)
        inventory = Path(self._settings.inventory)
        try:
            return run_playbook(playbook, inventory, variables, ident, logs, timeout, on_event=on_event)
        except OSError as error:
            raise LaunchError(f"{playbook} could not be run: {error}") from error


def release(state: State, ident: str) -> None:
    """Part a job from its guests; those that did not come up are nobody's to use."""
    for guest in state.guests.values():
        if guest.job == ident:
            guest.job = None
            if guest.state == "booting":
                guest.state = "lost"
    free_hosts(state)


def free_hosts(state: State) -> None:
    """Give hosts back that no job uses: allocated ones without a job's guest. Leases keep their own mark."""
    used = {guest.host for guest in state.guests.values() if guest.job}
    for host in state.hosts.values():
        if host.pool == "allocated" and host.name not in used:
            host.pool, host.reason = "free", ""


def _host_key() -> tuple[str, str]:
    """A guest's SSH host key: private and public part, as OpenSSH writes them."""
    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    ).decode()
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH).decode()
    return private, public


def _running(result: dict[str, Any]) -> set[str]:
    """The guests that a task's result names as running, pinned as they should be."""
    guests = [guest for guest in result.get("guests") or [] if isinstance(guest, dict)]
    return {str(guest["guest"]) for guest in guests if guest.get("state") == "running" and guest.get("pin_verified")}
