"""The MPI program that the tests run: ``programs.py SCENARIO FOLDER [ARGUMENT]``.

Each rank writes the number of barriers it has left to FOLDER/RANK, so that the test sees, without
asking MPI, who runs and who waits. FOLDER/stop ends a loop: rank 0 decides, all hear of it.
"""

import array
import os
import struct
import sys
import threading
import time
from pathlib import Path

from mpi4py import MPI

WORLD = MPI.COMM_WORLD


class Counter:
    """The number of barriers this rank has left, for the test to read at any time."""

    def __init__(self, folder):
        self.count = 0
        self._file = os.open(Path(folder) / str(WORLD.rank), os.O_RDWR | os.O_CREAT)
        self.left(0)

    def left(self, by=1):
        self.count += by
        os.pwrite(self._file, struct.pack("=QQ", os.getpid(), self.count), 0)


def go_on(folder):
    time.sleep(0.002)
    word = array.array("i", [WORLD.rank == 0 and (Path(folder) / "stop").exists()])
    WORLD.Bcast((word, MPI.INT))  # as in programs.c: both may be of one job
    return not word[0]


def loop(folder, comm=WORLD):
    """A barrier again and again."""
    counter = Counter(folder)
    while go_on(folder):
        comm.Barrier()
        counter.left()


def derived(folder, how):
    """The same on a communicator made from the world's."""
    make = {
        "dup": lambda: WORLD.Dup(),
        "split": lambda: WORLD.Split(0, -WORLD.rank),  # all ranks, in reverse order
        "create": lambda: WORLD.Create(WORLD.Get_group()),
        "create_group": lambda: WORLD.Create_group(WORLD.Get_group()),
        "cart": lambda: WORLD.Create_cart([WORLD.size]),
        "graph": lambda: WORLD.Create_graph(list(range(1, WORLD.size + 1)), [0] * WORLD.size),
        "merge": lambda: (
            WORLD.Split(WORLD.rank % 2).Create_intercomm(0, WORLD, (WORLD.rank + 1) % 2).Merge(WORLD.rank % 2)
        ),
    }[how]
    loop(folder, make())


def part(folder):
    """Barriers on parts of the world only: each rank with its neighbour."""
    loop(folder, WORLD.Split(WORLD.rank // 2))


def inter(folder):
    """Barriers on an inter-communicator only."""
    half = WORLD.Split(WORLD.rank % 2)
    loop(folder, half.Create_intercomm(0, WORLD, (WORLD.rank + 1) % 2))


def lower_case(folder):
    counter = Counter(folder)
    while go_on(folder):
        WORLD.barrier()
        counter.left()


def two_counts(folder):
    """Two communicators in turn, twice as often on the second: each has its own count."""
    counter = Counter(folder)
    other = WORLD.Dup()
    MPI.Intracomm(other).Get_size()  # another Python object for the same communicator changes nothing
    while go_on(folder):
        WORLD.Barrier()
        other.Barrier()
        type(WORLD)(other).Barrier()
        counter.left(3)


def switched_off(folder):
    """The wrapper is off until the file FOLDER/on is there."""
    counter = Counter(folder)
    MPI.Pcontrol(0)
    on = False
    while go_on(folder):
        if not on and WORLD.bcast((Path(folder) / "on").exists() if WORLD.rank == 0 else None):
            MPI.Pcontrol(1)
            on = True
        WORLD.Barrier()
        counter.left()


def finalize(folder):
    """No barrier after the notice: wait for the stop, then leave MPI."""
    counter = Counter(folder)
    WORLD.Barrier()
    counter.left()
    while go_on(folder):
        pass
    MPI.Finalize()
    (Path(folder) / f"finalized-{os.getpid()}").touch()
    while not (Path(folder) / "end").exists():
        time.sleep(0.01)


def message(folder, at):
    """As `loop`, but the last rank's thread sends to rank 0 once FOLDER/send is there: meant to be seen."""
    if WORLD.rank == 0:
        WORLD.Recv(bytearray(64), WORLD.size - 1, 0)
    if WORLD.rank == WORLD.size - 1:
        WORLD.Send(bytearray(64), 0, 0)  # once, so that there is a connection

        def send():
            while not (Path(folder) / "send").exists():
                time.sleep(0.01)
            WORLD.Isend(bytearray(64), 0, int(at)).Wait()

        threading.Thread(target=send, daemon=True).start()
    loop(folder)
    if WORLD.rank == 0 and (Path(folder) / "send").exists():
        WORLD.Recv(bytearray(64), WORLD.size - 1, int(at))


def asking(folder):
    """No barriers but where the wrapper says so."""
    from failavoid.mpi import should_migrate

    counter = Counter(folder)
    while go_on(folder):
        if should_migrate():
            WORLD.Barrier()
        counter.left()


def callbacks(folder):
    """The application is told before and after a stop, and communicates then."""
    from failavoid.mpi import set_callbacks

    def note(what):
        def told(word):
            WORLD.Barrier()  # mpi4py's own
            WORLD.allreduce(WORLD.rank)
            (Path(folder) / f"{what}-{word}-{WORLD.rank}-told").touch()

        return told

    set_callbacks(note("before"), note("after"))
    loop(folder)


def imported_late(folder):
    """The wrapper is imported by the program itself, after mpi4py."""
    import failavoid.mpi  # noqa: F401

    global WORLD
    WORLD = MPI.COMM_WORLD
    loop(folder, MPI.COMM_WORLD)


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
