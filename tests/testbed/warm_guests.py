"""A warm pool for as long as it is wanted: the resource manager's settings are changed, and restored afterwards."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator

from failavoid.demo.observe import Services, wait_until
from failavoid.demo.site import Site

SETTINGS = "/etc/failavoid/resource_manager.yml"
FILL_S = 300.0


@contextlib.contextmanager
def warm_guests(site: Site, services: Services, count: int, per_host: int = 0, relocate: str = "kvm") -> Iterator[None]:
    """So many warm guests of 288 MiB and no others, all on one host or so many ``per_host``."""
    kept = site.run(site.head, "cat", SETTINGS)
    pool = {"guests": count, "per_host": per_host or count, "memory_kb": 288 * 1024}
    changed = {"warm_pools": [pool], "relocate_warm": relocate}
    lines = [line for line in kept.splitlines() if line.partition(":")[0] not in changed]
    try:
        write(site, "\n".join([*lines, *(f"{name}: {json.dumps(value)}" for name, value in changed.items())]) + "\n")
        for guest in services.membership().guests:
            services.resource_manager.delete(f"/guests/{guest.name}", timeout=120)
        assert wait_until(lambda: warm(services) == count, FILL_S), "no warm guests"
        yield
    finally:
        write(site, kept)


def warm(services: Services) -> int:
    """How many guests are warm."""
    return sum(guest.state == "warm" for guest in services.membership().guests)


def write(site: Site, settings: str) -> None:
    """Give the resource manager these settings."""
    site.run(site.head, "sh", "-c", f"cat >{SETTINGS} <<'END'\n{settings}END")
    restart(site)


def restart(site: Site) -> None:
    """Restart the resource manager, and wait until it answers."""
    site.run(site.head, "systemctl", "restart", "failavoid-resource-manager")
    assert wait_until(lambda: site.run(site.head, "failavoid", "hosts", check=False) != "", 30)
