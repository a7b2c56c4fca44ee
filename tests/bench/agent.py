"""What an agent costs the machine it is on: writes build/bench/agent.json. It needs no testbed.

One agent of a host and one of a guest run as they are deployed (the system's Python without site packages, notices
from a controller over TLS), each sampling once a second into a real receiver. `cpu_ms_per_sample` is all that the
process and its threads use from its first sample on, the kernel's work for it included, and `core_share` that of a core
at one sample a second; `start_cpu_ms` is what it used before. `rss_kb` is its memory, `pss_kb` without what it shares
with other processes.

`collect_ms` is one collection and its datagram on a machine of so many cores, of which /proc/stat is played: what a
kernel with as many cores needs to write that file is not in it.
"""

from __future__ import annotations

import contextlib
import json
import ssl
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from failavoid.agent.sampler import Sampler
from failavoid.monitor.sources import Context
from failavoid.monitor.sources.agents import Receiver
from failavoid.monitor.store import Store
from failavoid.shared.samples import Encoder
from failavoid.shared.tokens import mint
from tests.bench.results import PROJECT, show, surroundings, write

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))
from site_certificates import Authority

SECRET = b"b" * 48
PYTHON = "/usr/bin/python3"  # agent_python of the role
INTERVAL_S, SAMPLES, START_S = 1.0, 180, 60.0
HISTORY_S = 86400.0  # agents that a loaded machine lets stand still are not forgotten
CORES, COLLECTIONS = (2, 32, 256), 300
KINDS = ("host", "guest")


class Controller(ThreadingHTTPServer):
    """Has no notice for anybody, and says so after as long as it was asked to wait."""

    daemon_threads = True

    def __init__(self, certificate: Path, key: Path) -> None:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: Any) -> None:
                pass

            def do_GET(self) -> None:
                asked = urllib.parse.parse_qs(urllib.parse.urlsplit(self.path).query)
                time.sleep(float(asked["timeout"][0]))
                with contextlib.suppress(OSError):  # the agent has ended
                    self.send_response(200)
                    self.send_header("Content-Length", "2")
                    self.end_headers()
                    self.wfile.write(b"{}")

        super().__init__(("127.0.0.1", 0), Handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        self.socket = context.wrap_socket(self.socket, server_side=True)
        self.url = f"https://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, daemon=True).start()


@contextlib.contextmanager
def collector() -> Iterator[tuple[Store, int]]:
    """The monitor's receiver, and the port that it hears."""
    store = Store(HISTORY_S, 5.0)
    receiver = Receiver({}, Context("127.0.0.1", 0, SECRET, store, lambda _name, _uuid: True))
    receiver.start()
    try:
        yield store, receiver.port
    finally:
        receiver.stop()


@contextlib.contextmanager
def agent(folder: Path, kind: str, port: int, controller: str, authority: Path) -> Iterator[subprocess.Popen[bytes]]:
    """An agent's process."""
    settings = {
        "node": f"{kind}1",
        "kind": kind,
        "token": mint(SECRET, kind, f"{kind}1", "0" if kind == "host" else "uuid"),
        "monitor": f"127.0.0.1:{port}",
        "controller": controller,
        "authority": str(authority),
        "interval_s": INTERVAL_S,
    }
    path = folder / f"{kind}.json"
    path.write_text(json.dumps(settings))
    command = [PYTHON, "-S", "-s", "-m", "failavoid.agent", "--settings", str(path)]
    process = subprocess.Popen(command, cwd=PROJECT)
    try:
        yield process
    finally:
        process.terminate()
        process.wait()


def cpu_s(pid: int) -> float:
    """What a process and all threads that it has had used so far, seconds (the clock of clock_getcpuclockid(3))."""
    return time.clock_gettime((~pid << 3) | 2)


def memory_kb(pid: int) -> dict[str, int]:
    """Resident memory; the part of it that is this process's share; the most that was ever resident."""
    status = Path(f"/proc/{pid}/status").read_text() + Path(f"/proc/{pid}/smaps_rollup").read_text()
    words = [line.split() for line in status.splitlines()]
    found = {line[0]: int(line[1]) for line in words if line[-1] == "kB"}
    return {"rss_kb": found["Rss:"], "pss_kb": found["Pss:"], "peak_rss_kb": found["VmHWM:"]}


def received(store: Store) -> dict[str, int]:
    """How many samples of each agent have come."""
    return {node.kind: node.received for node in store.health(time.time())}


def wait_for_samples(store: Store, count: int, patience_s: float) -> None:
    """Until every agent has sent so many. Raises RuntimeError."""
    deadline = time.monotonic() + patience_s
    while any(received(store).get(kind, 0) < count for kind in KINDS):
        if time.monotonic() > deadline:
            raise RuntimeError(f"after {patience_s:g} s there are {received(store)} samples, not {count} of each agent")
        time.sleep(0.1)


def running(samples: int) -> dict[str, dict[str, float]]:
    """The agents' figures over so many samples of each, however long a loaded machine takes for them."""
    result: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as name, collector() as (store, port), contextlib.ExitStack() as stack:
        folder = Path(name)
        authority = Authority(folder / "ca")
        controller = Controller(*authority.issue("head01", "127.0.0.1"))
        stack.callback(controller.server_close)
        stack.callback(controller.shutdown)
        processes = {
            kind: stack.enter_context(agent(folder, kind, port, controller.url, authority.certificate))
            for kind in KINDS
        }
        wait_for_samples(store, 1, START_S)
        before, heard = {kind: cpu_s(process.pid) for kind, process in processes.items()}, received(store)
        wait_for_samples(store, max(heard.values()) + samples, START_S + 10 * samples * INTERVAL_S)
        for node in store.health(time.time()):
            taken = node.received - heard[node.kind]
            used = cpu_s(processes[node.kind].pid) - before[node.kind]
            result[node.kind] = {
                "samples": taken,
                "lost": node.lost,
                "cpu_ms_per_sample": round(used / taken * 1e3, 3),
                "core_share": round(used / taken / INTERVAL_S, 6),
                "start_cpu_ms": round(before[node.kind] * 1e3, 1),
                **memory_kb(processes[node.kind].pid),
            }
    return result


def collecting(cores: int) -> float:
    """Milliseconds of CPU that one sample of a machine with so many cores takes."""
    with tempfile.TemporaryDirectory() as name:
        proc = Path(name)
        for file in ("meminfo", "loadavg", "pressure/cpu", "pressure/memory", "pressure/io"):
            path = proc / file
            path.parent.mkdir(exist_ok=True)
            with contextlib.suppress(FileNotFoundError):  # a kernel without pressure stall information
                path.write_text(Path("/proc", file).read_text())
        line = "12345678 1234 1234567 123456789 12345 0 123456 0 0 0\n"
        stat = "".join([f"cpu  {line}", *(f"cpu{core} {line}" for core in range(cores))])
        (proc / "stat").write_text(f"{stat}intr 1234567890{' 0' * 16 * cores}\nctxt 1234567890\n")
        sampler, encoder = Sampler("host", proc=name), Encoder(mint(SECRET, "host", "host1"))
        began = time.process_time()
        for _ in range(COLLECTIONS):
            encoder.encode(time.time(), *sampler.collect())
        return round((time.process_time() - began) / COLLECTIONS * 1e3, 3)


def main() -> None:
    """Measure, and write build/bench/agent.json."""
    result = {
        **surroundings("none"),
        "interval_s": INTERVAL_S,
        **running(SAMPLES),
        "collect_ms": {str(cores): collecting(cores) for cores in CORES},
    }
    show(result, write("agent", result))


if __name__ == "__main__":
    main()
