"""The three runs of the demonstration, each observed from the outside."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from failavoid.demo.job import RunningJob, start_job
from failavoid.demo.observe import OomWatch, Services, wait_until
from failavoid.demo.progress import Progress
from failavoid.demo.scale import Growth, Scale
from failavoid.demo.site import Site
from failavoid.shared.messages import EVACUATION_ENDS, Alarm, Evacuation, Membership, RuleEvent, Sample

HOG_UNIT = "failavoid-hog"
JOB_SECONDS = 1200.0  # no job of the demonstration lasts longer
EVACUATION_S = 300.0  # for one that is under way when its job ends
CALM = 0.72  # share of a host's memory below which the next run may begin
CALM_S = 60.0  # for memory to be given back


class DemonstrationError(Exception):
    """The demonstration can't go on; the message says why and where to look."""


@dataclass
class Line:
    """A line the job printed, and when."""

    time: float
    text: str


@dataclass
class Run:
    """What was seen of one run. Times are seconds since the epoch."""

    name: str
    job: str = ""
    began: float = 0.0
    ended: float = 0.0
    exit_status: int | None = None
    failing_host: str | None = None
    hog_remained: bool | None = None
    output: list[Line] = field(default_factory=list)
    oom_lines: list[str] = field(default_factory=list)
    guests_lost: list[str] = field(default_factory=list)
    events: dict[str, float] = field(default_factory=dict)  # what happened -> when
    snapshots: dict[str, Membership] = field(default_factory=dict)  # before, during, after
    samples: list[Sample] = field(default_factory=list)
    alarms: list[Alarm] = field(default_factory=list)
    rule_events: list[RuleEvent] = field(default_factory=list)
    evacuations: list[Evacuation] = field(default_factory=list)

    @property
    def job_completed(self) -> bool:
        """Whether the program ended by itself, with success."""
        return self.exit_status == 0

    @property
    def result_correct(self) -> bool:
        """Whether the program said that its result is the right one."""
        return any("RESULT correct" in line.text for line in self.output)


def perform(
    site: Site,
    services: Services,
    progress: Progress,
    scale: Scale,
    name: str,
    policy: str,
    growth: Growth,
    with_hog: bool,
) -> Run:
    """Do one run: start the job, let a host fail if ``with_hog``, follow it to its end."""
    calm_down(site, services, progress)
    run = Run(name, began=time.time())
    started = threading.Event()

    def on_line(line: str) -> None:
        if "iteration" in line:
            started.set()
        progress.note(f"  | {line}")

    progress.note(f"starting {scale.guests} ranks on {scale.hosts_in_use} hosts, policy {policy}")
    job = start_job(site, scale, job_name(name), policy, growth, on_line)
    try:
        _wait_for_first_iteration(job, started)
        run.events["job started"] = time.time()
        run.job = _job_of(services, name)
        run.snapshots["before"] = services.membership()
        oom = OomWatch("no host")
        if with_hog:
            run.failing_host = _a_host_of(services, run.job)
            oom = OomWatch(run.failing_host)
            start_hog(site, run.failing_host, scale)
            run.events["hog started"] = time.time()
            progress.note(f"a process begins to take {scale.hog_share:.0%} of {run.failing_host}'s memory")
        _follow(job, services, run, oom, progress)
        run.oom_lines = oom.killed()
    finally:
        job.end()
    run.exit_status = job.process.returncode
    run.ended = time.time()
    if not wait_until(lambda: _is_over(services, run.job), EVACUATION_S):
        raise DemonstrationError(f"an evacuation of {run.job} did not end within {EVACUATION_S:.0f} s after its job")
    run.output = [Line(when, text) for when, text in job.output]
    time.sleep(2)  # the last samples and the retirement reach the services
    _collect(services, run)
    if run.failing_host:
        run.hog_remained = site.run(run.failing_host, "systemctl", "is-active", HOG_UNIT, check=False) == "active\n"
    return run


def job_name(run: str) -> str:
    """A run's name as a job's may be written."""
    return run.replace("_", "-")


def start_hog(site: Site, host: str, scale: Scale) -> None:
    """Start the process that simulates the failure on ``host``."""
    site.run(
        host,
        *("systemd-run", "--quiet", f"--unit={HOG_UNIT}", "--collect"),
        *("python3", "/var/tmp/failavoid-hog.py"),
        *("--share", str(scale.hog_share), "--seconds", str(scale.hog_seconds)),
    )


def stop_hog(site: Site, host: str) -> None:
    """End that process; nothing happens where there is none."""
    site.run(host, "systemctl", "stop", HOG_UNIT, check=False)


