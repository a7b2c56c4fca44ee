"""What the monitor costs and how quick it is: writes build/bench/monitor.json. It needs no testbed.

`tick_ms`: all rules on one collection of so many hosts with 8 metrics each, in groups of 100. `ingest`: datagrams of so
many hosts over the loopback, authenticated, stored and judged once for each round of them by one process on one core.
`ingest_hosts_per_s` is how many hosts a second of that process's CPU time is enough for: the sender waits for the
receiver, so that whatever else the machine does makes it slower and not wrong. `paced`: the same by the clock, at so
many datagrams a second whether they are taken or not, which asks for a machine that does nothing else: where some are
lost, all of it was too much for that machine. `alarm_latency_ms`: from the sending of the sample that crosses the
threshold to the controller's acceptance of the alarm, over HTTP; the hosts sample once a second, so up to that is in
the nature of things, and the same is given with it taken off.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import resource
import socket
import statistics
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np

from failavoid.monitor.evaluation import Evaluator
from failavoid.monitor.groups import Group
from failavoid.monitor.service import Monitor
from failavoid.monitor.settings import Settings
from failavoid.monitor.sources import Context
from failavoid.monitor.sources.agents import Receiver
from failavoid.monitor.store import Collection, Store
from failavoid.prediction.modes import Mode
from failavoid.prediction.settings import RuleSettings
from failavoid.shared.messages import METRICS, Guest, Job, JobRequest, Membership, to_dict
from failavoid.shared.samples import Encoder
from failavoid.shared.tokens import mint
from tests.bench.results import show, surroundings, write

SECRET = b"b" * 48
GROUP = 100
WARM_UP, TICKS = 70, 60
HOSTS, ROUNDS = 10_000, 10
DATAGRAM_BYTES = 4096  # with what the kernel keeps of each, and as much again
IDLE = 20  # looks after the sender's end at which nothing has come: the rest is lost
RATES, PACED_S = (10_000, 15_000, 20_000), 6.0  # datagrams a second
ALARMS = 15
MODES = [  # with memory: eight metrics
    Mode("temperature", "temperature_c", 40, 100),
    Mode("fan", "fan_rpm", 9000, 1000),
    Mode("voltage", "voltage_deviation", 0, 1.5),
    Mode("ecc", "ecc_corrected_per_h", 0, 1000),
    Mode("swap", "swap_used_kb", 0, 1e7),
    Mode("stall", "psi_memory", 0, 1),
    Mode("input-output", "psi_io", 0, 1),
]


def groups_of(hosts: list[str]) -> list[Group]:
    """Jobs of `GROUP` hosts each."""
    return [
        Group(f"job-{begin // GROUP}", "app", "", tuple(hosts[begin : begin + GROUP]))
        for begin in range(0, len(hosts), GROUP)
    ]


def metrics_of(rng: np.random.Generator) -> dict[str, float]:
    """A healthy host's."""
    figures = {
        "mem_total_kb": 2.6e8,
        "mem_available_kb": round(2.6e8 * (0.5 + rng.normal(0, 0.005))),
        "mem_active_kb": 1e7,
        "guests_rss_kb": 1e8,
        "cpu": 0.97,
        "load1": 32.1,
        "temperature_c": round(60 + rng.normal(0, 2), 1),
        "fan_rpm": round(8000 + rng.normal(0, 100)),
        "voltage_deviation": 0.2,
        "ecc_corrected_per_h": 0,
    }
    return {name: figures.get(name, 0.0) for name in METRICS}


def ticks(count: int) -> dict[str, float]:
    """Milliseconds a collection of so many hosts, one in a thousand of which leaks."""
    rng = np.random.default_rng(1)
    hosts = [f"host{number:05d}" for number in range(count)]
    columns = {host: column for column, host in enumerate(hosts)}
    base = np.array([list(metrics_of(rng).values()) for _ in hosts]).T
    groups, evaluator = groups_of(hosts), Evaluator(Settings(modes=MODES))
    available = METRICS.index("mem_available_kb")
    leaking = np.arange(0, count, 1000)
    taken = []
    for second in range(WARM_UP + TICKS):
        values = base * (1 + rng.normal(0, 0.002, base.shape))
        values[available, leaking] -= 2.6e8 * 0.002 * max(0, second - WARM_UP)
        began = time.perf_counter()
        evaluator.evaluate(Collection(float(second), columns, values), groups, float(second))
        if second >= WARM_UP:
            taken.append((time.perf_counter() - began) * 1e3)
    return {"median": round(statistics.median(taken), 2), "p99": round(float(np.percentile(taken, 99)), 2)}


