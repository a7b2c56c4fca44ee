"""What is best done for the guests on a host that is about to fail, estimated before anything is stopped.

A move sends the guest's memory, then again what was written meanwhile, and so on. With bandwidth B and dirty rate D the
rounds form a geometric series: memory M takes M / (B - D) (Clark et al., "Live Migration of Virtual Machines",
NSDI 2005, section 5). Guests that move at the same time share the source's link, so their times add up. Ranks that wait
at the barrier write next to nothing, while a dirty rate was measured when they ran: the estimate errs to the long side.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from failavoid.controller.libvirt_view import GuestFacts
from failavoid.controller.limits import Policy
from failavoid.shared.messages import Alarm, Evacuation, Guest, GuestPlan, Host, Job, Plan
from failavoid.shared.words import plural

MIGRATE, CHECKPOINT, NOTHING, OFF = "migrate", "checkpoint", "nothing helps", "off"
_LATEST_MOVES = 10
_LEAST_SHARE = 0.1  # of the bandwidth: auto-converge slows a guest down that writes faster than is sent


@dataclass
class Planner:
    """Makes plans; ``facts`` asks the libvirt of the host at an address."""

    facts: Callable[[str], dict[str, GuestFacts] | None]
    policy: Policy

    def plan(
        self,
        host: Host,
        job: Job,
        guests: list[Guest],
        lead_s: float | None,
        past: list[Evacuation],
        others: list[Host],
    ) -> Plan:
        """Plan for a job's guests on a host that fails in ``lead_s`` seconds.

        ``past`` tells how fast moves were, ``others`` are the hosts that guests may go to.
        """
        bandwidth, source = self._bandwidth(past)
        policy = job.request.policy
        if job.resource == "hosts":
            decision = OFF if policy == "off" else CHECKPOINT
            reasons = [f"the job runs on {host.name} itself, without guests: nothing of it can move"]
            reasons += [f"the job's policy is {policy}"] if policy == "off" else []
            at_risk = [GuestPlan(host.name, 0, 0.0)]
            return Plan(host.name, job.id, decision, reasons, 0.0, lead_s, bandwidth, at_risk)
        if policy != "migrate":
            decision = OFF if policy == "off" else CHECKPOINT
            at_risk = [estimate(guest, None, bandwidth) for guest in guests]
            return Plan(host.name, job.id, decision, [f"the job's policy is {policy}"], 0.0, lead_s, bandwidth, at_risk)
        known = self.facts(host.address)
        planned = [estimate(guest, (known or {}).get(guest.name), bandwidth) for guest in guests]
        needed = round(self.policy.overhead_s + sum(one.seconds for one in planned), 2)
        plan = Plan(host.name, job.id, MIGRATE, [], needed, lead_s, bandwidth, planned)
        if self._devices_allow(plan, job, guests, others):
            self._decide(plan)
        size = sum(guest.memory_kb for guest in guests) / 1024
        rate = f"{bandwidth / 2**20:.0f} MiB/s ({source})"
        plan.reasons.append(f"{plural(len(guests), 'guest')} of {size:.0f} MiB at {rate}")
        if known is None:
            plan.reasons.append(f"libvirt on {host.name} does not answer: what else is passed through is not known")
        return plan

    def _devices_allow(self, plan: Plan, job: Job, guests: list[Guest], others: list[Host]) -> bool:
        """Whether the guests can move with what is passed through to them; says so in the plan."""
        has = [f"{guest.guest} has {', '.join(guest.devices)}" for guest in plan.guests if guest.devices]
        if not has:
            return True
        words = "; ".join(has)
        kinds = Counter(device.kind for guest in guests for device in guest.devices)
        known = {f"pci {device.address}" for guest in guests for device in guest.devices}
        strange = [name for guest in plan.guests for name in guest.devices if name not in known]
        offer = [host.name for host in others if all(len(host.devices.get(kind, [])) >= kinds[kind] for kind in kinds)]
        policy = job.request.on_devices or self.policy.on_devices
        if policy == "refuse":
            reason = f"passed-through devices do not move: {words} (policy on_devices: refuse)"
        elif strange:
            reason = f"passed-through devices do not move: {words}, and {', '.join(strange)} not by its launch"
        elif not offer:
            needed = ", ".join(f"{kinds[kind]} {kind}" for kind in sorted(kinds))
            reason = f"{words}, and no other host offers {needed} (hypervisor_devices)"
        else:
            plan.reasons.append(f"to be unplugged before the move: {words}; {', '.join(offer)} can give the same")
            return True
        plan.decision = CHECKPOINT
        plan.reasons.append(reason)
        return False

    def _decide(self, plan: Plan) -> None:
        if plan.lead_s is None:
            plan.reasons.append(f"about {plan.needed_s:.1f} s are needed; when the host fails is not known")
            return
        words = f"about {plan.needed_s:.1f} s are needed and {plan.lead_s:.1f} s are left"
        if plan.needed_s > plan.lead_s:
            fits = 0 < self.policy.checkpoint_s <= plan.lead_s
            plan.decision = CHECKPOINT if fits else NOTHING
            if fits:
                words += f"; a checkpoint takes {self.policy.checkpoint_s:.1f} s"
        plan.reasons.append(words)

    def _bandwidth(self, past: list[Evacuation]) -> tuple[float, str]:
        """Return bytes a second from host to host, and where that comes from."""
        measured = [rate for rate in map(_throughput, past) if rate][-_LATEST_MOVES:]
        if measured:
            return statistics.median(measured), f"measured in {plural(len(measured), 'evacuation')}"
        return self.policy.bandwidth_bps, "setting bandwidth_bps, nothing was measured yet"


def estimate(guest: Guest, facts: GuestFacts | None, bandwidth_bps: float) -> GuestPlan:
    """Return what one guest's move is expected to take, alone on the link."""
    dirty = facts.dirty_bps if facts else None
    left = max(bandwidth_bps - (dirty or 0.0), bandwidth_bps * _LEAST_SHARE)
    seconds = round(guest.memory_kb * 1024 / left, 2)
    declared = [f"pci {device.address}" for device in guest.devices]
    devices = list(dict.fromkeys([*declared, *(facts.devices if facts else [])]))
    return GuestPlan(guest.name, guest.memory_kb, seconds, dirty, devices)


def lead_of(alarm: Alarm | None, now: float) -> float | None:
    """Return the seconds until the predicted failure, or None if no time is predicted."""
    if alarm is None or alarm.evidence.predicted_failure_s is None:
        return None
    return round(alarm.time + alarm.evidence.predicted_failure_s - now, 2)


def _throughput(evacuation: Evacuation) -> float | None:
    """Return the bytes a second of an evacuation's moves, which run at the same time."""
    moves = [m for m in evacuation.migrations if m.state == "moved" and m.bytes and m.elapsed_s]
    longest = max((m.elapsed_s or 0.0 for m in moves), default=0.0)
    return sum(m.bytes or 0 for m in moves) / longest if longest else None
