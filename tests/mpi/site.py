"""A site for MPI jobs without hosts: a controller's notices over real HTTP, real agents, real ranks.

Guests are simulated by what a rank sees of them: its name and its run folder.
"""

from __future__ import annotations

import json
import multiprocessing
import multiprocessing.context
import os
import re
import signal
import struct
import subprocess
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from failavoid.agent import ranks
from failavoid.agent.settings import Settings
from failavoid.shared.messages import Notice, to_dict
from failavoid.shared.page import live_slots
from tests.mpi.installations import PROJECT, Builds, Flavour

PROGRAM = Path(__file__).with_name("programs.py")
JOB = "job-1"
GUESTS = ("g1", "g1", "g2", "g3")  # of ranks 0 to 3, where a test has no reason for others
PATIENCE_S = 60.0  # nothing takes that long: beyond it something hangs
LOOK_S = 0.01

# starts agents without Python's own start and the imports
_FORKED = multiprocessing.get_context("forkserver")
_FORKED.set_forkserver_preload([__name__])


def _agent(guest: str, controller: str, run_dir: str) -> None:
    """Be a guest's agent, as long as the tests run."""
    settings = Settings(guest, "guest", f"guest.{guest}.0.x", ("127.0.0.1", 1), controller)
    threading.Thread(target=ranks.run, args=(settings, run_dir), daemon=True).start()
    tests = multiprocessing.parent_process()
    assert tests is not None
    tests.join()


def wait_for(what: str, condition: Callable[[], Any]) -> Any:
    """Wait until ``condition`` is true and return it; fail by naming ``what`` did not happen."""
    for _ in range(int(PATIENCE_S / LOOK_S)):  # counts what this process got to run, whatever else the machine does
        found = condition()
        if found:
            return found
        time.sleep(LOOK_S)
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
    heard: int = 0  # of the wrapper's lines

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

    def do(self, word: str) -> None:
        """Say what the program's ranks do from now on: see programs.py."""
        tell_program(self.folder, word)

    def end(self) -> str:
        """Stop, wait for the end, and return what was said on standard error."""
        self.do("stop")
        status = self.process.wait(PATIENCE_S)
        errors = self.errors.read_text()
        assert status == 0, f"mpirun ended with {status}: {errors}\n{self.output.read_text()}"
        return errors

    def said(self) -> list[str]:
        """The wrapper's lines that have not been forgotten."""
        return self._lines()[self.heard :]

    def forget(self) -> None:
        """What has been said up to now is no more of interest."""
        self.heard = len(self._lines())

    def _lines(self) -> list[str]:
        return [line for line in self.errors.read_text().splitlines() if line.startswith("failavoid:")]


def tell_program(folder: Path, word: str) -> None:
    """Write the word for the program's ranks, in one piece."""
    (folder / "do.new").write_text(f"{word}\n")
    (folder / "do.new").replace(folder / "do")