def send(port: int, count: int, rounds: int, core: int, taken: Any, ahead: int | None) -> None:
    """Be ``count`` agents, each of which samples once a round.

    They are never more than ``ahead`` datagrams further than what is ``taken``; without that a round is a second, and
    each agent has its own moment in it.
    """
    os.sched_setaffinity(0, {core})
    rng = np.random.default_rng(2)
    encoders = [Encoder(mint(SECRET, "host", f"host{number:05d}")) for number in range(count)]
    metrics = [metrics_of(rng) for _ in range(count)]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        begin = time.monotonic() + 1.0
        for sent in range(count * rounds):
            if ahead is None and sent % 20 == 0:
                time.sleep(max(0.0, begin + sent / count - time.monotonic()))
            while ahead is not None and sent - taken.value > ahead:
                time.sleep(0.002)
            number = sent % count
            datagram = encoders[number].encode(time.time(), metrics[number], [0.97] * 32)
            udp.sendto(datagram, ("127.0.0.1", port))


class Ingest:
    """A monitor's receiving and judging on one core, and a process that is all of its agents."""

    def __init__(self, count: int, rounds: int, paced: bool) -> None:
        self._cores = sorted(os.sched_getaffinity(0))
        self._count = count
        self._judged = 0  # rounds
        self._store = Store(60.0, 5.0)
        self._receiver = Receiver({}, Context("127.0.0.1", 0, SECRET, self._store, lambda _name, _uuid: True))
        self._groups = groups_of([f"host{number:05d}" for number in range(count)])
        self._evaluator = Evaluator(Settings(modes=MODES))
        spawn = multiprocessing.get_context("spawn")
        self._taken = spawn.Value("q", 0)
        ahead = None if paced else self._receiver.buffer_bytes // DATAGRAM_BYTES
        words = (self._receiver.port, count, rounds, self._cores[-1], self._taken, ahead)
        self._sender = spawn.Process(target=send, args=words, daemon=True)

    def __enter__(self) -> Ingest:
        os.sched_setaffinity(0, {self._cores[0]})
        self._receiver.start()
        self._sender.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._receiver.stop()
        if self._sender.is_alive():
            self._sender.kill()
        self._sender.join()
        os.sched_setaffinity(0, set(self._cores))

    def judge(self) -> None:
        """Let the rules judge what is known now."""
        self._evaluator.evaluate(self._store.collect(time.time()), self._groups)

    def take(self, rounds: int) -> int:
        """Judge after every round until there were so many; return how many samples were received so far."""
        while self._judged < rounds:
            last, idle = (self._judged + 1) * self._count, 0
            while self._taken.value < last and idle < IDLE:
                ended = not self._sender.is_alive()
                time.sleep(0.05 if ended else 0.005)
                before, self._taken.value = self._taken.value, sum(self._store.counts())
                idle = idle + 1 if ended and self._taken.value == before else 0
            self.judge()
            self._judged += 1
        return self._store.counts()[0]

    def take_all(self) -> int:
        """Judge once a second until the sender has ended; return how many samples were received."""
        beat = time.monotonic()
        while self._sender.is_alive():
            beat += 1.0
            time.sleep(max(0.0, beat - time.monotonic()))
            self.judge()
        time.sleep(0.5)
        return self._store.counts()[0]


def ingest(count: int, rounds: int) -> dict[str, float]:
    """What receiving, checking and judging so many hosts costs; the first round, in which all are new, is left out."""
    with Ingest(count, rounds, paced=False) as site:
        first = site.take(1)
        began_cpu, began = time.process_time(), time.monotonic()
        received = site.take(rounds)
        cpu_s, seconds = time.process_time() - began_cpu, time.monotonic() - began
    return {
        "hosts": count,
        "sent": count * rounds,
        "received": received,
        "cpu_s": round(cpu_s, 2),
        "seconds": round(seconds, 2),
        "hosts_per_cpu_s": round((received - first) / cpu_s),
    }


