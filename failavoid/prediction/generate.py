"""Makes traces of hosts whose memory develops in a known way: what recordings do not hold, and how often one likes.

All randomness comes from the generator that is given: the same seed makes the same traces.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from failavoid.prediction.grouping import Floats

SHAPES = ("linear", "step", "accelerating", "sawtooth")
KINDS = ("steady", "phases", "sawtooth", "growing")
SLOWEST, FASTEST = 4e-5, 4e-2  # share of memory a second: three decades
_MEMORY_KB = 64 << 20


@dataclass(frozen=True)
class Application:
    """How a job's memory develops on its hosts: shares of memory, seconds.

    ``phases`` are levels, each held for ``period_s``; ``sawtooth`` grows by ``swing`` within a period and falls back;
    ``growing`` grows by ``swing`` over the whole run. Hosts start within ``skew_s`` of each other, and go through their
    periods together only if ``synchronous``.
    """

    kind: str
    level: float
    ramp_s: float
    skew_s: float
    noise: float
    period_s: float
    swing: float
    synchronous: bool
    phases: tuple[float, ...] = ()


def draw_application(rng: np.random.Generator, kind: str | None = None, synchronous: bool | None = None) -> Application:
    """An application of a kind (any of `KINDS` if None)."""
    swing = float(rng.uniform(0.02, 0.25))
    return Application(
        kind=kind or str(rng.choice(KINDS)),
        level=float(rng.uniform(0.15, 0.65 - swing)),
        ramp_s=float(np.exp(rng.uniform(np.log(2), np.log(120)))),
        skew_s=float(rng.uniform(0, 3)),
        noise=float(np.exp(rng.uniform(np.log(3e-4), np.log(1e-2)))),
        period_s=float(np.exp(rng.uniform(np.log(10), np.log(300)))),
        swing=swing,
        synchronous=bool(rng.random() < 0.5) if synchronous is None else synchronous,
        phases=tuple(rng.uniform(0, 1, 6)),
    )


def healthy(rng: np.random.Generator, application: Application, seconds: int) -> Floats:
    """One host's share of memory in use at each second."""
    late = rng.uniform(0, application.skew_s)
    times = np.arange(float(seconds)) - late
    phase = 0.0 if application.synchronous else rng.uniform(0, application.period_s)
    turns = np.maximum(0.0, times + phase) / application.period_s
    if application.kind == "phases":
        levels = np.array(application.phases)
        pattern = levels[turns.astype(int) % len(levels)]
    elif application.kind == "sawtooth":
        pattern = turns % 1
    elif application.kind == "growing":
        pattern = np.clip(times / seconds, 0, 1)
    else:
        pattern = np.zeros(seconds)
    own = rng.normal(0, 0.005)
    values = application.level + own + application.swing * pattern
    begun = 0.05 + (values - 0.05) * np.clip(times / application.ramp_s, 0, 1)
    result: Floats = np.clip(begun + _noise(rng, seconds, application.noise), 0.0, 1.0)
    return result


def _noise(rng: np.random.Generator, seconds: int, size: float) -> Floats:
    """Half of it white, half with a memory of some ten seconds."""
    white = rng.normal(0, size / np.sqrt(2), seconds)
    slow = np.convolve(rng.normal(0, size / np.sqrt(2), seconds + 19), np.ones(20) / np.sqrt(20), mode="valid")
    noise: Floats = white + slow
    return noise


def leak(rng: np.random.Generator, seconds: int, rate: float, shape: str, begin: int, rise: float) -> Floats:
    """What a leak of ``rate`` (share a second, on average) from second ``begin`` on adds; it needs ``rise`` to fail."""
    times = np.maximum(0.0, np.arange(float(seconds)) - begin)
    straight: Floats = rate * times
    if shape == "step":
        height = rng.uniform(0.01, 0.04)
        stairs: Floats = height * np.floor(straight / height + rng.uniform(0, 1) * (times > 0))
        return stairs
    if shape == "accelerating":
        bent: Floats = straight * (0.3 + 0.7 * straight / rise)
        return bent
    if shape == "sawtooth":
        period = rng.uniform(0.04, 0.1) / rate
        sawtooth: Floats = np.maximum(0.0, straight + 0.02 * (2 * np.abs((times / period) % 1 - 0.5) - 1) * (times > 0))
        return sawtooth
    return straight


