"""A site for MPI jobs without hosts: a controller's notices over real HTTP, real agents, real ranks.

Guests are simulated by what a rank sees of them: its name and its run folder.
"""

from __future__ import annotations

import json
import os
import re
import signal
import struct
import subprocess
import sys
import threading
import time
import urllib.parse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from failavoid.shared.messages import Notice, to_dict
from tests.mpi.installations import PROJECT, Builds, Flavour

PROGRAM = Path(__file__).with_name("programs.py")
JOB = "job-1"
PATIENCE_S = 60.0  # nothing takes that long: beyond it something hangs

_AGENT = """
import sys
from failavoid.agent import ranks
from failavoid.agent.settings import Settings
guest, controller, run_dir = sys.argv[1:]
token = f"guest.{guest}.0.x"
ranks.run(Settings(guest, "guest", token, ("127.0.0.1", 1), controller), run_dir)
"""


def wait_for(what: str, condition: Callable[[], Any]) -> Any:
    """Wait until ``condition`` is true and return it; fail by naming ``what`` did not happen."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        found = condition()
        if found:
            return found
        time.sleep(0.01)
    raise AssertionError(f"did not happen within {PATIENCE_S:.0f} s: {what}")


class Controller:
    """Answers agents as the controller does; each guest is told when the test says so."""

    def __init__(self) -> None:
        self.reports: list[tuple[str, str, int, int]] = []  # guest, state, epoch, ranks
        self._serial = 0
        self._notices: dict[str, Notice | None] = {}
        self._changed = threading.Condition()
        self._server: ThreadingHTTPServer | None = None
        self.port = 0
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Listen; on the port of the last time, if there was one."""
        controller = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                url = urllib.parse.urlsplit(self.path)
                query = urllib.parse.parse_qs(url.query)
                guest = url.path.split("/")[2]
                self._answer(controller._wait(guest, int(query["after"][0]), float(query["timeout"][0])))

            def do_POST(self) -> None:
                report = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                controller._note(self.path.split("/")[2], report)
                self._answer(None)

            def _answer(self, document: Any) -> None:
                body = json.dumps(document).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            block_on_close = False

            def handle_error(self, *_: Any) -> None:
                pass  # an agent that was ended closes its long poll

        self._server = Server(("127.0.0.1", self.port), Handler)
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        """Be away: no answers, not even to polls under way."""
        assert self._server is not None
        self._server.shutdown()
        self._server.server_close()

    def tell(self, guest: str, **changes: Any) -> None:
        """Change what one guest's agent hears: epoch, affected, done, cancelled."""
        with self._changed:
            self._serial += 1
            old = self._notices.get(guest) or Notice(JOB, 0, 0, [], 0, 0)
            self._notices[guest] = Notice(**{**to_dict(old), **changes, "serial": self._serial})
            self._changed.notify_all()

    def end_job(self, guest: str) -> None:
        """The guest has no job any more."""
        with self._changed:
            self._notices[guest] = None
            self._changed.notify_all()

    def reported(self, guest: str, state: str, epoch: int) -> int | None:
        """Return the number of ranks a guest reported, None if it has not."""
        with self._changed:
            for report in self.reports:
                if report[:3] == (guest, state, epoch):
                    return report[3]
        return None

    def _wait(self, guest: str, after: int, timeout: float) -> Any:
        with self._changed:
            self._changed.wait_for(lambda: self._new(guest, after), timeout)
            notice = self._notices.get(guest)
            return {} if notice is None else to_dict(notice)

    def _new(self, guest: str, after: int) -> bool:
        notice = self._notices.get(guest)
        return after > 0 if notice is None else notice.serial > after

    def _note(self, guest: str, report: dict[str, Any]) -> None:
        with self._changed:
            self.reports.append((guest, report["state"], report["epoch"], report["ranks"]))


@dataclass
class Job:
    """A running job, its ranks' counters, and what it has printed."""

    process: subprocess.Popen[str]
    folder: Path
    ranks: int
    output: Path
    errors: Path

    def counts(self) -> list[int]:
        """Barriers that each rank has left."""
        return [self._read(rank)[1] for rank in range(self.ranks)]

    def pid(self, rank: int) -> int:
        """The process of a rank."""
        return self._read(rank)[0]

    def _read(self, rank: int) -> tuple[int, int]:
        try:
            return struct.unpack("=QQ", (self.folder / str(rank)).read_bytes())
        except (OSError, struct.error):
            return 0, 0

    def wait_for_barriers(self, more: int) -> None:
        """Wait until every rank has left ``more`` barriers from now on."""
        before = self.counts()

        def left() -> bool:
            assert self.process.poll() is None, f"the job ended: {self.errors.read_text()}"
            return all(now >= then + more for now, then in zip(self.counts(), before))

        wait_for(f"{more} more barriers", left)

    def stop(self) -> None:
        """Tell the ranks to end their loop."""
        (self.folder / "stop").touch()

    def end(self) -> str:
        """Stop, wait for the end, and return what was said on standard error."""
        self.stop()
        status = self.process.wait(PATIENCE_S)
        errors = self.errors.read_text()
        assert status == 0, f"mpirun ended with {status}: {errors}\n{self.output.read_text()}"
        return errors

    def said(self) -> list[str]:
        """The wrapper's lines."""
        return [line for line in self.errors.read_text().splitlines() if line.startswith("failavoid:")]


