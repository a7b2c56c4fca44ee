"""The report's charts as SVG: memory over time, the evacuation's steps, the host among its peers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from html import escape

from failavoid.demo.rack import nearest
from failavoid.demo.report import accepted, evacuation_of, hosts_of, step_of, unavailable
from failavoid.demo.runs import Run
from failavoid.shared.messages import Alarm, Evacuation, Step

CHARACTER = 6.5  # width of one in a chart's labels
ROW = 15  # height of a line of labels
EVENTS = {"out of memory": "OOM killer", "hog started": "hog begins", "job ended": "job ended"}
MEANING = {
    "alarm": "alarm accepted by the controller",
    "planned": "job and its guests known",
    "suspected": "host kept from new work",
    "confirmed": "confirmed by a person",
    "leased": "spare reserved",
    "noticed": "notice posted for the ranks",
    "prepare_destination": "destination prepared",
    "gathered": "affected ranks have stopped",
    "migrating": "guests moved",
    "verified": "guests and their pins verified",
    "committed": "resource manager told",
    "released": "last affected rank runs again",
    "retired": "failed host is defunct",
    "checkpointed": "ranks have a checkpoint",
    "attempt_failed": "put in order for the next spare",
    "cancelled": "given up, nothing has moved",
    "failed": "failed, a person is needed",
}


@dataclass
class Span:
    """The time a chart shows, in seconds since the epoch; ``zero`` is what its axis counts from."""

    zero: float
    first: float
    last: float


def span_of(run: Run) -> Span:
    """From just before the job's first iteration to just after its end."""
    zero = run.events.get("job started", run.began)
    end = max([run.events.get("job ended", run.ended) + 2, zero + 10])
    return Span(zero, zero - 2, min(end, max((sample.time for sample in run.samples), default=end)))


def series_of(run: Run, span: Span) -> dict[str, list[tuple[float, float]]]:
    """Each host's memory in use as (seconds on the chart's axis, share)."""
    found: dict[str, list[tuple[float, float]]] = {}
    for sample in run.samples:
        share = unavailable(sample)
        if share is not None and span.first <= sample.time <= span.last:
            found.setdefault(sample.node, []).append((sample.time - span.zero, share))
    return found


def kinds_of(run: Run) -> dict[str, str]:
    """What each host is in a run: failing, spare (its guests came here), used or idle."""
    evacuation, used = evacuation_of(run), hosts_of(run)
    kinds = {sample.node: "used" if sample.node in used else "idle" for sample in run.samples}
    if evacuation is not None:
        kinds |= {m.destination: "spare" for m in evacuation.migrations if m.state == "moved"}
        kinds[evacuation.host] = "failing"
    if run.failing_host:
        kinds[run.failing_host] = "failing"
    return kinds


def moments_of(run: Run) -> dict[str, float]:
    """What happened when, in seconds since the epoch: seen from outside, and from the controller's journal."""
    moments = {EVENTS[name]: moment for name, moment in run.events.items() if name in EVENTS}
    evacuation = evacuation_of(run)
    zero = accepted(evacuation) if evacuation else None
    if zero is not None:
        moments["alarm"] = zero
    for name, words in (("gathered", "ranks stopped"), ("verified", "guests moved"), ("released", "ranks run on")):
        step = step_of(evacuation, name)
        if step is not None and step.done is not None:
            moments[words] = step.done
    return dict(sorted(moments.items(), key=lambda item: item[1]))


@dataclass
class Plot:
    """A chart's area and what its axes stand for: x seconds, y shares of 0..1."""

    left: float
    right: float
    top: float
    bottom: float
    first: float
    last: float

    def x(self, seconds: float) -> float:
        """Where a moment is."""
        return self.left + (self.right - self.left) * (seconds - self.first) / (self.last - self.first)

    def y(self, share: float) -> float:
        """Where a share is."""
        return self.bottom - (self.bottom - self.top) * share


