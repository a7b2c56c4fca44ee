"""A made-up record of a demonstration, to try its report on. Nothing of it was measured."""

import math

from failavoid.demo.record import HostFacts, Record
from failavoid.demo.runs import Line, Run
from failavoid.shared.messages import (
    Alarm,
    Evacuation,
    Evidence,
    Guest,
    Host,
    Job,
    JobRequest,
    Membership,
    Migration,
    RuleEvent,
    Sample,
    Step,
)

GIB = 2**20  # kB
BEGAN = {"control": 1000.0, "protected": 2000.0, "memory_hog_application": 3000.0}
STEPS = (  # name, begun, done, in seconds after the alarm was accepted
    ("alarm", -0.12, 0.0),
    ("leased", 0.01, 0.09),
    ("noticed", 0.09, 0.13),
    ("prepare_destination", 1.1, 1.85),
    ("gathered", 0.13, 2.4),
    ("migrating", 2.4, 6.1),
    ("verified", 6.1, 6.5),
    ("committed", 6.5, 6.55),
    ("released", 6.55, 7.31),
    ("retired", 7.31, 7.4),
)
ALARM_AT = 21.0  # seconds after the job's start


def make_record(used=4, idle=1, guests_per_host=2, cores=2):
    """The record of a demonstration that went as it should."""
    hosts = [f"host{number:02d}" for number in range(1, used + idle + 1)]
    made = _Maker(hosts, used, guests_per_host, cores)
    return Record(
        scale="default",
        hosts_in_use=used,
        hosts_idle=idle,
        guests=used * guests_per_host,
        ranks=used * guests_per_host,
        domain_type="qemu",
        hosts=[HostFacts(host, 2 * GIB, {"0": list(range(cores))}) for host in hosts],
        oom_score_adj=800,
        hog_share=0.5,
        warnings=["The hosts share 2 cores: guests' pins overlap between hosts."],
        wall_s={"testbed": 60.5, "control": 75.2, "protected": 88.0, "memory_hog_application": 41.9},
        runs={run.name: run for run in (made.control(), made.protected(), made.hog())},
    )


