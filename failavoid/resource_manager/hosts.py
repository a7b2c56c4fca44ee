"""What is done with hosts: drained, suspected, retired, restored. Each mark has its owner."""

from __future__ import annotations

import logging
import threading
import time
from collections import defaultdict
from collections.abc import Callable

import httpx

from failavoid.resource_manager import background, hooks, leases, placement
from failavoid.resource_manager.guests import Guests
from failavoid.resource_manager.settings import Settings
from failavoid.resource_manager.state import PROGRAM, State, held, mark, unmark
from failavoid.resource_manager.store import Store
from failavoid.services import client
from failavoid.shared.messages import Host
from failavoid.shared.names import check_name
from failavoid.shared.tokens import Identity, mint

log = logging.getLogger(__name__)

HEARD_S = 30.0  # a host's last sample may be so old
COMMANDS_S = 15.0  # the site's commands are waited for; the controller and the command line wait 30 s for an answer
Heard = Callable[[str], str]  # a host's name -> why its agent is not heard, or nothing


class HostError(Exception):
    """What can't be done with a host: ``status`` as in HTTP, and what, why and the way out."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def who(caller: Identity) -> str:
    """A caller as the owner of marks, and in the audit log."""
    return f"{caller.role} {caller.subject}"


class Hosts:
    """Acts on hosts, one playbook a host at a time."""

    def __init__(self, settings: Settings, store: Store, guests: Guests, heard: Heard) -> None:
        self._settings = settings
        self._store = store
        self._guests = guests
        self._heard = heard
        self._acting: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
        self._commands: dict[str, hooks.UnderWay] = {}  # of hosts: the site's last that must succeed
        self._commands_lock = threading.Lock()

    def drain(self, name: str, reason: str, caller: Identity) -> Host:
        """No new work for a host; jobs and guests on it go on."""
        return self._mark(name, "drained", reason or f"drained by {caller.subject}", caller)

    def suspect(self, name: str, reason: str, evacuation: str, job: str, caller: Identity) -> Host:
        """No new work for a host that may be failing; the site's commands for alarms are run."""
        reason = reason or f"suspected by {caller.subject}"
        host = self._mark(name, "suspect", reason, caller)
        self._run_behind(hooks.Occasion("alarm", name, reason, evacuation, job))
        return host

    def trust(self, name: str, caller: Identity) -> Host:
        """Take the caller's own suspicion back; other marks stay."""
        with self._store.change() as state:
            host = _host(state, name)
            if unmark(host, "suspect", who(caller)):
                state.note(who(caller), "host trusted", host=name)
            return host

    def _mark(self, name: str, kind: str, reason: str, caller: Identity) -> Host:
        with self._store.change() as state:
            host = _host(state, name)
            mark(host, kind, who(caller), reason, by_program=caller.role == "service")
            state.note(who(caller), f"host {kind}", host=name, reason=reason)
            return host

    # -- out of service --------------------------------------------------------------------------------------------

    def retire(self, name: str, reason: str, evacuation: str, job: str, caller: Identity) -> None:
        """Take a host without work out of service; the host itself is marked later. Raises HostError."""
        reason = reason or f"retired by {caller.subject}"
        with self._store.view() as state:
            self._refuse_retirement(state, name, caller)
        occasion = hooks.Occasion("retire", name, reason, evacuation, job)
        self._run_before(occasion)
        with self._store.change() as state:
            self._refuse_retirement(state, name, caller)
            mark(state.hosts[name], "retired", who(caller), reason, by_program=caller.role == "service")
            state.note(who(caller), "host retired", host=name, reason=reason)
        background.start(f"retire {name}", self._mark_on_host, name, reason, who(caller))
        self._run_after(occasion)

    def _refuse_retirement(self, state: State, name: str, caller: Identity) -> None:
        _host(state, name)
        left = [guest.name for guest in state.guests_on(name) if guest.job]
        if left:
            raise HostError(409, f"{name} still has guests of jobs: {', '.join(left)}. Evacuate it first")
        if state.hosts[name].pool == "allocated":
            raise HostError(409, f"{state.hosts[name].reason} runs on {name} without guests: wait for its end")
        holder = next((one for one in state.leases.values() if name in held(one)), None)
        if holder and caller.role != "service":  # the controller sets the spare of a failed move aside
            raise HostError(409, f"{name} is the spare of {holder.evacuation}: wait for its end")

    def _mark_on_host(self, name: str, reason: str, owner: str) -> None:
        """Mark the host itself. It is failing: that it does not take the mark is noted and changes nothing."""
        words = "".join(letter for letter in reason if letter.isalnum() or letter in " .,:;%()/-_")
        with self._acting[name]:
            self._guests.remove_idle(name)
            trouble = self._guests.run_on_host("retire.yml", name, {"retire_host": name, "retire_reason": words})
        if not trouble:
            return
        log.warning("host %s could not be marked as retired: %s", name, trouble)
        with self._store.change() as state:
            for known in state.hosts[name].marks if name in state.hosts else []:
                if (known.kind, known.who) == ("retired", owner):
                    known.reason = f"{reason}; not marked on the host: {trouble}"

    # -- back to service -------------------------------------------------------------------------------------------

    def restore(self, name: str, caller: Identity) -> None:
        """Check a marked host; if all is well its marks go, whoever's they are. Raises HostError."""
        with self._store.view() as state:
            host = _host(state, name)
            if not host.marks:
                raise HostError(409, f"{name} is {host.pool} and has no mark: there is nothing to restore")
            reason, retired = host.reason, host.pool == "defunct"
            before = [(known.kind, known.who) for known in host.marks]
        with self._acting[name]:
            if retired:
                self._guests.remove_idle(name)
            trouble = self._check(name)
        if trouble:
            raise HostError(409, f"{name} is not restored: {trouble}")
        occasion = hooks.Occasion("restore", name, reason)
        self._run_before(occasion)
        with self._store.change() as state:
            host = _host(state, name)
            # a mark that came during the checks is news that they knew nothing of
            host.marks = [known for known in host.marks if (known.kind, known.who) not in before]
            state.differences = {key: one for key, one in state.differences.items() if one.host != name}
            for lease in [lease for lease in state.leases.values() if name in held(lease) and retired]:
                leases.give_back(state, lease)
            state.note(who(caller), "host restored", host=name, reason=reason)
        self._forget_commands(self._commands.get(name))  # the next act is another, even if its reason is the same
        self._run_after(occasion)

    def _check(self, name: str) -> str:
        """Why a host can't return, or nothing: what it says itself, then what the monitor hears of it."""
        with self._store.view() as state:
            host = state.hosts[name]
            expected = [guest for guest in state.guests_on(name) if guest.state != "lost" or guest.job]
            coming = sorted(guest for guest, place in state.reserved.items() if place.host == name)
            taken = sum(guest.memory_kb for guest in expected if not guest.hugepage_kb)
            free = placement.room_kb(host, self._settings) - taken
        variables = {
            "restore_host": check_name("host", name),
            "restore_guests": [check_name("guest", guest.name) for guest in expected],
            "restore_coming": [check_name("guest", guest) for guest in coming],
            "restore_available_kb": int(max(0, free) * self._settings.restore_memory_share),
        }
        troubles = [self._guests.run_on_host("restore.yml", name, variables), self._heard(name)]
        return "; ".join(filter(None, troubles))

    # -- the site's commands ---------------------------------------------------------------------------------------

    def _run_before(self, occasion: hooks.Occasion) -> None:
        """Run the commands that may stop the act, if the site has it so. Raises HostError.

        They may take longer than a caller waits: who asks again hears how they end, and does not have them run again
        where they have succeeded.
        """
        if not self._settings.hooks.must_succeed:
            return
        name = occasion.host
        with self._commands_lock:
            commands = self._commands.get(name)
            if commands is None or (commands.ended.is_set() and not commands.occasion.is_same(occasion)):
                commands = self._commands[name] = hooks.UnderWay(occasion)
                background.start(f"hooks {name}", commands.run, self._settings.hooks)
        if not commands.occasion.is_same(occasion) or not commands.ended.wait(COMMANDS_S):
            raise HostError(
                503, f"{name}: the site's commands for the {commands.occasion.event} are still running: ask again later"
            )
        if commands.failures:
            self._forget_commands(commands)  # who asks again has them run again
            raise HostError(
                409, f"{name}: the site's commands stopped the {occasion.event}: {'; '.join(commands.failures)}"
            )

    def _forget_commands(self, commands: hooks.UnderWay | None) -> None:
        with self._commands_lock:
            if commands and commands.ended.is_set() and self._commands.get(commands.occasion.host) is commands:
                del self._commands[commands.occasion.host]

    def _run_after(self, occasion: hooks.Occasion) -> None:
        if not self._settings.hooks.must_succeed:
            self._run_behind(occasion)

    def _run_behind(self, occasion: hooks.Occasion) -> None:
        """Run commands without waiting for them: that they fail is reported and stops nothing."""

        def report() -> None:
            failures = hooks.run(self._settings.hooks, occasion)
            if failures:
                with self._store.change() as state:
                    state.note(PROGRAM, "hook failed", host=occasion.host, event=occasion.event, failures=failures)

        background.start(f"hooks {occasion.host}", report)


def _host(state: State, name: str) -> Host:
    if name not in state.hosts:
        raise HostError(404, f"there is no host {name}")
    return state.hosts[name]


def heard_by_monitor(url: str, secret: bytes, authority: str = "") -> Heard:
    """A check of whether the monitor hears a host's agent. Raises SettingsError."""
    monitor = client(url, mint(secret, "service", PROGRAM), authority, timeout=5.0)

    def heard(name: str) -> str:
        try:
            answer = monitor.get("/samples")
            answer.raise_for_status()
            times = [sample["time"] for sample in answer.json() if (sample["node"], sample["kind"]) == (name, "host")]
        except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
            return f"the monitor can't be asked whether it hears {name}'s agent: {error}"
        if not times:
            return f"the monitor has heard nothing of {name}'s agent: see 'systemctl status failavoid-agent' there"
        age = time.time() - max(times)
        if age > HEARD_S:
            return f"the monitor has not heard {name}'s agent for {age:.0f} s: see 'systemctl status failavoid-agent'"
        return ""

    return heard
