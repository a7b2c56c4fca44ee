"""Guests that are up already move to the hosts of the job that takes them, so that it need not wait for a boot.

Moving them is the controller's act: it is asked, and says where each guest is afterwards. Until then a guest may be at
either end, where its place is reserved. One that does not come is replaced by one that boots.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable

import httpx

from failavoid import services
from failavoid.resource_manager import placement
from failavoid.resource_manager.guests import Guests
from failavoid.resource_manager.identity import Identities
from failavoid.resource_manager.settings import Settings
from failavoid.resource_manager.state import ENDED, PROGRAM, State
from failavoid.resource_manager.store import Store
from failavoid.shared.messages import Guest, Host, Job, Placement, Relocation, RelocationRequest, from_dict, to_dict
from failavoid.shared.tokens import mint

log = logging.getLogger(__name__)

MOVED, STAYED = "moved", "failed"  # of a Migration; any other state: where the guest is is not known
LIMIT_S = 600.0  # for the controller to say what came of it
POLL_S = 25.0
RETRY_S = 1.0
CONNECT_S = 5.0  # a controller that is away for longer is not waited for, if it was not asked yet

Relocate = Callable[[RelocationRequest], dict[str, str]]  # guest -> the state of its migration


class Relocations:
    """Takes guests from other hosts for a job's hosts, and brings them there. For any thread."""

    def __init__(
        self, settings: Settings, store: Store, guests: Guests, identities: Identities, relocate: Relocate
    ) -> None:
        self._settings = settings
        self._store = store
        self._guests = guests
        self._identities = identities
        self._relocate = relocate

    def take(self, state: State, job: Job, hosts: list[Host], terms: set[str]) -> None:
        """Fill places of a job that no guest on its hosts fills with guests from hosts that it was not given."""
        leased, size = state.leased(), placement.Load.of(job.request, job.resource)
        candidates = [
            guest
            for guest in state.guests.values()
            if placement.fits(state, guest, job.request, terms)
            and guest.host not in leased
            and state.hosts[guest.host].pool == "free"
        ]
        candidates.sort(key=lambda guest: (guest.state == "warm", guest.name))
        for host in hosts:
            lacking = size.guests - len(self.places(state, job.id, host.name))
            for guest in [one for one in candidates if self._may_come(state, one, host)][:lacking]:
                load, share = placement.Load.of_guest(guest), self._settings.share_cores
                state.reserved[guest.name] = placement.place(state, host, guest.name, load, share)
                guest.job, guest.user, guest.idle_since = job.id, job.request.user, None
                guest.state = "relocating"
                candidates.remove(guest)

    def _may_come(self, state: State, guest: Guest, host: Host) -> bool:
        """Whether a guest can run on a host, and a move is cheaper than a boot by the site's word."""
        if guest.devices:  # they are given anew with a boot
            return False
        kvm = {one.name: one.kvm for one in self._settings.hosts}
        wanted = self._settings.relocate_warm
        cheaper = wanted == "always" or (wanted == "kvm" and kvm.get(guest.host, False) and kvm.get(host.name, False))
        return cheaper and placement.can_move(guest.hardware_class, host, self._settings)

    def places(self, state: State, job: str, host: str) -> list[str]:
        """The guests of a job that are on a host, or will be."""
        found = []
        for guest in state.guests.values():
            place = state.reserved.get(guest.name) if guest.state == "relocating" else None
            if guest.job == job and (place.host if place else guest.host) == host:
                found.append(guest.name)
        return sorted(found)

    def carry_out(self, ident: str) -> None:
        """Bring a job's guests to its hosts; those that do not come are replaced by ones that are to boot."""
        with self._store.view() as state:
            coming = sorted(g.name for g in state.guests.values() if g.job == ident and g.state == "relocating")
            placements = [state.reserved[name] for name in coming]
            uuids = "".join(state.guests[name].uuid for name in coming)
        if not coming:
            return
        # the same after a restart, and never that of other guests or of another job
        name = f"r-{hashlib.sha256(f'{ident} {uuids}'.encode()).hexdigest()[:16]}"
        ends = self._relocate(RelocationRequest(name, ident, placements))
        log.info("job %s: relocation %s: %s", ident, name, ends or "nothing is known")
        with self._store.change() as state:
            for placed in placements:
                if placed.guest in state.guests:
                    self._settle(state, state.guests[placed.guest], placed, ends.get(placed.guest, ""))

    def _settle(self, state: State, guest: Guest, placed: Placement, end: str) -> None:
        """Note where a guest is; what was given up meanwhile stays given up."""
        state.reserved.pop(guest.name, None)
        if end == MOVED:
            state.note(PROGRAM, "guest relocated", guest=guest.name, source=guest.host, host=placed.host, job=guest.job)
            guest.host, guest.cores, guest.numa_node = placed.host, placed.cores, placed.numa_node
        if guest.state != "relocating" or guest.job is None:
            return
        job = state.jobs[guest.job]
        knows_user = state.terms.get(guest.name) == self._identities.terms(job.request, guest.image)
        if end == MOVED:
            guest.state = "ready" if knows_user else "assigned"
            return
        log.warning("job %s: %s did not come to %s; another one boots there", job.id, guest.name, placed.host)
        state.note(PROGRAM, "guest not relocated", guest=guest.name, host=guest.host, job=job.id)
        guest.job = None
        if end == STAYED and knows_user:
            guest.state, guest.idle_since = "ready", time.time()
        elif end == STAYED:
            guest.state, guest.user = "warm", ""
        else:
            guest.state = "lost"  # the watch says where it is found
        if job.state in ENDED:
            return
        other = self._guests.add(state, placed.host, placement.Load.of(job.request, job.resource), job.request.user)
        other.job = job.id
        job.guests[job.guests.index(guest.name)] = other.name


def by_controller(url: str, secret: bytes, authority: str = "") -> Relocate:
    """Moves by the controller's API. Guests that nothing is known of in the end are left out. Raises SettingsError."""
    client = services.client(
        url, mint(secret, "service", PROGRAM), authority, timeout=httpx.Timeout(POLL_S + 10, connect=2.0)
    )

    def relocate(request: RelocationRequest) -> dict[str, str]:
        stayed = {placed.guest: STAYED for placed in request.placements}
        began, asked, known = time.monotonic(), False, False
        while time.monotonic() - began < LIMIT_S:
            try:
                if known:
                    answer = client.get(f"/relocations/{request.id}", params={"timeout": POLL_S})
                else:
                    answer = client.post("/relocations", json=to_dict(request))
                asked = True
                if 400 <= answer.status_code < 500 and not known:
                    log.error("%s: the controller refused: %s", request.id, answer.text)
                    return stayed
                answer.raise_for_status()
                said, known = from_dict(Relocation, answer.json()), True
                if said.ended is not None:
                    return {migration.guest: migration.state for migration in said.migrations}
            except (httpx.HTTPError, ValueError) as error:
                log.warning("%s: the controller: %s; asking again", request.id, error)
                asked = asked or not isinstance(error, httpx.ConnectError)
                if not asked and time.monotonic() - began > CONNECT_S:
                    return stayed
                time.sleep(RETRY_S)
        log.error("%s: the controller did not say what came of it within %.0f s", request.id, LIMIT_S)
        return {}

    return relocate