class _Maker:
    def __init__(self, hosts, used, guests_per_host, cores):
        self.hosts, self.used, self.per_host, self.cores = hosts, hosts[:used], guests_per_host, cores
        self.failing, self.spare = hosts[1], hosts[used]

    def control(self):
        run = self.run("control", exit_status=1, failing_host=self.failing, hog_remained=True)
        zero = run.began + 5
        oom = zero + 56
        run.events = {"job started": zero, "hog started": zero + 8, "out of memory": oom, "job ended": oom + 1.5}
        run.ended = oom + 3
        run.guests_lost = [g.name for g in self.guests("control") if g.host == self.failing]
        run.oom_lines = [
            f"[ 4711.25{n}] oom-kill:constraint=CONSTRAINT_MEMCG,oom_memcg=/failavoid/{self.failing},"
            f"task_memcg=/failavoid/{self.failing}/machine.slice,task=qemu-system-x86,pid=81{n},uid=64055"
            for n in range(len(run.guests_lost))
        ]
        run.samples = self.samples(run, lambda host, t: self.growth(host, t, gone=56 if host == self.failing else None))
        run.snapshots = {"before": self.membership("control"), "during": self.membership("control", lost=True)}
        run.snapshots["after"] = self.membership("control", lost=True)
        for rule, t in (("robust", 20.0), ("threshold", 31.0)):
            run.rule_events.append(RuleEvent(rule, self.failing, run.job, zero + t, "unavailable", 0.7))
        run.output = [Line(zero + 1, "iteration 1"), Line(oom + 1, "mpirun: a daemon <was> lost")]
        return run

    def protected(self):
        run = self.run("protected", exit_status=0, failing_host=self.failing, hog_remained=True)
        zero = run.began + 5
        alarm_time = zero + ALARM_AT - 0.12
        run.events = {"job started": zero, "hog started": zero + 8, "job ended": zero + 66}
        run.ended = zero + 67
        run.samples = self.samples(run, self.moved_growth)
        evidence = Evidence(0.682, 0.413, 0.012, 22.4, 0.75, 0.0171, 12.7, [11.9, 13.8], "host", len(self.used) - 1)
        evidence.settings = {"threshold": 0.75, "failure": 0.90}
        alarm = Alarm("alarm-1", alarm_time, self.failing, run.job, "robust", "unavailable", 0.682, evidence)
        run.alarms = [alarm]
        run.rule_events = [
            RuleEvent("robust", self.failing, run.job, alarm_time, "unavailable", 0.682),
            RuleEvent("threshold", self.failing, run.job, alarm_time + 4.0, "unavailable", 0.753),
        ]
        moves = [
            Migration(g.name, self.failing, self.spare, [n % self.cores], 0, "moved", 3 + n / 10, 212.0 + n, 187654321)
            for n, g in enumerate(self.guests("protected"))
            if g.host == self.failing
        ]
        for move in moves:
            move.pin_verified = True
        steps = [Step(n, zero + ALARM_AT + a, zero + ALARM_AT + b, f"detail of {n}") for n, a, b in STEPS]
        run.evacuations = [
            Evacuation(
                "evacuation-1", self.failing, run.job, "RETIRED", 1, alarm, "", self.spare, "lease-1", steps, moves
            )
        ]
        run.snapshots = {"before": self.membership("protected"), "during": self.membership("protected")}
        run.snapshots["after"] = self.membership("protected", after=True)
        run.output = [Line(zero + 1, "iteration 1: 20 MiB"), Line(zero + 64, "iteration 250: 170 MiB")]
        run.output.append(Line(zero + 66, "RESULT correct: 4711 == 4711"))
        return run

    def hog(self):
        run = self.run("memory_hog_application", exit_status=0)
        zero = run.began + 5
        run.events = {"job started": zero, "job ended": zero + 34}
        run.ended = zero + 35
        run.samples = self.samples(run, lambda host, t: 0.3 + (min(0.52, t * 0.03) if host in self.used else 0))
        run.snapshots = {"before": self.membership(run.name), "after": self.membership(run.name)}
        run.output = [Line(zero + 34, "RESULT correct: 4711 == 4711")]
        return run

    def run(self, name, **more):
        return Run(name, f"job-{name.split('_')[0]}", BEGAN[name], **more)

    def guests(self, run):
        return [
            Guest(
                f"g{number:04d}", f"uuid-{number}", host, f"10.0.2.{number}", GIB // 2, [number % self.cores], 0, "demo"
            )
            for number, host in enumerate((h for h in self.used for _ in range(self.per_host)), start=1)
        ]

    def membership(self, run, lost=False, after=False):
        job, guests = f"job-{run.split('_')[0]}", self.guests(run)
        hosts = [Host(h, "10.0.1.1", "allocated" if h in self.used else "free", 2 * GIB) for h in self.hosts]
        for guest in guests:
            guest.job, guest.state = job, "ready"
            if guest.host == self.failing and lost:
                guest.state = "lost"
            elif guest.host == self.failing and after:
                guest.host = self.spare
        for host in hosts:
            if after and host.name == self.failing:
                host.pool = "defunct"
            elif after and host.name == self.spare:
                host.pool = "allocated"
        request = JobRequest("demo", 1000, 1000, "ssh-ed25519 AAAA", len(self.used), self.per_host)
        return Membership(7, hosts, guests, [Job(job, request, "running", [g.name for g in guests])])

    def samples(self, run, share):
        end = run.ended + 2
        found = []
        for second in range(int(end - run.began)):
            for number, host in enumerate(self.hosts):
                t = second - 5.0
                value = min(0.99, max(0.05, share(host, t) + 0.004 * math.sin(t + number)))
                metrics = {"mem_total_kb": 2.0 * GIB, "mem_available_kb": 2.0 * GIB * (1 - value), "cpu": 0.5}
                cores = [0.15 + 0.8 * ((number * 7 + core * 3 + second) % 10) / 10 for core in range(self.cores)]
                found.append(Sample(host, "host", run.began + second + number / 10, metrics, cores))
        return found

    def growth(self, host, t, gone=None):
        if host not in self.used:
            return 0.12
        value = 0.32 + 0.0052 * max(0.0, t) + (0.35 * min(1.0, max(0.0, (t - 8) / 8)) if host == self.failing else 0)
        if gone is not None and t >= gone:
            value = 0.6
        return value

    def moved_growth(self, host, t):
        left = t >= ALARM_AT + 6
        if host == self.failing and left:
            return 0.57
        if host == self.spare:
            return 0.12 + (0.2 + 0.0052 * t if left else 0.17 * min(1.0, max(0.0, (t - ALARM_AT - 2) / 4)))
        return self.growth(host, t)
