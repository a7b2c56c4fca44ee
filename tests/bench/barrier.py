"""What the wrapper adds to a barrier without a notice; writes build/bench/barrier.json.

Every variant is a job of its own, so that the plain ones run without a trace of the wrapper. The jobs of one size take
turns, in a shuffled order in each round, and sleep outside MPI meanwhile. A ratio is the median over the rounds of the
ratio to the plain barrier in the same round (mpi4py's own, for those in Python), with a bootstrap interval (95 %).
Says which aims were missed: at the lower end of the interval, a ratio of 1.10 over TCP, of 1.3 in shared memory with 4
and 8 ranks, and everywhere less than a fifth of what the paper's scheme adds.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import statistics
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from io import FileIO
from pathlib import Path
from typing import Any

from failavoid.shared.page import PageWriter, job_folder, live_slots
from tests.bench.results import write
from tests.mpi.installations import MPICH5, OPENMPI5, PROJECT, Builds, Mpi

HERE = Path(__file__).parent
ROUNDS = 40
ROUND_S = 0.02  # of one variant
RESAMPLES = 2000
PATIENCE_S = 120
JOB = "bench"

TCP_AIM, MEMORY_AIM, SHARE_OF_PAPER = 1.10, 1.3, 0.2

# variant -> (its baseline, language, whether the library is preloaded)
VARIANTS = {
    "plain": ("plain", "c", False),
    "paper": ("plain", "c", False),
    "failavoid_c": ("plain", "c", True),
    "plain_mpi4py": ("plain_mpi4py", "python", False),
    "failavoid_mpi4py": ("plain_mpi4py", "python", True),
    "failavoid_python": ("plain_mpi4py", "wrapper", False),
}


@contextmanager
def patience(what: str) -> Iterator[None]:
    """Raise TimeoutError where something hangs: opening and reading FIFOs wait for ranks, if need be for ever."""

    def give_up(*_: Any) -> None:
        raise TimeoutError(f"{what} took more than {PATIENCE_S} s")

    signal.signal(signal.SIGALRM, give_up)
    signal.alarm(PATIENCE_S)
    try:
        yield
    finally:
        signal.alarm(0)


class Turns:
    """A job that times barriers when it is its turn."""

    def __init__(self, mpi: Mpi, variant: str, ranks: int, tcp: bool, builds: Builds, folder: Path) -> None:
        self._what = f"{variant} in {ranks} ranks of {mpi.name}"
        self._folder, self._ranks = folder, ranks
        self._pipes: list[FileIO] = []  # the result, and each rank's orders
        self.barriers = 20  # in a turn
        baseline, language, preloaded = VARIANTS[variant]
        self._wrapped = 0 if variant in (baseline, "paper") else ranks
        PageWriter(job_folder(JOB, str(folder)))
        for name in [*map(str, range(ranks)), "result"]:
            os.mkfifo(folder / name)
        (folder / "flag").write_text("0")
        program = {
            "c": [str(builds.c(mpi, HERE / "barrier.c")), variant, str(folder)],
            "python": [mpi.python, str(HERE / "barrier_program.py"), str(folder)],
            "wrapper": [mpi.python, "-m", "failavoid.mpi", str(HERE / "barrier_program.py"), str(folder)],
        }[language]
        variables = {"FAILAVOID_JOB": JOB, "FAILAVOID_RUN_DIR": str(folder), "PYTHONPATH": str(PROJECT)}
        in_ranks = ["env", f"LD_PRELOAD={builds.library}"] if preloaded else ["env", "FAILAVOID_LIBRARY="]
        self._process = subprocess.Popen(
            [*mpi.launcher(), "-n", str(ranks), *in_ranks, *program],
            env={**os.environ, **mpi.environment(tcp), **variables},
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )

    def begin(self) -> None:
        """Wait for the ranks, and find how many barriers fill a turn. Raises RuntimeError if the wrapper is missing."""
        with patience(f"the start of {self._what}"):
            self._pipes.append((self._folder / "result").open("r+b", buffering=0))
            for rank in range(self._ranks):
                self._pipes.append((self._folder / str(rank)).open("wb", buffering=0))
        for _ in range(3):  # the first ones also connect
            self.barriers = max(20, min(5000, int(ROUND_S / (self.measure() * 1e-6))))
        wrapped = len(live_slots(job_folder(JOB, str(self._folder))))
        if wrapped != self._wrapped:
            raise RuntimeError(f"{self._what}: the wrapper is in {wrapped} of them, and should be in {self._wrapped}")

    def measure(self) -> float:
        """Microseconds a barrier, over one turn."""
        self._order(self.barriers)
        with patience(f"a turn of {self._what}"):
            (seconds,) = struct.unpack("=d", self._pipes[0].read(8) or b"")
        return float(seconds) / self.barriers * 1e6

    def _order(self, barriers: int) -> None:
        for pipe in self._pipes[1:]:
            pipe.write(struct.pack("=Q", barriers))

    def end(self) -> None:
        """End the job, also one that hangs."""
        try:
            self._order(0)
            self._process.wait(10)
        except (OSError, subprocess.TimeoutExpired):
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        for pipe in self._pipes:
            pipe.close()


@contextmanager
def turns(*arguments: Any) -> Iterator[Turns]:
    with tempfile.TemporaryDirectory() as folder:
        job = Turns(*arguments, Path(folder))
        try:
            job.begin()
            yield job
        finally:
            job.end()


def interval(values: list[float], chance: random.Random) -> list[float]:
    """The bootstrap interval of 95 % of a median."""
    medians = sorted(statistics.median(chance.choices(values, k=len(values))) for _ in range(RESAMPLES))
    return [round(medians[int(RESAMPLES * share)], 3) for share in (0.025, 0.975)]


def compare(
    mpi: Mpi, ranks: int, tcp: bool, builds: Builds, rounds: int, chance: random.Random
) -> list[dict[str, Any]]:
    """Measure all variants at one size."""
    times: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
    with ExitStack() as stack:
        jobs = {v: stack.enter_context(turns(mpi, v, ranks, tcp, builds)) for v in VARIANTS}
        for _ in range(rounds):
            for variant in chance.sample(list(VARIANTS), len(VARIANTS)):
                times[variant].append(jobs[variant].measure())
    rows = []
    for variant, (baseline, _, _) in VARIANTS.items():
        ratios = [mine / plain for mine, plain in zip(times[variant], times[baseline])]
        rows.append(
            {
                "mpi": mpi.name,
                "ranks": ranks,
                "transport": "tcp" if tcp else "shm",
                "variant": variant,
                "us": round(statistics.median(times[variant]), 3),
                "ratio": round(statistics.median(ratios), 3),
                "ratio_ci95": interval(ratios, chance),
            }
        )
    return rows


def missed(rows: list[dict[str, Any]]) -> list[str]:
    """What lies beyond the aims, a sentence each."""
    said = []
    us = {(row["mpi"], row["ranks"], row["transport"], row["variant"]): row["us"] for row in rows}
    for row in rows:
        mpi, ranks, transport, variant = row["mpi"], row["ranks"], row["transport"], row["variant"]
        baseline, lowest = VARIANTS[variant][0], row["ratio_ci95"][0]
        if variant in (baseline, "paper"):
            continue
        what = f"{variant}, {ranks} ranks of {mpi}, {transport}"
        aim = TCP_AIM if transport == "tcp" else MEMORY_AIM
        if lowest > aim and (transport == "tcp" or ranks >= 4):
            said.append(f"{what}: {lowest} times the plain barrier, aim {aim}")
        added = (lowest - 1) * us[mpi, ranks, transport, baseline]
        aim = SHARE_OF_PAPER * (us[mpi, ranks, transport, "paper"] - us[mpi, ranks, transport, "plain"])
        if added > aim:
            said.append(f"{what}: {added:.2f} us more, aim {aim:.2f}, a fifth of what the paper's scheme adds")
    return said


def main() -> None:
    """Measure, and write the file."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.barrier", description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="turns of each job (default: %(default)s)")
    rounds = parser.parse_args().rounds
    chance = random.Random(1)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        builds = Builds(Path(folder))
        for mpi in (OPENMPI5, MPICH5):
            for tcp in (True, False):
                for ranks in (2, 4, 8):
                    rows += compare(mpi, ranks, tcp, builds, rounds, chance)
                    print(*(json.dumps(row) for row in rows[-len(VARIANTS) :]), sep="\n", flush=True)
    print(*(f"missed: {sentence}" for sentence in missed(rows)), write("barrier", rows), sep="\n")


if __name__ == "__main__":
    main()
