"""What an evacuation costs beyond the move itself: writes build/bench/evacuation.json.

An MPI job in C runs on two hosts with a guest of 288 MiB on each. By turns one of its guests is evacuated
(`evacuation_s`: from the alarm's acceptance, or from when all ranks had stopped if that was later, until all ranks are
released) and moved by virsh between the same hosts with its ranks held at the same barrier (`raw_virsh_s`, see
held.py). Then idle guests move at once and one after the other (`parallel_s`, `serial_s`, by their number), and jobs
start in warm and in cold guests.

Takes about twelve minutes. Whatever happens, jobs are ended, guests removed and hosts in service again.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from operator import sub, truediv
from pathlib import Path
from typing import Any

from failavoid.demo.observe import Services, connect, wait_until
from failavoid.demo.site import Site, read_inventory
from failavoid.shared.messages import EVACUATION_ENDS, Evacuation
from tests.bench import starts, together
from tests.bench.held import emulated, raw_moves, record
from tests.bench.jobs import barrier_job, remove_idle_guests
from tests.bench.results import PROJECT, Samples, add, document, each, show, write
from tests.mpi.installations import HERE, OPENMPI4, Builds
from tests.testbed.long_job import MOVE_S, LongJob
from tests.testbed.mpi_program import barriers

ROUNDS = 5
GO_ON_S = 60.0


def phases(done: Evacuation, began: float, ended: float) -> dict[str, float]:
    """The seconds of an evacuation's parts; ``began`` and ``ended`` are those of the moves by the source's record."""
    at = {step.name: step.done or 0.0 for step in done.steps}
    prepared = next(step for step in done.steps if step.name == "prepare_destination")
    return {
        "evacuation_s": at["released"] - max(at["alarm"], at["gathered"]),
        "accepted_to_released_s": at["released"] - at["alarm"],
        "accepted_to_leased_s": at["leased"] - at["alarm"],
        "leased_to_gathered_s": at["gathered"] - at["leased"],
        "gathered_to_moving_s": began - at["gathered"],
        "moving_s": ended - began,
        "moved_to_verified_s": at["verified"] - ended,
        "verified_to_released_s": at["released"] - at["verified"],
        "prepare_destination_s": (prepared.done or 0.0) - prepared.begun,
        "move_s": max(move.elapsed_s or 0.0 for move in done.migrations),
        "downtime_ms": max(move.downtime_ms or 0.0 for move in done.migrations),
    }


def evacuate(job: LongJob, guest: str) -> dict[str, float]:
    """Evacuate the host of a guest. Raises RuntimeError unless all went well."""
    host = next(known.host for known in job.guests() if known.name == guest)
    ident = job.evacuate(host)
    # seldom asked, since asking takes time of the controller's
    wait_until(lambda: (told := job.evacuation(ident)) is not None and told.state in EVACUATION_ENDS, MOVE_S)
    done = job.ended(ident)
    if (done.state, done.error) != ("RETIRED", ""):
        raise RuntimeError(f"{done.id} ended {done.state} ({done.error}): see 'failavoid show {done.id}'")
    kept = record(job.site, done.id, host)
    job.restore()
    return phases(done, kept["began"], kept["ended"])


def evacuations(site: Site, services: Services, program: Path, rounds: int) -> tuple[Samples, str]:
    """Evacuations and moves by virsh of the same guest, in turns; the samples, and the guests' domain type."""
    samples: Samples = {}
    with barrier_job(site, services, program) as (job, folder):
        guest = job.guests()[0]
        domain_type = "qemu" if emulated(site, guest.host, guest.name) else "kvm"
        for number in range(1, rounds + 1):
            figures = evacuate(job, guest.name)
            goes_on(site, folder)
            raw = raw_moves(job, guest.name)
            job.restore()
            goes_on(site, folder)
            add(samples, {**figures, "raw_virsh_s": sum(raw) / len(raw)})
            told = {name: round(samples[name][-1], 2) for name in ("evacuation_s", "move_s", "raw_virsh_s")}
            print(f"evacuation {number}/{rounds}: {json.dumps(told)}", flush=True)
        status = job.finish()
        if status != 0:
            raise RuntimeError(f"the job ended with {status}")
    whole, raw_moved = samples["evacuation_s"], samples["raw_virsh_s"]
    samples |= {"overhead_s": each(sub, whole, raw_moved), "ratio": each(truediv, whole, raw_moved)}
    return samples, domain_type


def goes_on(site: Site, folder: str) -> None:
    """Wait until the job has left some more barriers. Raises RuntimeError if it does not."""
    left = barriers(site, folder, 0)
    if not wait_until(lambda: barriers(site, folder, 0) > left + 5, GO_ON_S):
        raise RuntimeError(f"the job's ranks did not run on within {GO_ON_S:.0f} s")


def main() -> None:
    """Measure, and write the file."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.evacuation", description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="samples of each figure (default: %(default)s)")
    rounds = parser.parse_args().rounds
    site = read_inventory(PROJECT / "inventories" / "testbed")
    services = connect(site)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        builds = Builds(Path(folder))
        flat, domain_type = evacuations(site, services, builds.c(OPENMPI4, HERE / "programs.c"), rounds)
        samples: dict[str, Any] = dict(flat)
        remove_idle_guests(services)
        samples |= together.measure(site, services, Path(folder), rounds)
        samples |= starts.measure(site, services, builds.c(OPENMPI4, Path(__file__).with_name("start.c")), rounds)
        remove_idle_guests(services)
    result = document(domain_type, samples, rounds=rounds, wall_s=round(time.monotonic() - began, 1))
    show(result, write("evacuation", result))


if __name__ == "__main__":
    main()
