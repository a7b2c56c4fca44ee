"""The resource manager's parts, put together."""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from failavoid.resource_manager import background, leases
from failavoid.resource_manager.guests import Guests
from failavoid.resource_manager.heartbeats import Heartbeats
from failavoid.resource_manager.hosts import Heard, Hosts, heard_by_monitor
from failavoid.resource_manager.identity import Identities
from failavoid.resource_manager.jobs import Jobs
from failavoid.resource_manager.relocation import Relocate, Relocations, by_controller
from failavoid.resource_manager.requests import AccountOf, account_on_head
from failavoid.resource_manager.settings import Settings
from failavoid.resource_manager.state import ENDED, PROGRAM, mark, unmark
from failavoid.resource_manager.store import Store
from failavoid.resource_manager.warm_pool import WarmPools
from failavoid.resource_manager.watch import Look, Watch, domains
from failavoid.shared.messages import Host

log = logging.getLogger(__name__)

TIDY_S = 5.0
GONE = "not in the settings any more"


@dataclass
class Manager:
    """What the API and the threads work with."""

    settings: Settings
    secret: bytes
    store: Store
    guests: Guests
    jobs: Jobs
    hosts: Hosts
    warm_pools: WarmPools
    watch: Watch
    heartbeats: Heartbeats
    account_of: AccountOf

    def recover(self) -> None:
        """After a restart: jobs that were being launched are launched on, what ended meanwhile is cleared.

        So are guests that nobody can use: whether warm ones came up was not heard, and their removal may have been cut
        short. Each host's by itself, for one that does not answer keeps only its own.
        """
        membership = self.store.membership()
        held = {guest.job for guest in membership.guests}
        for job in membership.jobs:
            if job.state == "allocating":
                log.warning("job %s was being launched when this service ended: launching it again", job.id)
                background.start(f"launch {job.id}", self.jobs.launch, job.id, True)
            elif job.state in ENDED and job.id in held:
                background.start(f"clear {job.id}", self.jobs.clear, job.id)
        cut_short: dict[str, list[str]] = {}
        for guest in membership.guests:
            if guest.job is None and guest.state in ("booting", "lost"):
                cut_short.setdefault(guest.host, []).append(guest.name)
        for host, names in cut_short.items():
            background.start(f"clear {host}", self.guests.remove_as_far_as_possible, names)

    def tidy(self, stop: threading.Event) -> None:
        """End leases and jobs that nobody renewed, again and again until ``stop``; for a thread of its own."""
        while not stop.wait(TIDY_S):
            try:
                self.expire_leases(time.time())
                self.end_silent_jobs()
            except sqlite3.Error:
                log.exception("leases and jobs could not be looked at")

    def expire_leases(self, now: float) -> None:
        """Give back leases that nobody renewed."""
        with self.store.change() as state:
            for lease in leases.expire(state, now):
                log.warning("lease %s of host %s for %s has expired", lease.id, lease.host, lease.evacuation)
                state.note(PROGRAM, "lease expired", lease=lease.id, host=lease.host, evacuation=lease.evacuation)

    def end_silent_jobs(self) -> None:
        """End jobs whose client is gone. Their programs may still run: the guests are removed."""
        with self.store.view() as state:
            live = [job.id for job in state.jobs.values() if job.state not in ENDED]
        for job in self.heartbeats.silent(live, self.settings.silence_s):
            message = (
                f"its 'failavoid run' was not heard for {self.settings.silence_s:.0f} s: it was killed or stopped, so "
                "the job was ended"
            )
            spoiled = self.jobs.end(job, "failed", None, message, PROGRAM, spoiled=True)
            background.start(f"remove guests of {job}", self.guests.remove_as_far_as_possible, spoiled)


def make_manager(
    settings: Settings,
    secret: bytes,
    look: Look = domains,
    heard: Heard | None = None,
    relocate: Relocate | None = None,
    account_of: AccountOf = account_on_head,
) -> Manager:
    """Put the parts together on the state that is found. Raises OSError or sqlite3.Error if there can be none."""
    store = Store(Path(settings.state))
    take_hosts(store, settings)
    identities = Identities(settings, secret)
    guests = Guests(settings, store, identities)
    relocate = relocate or by_controller(settings.controller, secret, settings.tls.authority)
    jobs = Jobs(settings, store, guests, identities, Relocations(settings, store, guests, identities, relocate))
    hosts = Hosts(settings, store, guests, heard or heard_by_monitor(settings.monitor, secret, settings.tls.authority))
    warm_pools = WarmPools(settings, store, guests, identities)
    watch = Watch(settings, store, jobs, look)
    return Manager(settings, secret, store, guests, jobs, hosts, warm_pools, watch, Heartbeats(), account_of)


def take_hosts(store: Store, settings: Settings) -> None:
    """Bring the state's hosts in line with the settings; marks stay."""
    declared = {host.name: host for host in settings.hosts}
    with store.change() as state:
        for name, host in declared.items():
            known = state.hosts.setdefault(name, Host(name, host.address))
            known.address, known.memory_kb, known.numa = host.address, host.memory_kb, host.numa
            known.domains, known.hugepages, known.devices = host.domains, host.hugepages, host.devices
            known.hardware_class, known.reserved_spare = host.hardware_class, host.reserved_spare
            unmark(known, "retired", PROGRAM)
        used = {guest.host for guest in state.guests.values() if guest.job}
        used |= {name for job in state.jobs.values() if job.state not in ENDED for name in job.hosts}
        for name in [name for name in state.hosts if name not in declared]:
            if name in used:
                mark(state.hosts[name], "retired", PROGRAM, GONE, by_program=True)
                continue
            del state.hosts[name]
            for guest in [guest.name for guest in state.guests_on(name)]:
                state.forget(guest)
        gone = [key for key, difference in state.differences.items() if difference.host not in state.hosts]
        for key in gone:
            del state.differences[key]
