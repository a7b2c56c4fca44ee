"""The MPI program that the tests run: ``programs.py SCENARIO FOLDER [ARGUMENT]``. In C: programs.c, Fortran: loop.F90.

Each rank writes the number of barriers it has left to FOLDER/RANK, so that the test sees, without
asking MPI, who runs and who waits. FOLDER/do says which barrier comes next, in one word, as long as the job runs:
rank 0 looks, all hear of it, in whatever language they are.
"""

import os
import struct
import sys
import threading
import time
from pathlib import Path

from mpi4py import MPI

WORLD = MPI.COMM_WORLD
WORD = 16  # bytes, filled with blanks


class Counter:
    """The number of barriers this rank has left, for the test to read at any time."""

    def __init__(self, folder):
        self.count = 0
        self._file = os.open(Path(folder) / str(WORLD.rank), os.O_RDWR | os.O_CREAT)
        self.left(0)

    def left(self, by=1):
        self.count += by
        os.pwrite(self._file, struct.pack("=QQ", os.getpid(), self.count), 0)


def turn(folder):
    """The word that says what all ranks do next."""
    time.sleep(0.002)
    path = Path(folder) / "do"
    said = path.read_bytes().strip() if WORLD.rank == 0 and path.exists() else b""
    word = bytearray((said or b"world").ljust(WORD))
    WORLD.Bcast((word, MPI.CHAR))
    return word.decode().strip()


def loop(folder):
    """What FOLDER/do says, again and again."""
    counter = Counter(folder)
    while (what := turn(folder)) != "stop":
        if what == "finalize":
            finalize(folder)
            return
        counter.left(BARRIERS.get(what, derived)(folder, what))


def world(_folder, _what):
    WORLD.Barrier()
    return 1


def lower_case(_folder, _what):
    WORLD.barrier()
    return 1


def nothing(folder, _what):
    """No barrier any more, and the file FOLDER/nothing says so."""
    (Path(folder) / "nothing").touch()
    return 0


def switched(_folder, what):
    """The wrapper is switched off or on first."""
    MPI.Pcontrol(int(what == "on"))
    WORLD.Barrier()
    return 1


def asking(_folder, _what):
    """No barrier but where the wrapper says so; that one counts as a million."""
    from failavoid.mpi import should_migrate

    if should_migrate():
        WORLD.Barrier()
        return 1_000_000
    return 1


def callbacks(folder, _what):
    """The application is told before and after a stop, and communicates then."""
    from failavoid.mpi import set_callbacks

    def note(what):
        def told(word):
            WORLD.Barrier()  # mpi4py's own
            WORLD.allreduce(WORLD.rank)
            (Path(folder) / f"{what}-{word}-{WORLD.rank}-told").touch()

        return told

    set_callbacks(note("before"), note("after"))
    WORLD.Barrier()
    set_callbacks()
    return 1


def two_counts(_folder, _what):
    """Two communicators in turn, twice as often on the second: each has its own count."""
    other = made("dup")
    MPI.Intracomm(other).Get_size()  # another Python object for the same communicator changes nothing
    WORLD.Barrier()
    other.Barrier()
    type(WORLD)(other).Barrier()
    return 3


def derived(_folder, what):
    """On a communicator that was made from the world's, or from a part of it."""
    made(what).Barrier()
    return 1


BARRIERS = {
    "world": world,
    "lower_case": lower_case,
    "nothing": nothing,
    "off": switched,
    "on": switched,
    "asking": asking,
    "callbacks": callbacks,
    "two_counts": two_counts,
}
MADE = {}
MAKE = {
    "dup": lambda: WORLD.Dup(),
    "split": lambda: WORLD.Split(0, -WORLD.rank),  # all ranks, in reverse order
    "create": lambda: WORLD.Create(WORLD.Get_group()),
    "create_group": lambda: WORLD.Create_group(WORLD.Get_group()),
    "cart": lambda: WORLD.Create_cart([WORLD.size]),
    "graph": lambda: WORLD.Create_graph(list(range(1, WORLD.size + 1)), [0] * WORLD.size),
    "merge": lambda: made("inter").Merge(WORLD.rank % 2),
    "part": lambda: WORLD.Split(WORLD.rank // 2),  # each rank with its neighbour
    "inter": lambda: WORLD.Split(WORLD.rank % 2).Create_intercomm(0, WORLD, (WORLD.rank + 1) % 2),
}


def made(what):
    """A communicator, made when it is wanted first."""
    if what not in MADE:
        MADE[what] = MAKE[what]()
    return MADE[what]


def finalize(folder):
    """Leave MPI, and stay until the file FOLDER/end is there."""
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


def imported_late(folder):
    """The wrapper is imported by the program itself, after mpi4py."""
    import failavoid.mpi  # noqa: F401

    global WORLD
    WORLD = MPI.COMM_WORLD
    loop(folder)


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
