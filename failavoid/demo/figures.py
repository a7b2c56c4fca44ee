"""The report's figures, as SVG. Colours are of the cividis scale, which colour-blind people can tell apart."""

from __future__ import annotations

import math
from dataclasses import dataclass
from html import escape

from failavoid.demo.record import HostFacts, Record
from failavoid.demo.runs import Run
from failavoid.shared.messages import Evacuation, Membership, Sample

# cividis (Nunez, Anderton, Renslow 2018), sampled at equal distances
_CIVIDIS = (
    "#00224e",
    "#123570",
    "#3b496c",
    "#575d6d",
    "#707173",
    "#8a8678",
    "#a59c74",
    "#c3b369",
    "#e1cc55",
    "#fee838",
)
THRESHOLD, FAILURE = 0.75, 0.90


def colour(share: float) -> str:
    """The colour of a share of 0..1, between the scale's samples."""
    place = min(max(share, 0.0), 1.0) * (len(_CIVIDIS) - 1)
    low = min(int(place), len(_CIVIDIS) - 2)
    parts = [(int(_CIVIDIS[low][i : i + 2], 16), int(_CIVIDIS[low + 1][i : i + 2], 16)) for i in (1, 3, 5)]
    return "#" + "".join(f"{round(a + (b - a) * (place - low)):02x}" for a, b in parts)


def ink_on(share: float) -> str:
    """A text colour that can be read on `colour`."""
    return "#fff" if share < 0.55 else "#111"


@dataclass
class Panel:
    """One state of the rack: what it is called, who was where, each host's sample nearest in time."""

    title: str
    membership: Membership
    samples: dict[str, Sample]
    hog_on: str | None
    moved: set[str]


def nearest(samples: list[Sample], moment: float) -> dict[str, Sample]:
    """Each host's sample nearest to ``moment``."""
    found: dict[str, Sample] = {}
    for sample in samples:
        held = found.get(sample.node)
        if held is None or abs(sample.time - moment) < abs(held.time - moment):
            found[sample.node] = sample
    return found


def memory_of(sample: Sample) -> float:
    """Share of a host's memory that is not available."""
    return 1 - sample.metrics["mem_available_kb"] / sample.metrics["mem_total_kb"]


def rack(panel: Panel, hosts: list[HostFacts]) -> str:
    """The rack in one state: a host a row, coloured by memory, its cores by CPU use, its guests as marks."""
    width, row, top = 300, 50, 6
    pools = {host.name: host.pool for host in panel.membership.hosts}
    parts = []
    for number, host in enumerate(sorted(hosts, key=lambda one: one.name)):
        y = top + number * row
        sample = panel.samples.get(host.name)
        share = memory_of(sample) if sample else 0.0
        guests = sorted(guest.name for guest in panel.membership.guests if guest.host == host.name)
        pool = pools.get(host.name, "")
        hog = host.name == panel.hog_on
        words = f"{host.name}: {share:.0%} of memory in use, {pool}, {len(guests)} guests"
        ink = ink_on(share)
        parts.append(f"<g><title>{escape(words)}{', the failing process' if hog else ''}</title>")
        edge = ' class="edge-bad"' if hog else ' class="edge"'
        parts.append(
            f'<rect x="2" y="{y}" width="{width - 4}" height="{row - 8}" rx="5" fill="{colour(share)}"{edge}/>'
        )
        parts.append(f'<text x="12" y="{y + 17}" fill="{ink}" class="name">{escape(host.name)}</text>')
        label = "spare" if pool == "free" and not guests else pool
        parts.append(
            f'<text x="12" y="{y + 33}" fill="{ink}" class="small">{escape(label)}{" · hog" if hog else ""}</text>'
        )
        parts.append(f'<text x="{width - 12}" y="{y + 26}" fill="{ink}" class="share">{share:.0%}</text>')
        parts += _cores(sample, 84, y + 7, ink)
        parts += _guests(guests, panel.moved, 84, y + 24, ink)
        parts.append("</g>")
    height = top + len(hosts) * row
    return f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(panel.title)}">{"".join(parts)}</svg>'


