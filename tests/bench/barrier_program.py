"""barrier.c in Python: times mpi4py's barriers when told to. ``barrier_program.py FOLDER``."""

import struct
import sys
import time
from pathlib import Path

from mpi4py import MPI

world = MPI.COMM_WORLD
folder = Path(sys.argv[1])
with (
    (folder / "result").open("r+b", buffering=0) as result,
    (folder / str(world.rank)).open("rb", buffering=0) as orders,
):
    while True:
        (barriers,) = struct.unpack("=Q", orders.read(8) or bytes(8))
        if not barriers:
            break
        world.Barrier()
        began = time.perf_counter()
        for _ in range(barriers):
            world.Barrier()
        seconds = time.perf_counter() - began
        if world.rank == 0:
            result.write(struct.pack("=d", seconds))
