"""All that a demonstration has seen, in one file, so that the report can be made again from it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

from failavoid.demo.runs import Run
from failavoid.demo.scale import Scale
from failavoid.demo.site import Site
from failavoid.shared.messages import from_dict, to_dict


@dataclass
class HostFacts:
    """A host as it describes itself."""

    name: str
    memory_kb: int
    numa: dict[str, list[int]]


@dataclass
class Record:
    """A demonstration: its size, the hosts it ran on, its runs in their order, and how long everything took."""

    scale: str
    hosts_in_use: int
    hosts_idle: int
    guests: int
    ranks: int
    domain_type: str
    hosts: list[HostFacts]
    oom_score_adj: int | None
    hog_share: float
    warnings: list[str]
    wall_s: dict[str, float]
    runs: dict[str, Run] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        """Write the record as JSON."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(to_dict(self)))


def load(path: Path) -> Record:
    """Read a record. Raises ValueError that names the field at fault."""
    return from_dict(Record, json.loads(path.read_text()))


def make_record(site: Site, scale: Scale, runs: list[Run], wall_s: dict[str, float]) -> Record:
    """Put together what the runs have seen and what the hosts say of themselves."""
    facts = {host: json.loads(site.run(host, "cat", "/etc/failavoid/host.json")) for host in site.groups["hypervisor"]}
    some_host = site.groups["hypervisor"][0]
    warnings = []
    if share_one_kernel(site, list(facts)):
        counted = sum(len(fact["cores"]) for fact in facts.values())
        there = len({core for fact in facts.values() for core in fact["cores"]})
        warnings.append(
            f"The hosts are containers on one machine and share its {there} cores, which they count as {counted}: "
            "each host's cores show the CPU use of the whole machine."
        )
    warnings += said_of_hosts(runs)
    return Record(
        scale=scale.name,
        hosts_in_use=scale.hosts_in_use,
        hosts_idle=scale.hosts_idle,
        guests=scale.guests,
        ranks=scale.guests,
        domain_type=facts[some_host]["domain_type"],
        hosts=[HostFacts(name, fact["memory_kb"], fact["numa"]) for name, fact in facts.items()],
        oom_score_adj=site.hosts[some_host].get("guest_oom_score_adj"),
        hog_share=scale.hog_share,
        warnings=warnings,
        wall_s={name: round(seconds, 1) for name, seconds in wall_s.items()},
        runs={run.name: run for run in runs},
    )


def said_of_hosts(runs: list[Run]) -> list[str]:
    """What the resource manager said of hosts: each thing once, with its hosts and the runs in which it was so."""
    when: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for run in runs:
        whose: dict[str, set[str]] = {}
        for host in (host for snapshot in run.snapshots.values() for host in snapshot.hosts):
            for warning in host.warnings:
                own = warning.startswith(f"{host.name}: ")
                named = whose.setdefault(warning.removeprefix(f"{host.name}: "), set())
                named.update([host.name] if own else [])
        for words, named in whose.items():
            when.setdefault((words, tuple(sorted(named))), []).append(run.name.replace("_", " "))
    found = []
    for (words, hosts), names in when.items():
        runs_said = "all runs" if len(names) == len(runs) > 1 else f"run {' and run '.join(names)}"
        found.append(f"In {runs_said}, {', '.join(hosts)}{': ' if hosts else ''}{words}.")
    return found


def share_one_kernel(site: Site, hosts: list[str]) -> bool:
    """Whether the hosts are containers that tell the same moment of boot.

    A container's boot_id is its own, the kernel's btime is not. It is computed anew at each read, hence the second.
    """
    if any(site.run(host, "systemd-detect-virt", "--container", check=False).strip() == "none" for host in hosts):
        return False
    booted = [int(site.run(host, "awk", "/^btime/ {print $2}", "/proc/stat")) for host in hosts]
    return len(hosts) > 1 and max(booted) - min(booted) <= 1
