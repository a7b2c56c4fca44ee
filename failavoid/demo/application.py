"""An MPI program: a ring exchange with checkable results and memory that grows.

It knows nothing of failure avoidance; it is what a user would run::

    mpirun -n 8 python3 application.py --start-mb 40 --grow-mb-s 8 --limit-mb 420 --hold-s 10

Each rank holds a block of integers. In every iteration the blocks move on by one rank, every number becomes
``A * number + C (mod P)``, and the sum over all ranks is formed. Both have a closed form, so a message that was lost,
doubled or altered shows. Meanwhile each rank's memory grows, every page of it is written,
and at the end every page is read back. Ends with ``RESULT correct`` (status 0) or ``RESULT wrong`` (1).
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from mpi4py import MPI

P = 2**31 - 1  # a prime, so that products fit 64 bits
A = 48271
C = 12345
LENGTH = 4096  # numbers in a rank's block
PAGE = 4096  # bytes
MB = 1 << 20


class Memory:
    """Memory of this rank that grows: each page is written once, with a word that tells it from any other."""

    def __init__(self, rank: int) -> None:
        self._rank = rank
        self._chunks: list[Any] = []
        self.pages = 0

    @property
    def megabytes(self) -> float:
        """How much is held, in MiB."""
        return self.pages * PAGE / MB

    def grow(self, megabytes: float) -> None:
        """Grow to ``megabytes`` MiB; never shrinks."""
        more = int(megabytes * MB / PAGE) - self.pages
        if more > 0:
            chunk = np.empty((more, PAGE // 8), dtype=np.uint64)
            chunk[:, 0] = self._words(self.pages, more)
            self._chunks.append(chunk)
            self.pages += more

    def wrong_pages(self) -> int:
        """Read every page back and count those that do not hold what was written."""
        wrong, first = 0, 0
        for chunk in self._chunks:
            wrong += int(np.count_nonzero(chunk[:, 0] != self._words(first, len(chunk))))
            first += len(chunk)
        return wrong

    def _words(self, first: int, count: int) -> Any:
        return np.arange(first + 1, first + count + 1, dtype=np.uint64) * np.uint64(2 * self._rank + 1)


def block_after(steps: int, rank: int, ranks: int) -> Any:
    """Return what ``rank`` must hold after ``steps`` iterations, in closed form."""
    factor = pow(A, steps, P)
    summand = C * (factor - 1) * pow(A - 1, -1, P) % P
    first = (rank - steps) % ranks * LENGTH
    return (np.arange(first, first + LENGTH, dtype=np.int64) % P * factor + summand) % P


def sum_after(steps: int, ranks: int) -> int:
    """Return what the sum over all ranks, modulo P, must be after ``steps`` iterations."""
    count = ranks * LENGTH
    factor = pow(A, steps, P)
    summand = C * (factor - 1) * pow(A - 1, -1, P) % P
    return (count * (count - 1) // 2 * factor + count * summand) % P


def wait(*requests: Any) -> None:
    """Wait for requests asleep: ranks that share a core would only keep each other from it."""
    pause = 0.0005
    while not MPI.Request.Testall(list(requests)):
        time.sleep(pause)
        pause = min(2 * pause, 0.01)


def says_go(file: str) -> bool:
    """Whether the file says so. Opened anew each time: that is when an NFS client asks its server for what is new."""
    with open(file) as words:  # noqa: PTH123
        return words.read().strip() == "go"


def run(
    start_mb: float,
    grow_mb_s: float,
    limit_mb: float,
    hold_s: float,
    steps: int,
    interval_s: float,
    go_on: Callable[[], bool] | None,
    say: Callable[[str], None],
) -> bool:
    """Run to the end and return whether every result was right, on every rank.

    ``go_on``, if given, is asked by rank 0 instead of the clock.
    """
    world = MPI.COMM_WORLD
    rank, ranks = world.Get_rank(), world.Get_size()
    memory = Memory(rank)
    block = block_after(0, rank, ranks)
    received = np.empty_like(block)
    seconds = hold_s + max(0.0, limit_mb - start_mb) / grow_mb_s if grow_mb_s > 0 else hold_s
    wrong = 0
    step, said = 0, 0.0
    longest = total_barrier = 0.0
    wait(world.Ibarrier())
    began = time.monotonic()
    while True:
        elapsed = time.monotonic() - began
        memory.grow(min(limit_mb, start_mb + grow_mb_s * elapsed))

        wait(
            world.Isend(block, (rank + 1) % ranks, step & 1),
            world.Irecv(received, (rank - 1) % ranks, step & 1),
        )
        step += 1
        block = (received * A + C) % P

        # the sum, and rank 0's word whether this was the last iteration: all must agree on it
        last = rank == 0 and (not go_on() if go_on else step >= steps if steps else elapsed >= seconds)
        mine = np.array([int(block.sum()), int(last)], dtype=np.int64)
        sums = np.empty_like(mine)
        wait(world.Iallreduce(mine, sums, MPI.SUM))
        wrong += int(sums[0]) % P != sum_after(step, ranks)

        entered = time.monotonic()
        world.Barrier()
        left = time.monotonic()
        longest, total_barrier = max(longest, left - entered), total_barrier + left - entered
        if left - said >= 1 or left - entered >= 1 or step == 1:
            said = left
            say(
                f"iteration {step}: {memory.megabytes:.0f} MiB a rank, {left - began:.1f} s, "
                f"barrier {left - entered:.3f} s"
            )
        if sums[1]:
            break
        # all leave the barrier at the same time, so none waits long for another in the next exchange
        time.sleep(max(0.0, began + elapsed + interval_s - time.monotonic()))

    wrong += int(np.count_nonzero(block != block_after(step, rank, ranks)))
    pages = memory.wrong_pages()
    totals = np.empty(2, dtype=np.int64)
    wait(world.Iallreduce(np.array([wrong, pages], dtype=np.int64), totals, MPI.SUM))
    say(
        f"{step} iterations on {ranks} ranks, {memory.megabytes:.0f} MiB a rank, "
        f"{time.monotonic() - began:.1f} s, of it in barriers {total_barrier:.1f} s, longest {longest:.2f} s; "
        f"wrong numbers: {totals[0]}, wrong pages: {totals[1]}"
    )
    return not totals.any()


def main() -> int:
    """Read the command line, run, and say whether the result is right."""
    parser = argparse.ArgumentParser(description="An MPI program whose memory grows and whose result can be checked.")
    parser.add_argument("--start-mb", type=float, default=20, help="memory of a rank at its start, MiB")
    parser.add_argument("--grow-mb-s", type=float, default=0, help="growth of a rank's memory, MiB/s")
    parser.add_argument("--limit-mb", type=float, default=20, help="memory of a rank at most, MiB")
    parser.add_argument("--hold-s", type=float, default=10, help="seconds to run on when that is reached")
    parser.add_argument("--steps", type=int, default=0, help="end after so many iterations instead of by time")
    parser.add_argument("--while-go", metavar="FILE", help="run on as long as FILE says 'go'")
    parser.add_argument("--interval-s", type=float, default=0.25, help="an iteration takes at least that long")
    options = parser.parse_args()
    speaker = MPI.COMM_WORLD.Get_rank() == 0

    def say(text: str) -> None:
        if speaker:
            print(text, flush=True)

    correct = run(
        options.start_mb,
        options.grow_mb_s,
        max(options.limit_mb, options.start_mb),
        options.hold_s,
        options.steps,
        options.interval_s,
        (lambda: says_go(options.while_go)) if options.while_go else None,
        say,
    )
    say("RESULT correct" if correct else "RESULT wrong")
    return 0 if correct else 1


if __name__ == "__main__":
    sys.exit(main())
