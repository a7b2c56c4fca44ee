"""The source `ldms`: follows a CSV file that LDMS's store_csv writes, from its end on.

Options: ``path`` of the file. Its rows are one sample a producer of the sampler `meminfo`; a file that is replaced or
begun anew (rollover) is followed.
"""

from __future__ import annotations

import csv
import logging
import os
import threading
import time
from pathlib import Path
from typing import Any, TextIO

from failavoid.monitor.sources import Context, take_options
from failavoid.shared.messages import Sample
from failavoid.shared.names import InvalidNameError, check_name

log = logging.getLogger(__name__)
LOOK_S = 0.25
_COLUMNS = {"MemTotal": "mem_total_kb", "MemAvailable": "mem_available_kb", "Active": "mem_active_kb"}


class LdmsSource:
    """Follows in a thread of its own; a file that is not there yet is waited for."""

    @staticmethod
    def check(options: dict[str, Any]) -> Path:
        """Return the path of the file. Raises ValueError."""
        path = Path(take_options("ldms", options, path="")["path"])
        if not path.is_absolute():
            raise ValueError(f"source ldms: option 'path' is {str(path)!r}; give the whole path of the CSV file")
        return path

    def __init__(self, options: dict[str, Any], context: Context) -> None:
        self._path = self.check(options)
        self._store = context.store
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ldms", daemon=True)
        self._places: dict[str, int] = {}
        self._said: set[str] = set()

    def start(self) -> None:
        """Begin to follow."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        first = True
        while not self._stopped.is_set():
            try:
                with self._path.open(newline="", errors="replace") as file:
                    self._follow(file, from_end=first)
            except OSError as error:
                self._say(f"{self._path}: {error.strerror}; waiting for it")
                self._stopped.wait(1)
            first = False

    def _follow(self, file: TextIO, from_end: bool) -> None:
        """Take lines until the file is another one; of what was there before only the header is read."""
        if from_end:
            self._take(file.readline())
            file.seek(0, os.SEEK_END)
            file.readline()
        rest = ""
        while not self._stopped.is_set():
            piece = file.readline()
            rest += piece
            if rest.endswith("\n"):
                self._take(rest)
                rest = ""
            elif not piece:
                now, mine = self._path.stat(), os.fstat(file.fileno())
                if (now.st_dev, now.st_ino) != (mine.st_dev, mine.st_ino) or now.st_size < file.tell():
                    return
                self._stopped.wait(LOOK_S)

    def _take(self, line: str) -> None:
        try:
            row = next(csv.reader([line]), [])
        except csv.Error as error:
            self._say(f"{self._path}: a row is left out that is no CSV ({error}); said once")
            return
        if row and row[0].lstrip("#").strip() == "Time":
            self._places = {name.lstrip("#").strip().rpartition(":")[2]: place for place, name in enumerate(row)}
            missing = [name for name in ("ProducerName", "MemTotal", "MemAvailable") if name not in self._places]
            if missing:
                self._say(f"{self._path}: column {missing[0]!r} is missing; the sampler meminfo is needed")
            return
        try:
            host = check_name("host", row[self._places["ProducerName"]].partition(".")[0].lower())
            metrics = {ours: float(row[self._places[name]]) for name, ours in _COLUMNS.items() if name in self._places}
            sample = Sample(host, "host", float(row[self._places["Time"]]), metrics)
        except (KeyError, IndexError, ValueError, InvalidNameError) as error:
            self._say(f"{self._path}: a row is left out that is no sample ({error!r}); said once")
            return
        self._store.take(sample, time.time())

    def _say(self, text: str) -> None:
        if text not in self._said and len(self._said) < 100:
            self._said.add(text)
            log.warning(text)
