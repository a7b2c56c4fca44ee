"""A warm pool for as long as it is wanted."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from failavoid.demo.observe import Services, wait_until
from failavoid.demo.site import Site
from tests.testbed.changed_settings import changed_settings

FILL_S = 300.0


@contextlib.contextmanager
def warm_guests(site: Site, services: Services, count: int, per_host: int = 0, relocate: str = "kvm") -> Iterator[None]:
    """So many warm guests of 288 MiB and no others, all on one host or so many ``per_host``."""
    pool = {"guests": count, "per_host": per_host or count, "memory_kb": 288 * 1024}
    with changed_settings(site, services, "resource_manager", warm_pools=[pool], relocate_warm=relocate):
        for guest in services.membership().guests:
            services.resource_manager.delete(f"/guests/{guest.name}", timeout=120)
        assert wait_until(lambda: warm(services) == count, FILL_S), "no warm guests"
        yield


def warm(services: Services) -> int:
    """How many guests are warm."""
    return sum(guest.state == "warm" for guest in services.membership().guests)