def memory_chart(run: Run, seconds: float, limits: tuple[float, float], width: int) -> str:
    """Memory in use of every host over a run, with the thresholds and the moment of each event.

    ``seconds``: what the axis ends with, for all runs alike; ``limits``: danger and failure.
    """
    narrow = width < 600
    span = span_of(run)
    series = series_of(run, span)
    if not series:
        return '<p class="caption">No samples of this run were kept.</p>'
    moments = {name: moment - span.zero for name, moment in moments_of(run).items()}
    moments = {name: moment for name, moment in moments.items() if span.first - span.zero <= moment <= seconds}
    plot = Plot(40, width - (76 if narrow else 132), 0, 0, span.first - span.zero, seconds)
    labels = _rows({name: plot.x(moment) for name, moment in moments.items()}, width)
    plot.top = 8 + ROW * (1 + max((row for _, row in labels.values()), default=0)) + 8
    height = plot.top + (190 if narrow else 230)
    plot.bottom = height - 26
    kinds = kinds_of(run)
    parts = _axes(plot, limits, narrow)
    parts += _wait(run, plot, span)
    order = {"idle": 0, "used": 1, "spare": 2, "failing": 3}
    for host in sorted(series, key=lambda name: (order[kinds[name]], name)):
        path = "M" + "L".join(f"{plot.x(t):.1f} {plot.y(v):.1f}" for t, v in thin(series[host], plot))
        parts.append(f'<path class="line {kinds[host]}" d="{path}"><title>{escape(host)}</title></path>')
    for name, (x, row) in labels.items():
        y = plot.top - 8 - row * ROW
        at = plot.x(moments[name])
        bad = " bad" if name == "OOM killer" else ""
        parts.append(f'<line class="event{bad}" x1="{at:.1f}" x2="{at:.1f}" y1="{y - 10}" y2="{plot.bottom}"/>')
        parts.append(f'<text class="event-text{bad}" x="{x:.1f}" y="{y:.1f}">{escape(name)}</text>')
    parts += _ends(series, kinds, plot, narrow)
    frame = " ".join(f"{value:.1f}" for value in (plot.left, plot.right, plot.first, plot.last, plot.top, plot.bottom))
    return (
        f'<svg viewBox="0 0 {width} {height:.0f}" role="img" data-run="{escape(run.name)}" data-frame="{frame}" '
        f'aria-label="Memory in use of every host during the run {escape(run.name)}">{"".join(parts)}</svg>'
    )


def thin(points: list[tuple[float, float]], plot: Plot) -> list[tuple[float, float]]:
    """At most the first, lowest, highest and last point of each pixel's width."""
    if len(points) <= (plot.right - plot.left):
        return points
    columns: dict[int, list[tuple[float, float]]] = {}
    for point in points:
        columns.setdefault(round(plot.x(point[0])), []).append(point)
    kept = []
    for column in columns.values():
        some = {column[0], column[-1], min(column, key=lambda p: p[1]), max(column, key=lambda p: p[1])}
        kept += sorted(some)
    return kept


def _axes(plot: Plot, limits: tuple[float, float], narrow: bool) -> list[str]:
    danger, failure = limits
    across = f'x="{plot.left}" width="{plot.right - plot.left}"'
    parts = [
        f'<rect class="zone" {across} y="{plot.y(failure):.1f}" height="{plot.y(danger) - plot.y(failure):.1f}"/>',
        f'<rect class="zone worse" {across} y="{plot.y(1):.1f}" height="{plot.y(failure) - plot.y(1):.1f}"/>',
    ]
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        parts.append(
            f'<line class="grid" x1="{plot.left}" x2="{plot.right}" y1="{plot.y(share)}" y2="{plot.y(share)}"/>'
        )
        parts.append(f'<text class="axis end" x="{plot.left - 7}" y="{plot.y(share) + 4:.1f}">{share:.0%}</text>')
    for share, words in ((danger, "danger"), (failure, "OOM near")):
        parts.append(
            f'<line class="limit" x1="{plot.left}" x2="{plot.right}" y1="{plot.y(share)}" y2="{plot.y(share)}"/>'
        )
        text = f"{share:.0%}" if narrow else f"{share:.0%} {words}"
        parts.append(f'<text class="limit-text" x="{plot.left + 5}" y="{plot.y(share) - 4:.1f}">{text}</text>')
    step = round_step((plot.last - plot.first) / (4 if narrow else 9))
    for number in range(math.ceil(plot.first / step), int(plot.last / step) + 1):
        x = plot.x(number * step)
        parts.append(f'<line class="tick" x1="{x:.1f}" x2="{x:.1f}" y1="{plot.bottom}" y2="{plot.bottom + 4}"/>')
        parts.append(f'<text class="axis mid" x="{x:.1f}" y="{plot.bottom + 18}">{number * step:g} s</text>')
    return parts


def _wait(run: Run, plot: Plot, span: Span) -> list[str]:
    """The time in which the affected ranks stand still."""
    evacuation = evacuation_of(run)
    stopped, released = step_of(evacuation, "gathered"), step_of(evacuation, "released")
    if stopped is None or stopped.done is None or released is None or released.done is None:
        return []
    x, end = plot.x(stopped.done - span.zero), plot.x(released.done - span.zero)
    height = plot.bottom - plot.top
    return [
        f'<rect class="wait" x="{x:.1f}" y="{plot.top}" width="{max(1.0, end - x):.1f}" height="{height:.1f}">'
        f"<title>the affected ranks wait: {released.done - stopped.done:.1f} s</title></rect>"
    ]


