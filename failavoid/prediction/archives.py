"""The monitor's own recordings: compact files of a minute each, readable with numpy alone.

A file is an .npz with ``times`` (s), ``hosts`` and ``metrics`` (names), ``values`` (times x metrics x hosts, single
precision, NaN: no sample) and ``groups`` (JSON: [[time, [[job, application, hardware, [host, ...]], ...]], ...], an
entry for each change and one at the beginning). A file is written aside and renamed: it is whole, or not there.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from failavoid.prediction.grouping import Floats
from failavoid.prediction.traces import Trace, TraceError

GroupRow = tuple[str, str, str, tuple[str, ...]]  # job, application, hardware, hosts


@dataclass(frozen=True)
class Segment:
    """What one file holds."""

    times: Floats
    hosts: tuple[str, ...]
    metrics: tuple[str, ...]
    values: npt.NDArray[np.float32]
    groups: tuple[tuple[float, tuple[GroupRow, ...]], ...]


def write_segment(path: Path, segment: Segment, compressed: bool = True) -> None:
    """Write a file. Raises OSError."""
    save = np.savez_compressed if compressed else np.savez
    aside = path.with_suffix(".part")
    with aside.open("wb") as file:
        save(
            file,
            times=segment.times,
            hosts=np.array(segment.hosts, dtype=np.str_),
            metrics=np.array(segment.metrics, dtype=np.str_),
            values=segment.values,
            groups=np.array(json.dumps(segment.groups)),
        )
    aside.replace(path)


def read_segment(path: Path) -> Segment:
    """Read a file. Raises TraceError."""
    try:
        with np.load(path, allow_pickle=False) as found:
            groups = tuple(
                (time, tuple((job, application, hardware, tuple(hosts)) for job, application, hardware, hosts in rows))
                for time, rows in json.loads(str(found["groups"]))
            )
            return Segment(
                times=found["times"],
                hosts=tuple(found["hosts"].tolist()),
                metrics=tuple(found["metrics"].tolist()),
                values=found["values"],
                groups=groups,
            )
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise TraceError(f"{path}: is no recording of the monitor, or a damaged one: {error}") from error


def read_job(files: Sequence[Path], job: str | None, metric: str) -> list[Trace]:
    """One job's hosts as traces, each for as long as it was the job's; the only job there is if none is named.

    Values are shares of each host's own memory. Raises TraceError.
    """
    rows: dict[str, list[tuple[float, float]]] = {}
    jobs: set[str] = set()
    for path in sorted(files):
        segment = read_segment(path)
        used = _shares(segment, metric)
        place = {host: column for column, host in enumerate(segment.hosts)}
        changes = [*segment.groups, (np.inf, ())]
        for (begin, groups), (end, _) in zip(changes, changes[1:]):
            inside = np.flatnonzero((segment.times >= begin) & (segment.times < end))
            for of_job, _application, _hardware, hosts in groups:
                jobs.add(of_job)
                if job in (None, of_job):
                    for host in hosts:
                        if host in place:
                            column = used[inside, place[host]]
                            known = np.isfinite(column)
                            rows.setdefault(host, []).extend(zip(segment.times[inside][known], column[known]))
    if job is None and len(jobs) > 1:
        raise TraceError(f"the recording holds {len(jobs)} jobs: choose one with --job ({', '.join(sorted(jobs))})")
    if not any(rows.values()):
        raise TraceError(
            f"the recording holds nothing of job {job or 'any'}; jobs in it: {', '.join(sorted(jobs)) or 'none'}"
        )
    return [
        Trace(host, np.array([time for time, _ in found]), np.array([value for _, value in found]))
        for host, found in sorted(rows.items())
        if found
    ]


def _shares(segment: Segment, metric: str) -> Floats:
    row = {name: segment.values[:, place].astype(np.float64) for place, name in enumerate(segment.metrics)}
    total = row["mem_total_kb"]
    with np.errstate(divide="ignore", invalid="ignore"):
        return row["mem_active_kb"] / total if metric == "active" else 1 - row["mem_available_kb"] / total
