"""Guests that are booted before anybody asks, so that a job need not wait for a boot.

They boot on the free hosts that jobs are given first, and never on as many as must stay spare. A warm guest that a
job took is its user's from then on, as are all guests whose job has ended; when their user has not used them for a
while they are removed, and warm ones take their place. So are guests that were given up and could not be removed then.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from failavoid.resource_manager import placement
from failavoid.resource_manager.guests import GuestError, Guests
from failavoid.resource_manager.identity import Identities
from failavoid.resource_manager.image import ImageError
from failavoid.resource_manager.settings import Settings, WarmPool
from failavoid.resource_manager.state import State
from failavoid.resource_manager.store import Store
from failavoid.shared.messages import Guest, Host

log = logging.getLogger(__name__)

LOOK_S = 2.0
RETRY_S = 60.0  # after guests could not be started, or removed


class WarmPools:
    """Keeps the warm pools of the settings filled."""

    def __init__(self, settings: Settings, store: Store, guests: Guests, identities: Identities) -> None:
        self._settings = settings
        self._store = store
        self._guests = guests
        self._identities = identities
        self._lost_since: dict[str, float] = {}  # guests by name, on the monotonic clock: since they were seen as lost

    def keep(self, stop: threading.Event) -> None:
        """Fill the pools again and again until ``stop``; for a thread of its own."""
        pause = LOOK_S
        while not stop.wait(pause):
            pause = LOOK_S
            try:
                self.once()
            except (GuestError, ImageError) as error:
                log.warning("the warm pools could not be kept, again in %.0f s: %s", RETRY_S, error)
                pause = RETRY_S
            except Exception:
                log.exception("the warm pools could not be kept")
                pause = RETRY_S

    def once(self) -> None:
        """Remove what has been idle for long or is of no use any more, start what is missing.

        A host that does not let go of its guests keeps nobody else from theirs.
        """
        self._guests.remove_as_far_as_possible(self._outdated())
        self._guests.remove_as_far_as_possible(self._left_over(), patience_s=0.0)
        for pool in self._settings.warm_pools:
            started = self._add(pool)
            if not started:
                continue
            try:
                self._guests.start(started, None, {}, f"warm-{started[0].name}")
            finally:
                self._guests.remove_as_far_as_possible(self._absent({guest.name for guest in started}))

    def _outdated(self) -> list[str]:
        """Guests that nobody has used for long, and warm ones that were told what is not true any more."""
        over = time.time() - self._settings.idle_guest_s
        wanted = {(_size_of(pool), pool.user) for pool in self._settings.warm_pools if pool.guests}
        warm = set(self._names(lambda guest: guest.state == "warm"))
        terms = self._identities.terms(None, self._guests.image().digest) if warm else ""
        with self._store.view() as state:
            stale = {
                name
                for name in warm & state.guests.keys()
                if state.terms.get(name) != terms or _kind_of(state.guests[name]) not in wanted
            }
        idle = self._names(lambda guest: guest.state != "lost" and (guest.idle_since or over) < over)
        return self._in_reach(stale | set(idle))

    def _left_over(self) -> list[str]:
        """Guests that were given up a while ago and are still in the picture: who was to remove them could not."""
        now = time.monotonic()
        lost = self._in_reach(set(self._names(lambda guest: guest.state == "lost")))
        self._lost_since = {name: self._lost_since.get(name, now) for name in lost}
        over = [name for name in lost if now - self._lost_since[name] >= RETRY_S]
        for name in over:
            del self._lost_since[name]  # if they stay, they are tried as much later again
        return over

    def _in_reach(self, names: set[str]) -> list[str]:
        """Those of the guests whose hosts are in service and not known to be silent: others wait for that."""
        with self._store.view() as state:
            defunct = {host.name for host in state.hosts.values() if host.pool == "defunct"}
            silent = {one.host for one in state.differences.values() if not one.guest}
            return sorted(
                name for name in names & state.guests.keys() if state.guests[name].host not in defunct | silent
            )

    def _absent(self, names: set[str]) -> list[str]:
        return self._names(lambda guest: guest.name in names and guest.state not in ("warm", "ready"))

    def _names(self, chosen: Callable[[Guest], bool]) -> list[str]:
        with self._store.view() as state:
            return [guest.name for guest in state.guests.values() if guest.job is None and chosen(guest)]

    def _add(self, pool: WarmPool) -> list[Guest]:
        """Note the guests that a pool lacks, as far as there is room for them."""
        size = _size_of(pool)
        kind = (size, pool.user)
        added: list[Guest] = []
        with self._store.change() as state:
            mine = [g for g in state.guests.values() if g.job is None and _kind_of(g) == kind and _is_coming(g)]
            on = {host: sum(guest.host == host for guest in mine) for host in state.hosts}
            for host in self._hosts(state):
                if any(guest.state == "lost" for guest in state.guests_on(host.name)):
                    continue  # it may still run there: its memory is not free before it is removed
                while len(mine) + len(added) < pool.guests and on[host.name] < pool.per_host:
                    guest = self._guest(state, host, size, pool.user)
                    if guest is None:
                        break
                    on[host.name] += 1
                    added.append(guest)
        return added

    def _hosts(self, state: State) -> list[Host]:
        """The hosts that jobs would be given now, in that order."""
        leased = state.leased()
        free = [host for host in state.hosts.values() if host.pool == "free" and host.name not in leased]
        kept = max(0, self._settings.spares - sum(host.reserved_spare for host in free))
        fitting = sorted((host for host in free if not host.reserved_spare), key=lambda host: host.name)
        return fitting[: max(0, len(fitting) - kept)]

    def _guest(self, state: State, host: Host, size: placement.Load, user: str) -> Guest | None:
        try:
            guest = self._guests.add(state, host.name, size, user)
        except placement.NoRoomError:
            return None
        if placement.objection(state, host, [guest], self._settings):
            state.forget(guest.name)
            return None
        return guest


def _size_of(pool: WarmPool) -> placement.Load:
    return placement.Load(1, pool.memory_kb, pool.vcpus, pool.hugepage_kb)


def _kind_of(guest: Guest) -> tuple[placement.Load, str]:
    return placement.Load.of_guest(guest), guest.user


def _is_coming(guest: Guest) -> bool:
    return guest.state in ("warm", "booting")