def paced(rate: int) -> dict[str, float]:
    """The same at ``rate`` datagrams a second by the clock."""
    with Ingest(rate, int(PACED_S), paced=True) as site:
        began_cpu = time.process_time()
        received = site.take_all()
        cpu_s = time.process_time() - began_cpu
    sent = rate * int(PACED_S)
    return {"rate": rate, "sent": sent, "received": received, "cpu_s": round(cpu_s, 2), "seconds": PACED_S}


class Neighbours(ThreadingHTTPServer):
    """A resource manager that knows one job, and a controller that notes when it accepts an alarm."""

    daemon_threads = True

    def __init__(self, hosts: list[str]) -> None:
        request = JobRequest("ada", 1000, 1000, "key", len(hosts))
        guests = [Guest(f"g{n}", f"u{n}", host, "", 0, [], 0, "ada", "ready", "job-0") for n, host in enumerate(hosts)]
        job = Job("job-0", request, "running", [guest.name for guest in guests])
        membership = json.dumps(to_dict(Membership(1, [], guests, [job]))).encode()
        accepted = self.accepted = {}  # type: dict[str, float]

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def log_message(self, *_: Any) -> None:
                pass

            def answer(self, body: bytes) -> None:
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def do_GET(self) -> None:
                if "after=1" in self.path:
                    time.sleep(5)
                self.answer(b"[]" if "evacuations" in self.path else membership)

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                if self.path == "/alarms":
                    accepted.setdefault(json.loads(body)["host"], time.time())
                self.answer(b"{}")

        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def handle_error(self, *_: Any) -> None:
        """A monitor that ends cuts its polls off, which is nothing to be said."""


def alarm_latency() -> dict[str, float | None]:
    """Seconds from crossing to acceptance: one host after the other of a job of many crosses the threshold."""
    hosts = [f"host{number:03d}" for number in range(3 * ALARMS)]
    neighbours = Neighbours(hosts)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    rules = RuleSettings(persistence_s=0.0)
    url = neighbours.url
    monitor = Monitor(Settings("127.0.0.1", port, resource_manager=url, controller=url, rules=rules), SECRET)
    encoders = {host: Encoder(mint(SECRET, "host", host)) for host in hosts}
    used, crossed = dict.fromkeys(hosts, 0.4), {}
    rng = np.random.default_rng(3)
    monitor.start()
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
            begin = time.monotonic()
            for second in range(5 + ALARMS):
                for number, host in enumerate(hosts):
                    time.sleep(max(0.0, begin + second + number / len(hosts) - time.monotonic()))
                    failing = second >= 5 and number == (second - 5) * 7 % len(hosts)
                    if failing and host not in crossed:
                        used[host], crossed[host] = 0.8, time.time()
                    free_kb = 1e8 * (1 - used[host] + rng.normal(0, 0.002))
                    metrics = {"mem_total_kb": 1e8, "mem_available_kb": free_kb, "guests_rss_kb": 0}
                    udp.sendto(encoders[host].encode(time.time(), metrics, []), ("127.0.0.1", port))
            time.sleep(2)
    finally:
        monitor.stop()
        neighbours.shutdown()
        neighbours.server_close()
    taken = [neighbours.accepted[host] - when for host, when in crossed.items() if host in neighbours.accepted]
    found: dict[str, float | None] = {"alarms": len(taken), "expected": len(crossed)}
    if not taken:
        return {**found, "median": None, "max": None, "beyond_interval_max": None}
    return {
        **found,
        "median": round(statistics.median(taken) * 1e3, 1),
        "max": round(max(taken) * 1e3, 1),
        "beyond_interval_max": round(max(0.0, max(taken) - monitor.settings.interval_s) * 1e3, 1),
    }


def main() -> None:
    """Measure, and write build/bench/monitor.json."""
    logging.disable(logging.WARNING)
    taken = ingest(HOSTS, ROUNDS)
    by_the_clock = [paced(rate) for rate in RATES]
    memory = {"ingest_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10}
    result = {
        **surroundings("none"),
        "tick_ms": {str(count): ticks(count) for count in (1000, 10_000, 50_000)},
        "ingest_hosts_per_s": taken["hosts_per_cpu_s"],
        "ingest": taken,
        "paced": by_the_clock,
        "alarm_latency_ms": alarm_latency(),
        "memory": {**memory, "all_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10},
        "metrics": 8,
        "group": GROUP,
    }
    show(result, write("monitor", result))


if __name__ == "__main__":
    main()
