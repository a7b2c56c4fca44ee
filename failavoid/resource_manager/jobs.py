"""Jobs from their submission to their end: hosts, guests, and what becomes of these."""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
import uuid
from pathlib import Path

from failavoid.resource_manager import background, placement
from failavoid.resource_manager.guests import GuestError, Guests
from failavoid.resource_manager.identity import Identities
from failavoid.resource_manager.image import ImageError
from failavoid.resource_manager.relocation import Relocations
from failavoid.resource_manager.settings import Settings
from failavoid.resource_manager.state import ENDED, PROGRAM, State
from failavoid.resource_manager.store import Store
from failavoid.shared.messages import Assignment, Guest, Host, Job, JobRequest

log = logging.getLogger(__name__)

ASSIGN_S = 10.0  # for a warm guest to take its user


class Jobs:
    """Gives jobs what they run on. `launch` is for a thread of its own, if there is something to wait for."""

    def __init__(
        self, settings: Settings, store: Store, guests: Guests, identities: Identities, relocations: Relocations
    ) -> None:
        self._settings = settings
        self._store = store
        self._guests = guests
        self._identities = identities
        self._relocations = relocations
        self._assigned = threading.Condition()

    # -- the way in ------------------------------------------------------------------------------------------------

    def resource(self, request: JobRequest) -> str:
        """Guests, or hosts without any: as asked for, else by the expected time."""
        if request.resource:
            return request.resource
        below = self._settings.on_hosts_below_s
        return "hosts" if request.expected_s is not None and request.expected_s < below else "guests"

    def allocate(self, ident: str, request: JobRequest, who: str) -> Job:
        """Take hosts for a job and note the guests it will have. Raises NoRoomError or ImageError."""
        resource = self.resource(request)
        if request.guest_hugepage_kb is None:
            request = dataclasses.replace(request, guest_hugepage_kb=self._settings.guest_hugepage_kb)
        terms: set[str] = set()
        if resource == "guests":
            image = self._guests.image()
            terms = {self._identities.terms(told, image.digest) for told in (request, None)}
        with self._store.change() as state:
            hosts = placement.choose_hosts(state, request, self._settings, resource, terms)
            job = Job(ident, request, "allocating", created=time.time(), resource=resource)
            state.forget_old_jobs(self._settings.ended_jobs, time.time())
            state.jobs[ident] = job
            names = [host.name for host in hosts]
            taken = [guest for host in hosts for guest in self._waiting(state, host, job, terms)]
            for guest in taken:
                guest.job, guest.idle_since = ident, None
                if guest.state == "warm":
                    guest.user, guest.state = request.user, "assigned"
            for guest in state.guests.values():
                if guest.host in names and guest.job is None:
                    guest.state = "lost"  # its memory and cores are the job's
            if resource == "hosts":
                job.hosts = names
            else:
                job.image = image.digest
                self._relocations.take(state, job, hosts, terms)
                job.guests = [name for host in names for name in self._with_new_guests(state, host, job)]
            state.note(who, "job submitted", job=ident, user=request.user, resource=resource, hosts=names)
        return job

    def _waiting(self, state: State, host: Host, job: Job, terms: set[str]) -> list[Guest]:
        """Guests on a host that a job can use: first those that were its user's, then warm ones."""
        if job.resource == "hosts":
            return []
        found = [g for g in state.guests_on(host.name) if placement.fits(state, g, job.request, terms)]
        found.sort(key=lambda guest: (guest.state == "warm", guest.name))
        return found[: job.request.guests_per_host]

    def _with_new_guests(self, state: State, host: str, job: Job) -> list[str]:
        """Names of a job's guests that are on a host, or will be; those that it lacks are added."""
        names = self._relocations.places(state, job.id, host)
        size = placement.Load.of(job.request, job.resource)
        while len(names) < size.guests:
            guest = self._guests.add(state, host, size, job.request.user)
            guest.job = job.id
            names.append(guest.name)
        return names

    def waits(self, ident: str) -> bool:
        """Whether a job has to wait for guests; otherwise `launch` has nothing to wait for."""
        return any(self._guests.of_job(ident, state) for state in ("booting", "relocating", "assigned"))

    def launch(self, ident: str, afresh: bool = False) -> None:
        """Have the guests that a job still lacks; the job is ready or failed afterwards.

        ``afresh``: an earlier life of this service may have begun to start them.
        """
        trouble, has_room = "", False
        try:
            if afresh:
                self._guests.remove_on_hosts(self._guests.of_job(ident, "booting"))
            if self._guests.of_job(ident, "booting") or self._guests.of_job(ident, "relocating"):
                self._make_room(ident)  # before they come; otherwise the job need not wait for that
                has_room = True
                self._relocations.carry_out(ident)
                self._start_missing(ident)
            self._await_assigned(ident)
        except (GuestError, ImageError, placement.NoRoomError) as error:
            trouble = f"its guests could not be started: {error}"
        except Exception as error:  # whatever it was, the user must read it and the hosts be free again
            log.exception("job %s could not be launched", ident)
            trouble = f"its guests could not be started: {type(error).__name__}: {error}"
        with self._store.change() as state:
            job = state.jobs[ident]
            ready = job.state == "allocating" and not trouble
            if ready:
                job.state = "ready"
                job.known_hosts = self._known_hosts(state, job)
                state.note(PROGRAM, "job ready", job=ident, guests=job.guests, hosts=job.hosts)
        if not ready:
            self.end(ident, "failed", 1, trouble, PROGRAM)
            self.clear(ident)
        elif not has_room:
            background.start(f"make room for {ident}", self.make_room, ident)

    def make_room(self, ident: str) -> None:
        """Remove the guests that no job uses from a job's hosts; that it fails is logged."""
        try:
            self._make_room(ident)
        except GuestError as error:
            log.warning("job %s: idle guests could not be removed from its hosts: %s", ident, error)

    def _make_room(self, ident: str) -> None:
        with self._store.view() as state:
            hosts = {host for host in state.hosts if self._relocations.places(state, ident, host)}
            hosts |= set(state.jobs[ident].hosts)
        self._guests.remove(self._guests.idle_on(hosts))

    def _start_missing(self, ident: str) -> None:
        missing = self._guests.of_job(ident, "booting")
        if missing:
            request, addresses = self._told(ident)
            self._guests.start(missing, request, addresses, ident)

    def _told(self, ident: str) -> tuple[JobRequest, dict[str, str]]:
        with self._store.view() as state:
            addresses = {guest.name: guest.address for guest in state.guests.values() if guest.job == ident}
            return state.jobs[ident].request, addresses

    def _known_hosts(self, state: State, job: Job) -> str:
        if job.resource == "guests":
            return "".join(f"{state.guests[name].address},{name} {state.public_keys[name]}\n" for name in job.guests)
        try:
            lines = Path(self._settings.host_keys).read_text().splitlines()
        except OSError as error:
            log.warning("job %s: the hosts' SSH keys can't be read: %s", job.id, error)
            return ""
        names = {state.hosts[name].address: name for name in job.hosts}
        found = [line.partition(" ") for line in lines]
        return "".join(f"{address},{names[address]} {key}\n" for address, _, key in found if address in names)

    # -- warm guests -----------------------------------------------------------------------------------------------

    def assignment(self, guest: Guest) -> Assignment | None:
        """What a warm guest is to be told of the job that took it; None while none did."""
        if guest.state != "assigned" or guest.job is None:
            return None
        request, addresses = self._told(guest.job)
        return self._identities.assignment(guest.job, request, addresses)

    def assigned(self, name: str, trouble: str) -> None:
        """A warm guest says that it has taken its user, or why it could not."""
        with self._store.change() as state:
            guest = state.guests[name]
            if guest.state != "assigned" or guest.job is None:
                return
            if trouble:
                log.error("guest %s, job %s: the guest could not take its user: %s", name, guest.job, trouble)
                guest.state = "booting"  # `launch` starts another in its place
            else:
                guest.state = "ready"
                state.terms[name] = self._identities.terms(state.jobs[guest.job].request, guest.image)
        with self._assigned:
            self._assigned.notify_all()

    def _await_assigned(self, ident: str) -> None:
        """Wait for warm guests to take their user; those that do not are replaced by new ones."""
        with self._assigned:
            self._assigned.wait_for(lambda: not self._guests.of_job(ident, "assigned"), ASSIGN_S)
        with self._store.change() as state:
            late = [g for g in state.guests.values() if g.job == ident and g.state == "assigned"]
            for guest in late:
                log.error("guest %s, job %s: it did not take its user within %.0f s", guest.name, ident, ASSIGN_S)
                guest.state = "booting"
        replaced = self._guests.of_job(ident, "booting")
        if not replaced:
            return
        self._guests.remove_on_hosts(replaced)
        with self._store.change() as state:
            for guest in replaced:
                if guest.name in state.guests:
                    state.guests[guest.name].uuid = str(uuid.uuid4())
        self._start_missing(ident)

    # -- the end ---------------------------------------------------------------------------------------------------

    def end(
        self, ident: str, how: str, exit_status: int | None, message: str, who: str, spoiled: bool = False
    ) -> list[str]:
        """Note a job's end; its guests stay for the next job, its hosts are free again.

        While its guests are being started the hosts stay with the job: `launch` ends with `clear`. Guests that are
        ``spoiled``, because programs of the job may still run there, are nobody's to use: the names of those that the
        caller is to remove are returned.
        """
        with self._store.change() as state:
            job = state.jobs[ident]
            if job.state in ENDED:
                return []
            launching = job.state == "allocating"
            job.state, job.exit_status, job.message, job.ended = how, exit_status, message, time.time()
            job.known_hosts = ""  # the longest part of a job, which nobody needs any more
            doomed = [guest for guest in state.guests.values() if guest.job == ident] if spoiled else []
            for guest in doomed:
                if guest.state != "booting":
                    guest.state = "lost"
            if not launching:
                release(state, ident)
            state.note(who, "job ended", job=ident, state=how, exit_status=exit_status, message=message)
        with self._assigned:
            self._assigned.notify_all()
        log.info("job %s %s %s", ident, how, message)
        return [guest.name for guest in doomed]

    def clear(self, ident: str) -> None:
        """Remove the guests of an ended job that did not come up, and free its hosts."""
        self._relocations.carry_out(ident)  # where an earlier life of this service had begun it
        absent = self._guests.of_job(ident, "booting") + self._guests.of_job(ident, "assigned")
        try:
            self._guests.remove_on_hosts(absent)
        except Exception as error:  # they stay in the picture, as lost, until a host is rid of them
            log.warning("guests of job %s could not be removed: %s", ident, error)
            absent = []
        with self._store.change() as state:
            for guest in absent:
                state.forget(guest.name)
            release(state, ident)


def release(state: State, ident: str) -> None:
    """Part a job from its guests; those that did not come up are nobody's to use."""
    for guest in state.guests.values():
        if guest.job == ident:
            guest.job, guest.idle_since = None, time.time()
            if guest.state != "ready":
                guest.state = "lost"