@dataclass
class Site:
    """A job's guests, their agents, and a controller."""

    flavour: Flavour
    folder: Path
    controller: Controller
    builds: Builds
    agents: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    job: Job | None = None

    def run_dir(self, guest: str) -> Path:
        return self.folder / guest

    def page_folder(self, guest: str) -> Path:
        return self.run_dir(guest) / "jobs" / JOB

    def start_agent(self, guest: str) -> None:
        """Start the agent of a guest, and wait until the job's page is there if the guest has a job."""
        command = [sys.executable, "-c", _AGENT, guest, self.controller.url, str(self.run_dir(guest))]
        self.agents[guest] = subprocess.Popen(command, cwd=PROJECT)

    def end_agent(self, guest: str) -> None:
        agent = self.agents.pop(guest)
        agent.kill()
        agent.wait()

    def start(
        self,
        guests: Sequence[str],
        *arguments: str,
        program: str = "",
        binary: str = "",
        with_agents: bool = True,
        wrapper: bool = True,
        tcp: bool = False,
        flavours: Sequence[Flavour] = (),
        **environment: str,
    ) -> Job:
        """Start the job with rank i on ``guests[i]``, its agents first.

        ``arguments`` are a scenario of programs.py (in C: programs.c) and what follows its folder, or those of the
        Python file ``program``; ``binary`` runs instead of programs.c. Rank i is of ``flavours[i]``, or of the site's.
        """
        words = [program, *arguments] if program else [str(PROGRAM), arguments[0], str(self.folder), *arguments[1:]]
        if with_agents:
            for guest in dict.fromkeys(guests):
                self.controller.tell(guest)
                self.start_agent(guest)
            for guest in dict.fromkeys(guests):
                wait_for(f"page of {guest}", (self.page_folder(guest) / "page").exists)
        mpi = self.flavour.mpi
        command = mpi.launcher()
        for guest, flavour in zip(guests, flavours or [self.flavour] * len(guests)):
            variables = {"FAILAVOID_GUEST": guest, "FAILAVOID_RUN_DIR": str(self.run_dir(guest))}
            variables["FAILAVOID_LIBRARY"] = str(self.builds.library) if flavour.wrapper == "library" else ""
            if flavour.wrapper == "c":
                rank = [binary or str(self.builds.c(mpi)), arguments[0], str(self.folder), *arguments[1:]]
                variables["LD_PRELOAD"] = str(self.builds.library) if wrapper else ""
            else:
                rank = [mpi.python, *["-m", "failavoid.mpi"] * wrapper, *words]
            command += ["-n", "1", "env", *(f"{name}={value}" for name, value in variables.items()), *rank, ":"]
        output, errors = self.folder / "stdout", self.folder / "stderr"
        inherited = {
            **os.environ,
            **mpi.environment(tcp),
            "FAILAVOID_JOB": JOB,
            "PYTHONPATH": str(PROJECT),
            "PYTHONUNBUFFERED": "1",
            **environment,
        }
        with output.open("w") as out, errors.open("w") as err:
            process = subprocess.Popen(command[:-1], stdout=out, stderr=err, env=inherited, text=True)
        self.job = Job(process, self.folder, len(guests), output, errors)
        return self.job

    def wait_for_report(self, guest: str, state: str, epoch: int) -> int:
        """Wait for a guest's report and return its number of ranks."""

        def reported() -> bool:
            assert self.job is None or self.job.process.poll() is None, self.job.errors.read_text()
            return self.controller.reported(guest, state, epoch) is not None

        wait_for(f"{guest} reports {state} of epoch {epoch}", reported)
        ranks = self.controller.reported(guest, state, epoch)
        assert ranks is not None
        return ranks

    def close(self) -> None:
        """End what still runs."""
        for agent in list(self.agents):
            self.end_agent(agent)
        if self.job and self.job.process.poll() is None:
            self.job.process.send_signal(signal.SIGCONT)
            self.job.process.send_signal(signal.SIGTERM)  # mpirun ends its ranks
            self.job.process.wait(PATIENCE_S)
        self.controller.stop()


def bytes_received(pid: int) -> int:
    """Bytes that have arrived on a process's TCP connections since they were made, whether it has read them or not."""
    listed = subprocess.run(["ss", "-tiHOnp"], capture_output=True, text=True, check=True).stdout
    lines = [line for line in listed.splitlines() if f"pid={pid}," in line]
    return sum(int(count) for line in lines for count in re.findall(r"bytes_received:(\d+)", line))
