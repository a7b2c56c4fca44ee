# Copyright: the failavoid authors
# Apache License 2.0 (see LICENSE)
"""Kernel samepage merging: guests of one image on one machine hold the same pages, and the kernel can keep them once.

https://docs.kernel.org/admin-guide/mm/ksm.html; QEMU offers its guests' memory for it by itself.
"""

from __future__ import annotations

import json
from pathlib import Path

KSM = Path("/sys/kernel/mm/ksm")
PAGES_TO_SCAN = 1000  # at each wake-up, of which there are 50 a second: some 200 MB/s
STOP_AND_UNMERGE = "2"


def begin(record: Path, ksm: Path = KSM) -> bool:
    """Have the kernel merge pages; what was set before is kept in ``record``. Return whether that is news."""
    if record.exists():
        return False
    names = ("run", "pages_to_scan")
    record.write_text(json.dumps({name: (ksm / name).read_text().strip() for name in names}) + "\n")
    (ksm / "pages_to_scan").write_text(f"{PAGES_TO_SCAN}\n")
    (ksm / "run").write_text("1\n")
    return True


def end(record: Path, ksm: Path = KSM) -> bool:
    """Set what ``record`` says was set before, and take merged pages apart. Return whether there was anything to do."""
    if not record.exists():
        return False
    before = json.loads(record.read_text())
    if before["run"] != "1":
        (ksm / "run").write_text(f"{STOP_AND_UNMERGE}\n")
    (ksm / "pages_to_scan").write_text(before["pages_to_scan"] + "\n")
    (ksm / "run").write_text(before["run"] + "\n")
    record.unlink()
    return True