@dataclass
class Site:
    """A job's guests, their agents, and a controller."""

    flavour: Flavour
    folder: Path
    controller: Controller
    builds: Builds
    agents: dict[str, multiprocessing.context.ForkServerProcess] = field(default_factory=dict)
    guests: tuple[str, ...] = ()
    affected: tuple[str, ...] = ()  # by the last epoch
    epoch: int = 0
    job: Job | None = None

    def run_dir(self, guest: str) -> Path:
        return self.folder / guest

    def page_folder(self, guest: str) -> Path:
        return self.run_dir(guest) / "jobs" / JOB

    def start_agent(self, guest: str) -> None:
        """Start the agent of a guest, a process of its own."""
        self.agents[guest] = _FORKED.Process(target=_agent, args=(guest, self.controller.url, str(self.run_dir(guest))))
        self.agents[guest].start()

    def end_agent(self, guest: str) -> None:
        agent = self.agents.pop(guest)
        agent.kill()
        agent.join()

    def notice(self, *affected: str, to: Sequence[str] = (), **more: Any) -> None:
        """Post the next epoch, to all guests or to some alone."""
        self.epoch += 1
        self.spread(*affected, to=to, **more)

    def spread(self, *affected: str, to: Sequence[str] = (), **more: Any) -> None:
        """Post this epoch to more guests."""
        self.affected = affected
        what = {"kind": "move", "source": "", "destination": "", **more}
        self.tell(to, epoch=self.epoch, affected=list(affected), **what)

    def done(self, to: Sequence[str] = ()) -> None:
        """Say that the guests of this epoch have moved."""
        self.tell(to, done=self.epoch)

    def cancel(self) -> None:
        """Say that nothing moves in this epoch."""
        self.tell(cancelled=self.epoch)

    def tell(self, to: Sequence[str] = (), **changes: Any) -> None:
        for guest in to or self.guests:
            self.controller.tell(guest, **changes)

    def stopped(self, guest: str) -> int:
        """How many ranks of a guest have stopped, by their slots."""
        return sum(slot.stopped == self.epoch for slot in live_slots(str(self.page_folder(guest))))

    def ready(self, guest: str) -> int:
        """Wait until a guest reports that its ranks have stopped; how many."""
        return self._reported(guest, "ready")

    def resumed(self, guest: str) -> int:
        """Wait until a guest reports that its ranks run again; how many."""
        return self._reported(guest, "resumed")

    def has_reported(self, guest: str, state: str) -> bool:
        return self.controller.reported(guest, state, self.epoch) is not None

    def start(
        self,
        guests: Sequence[str],
        *arguments: str,
        do: str = "world",
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
        Python file ``program``; ``binary`` runs instead of programs.c. ``do`` is what the program does first. Rank i is
        of ``flavours[i]``, or of the site's.
        """
        self.guests = tuple(dict.fromkeys(guests))
        if with_agents:
            self.start_agents(guests)
        tell_program(self.folder, do)
        arguments = arguments or ("loop",)
        words = [program, *arguments] if program else [str(PROGRAM), arguments[0], str(self.folder), *arguments[1:]]
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
        return self.launch(command[:-1], len(guests), tcp, PYTHONPATH=str(PROJECT), **environment)

    def start_agents(self, guests: Sequence[str]) -> None:
        """Start the agents of a job's guests; its page is on all of them."""
        self.guests = tuple(dict.fromkeys(guests))
        self.tell()
        for guest in self.guests:
            self.start_agent(guest)
        for guest in self.guests:
            wait_for(f"page of {guest}", (self.page_folder(guest) / "page").exists)

    def launch(self, command: list[str], ranks: int, tcp: bool = False, **environment: str) -> Job:
        """Start the job's launcher."""
        output, errors = self.folder / "stdout", self.folder / "stderr"
        variables = {**os.environ, **self.flavour.mpi.environment(tcp), "FAILAVOID_JOB": JOB, "PYTHONUNBUFFERED": "1"}
        with output.open("w") as out, errors.open("w") as err:
            process = subprocess.Popen(
                command, stdout=out, stderr=err, env={**variables, **environment}, cwd=self.folder, text=True
            )
        self.job = Job(process, self.folder, ranks, output, errors)
        return self.job

    def _reported(self, guest: str, state: str) -> int:
        def reported() -> bool:
            assert self.job is None or self.job.process.poll() is None, self.job.errors.read_text()
            return self.has_reported(guest, state)

        wait_for(f"{guest} reports {state} of epoch {self.epoch}", reported)
        ranks = self.controller.reported(guest, state, self.epoch)
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


def bytes_received(job: Job, ranks: Iterable[int]) -> list[int]:
    """Bytes that have arrived on each rank's TCP connections since they were made, whether it has read them or not."""
    listed = subprocess.run(["ss", "-tiHOnp"], capture_output=True, text=True, check=True).stdout.splitlines()
    counts = [(line, sum(map(int, re.findall(r"bytes_received:(\d+)", line)))) for line in listed]
    return [sum(count for line, count in counts if f"pid={job.pid(rank)}," in line) for rank in ranks]