def _cores(sample: Sample | None, x: float, y: float, ink: str) -> list[str]:
    cores = sample.cores if sample else []
    size = min(11.0, 120 / max(1, len(cores)))
    return [
        f'<rect x="{x + i * (size + 2):.1f}" y="{y}" width="{size:.1f}" height="11" rx="2" fill="{colour(use)}" '
        f'stroke="{ink}" stroke-width=".7"><title>core {i}: {use:.0%}</title></rect>'
        for i, use in enumerate(cores)
    ]


def _guests(guests: list[str], moved: set[str], x: float, y: float, ink: str) -> list[str]:
    size = 34.0 if len(guests) <= 4 else 134 / len(guests)
    parts = []
    for i, name in enumerate(guests):
        left = x + i * (size + 3)
        fill, text = (ink, "#111" if ink == "#fff" else "#fff") if name in moved else ("none", ink)
        parts.append(
            f'<rect x="{left:.1f}" y="{y}" width="{size:.1f}" height="13" rx="3" fill="{fill}" stroke="{ink}">'
            f"<title>guest {escape(name)}{' (moved)' if name in moved else ''}</title></rect>"
        )
        if len(guests) <= 4:
            parts.append(
                f'<text x="{left + size / 2:.1f}" y="{y + 10}" fill="{text}" class="tiny">{escape(name)}</text>'
            )
    return parts


def memory_chart(run: Run, evacuation: Evacuation | None) -> str:
    """Memory in use of every host over a run, with the thresholds and the moment of each event."""
    width, height, left, right, top, bottom = 960, 300, 44, 92, 46, 30
    series: dict[str, list[tuple[float, float]]] = {}
    for sample in run.samples:
        series.setdefault(sample.node, []).append((sample.time - run.began, memory_of(sample)))
    if not series:
        return "<p>No samples of this run were kept.</p>"
    span = max(10.0, max(points[-1][0] for points in series.values()))

    def x(seconds: float) -> float:
        return left + (width - left - right) * seconds / span

    def y(share: float) -> float:
        return top + (height - top - bottom) * (1 - share)

    parts = [
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="memory in use during the run {escape(run.name)}">'
    ]
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        parts.append(f'<line x1="{left}" x2="{width - right}" y1="{y(share):.1f}" y2="{y(share):.1f}" class="grid"/>')
        parts.append(f'<text x="{left - 6}" y="{y(share) + 4:.1f}" class="axis end">{share:.0%}</text>')
    step = _round_step(span / 8)
    for number in range(int(span / step) + 1):
        parts.append(f'<text x="{x(number * step):.1f}" y="{height - 8}" class="axis mid">{number * step:g} s</text>')
    for share, words in ((THRESHOLD, "danger 75 %"), (FAILURE, "failure 90 %")):
        parts.append(f'<line x1="{left}" x2="{width - right}" y1="{y(share):.1f}" y2="{y(share):.1f}" class="limit"/>')
        parts.append(f'<text x="{width - right + 4}" y="{y(share) + 4:.1f}" class="axis limit-text">{words}</text>')
    ends = []
    for host, points in sorted(series.items(), key=lambda item: item[0] == run.failing_host):
        failing = host == run.failing_host
        path = " ".join(f"{x(t):.1f},{y(v):.1f}" for t, v in points)
        parts.append(
            f'<polyline points="{path}" class="{"bad" if failing else "line"}"><title>{escape(host)}</title></polyline>'
        )
        ends.append((y(points[-1][1]), host, failing))
    parts += _end_labels(ends, width - right + 4, [y(THRESHOLD), y(FAILURE)])
    parts += _markers(run, evacuation, x, top, height - bottom, span)
    return "".join([*parts, "</svg>"])


