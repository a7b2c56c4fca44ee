"""Guests on hosts: started by playbooks/launch.yml, removed by playbooks/remove-guests.yml.

A guest outlives its job, so that the same user's next job starts at once.
"""

from __future__ import annotations

import dataclasses
import logging
import time
import uuid
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from failavoid.playbook_runner import OnEvent, PlaybookResult, run_playbook
from failavoid.resource_manager import placement
from failavoid.resource_manager.identity import Identities, host_key
from failavoid.resource_manager.image import Image, current_image
from failavoid.resource_manager.settings import Settings
from failavoid.resource_manager.state import PROGRAM, State
from failavoid.resource_manager.store import Store
from failavoid.shared.messages import Guest, JobRequest

log = logging.getLogger(__name__)

BOOT_S = 900.0
SECONDS_A_GUEST = 30.0  # on top: many guests share cores while they boot
LOCKED = "is locked by"  # what a host says of a guest that somebody acts on
LOCKED_LOOK_S = 5.0


class GuestError(Exception):
    """Guests that could not be started or removed; the message names them and says why."""


class Guests:
    """Starts and removes guests, and keeps the mapping true to it. For any thread."""

    def __init__(self, settings: Settings, store: Store, identities: Identities) -> None:
        self._settings = settings
        self._store = store
        self._identities = identities

    def image(self) -> Image:
        """The image that guests boot now. Raises ImageError."""
        return current_image(Path(self._settings.sysimage))

    def add(self, state: State, host: str, size: placement.Load, user: str) -> Guest:
        """Note a guest that is to be started on a host. Raises NoRoomError."""
        name = f"g{self._store.next_number('guest'):04d}"
        address = placement.free_address(self._settings.guest_network, (g.address for g in state.guests.values()))
        place = placement.place(state, state.hosts[host], name, size, self._settings.share_cores)
        guest = Guest(name, str(uuid.uuid4()), host, address, size.memory_kb, place.cores, place.numa_node, user)
        guest.hardware_class = state.hosts[host].hardware_class
        guest.hugepage_kb, guest.devices = size.hugepage_kb, place.devices
        state.guests[name] = guest
        return guest

    def start(self, guests: list[Guest], request: JobRequest | None, addresses: dict[str, str], ident: str) -> None:
        """Start guests that are noted as booting; those that are up are ready, or warm. Raises GuestError, ImageError.

        ``addresses`` are those of the job's guests, by name. Some may be up although others have failed.
        """
        image = self.image()
        identities, public_keys = {}, {}
        for guest in guests:
            private, public_keys[guest.name] = host_key()
            identities[guest.name] = self._identities.at_boot(guest, request, private, addresses)
        terms = self._identities.terms(request, image.digest)
        missing = set(public_keys)

        def up(_host: str, _task: str, result: dict[str, Any]) -> None:
            """A host's guests are up as soon as it says so: others may take longer."""
            with self._store.change() as state:
                for name in _running(result) & missing & state.guests.keys():
                    if state.guests[name].state != "booting":  # given up meanwhile
                        continue
                    state.guests[name].state = "ready" if request else "warm"
                    state.guests[name].image = image.digest
                    state.public_keys[name], state.terms[name] = public_keys[name], terms
                    state.note(PROGRAM, "guest started", guest=name, host=state.guests[name].host)
            missing.difference_update(_running(result))

        launched = [self._identities.launched(guest, image) for guest in guests]
        variables = {"launch_guests": launched, "launch_identities": identities}
        result = self._run("launch.yml", ident, variables, BOOT_S + SECONDS_A_GUEST * len(guests), up)
        if not result.ok or missing:
            absent = f"guests {', '.join(sorted(missing))} were not started, see {result.log}"
            raise GuestError("; ".join(result.failures) or absent)

    def remove(self, names: Iterable[str], patience_s: float = BOOT_S) -> None:
        """Remove guests that no job uses; nobody can use them from now on. Raises GuestError.

        Guests that their hosts still act on are waited for so long.
        """
        with self._store.change() as state:
            guests = [state.guests[name] for name in names if name in state.guests and not state.guests[name].job]
            for guest in guests:
                guest.state = "lost"
        self.remove_on_hosts(guests, patience_s)
        with self._store.change() as state:
            for guest in guests:
                state.forget(guest.name)
                state.note(PROGRAM, "guest removed", guest=guest.name, host=guest.host)

    def remove_as_far_as_possible(self, names: list[str], patience_s: float = BOOT_S) -> None:
        """Remove guests that no job uses; that it fails is logged, and they stay in the picture as lost.

        Where one run for all fails, each host's go by themselves: one that does not answer keeps only its own.
        """
        with self._store.view() as state:
            places = {name: state.guests[name].host for name in names if name in state.guests}
        hosts = sorted(set(places.values()))
        try:
            self.remove(places, patience_s)
        except GuestError as error:
            if len(hosts) < 2:
                log.warning("guests %s could not be removed from %s: %s", ", ".join(places), *hosts, error)
                return
            for host in hosts:
                self.remove_as_far_as_possible([name for name in places if places[name] == host], patience_s)

    def remove_on_hosts(self, guests: list[Guest], patience_s: float = BOOT_S) -> None:
        """Run remove-guests.yml; a guest that its host still acts on is waited for. Raises GuestError."""
        deadline = time.monotonic() + patience_s
        while guests:
            doomed = [{"name": guest.name, "host": guest.host, "uuid": guest.uuid} for guest in guests]
            result = self._run("remove-guests.yml", f"remove-{guests[0].name}", {"remove_guests": doomed})
            if result.ok and result.host_results:
                return
            words = "; ".join(result.failures) or f"the playbook did nothing, see {result.log}"
            if LOCKED not in words or time.monotonic() > deadline:
                raise GuestError(words)
            time.sleep(LOCKED_LOOK_S)

    def remove_idle(self, host: str, chosen: Callable[[Guest], bool] = lambda _guest: True) -> None:
        """Remove the guests of a host that no job uses; that it fails is logged, the guests stay as lost."""
        names = self.idle_on({host}, chosen)
        try:
            self.remove(names)
        except GuestError as error:
            log.warning("idle guests could not be removed from %s: %s", host, error)

    def idle_on(self, hosts: set[str], chosen: Callable[[Guest], bool] = lambda _guest: True) -> list[str]:
        """Names of the guests on these hosts that no job uses."""
        with self._store.view() as state:
            return [g.name for g in state.guests.values() if g.host in hosts and g.job is None and chosen(g)]

    def of_job(self, job: str, state: str) -> list[Guest]:
        """The guests of a job that are in that state, as copies."""
        with self._store.view() as known:
            return [dataclasses.replace(g) for g in known.guests.values() if g.job == job and g.state == state]

    def run_on_host(self, playbook: str, host: str, variables: dict[str, Any]) -> str:
        """Run a playbook on one host; returns why it failed, or nothing."""
        try:
            result = self._run(playbook, f"{Path(playbook).stem}-{host}", variables, 60.0)
        except GuestError as error:
            return str(error)
        if result.ok and result.host_results:
            return ""
        return "; ".join(result.failures) or f"the playbook did nothing, see {result.log}"

    def _run(
        self,
        playbook: str,
        ident: str,
        variables: dict[str, Any],
        timeout: float = 300.0,
        on_event: OnEvent | None = None,
    ) -> PlaybookResult:
        logs = Path(self._settings.state) / "logs"
        inventory = Path(self._settings.inventory)
        try:
            return run_playbook(playbook, inventory, variables, ident, logs, timeout, on_event=on_event)
        except OSError as error:
            raise GuestError(f"{playbook} could not be run: {error}") from error


def _running(result: dict[str, Any]) -> set[str]:
    """The guests that a task's result names as running, pinned as they should be."""
    guests = [guest for guest in result.get("guests") or [] if isinstance(guest, dict)]
    return {str(guest["guest"]) for guest in guests if guest.get("state") == "running" and guest.get("pin_verified")}