@dataclass(frozen=True)
class LeakingHost:
    """A host's values with its leak, and from when to when it leaked (s)."""

    values: Floats
    begin: int
    end: int


def leaking(
    rng: np.random.Generator, application: Application, seconds: int, rate: float, shape: str, fail_at: float = 0.90
) -> LeakingHost:
    """A host that leaks until it has failed, if there is time; it begins no sooner than a minute from its start."""
    base = healthy(rng, application, seconds)
    rise = max(0.1, fail_at - float(np.median(base)))
    latest = seconds - int(1.4 * rise / rate) - 60
    begin = int(rng.integers(60, latest)) if latest > 60 else 60
    values = np.minimum(base + leak(rng, seconds, rate, shape, begin, rise), 1.0)
    return LeakingHost(values, begin, seconds)


def draw_rate(rng: np.random.Generator, slowest: float = SLOWEST, fastest: float = FASTEST) -> float:
    """A leak's rate, as likely in one decade as in the next."""
    return float(np.exp(rng.uniform(np.log(slowest), np.log(fastest))))


def lose(rng: np.random.Generator, values: Floats, share: float) -> Floats:
    """The values with a share of them missing, by themselves and in bursts of up to 4 s."""
    lost = rng.random(len(values)) < share
    for place in np.flatnonzero(rng.random(len(values)) < share / 40):
        lost[place : place + int(rng.integers(2, 5))] = True
    return np.where(lost, np.nan, values)


@dataclass(frozen=True)
class Recipe:
    """What `write` makes: one application's runs, each of one host."""

    healthy: int = 30
    leaking: int = 12
    seconds: int = 3600
    slowest: float = 4e-4
    fastest: float = FASTEST
    shape: str = "mixed"
    kind: str = "steady"
    synchronous: bool = True
    missing: float = 0.0
    seed: int = 0


def write(folder: Path, recipe: Recipe) -> None:
    """Write runs as LDMS CSV files, and labels.csv beside them."""
    rng = np.random.default_rng(recipe.seed)
    application = draw_application(rng, recipe.kind, recipe.synchronous)
    folder.mkdir(parents=True, exist_ok=True)
    labels = []
    for number in range(recipe.healthy + recipe.leaking):
        name, interval = f"run-{number:04d}.csv", ""
        if number < recipe.healthy:
            values = healthy(rng, application, recipe.seconds)
        else:
            shape = str(rng.choice(SHAPES)) if recipe.shape == "mixed" else recipe.shape
            rate = draw_rate(rng, recipe.slowest, recipe.fastest)
            found = leaking(rng, application, recipe.seconds, rate, shape)
            values, interval = found.values, f"{found.begin}-{found.end}"
        write_run(folder / name, f"run-{number:04d}", lose(rng, values, recipe.missing))
        labels.append([name, f"generated-{recipe.kind}", interval])
    with (folder / "labels.csv").open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([["file", "application", "leak_intervals_s"], *labels])


def write_run(path: Path, producer: str, values: Floats) -> None:
    """Write one host's values (NaN: no sample) as an LDMS CSV file of a host with 64 GiB."""
    used = np.rint(values * _MEMORY_KB)
    with path.open("w") as file:
        file.write("#Time,ProducerName,MemTotal,MemFree,MemAvailable,Active\n")
        for second in np.flatnonzero(np.isfinite(values)):
            free = int(_MEMORY_KB - used[second])
            row = f"{1.7e9 + second:.6f},{producer},{_MEMORY_KB},{free},{free},{int(used[second])}\n"
            file.write(row)