def _end_labels(ends: list[tuple[float, str, bool]], x: float, taken: list[float]) -> list[str]:
    """Names beside the lines' ends, those that are close to each other on one line."""
    groups: list[tuple[float, list[str], bool]] = []
    for place, host, failing in sorted(ends):
        if groups and not failing and not groups[-1][2] and place - groups[-1][0] < 12:
            groups[-1][1].append(host)
        else:
            groups.append((place, [host], failing))
    parts = []
    for place, names, failing in groups:
        low = place
        while any(abs(low - other) < 12 for other in taken):
            low += 3
        taken.append(low)
        words = names[0] if len(names) == 1 else f"{names[0]} +{len(names) - 1}"
        parts.append(
            f'<text x="{x}" y="{low + 4:.1f}" class="axis{" bad-text" if failing else ""}">{escape(words)}</text>'
        )
    return parts


def _markers(run: Run, evacuation: Evacuation | None, x: object, top: float, bottom: float, span: float) -> list[str]:
    assert callable(x)
    moments = {name: moment - run.began for name, moment in run.events.items()}
    if evacuation is not None:
        done = {step.name: step.done for step in evacuation.steps if step.done}
        for name in ("alarm", "gathered", "released"):
            if name in done:
                moments[name] = done[name] - run.began
    parts, last, level = [], -math.inf, 0
    for name, seconds in sorted(moments.items(), key=lambda item: item[1]):
        if not 0 <= seconds <= span * 1.02:
            continue
        level = level + 1 if x(seconds) - last < 84 else 0
        last = x(seconds)
        lift = (level % 3) * 13
        parts.append(f'<line x1="{last:.1f}" x2="{last:.1f}" y1="{top - 2 - lift}" y2="{bottom}" class="event"/>')
        parts.append(f'<text x="{last + 3:.1f}" y="{top - 4 - lift}" class="event-text">{escape(name)}</text>')
    return parts


def _round_step(rough: float) -> float:
    """1, 2 or 5 times a power of ten, near ``rough``."""
    power = 10 ** math.floor(math.log10(rough))
    steps = [float(factor * power) for factor in (1, 2, 5, 10)]
    return min(steps, key=lambda step: abs(step - rough))


def timeline_chart(evacuation: Evacuation, zero: float) -> str:
    """The evacuation's steps as bars, begun to done, in seconds since the alarm was accepted."""
    steps = [step for step in evacuation.steps if step.done is not None]
    width, row, left, right = 960, 26, 170, 110
    if not steps:
        return ""
    first = min(step.begun for step in steps) - zero
    span = max(0.5, max(step.done or 0.0 for step in steps) - zero - first)

    def x(moment: float) -> float:
        return left + (width - left - right) * (moment - zero - first) / span

    parts = [f'<svg viewBox="0 0 {width} {row * len(steps) + 8}" role="img" aria-label="timeline of the evacuation">']
    for number, step in enumerate(steps):
        y = number * row + 4
        done = step.done or step.begun
        parts.append(f"<g><title>{escape(step.name)}: {escape(step.detail)}</title>")
        parts.append(
            f'<text x="{left - 10}" y="{y + 15}" class="axis end">{escape(step.name.replace("_", " "))}</text>'
        )
        length = max(2.0, x(done) - x(step.begun))
        parts.append(f'<rect x="{x(step.begun):.1f}" y="{y + 3}" width="{length:.1f}" height="16" rx="3" class="bar"/>')
        parts.append(f'<text x="{x(done) + 6:.1f}" y="{y + 15}" class="axis">{done - zero:.2f} s</text></g>')
    return "".join([*parts, "</svg>"])


def panels(record: Record, run: Run, moved: set[str]) -> list[Panel]:
    """Before, during and after, as far as they were seen."""
    moments = {
        "before": run.events.get("job started", run.began),
        "during": next((s.done or s.begun for e in run.evacuations[-1:] for s in e.steps if s.name == "gathered"), None)
        or run.events.get("out of memory", run.ended),
        "after": run.events.get("job ended", run.ended) - 2,
    }
    return [
        Panel(
            title,
            run.snapshots[title],
            nearest(run.samples, moments[title]),
            run.failing_host if title != "before" else None,
            moved if title != "before" else set(),
        )
        for title in ("before", "during", "after")
        if title in run.snapshots
    ]
