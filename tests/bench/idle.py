"""Idle guests of 256 MiB, started and moved by the playbooks alone."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from failavoid.demo.observe import Services, wait_until
from failavoid.demo.site import Site
from failavoid.playbook_runner import PlaybookResult
from tests.bench.held import record
from tests.testbed.by_hand import ByHand, make

FIRST_ADDRESS = 240  # of no guest of the resource manager
RETURN_S = 90.0


@dataclass
class Moved:
    """A run of migrate.yml: when it ``began`` and ``ended`` in seconds since the epoch, and how long guests moved."""

    result: PlaybookResult
    began: float
    ended: float
    moving_s: float


@contextlib.contextmanager
def launched(site: Site, services: Services, folder: Path, names: list[str]) -> Iterator[ByHand]:
    """Guests on the last host but one; afterwards they are removed, and the hosts are free. Raises RuntimeError."""
    hosts = site.groups["hypervisor"][-2:]
    hand = make(site, folder)
    hand.clear(*names)
    try:
        guests = [hand.describe(name, FIRST_ADDRESS + number) for number, name in enumerate(names)]
        _succeed(hand, "launch.yml", hand.launch(hosts[0], *guests))
        yield hand
    finally:
        hand.clear(*names)

        def are_free() -> bool:
            return all(host.pool == "free" for host in services.membership().hosts if host.name in hosts)

        if not wait_until(are_free, RETURN_S):  # once the resource manager sees no strangers there any more
            print(f"{' and '.join(hosts)} are not free again: see 'failavoid hosts'", flush=True)


def move(hand: ByHand, names: list[str], **variables: Any) -> Moved:
    """Move guests to the other one of the two hosts. Raises RuntimeError."""
    ident = f"bench-{time.time_ns()}"
    source = hand.host_of[names[0]]
    destination = next(host for host in hand.site.groups["hypervisor"][-2:] if host != source)
    began = time.time()
    result = hand.move(ident, destination, *names, **variables)
    ended = time.time()
    _succeed(hand, "migrate.yml", result)
    hand.host_of.update(dict.fromkeys(names, destination))
    kept = record(hand.site, ident, source)
    return Moved(result, began, ended, kept["ended"] - kept["began"])


def _succeed(hand: ByHand, playbook: str, result: PlaybookResult) -> None:
    if result.failures:
        raise RuntimeError(f"{playbook} failed: {'; '.join(result.failures)}; its log is {result.log}")
