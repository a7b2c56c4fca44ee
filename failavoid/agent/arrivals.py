"""What a guest's agent tells of guests that have moved, before their ranks run on: root file system and network.

Each word is tried again until it is true, or until nobody asks any more. A file system that hangs, hangs the one thread
that asks it.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable

from failavoid.shared.messages import Arrival, GuestReport, Notice

CONNECT_S = 1.0
PAUSE_S = 0.1
PORT = 22  # any answer will do: a guest that refuses the connection is there
MOUNTS = "/proc/self/mountinfo"
STORE = "/run/failavoid"  # where the root file system's store is mounted in guests

Report = Callable[[GuestReport], None]


class Arrivals:
    """Answers for ``guest`` what a notice asks about arrivals; ``report`` brings the words to the controller."""

    def __init__(self, guest: str, report: Report) -> None:
        self._guest = guest
        self._report = report
        self._asked: set[tuple[int, str]] = set()  # epoch, guest that moved

    def take(self, notice: Notice) -> None:
        """Begin to look at what the notice asks for, and stop looking at what it does not; for one thread."""
        mine = [arrival for arrival in notice.arrivals if self._guest in (arrival.guest, arrival.peer)]
        wanted = {(notice.epoch, arrival.guest): arrival for arrival in mine}
        new, self._asked = wanted.keys() - self._asked, set(wanted)
        for key in new:
            threading.Thread(target=self._look, args=(key, wanted[key], notice), name="arrival", daemon=True).start()

    def _look(self, key: tuple[int, str], arrival: Arrival, notice: Notice) -> None:
        mine = arrival.guest == self._guest
        report = GuestReport(notice.job, notice.epoch, "root" if mine else "reached", 0, "" if mine else arrival.guest)
        while key in self._asked:
            if root_answers() if mine else can_be_reached(arrival.address):
                self._report(report)
                return
            time.sleep(PAUSE_S)


def can_be_reached(address: str) -> bool:
    """Whether there is somebody at an address."""
    try:
        socket.create_connection((address, PORT), timeout=CONNECT_S).close()
    except ConnectionRefusedError:
        return True
    except OSError:
        return False
    return True


def root_answers(mounts: str = MOUNTS) -> bool:
    """Whether the file system below the root answers; hangs as long as it hangs.

    statfs(2) of an NFS mount asks the server each time. Where the root lies on none, its own will do.
    """
    try:
        for place in nfs_below_root(mounts) or ["/"]:
            os.statvfs(place)
    except OSError:
        return False
    return True


def nfs_below_root(mounts: str = MOUNTS) -> list[str]:
    """Return where NFS is mounted that the root file system is made of."""
    found = []
    with open(mounts) as lines:  # noqa: PTH123  # pathlib alone costs as much as the agent's start
        for line in lines:
            before, _, after = line.partition(" - ")
            place = before.split()[4]
            if after.startswith("nfs") and (place == "/" or place.startswith(f"{STORE}/")):
                found.append(place)
    return found