def _rows(places: dict[str, float], width: float) -> dict[str, tuple[float, int]]:
    """Where each label begins and in which line above the plot it stands, so that none covers another."""
    ends: list[float] = []
    rows: dict[str, tuple[float, int]] = {}
    for name, x in sorted(places.items(), key=lambda item: -item[1]):
        size = CHARACTER * len(name)
        start = x + 4 if x + 4 + size < width else x - 4 - size
        row = next((number for number, left in enumerate(ends) if start + size + 8 <= left), len(ends))
        # the line down from a label higher up must not cross a label below it
        ends[row : row + 1] = [start - 4]
        for lower in range(row):
            ends[lower] = min(ends[lower], start - 4)
        rows[name] = (start, row)
    return rows


def _ends(series: dict[str, list[tuple[float, float]]], kinds: dict[str, str], plot: Plot, narrow: bool) -> list[str]:
    """The hosts' names beside the ends of their lines; the ordinary ones together."""
    x = plot.x(max(points[-1][0] for points in series.values())) + 7
    labels: list[tuple[float, str, str]] = []  # y, words, kind
    for kind in ("failing", "spare", "used", "idle"):
        hosts = sorted(host for host in series if kinds[host] == kind)
        if not hosts:
            continue
        ends = sorted(series[host][-1][1] for host in hosts)
        if kind in ("failing", "spare") or len(hosts) == 1:
            word = {"failing": "", "spare": "spare ", "used": "", "idle": "idle "}[kind]
            words = hosts[0] if narrow else word + hosts[0]
        else:
            words = f"{len(hosts)} {kind if kind == 'idle' else 'others' if 'failing' in kinds.values() else 'hosts'}"
        labels.append((plot.y(ends[len(ends) // 2]), words, kind))
    labels.sort()
    parts, above = [], -math.inf
    lowest = plot.bottom - 14 * (len(labels) - 1)
    for number, (y, words, kind) in enumerate(labels):
        above = max(above + 14, min(y, lowest + 14 * number))
        parts.append(f'<text class="host {kind}" x="{x:.1f}" y="{above + 4:.1f}">{escape(words)}</text>')
    return parts


def round_step(rough: float) -> float:
    """1, 2 or 5 times a power of ten, near ``rough``."""
    power = 10 ** math.floor(math.log10(rough))
    return min((float(factor * power) for factor in (1, 2, 5, 10)), key=lambda step: abs(step - rough))


def timeline_chart(evacuation: Evacuation, width: int) -> str:
    """The evacuation's steps as bars from begun to done, in seconds since the alarm was accepted."""
    zero = accepted(evacuation)
    if zero is None:
        return ""
    narrow = width < 600
    steps = sorted(evacuation.steps, key=lambda step: (step.begun, step.done or math.inf))
    first = min(0.0, min(step.begun for step in steps) - zero)
    end = max(max(step.done or step.begun for step in steps) - zero, 0.5)
    row, left, top = (40, 8, 22) if narrow else (28, 268, 22)
    bottom = top + row * len(steps)
    plot = Plot(left, width - 64, top, bottom, first, end)
    parts = []
    step_s = round_step((end - first) / (4 if narrow else 9))
    for number in range(math.ceil(first / step_s), int(end / step_s) + 1):
        x = plot.x(number * step_s)
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{top - 4}" y2="{bottom}"/>')
        parts.append(f'<text class="axis mid" x="{x:.1f}" y="{top - 9}">{number * step_s:g} s</text>')
    stopped, released = step_of(evacuation, "gathered"), step_of(evacuation, "released")
    if stopped and stopped.done and released and released.done:
        x, x_end = plot.x(stopped.done - zero), plot.x(released.done - zero)
        size = f'width="{max(1.0, x_end - x):.1f}" height="{bottom - top + 4}"'
        parts.append(
            f'<rect class="wait" x="{x:.1f}" y="{top - 4}" {size}><title>the affected ranks wait</title></rect>'
        )
    for number, step in enumerate(steps):
        parts += _step(step, plot, zero, top + number * row, narrow)
    words = "Timeline of the evacuation"
    return f'<svg viewBox="0 0 {width} {bottom + 6}" role="img" aria-label="{words}">{"".join(parts)}</svg>'


def _step(step: Step, plot: Plot, zero: float, top: float, narrow: bool) -> list[str]:
    x = plot.x(step.begun - zero)
    end = plot.x((step.done or step.begun) - zero)
    name, meaning = step.name.replace("_", " "), MEANING.get(step.name, "")
    bar = top + (18 if narrow else 7)
    title = f"{name}: {step.detail}" if step.detail else name
    side = step.name in ("prepare_destination", "committed")
    kind = "bar open" if step.done is None else "bar side" if side else "bar"
    parts = [f"<g><title>{escape(title)}</title>"]
    if narrow:
        parts.append(f'<text class="step" x="{plot.left}" y="{top + 12}">{name}<tspan class="axis plain" dx="7">')
        parts.append(f"{meaning}</tspan></text>")
    else:
        parts.append(f'<text class="axis" x="0" y="{top + 18}">{meaning}</text>')
        parts.append(f'<text class="step end" x="{plot.left - 12}" y="{top + 18}">{name.split(" ")[0]}</text>')
    parts.append(f'<rect class="{kind}" x="{x:.1f}" y="{bar}" width="{max(3.0, end - x):.1f}" height="14" rx="3"/>')
    done = "not done" if step.done is None else f"{step.done - zero:.2f} s"
    at = max(end, x + 3) + 6
    parts.append(f'<text class="host" x="{at:.1f}" y="{bar + 11.5}">{done}</text></g>')
    return parts


def _two_labels(one: tuple[str, str, float], other: tuple[str, str, float], width: int) -> list[str]:
    """Write two labels (class, words, place) over their lines; away from each other where there is no room for that."""
    left, right = sorted((one, other), key=lambda label: label[2])
    sizes = [CHARACTER * len(words) for _, words, _ in (left, right)]
    starts = [left[2] - sizes[0] / 2, right[2] - sizes[1] / 2]
    if starts[0] + sizes[0] + 8 > starts[1]:
        starts = [left[2] - 3 - sizes[0], right[2] + 3]
    starts[1] = min(starts[1], width - sizes[1])
    starts[0] = max(0.0, min(starts[0], starts[1] - 8 - sizes[0]))
    return [
        f'<text class="{kind}" x="{x:.1f}" y="13">{words}</text>'
        for (kind, words, _), x in zip((left, right), starts, strict=True)
    ]


def peers_chart(run: Run, alarm: Alarm, width: int) -> str:
    """The job's hosts on one axis at the alarm: the failing one, its peers, their centre, the threshold."""
    used = hosts_of(run)
    shares = {
        host: share
        for host, sample in nearest(run.samples, alarm.time).items()
        if host in used and (share := unavailable(sample)) is not None
    }
    if alarm.host not in shares:
        return ""
    shares[alarm.host] = alarm.evidence.value  # what the rule judged; later samples have grown on
    plot = Plot(14, width - 14, 40, 66, 0, 1)
    middle, danger = (plot.top + plot.bottom) / 2, plot.x(alarm.evidence.threshold)
    centre, scale = alarm.evidence.centre, alarm.evidence.scale
    low, high = plot.x(max(0.0, centre - scale)), plot.x(min(1.0, centre + scale))
    parts = [
        f'<rect class="spread" x="{low:.1f}" y="{plot.top}" width="{high - low:.1f}" height="{plot.bottom - plot.top}">'
        "<title>the group's scale around its centre</title></rect>",
        f'<line class="grid" x1="{plot.left}" x2="{plot.right}" y1="{plot.bottom}" y2="{plot.bottom}"/>',
        f'<line class="limit" x1="{danger:.1f}" x2="{danger:.1f}" y1="18" y2="{plot.bottom}"/>',
        f'<line class="event" x1="{plot.x(centre):.1f}" x2="{plot.x(centre):.1f}" y1="18" y2="{plot.bottom}"/>',
        *_two_labels(("axis", "centre of the peers", plot.x(centre)), ("limit-text", "danger", danger), width),
    ]
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        end = "start" if share == 0 else "end" if share == 1 else "mid"
        parts.append(f'<text class="axis {end}" x="{plot.x(share):.1f}" y="{plot.bottom + 16}">{share:.0%}</text>')
    for host, share in sorted(shares.items(), key=lambda item: item[0] == alarm.host):
        kind, size = ("failing", 7) if host == alarm.host else ("used", 5)
        parts.append(
            f'<circle class="dot {kind}" cx="{plot.x(share):.1f}" cy="{middle}" r="{size}">'
            f"<title>{escape(host)}: {share:.1%}</title></circle>"
        )
    x = plot.x(shares[alarm.host])
    parts.append(f'<text class="host failing mid" x="{x:.1f}" y="{plot.top - 4}">{escape(alarm.host)}</text>')
    words = f"{escape(alarm.host)} among its peers at the alarm"
    return f'<svg viewBox="0 0 {width} {plot.bottom + 24}" role="img" aria-label="{words}">{"".join(parts)}</svg>'
