"""What a run of the demonstration reads from the outside: the services' own records, the kernel's log."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httpx

from failavoid.demo.site import CommandError, Site
from failavoid.shared.messages import Alarm, Evacuation, Job, Membership, RuleEvent, Sample, from_dict

_KILLED = re.compile(r"oom-kill:.*oom_memcg=(?P<group>[^,]*),.*task=(?P<task>[^,]*),")


@dataclass
class Services:
    """The three services' API, as operator. A question that gets no answer raises CommandError."""

    monitor: httpx.Client
    resource_manager: httpx.Client
    controller: httpx.Client

    def membership(self) -> Membership:
        """Hosts, guests and jobs as the resource manager sees them now."""
        return from_dict(Membership, _get(self.resource_manager, "/membership"))

    def job(self, ident: str) -> Job:
        """One job."""
        return from_dict(Job, _get(self.resource_manager, f"/jobs/{ident}"))

    def restore(self, host: str) -> None:
        """Ask for a defunct host's return to service."""
        _ask(self.resource_manager, "POST", f"/hosts/{host}/restore", json={}, timeout=60)

    def remove_guest(self, name: str) -> None:
        """Remove a guest that no job has; returns when it is gone."""
        _ask(self.resource_manager, "DELETE", f"/guests/{name}", timeout=120)

    def history(self, since: float) -> list[Sample]:
        """All samples of hosts since then, oldest first."""
        samples = [from_dict(Sample, one) for one in _get(self.monitor, f"/history?since={since}")]
        return [sample for sample in samples if sample.kind == "host"]

    def latest(self) -> dict[str, Sample]:
        """The last sample of each node."""
        return {one["node"]: from_dict(Sample, one) for one in _get(self.monitor, "/samples")}

    def alarms(self, job: str) -> list[Alarm]:
        """The alarms raised for a job."""
        alarms = [from_dict(Alarm, one) for one in _get(self.monitor, "/alarms")]
        return [alarm for alarm in alarms if alarm.job == job]

    def rule_events(self, job: str) -> list[RuleEvent]:
        """When each rule first held for a host of the job."""
        return [from_dict(RuleEvent, one) for one in _get(self.monitor, f"/rule-events?job={job}")]

    def evacuations(self, job: str) -> list[Evacuation]:
        """The evacuations of a job, from the controller's journal."""
        evacuations = [from_dict(Evacuation, one) for one in _get(self.controller, "/evacuations")]
        return [evacuation for evacuation in evacuations if evacuation.job == job]


def connect(site: Site) -> Services:
    """Reach the services on the site's head."""
    return Services(site.api("monitor"), site.api("resource_manager"), site.api("controller"))


def _get(client: httpx.Client, path: str) -> Any:
    return _ask(client, "GET", path).json()


def _ask(client: httpx.Client, method: str, path: str, **more: Any) -> httpx.Response:
    try:
        answer = client.request(method, path, **more)
    except httpx.HTTPError as error:
        raise CommandError(
            f"{client.base_url}: no answer to {method} {path}: {error or type(error).__name__}"
        ) from error
    if answer.is_error:
        raise CommandError(f"{answer.url} answered {answer.status_code}: {answer.text.strip()}")
    return answer


def kernel_log() -> list[str]:
    """The lines of the machine's kernel log, oldest first. Raises CommandError."""
    read = subprocess.run(["dmesg"], capture_output=True, text=True, check=False)
    if read.returncode:
        raise CommandError(
            f"the kernel's log can't be read ({read.stderr.strip()}), and it alone tells that the OOM killer took a "
            "guest: run this where root may read it, with CAP_SYSLOG"
        )
    return read.stdout.splitlines()


@dataclass
class OomWatch:
    """Notes what the kernel's OOM killer takes on a host from its making on (the machine's kernel log)."""

    host: str
    since: float = field(default_factory=time.monotonic)

    def killed(self) -> list[str]:
        """The kernel's lines about guests killed since then, oldest first."""
        lines = []
        for line in kernel_log():
            stamp = re.match(r"\[\s*(\d+\.\d+)\]", line)
            kill = _KILLED.search(line)
            if (
                stamp
                and kill
                and float(stamp[1]) >= self.since
                and self.host in kill["group"]
                and "qemu" in kill["task"]
            ):
                lines.append(line)
        return lines


def wait_until(condition: Callable[[], bool], timeout: float, interval: float = 0.5) -> bool:
    """Call ``condition`` until it is true; False if that has not happened within ``timeout`` seconds."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(interval)
    return condition()
