"""The process that simulates the failure: it takes a share of its host's memory and keeps it.

Copied to a host and run there by its own Python: ``python3 hog.py --share 0.5 --seconds 8``.
"""

from __future__ import annotations

import argparse
import time

PAGE = 4096
MEBIBYTE = 1024 * 1024


def host_memory() -> int:
    """Bytes of memory the host has, by its own /proc/meminfo."""
    with open("/proc/meminfo") as meminfo:  # noqa: PTH123  # runs where only the standard library is
        return int(meminfo.readline().split()[1]) * 1024


def main() -> None:
    """Take the memory evenly over the given seconds, then hold it until killed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--share", type=float, required=True, help="of the host's memory, 0..1")
    parser.add_argument("--seconds", type=float, default=8.0, help="how long taking it lasts")
    arguments = parser.parse_args()
    size = int(host_memory() * arguments.share) // MEBIBYTE
    taken = []
    began = time.monotonic()
    for number in range(size):
        block = bytearray(MEBIBYTE)
        for offset in range(0, MEBIBYTE, PAGE):  # touched, or the kernel would not give it
            block[offset] = 1
        taken.append(block)
        time.sleep(max(0.0, began + arguments.seconds * (number + 1) / size - time.monotonic()))
    print(f"hog: {size} MiB taken and kept", flush=True)
    while True:
        time.sleep(3600)


if __name__ == "__main__":
    main()