def clean_up(site: Site, services: Services, progress: Progress) -> None:
    """Take back what a run has done to the hosts: no hog, no defunct host."""
    hosts = site.groups["hypervisor"]
    with ThreadPoolExecutor(max_workers=len(hosts)) as pool:
        list(pool.map(lambda host: stop_hog(site, host), hosts))
    for known in services.membership().hosts:
        if known.pool == "defunct":
            progress.note(f"{known.name} was defunct ({known.reason}); its cause is gone, it is restored")
            services.restore(known.name)


def calm_down(site: Site, services: Services, progress: Progress) -> None:
    """Bring the testbed back to where a run can begin: cleaned up, and memory given back.

    A host that keeps its memory loses the guests that wait on it for the next job.
    """
    clean_up(site, services, progress)
    hosts = site.groups["hypervisor"]
    if wait_until(lambda: not _full(services, hosts), CALM_S):
        return
    full = _full(services, hosts)
    for guest in services.membership().guests:
        if guest.host in full and guest.job is None:
            progress.note(f"{guest.host} keeps {full[guest.host]:.0%} of its memory: its guest {guest.name} is removed")
            services.remove_guest(guest.name)
    if not wait_until(lambda: not _full(services, hosts), CALM_S):
        listed = ", ".join(f"{host} {share:.0%}" for host, share in _full(services, hosts).items())
        raise DemonstrationError(
            f"after the run before, memory stayed in use on {listed}: 'make clean-testbed' and start again"
        )


def _full(services: Services, hosts: list[str]) -> dict[str, float]:
    """The hosts on which too much memory is in use for a run to begin, with the share."""
    shares = {node: memory_in_use(sample) for node, sample in services.latest().items() if node in hosts}
    return {host: share for host, share in sorted(shares.items()) if share >= CALM}


def memory_in_use(sample: Sample) -> float:
    """Share of memory that is not available, 0..1."""
    return 1 - sample.metrics["mem_available_kb"] / sample.metrics["mem_total_kb"]


def _wait_for_first_iteration(job: RunningJob, started: threading.Event) -> None:
    deadline = time.monotonic() + JOB_SECONDS
    while not started.wait(0.2):
        if job.process.poll() is not None:
            tail = "\n".join(line for _, line in job.output[-10:])
            raise DemonstrationError(f"the job ended before its first iteration:\n{tail}")
        if time.monotonic() > deadline:
            raise DemonstrationError(f"the job did not begin within {JOB_SECONDS:.0f} s")


def _follow(job: RunningJob, services: Services, run: Run, oom: OomWatch, progress: Progress) -> None:
    """Watch the job until it ends; note the moments the report shows."""
    deadline = time.monotonic() + JOB_SECONDS
    states: dict[str, str] = {}
    while job.process.poll() is None:
        if time.monotonic() > deadline:
            raise DemonstrationError(f"the job did not end within {JOB_SECONDS:.0f} s")
        for evacuation in services.evacuations(run.job):
            if states.get(evacuation.id) != evacuation.state:
                states[evacuation.id] = evacuation.state
                progress.note(f"{evacuation.id}: {evacuation.state} {evacuation.error}".rstrip())
                if evacuation.state == "MIGRATING" and run.failing_host in (None, evacuation.host):
                    run.snapshots["during"] = services.membership()
        if "out of memory" not in run.events and oom.killed():
            run.events["out of memory"] = time.time()
            run.snapshots["during"] = services.membership()
            progress.note(f"the kernel's OOM killer took a guest on {run.failing_host}")
        time.sleep(0.5)
    run.events["job ended"] = time.time()


def _is_over(services: Services, job: str) -> bool:
    """Whether no evacuation of the job goes on."""
    return all(evacuation.state in EVACUATION_ENDS for evacuation in services.evacuations(job))


def _collect(services: Services, run: Run) -> None:
    run.samples = services.history(run.began)
    run.alarms = services.alarms(run.job)
    run.rule_events = services.rule_events(run.job)
    run.evacuations = services.evacuations(run.job)
    run.snapshots["after"] = services.membership()
    before = {guest.name: guest.uuid for guest in run.snapshots["before"].guests if guest.job == run.job}
    now = {guest.name: guest for guest in run.snapshots["after"].guests}
    run.guests_lost = sorted(
        name for name, uuid in before.items() if name not in now or now[name].state == "lost" or now[name].uuid != uuid
    )


def _job_of(services: Services, name: str) -> str:
    jobs = [job for job in services.membership().jobs if job.request.name == job_name(name)]
    return max(jobs, key=lambda job: job.created).id


def _a_host_of(services: Services, job: str) -> str:
    hosts = sorted({guest.host for guest in services.membership().guests if guest.job == job})
    return hosts[1]
