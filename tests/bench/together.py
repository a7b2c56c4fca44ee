"""Guests that move at once, and one after the other: migrate.yml by hand with two limits."""

from __future__ import annotations

from operator import truediv
from pathlib import Path

from failavoid.demo.observe import Services
from failavoid.demo.site import Site
from tests.bench.idle import launched, move
from tests.bench.results import Samples, add, each

GUESTS = [f"bench-{number}" for number in range(1, 5)]
COUNTS = (4, 2)
AT_ONCE, ONE_BY_ONE = 8, 1


def measure(site: Site, services: Services, folder: Path, rounds: int) -> dict[str, Samples]:
    """`parallel_s`, `serial_s` and their ratio, by the number of guests.

    Seconds from the first move's begin to the last one's end.
    """
    parallel: Samples = {}
    serial: Samples = {}
    with launched(site, services, folder, GUESTS) as hand:
        for number in range(1, rounds + 1):
            for count in COUNTS:
                add(parallel, {str(count): move(hand, GUESTS[:count], migrate_parallel=AT_ONCE).moving_s})
                add(serial, {str(count): move(hand, GUESTS[:count], migrate_parallel=ONE_BY_ONE).moving_s})
            told = [f"{n} guests {parallel[n][-1]} s at once, {serial[n][-1]} s one by one" for n in parallel]
            print(f"moves together {number}/{rounds}: {'; '.join(told)}", flush=True)
    ratios = {count: each(truediv, parallel[count], serial[count]) for count in parallel}
    return {"parallel_s": parallel, "serial_s": serial, "parallel_to_serial": ratios}
