"""The rack as SVG: every host with its memory, cores and guests, at one moment of a run."""

from __future__ import annotations

from dataclasses import dataclass, field
from html import escape

from failavoid.demo.record import HostFacts
from failavoid.demo.report import evacuation_of, unavailable
from failavoid.demo.runs import Run
from failavoid.demo.shades import shade
from failavoid.shared.messages import Evacuation, Guest, Membership, Migration, Sample

WIDTH, EDGE, GUTTER = 348, 10, 24  # the arrow is drawn in the gutter, beside the rack
UNIT, GAP = 64, 9  # height of a host, and between two
INNER = WIDTH - 2 * EDGE - GUTTER  # width of a host
MANY, COLUMNS = 16, 2  # in a larger rack hosts to which nothing happened are small, so many beside each other
SMALL, SMALL_GAP = 27, 5  # height of a small host, and around it
SMALL_WIDTH = (INNER - (COLUMNS - 1) * SMALL_GAP) / COLUMNS


@dataclass
class Panel:
    """One state of the rack. ``samples`` are each host's, nearest to that moment."""

    title: str
    moment: float  # seconds since the epoch
    membership: Membership
    samples: dict[str, Sample]
    job_guests: set[str]
    hog_on: str | None = None
    moving: list[Migration] = field(default_factory=list)  # between begin and end of their move
    moved: set[str] = field(default_factory=set)


def panels(run: Run) -> list[Panel]:
    """Before, during and after, as far as they were seen."""
    evacuation = evacuation_of(run)
    before = run.snapshots.get("before")
    job_guests = {guest.name for guest in before.guests if guest.job == run.job} if before else set()
    found = []
    if before is not None:
        moment = run.events.get("job started", run.began)
        found.append(Panel("before", moment, before, nearest(run.samples, moment), job_guests))
    if (during := run.snapshots.get("during")) is not None:
        moment = _moment_of_move(evacuation) or run.events.get("out of memory") or run.ended
        panel = Panel("during", moment, during, nearest(run.samples, moment), job_guests, run.failing_host)
        if evacuation is not None and _moment_of_move(evacuation):
            panel.moving = [m for m in evacuation.migrations if m.state in ("moved", "running")]
        found.append(panel)
    if (after := run.snapshots.get("after")) is not None:
        moment = _last_iteration(run) or run.events.get("job ended", run.ended)
        hog = run.failing_host if run.hog_remained else None
        panel = Panel("after", moment, after, nearest(run.samples, moment), job_guests, hog)
        panel.moved = {m.guest for m in evacuation.migrations if m.state == "moved"} if evacuation else set()
        found.append(panel)
    return found


def _moment_of_move(evacuation: Evacuation | None) -> float | None:
    """The middle of the move, when its guests' memory is on its way."""
    step = next((step for step in evacuation.steps if step.name == "migrating"), None) if evacuation else None
    return (step.begun + (step.done or step.begun)) / 2 if step else None


def _last_iteration(run: Run) -> float | None:
    """When the job was last heard of at work: a moment later its memory is given back."""
    return next((line.time for line in reversed(run.output) if line.text.startswith("iteration ")), None)


def nearest(samples: list[Sample], moment: float) -> dict[str, Sample]:
    """Each host's sample nearest to ``moment``."""
    found: dict[str, Sample] = {}
    for sample in samples:
        held = found.get(sample.node)
        if held is None or abs(sample.time - moment) < abs(held.time - moment):
            found[sample.node] = sample
    return found


def touched(states: list[Panel]) -> set[str]:
    """The hosts to which something happens in one of the rack's states."""
    ways = {host for panel in states for m in panel.moving for host in (m.source, m.destination)}
    hogs = {panel.hog_on for panel in states if panel.hog_on}
    came = {guest.host for panel in states for guest in panel.membership.guests if guest.name in panel.moved}
    return (
        ways
        | hogs
        | came
        | {host.name for panel in states for host in panel.membership.hosts if host.pool == "defunct"}
    )


def draw(panel: Panel, hosts: list[HostFacts], events: set[str]) -> str:
    """One state of the rack, a host a row; of a large rack only the hosts of ``events`` (see `touched`)."""
    names = sorted(host.name for host in hosts) or sorted(host.name for host in panel.membership.hosts)
    small = [name for name in names if name not in events] if len(names) > MANY else []
    large = [name for name in names if name not in small]
    tops = {name: float(EDGE + number * (UNIT + GAP)) for number, name in enumerate(large)}
    below = EDGE + len(large) * (UNIT + GAP)
    height = below - GAP + EDGE + -(-len(small) // COLUMNS) * (SMALL + SMALL_GAP)
    parts = [f'<rect class="cabinet" x=".5" y=".5" width="{WIDTH - GUTTER - 1}" height="{height - 1}" rx="9"/>']
    for name in large:
        parts += _host(panel, name, tops[name])
    for number, name in enumerate(small):
        row, column = divmod(number, COLUMNS)
        parts += _small_host(panel, name, EDGE + column * (SMALL_WIDTH + SMALL_GAP), below + row * (SMALL + SMALL_GAP))
    parts += _arrows(panel, tops)
    words = f"The rack {panel.title} the move"
    return f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{words}">{"".join(parts)}</svg>'


def _host(panel: Panel, name: str, top: float) -> list[str]:
    sample = panel.samples.get(name)
    share = unavailable(sample) if sample else None
    here = sorted((guest for guest in panel.membership.guests if guest.host == name), key=lambda one: one.name)
    coming = [m for m in panel.moving if m.destination == name and all(g.name != m.guest for g in here)]
    pool = next((host.pool for host in panel.membership.hosts if host.name == name), "")
    hog = panel.hog_on == name
    tag = _tag(pool, bool(here), bool(coming))
    memory = "memory not known" if share is None else f"{share:.0%} of memory in use"
    words = [f"{name}: {memory}", *([tag] if tag else []), *(["the process that fills it is here"] if hog else [])]
    kind = "unknown" if share is None else shade(share)
    parts = [
        f'<g class="{kind}"><title>{escape(", ".join(words))}</title>',
        *([_ring(top)] if hog or pool == "defunct" else []),
        f'<rect class="{"box idle" if tag == "spare" else "box"}" x="{EDGE}" y="{top}" width="{INNER}" '
        f'height="{UNIT}" rx="6"/>',
        f'<text class="on name" x="{EDGE + 10}" y="{top + 19}">{escape(name)}</text>',
    ]
    if tag:
        parts.append(_tag_label(tag, EDGE + 18 + 8.2 * len(name), top + 7))
    if share is not None:
        parts.append(f'<text class="on share" x="{EDGE + INNER - 10}" y="{top + 21}">{share:.0%}</text>')
    parts += _cores(sample, EDGE + 10, top + 28)
    parts += _guests(panel, here, coming, hog, top + 42)
    return [*parts, "</g>"]


def _small_host(panel: Panel, name: str, x: float, top: float) -> list[str]:
    """A host by its name, its memory, and its cores as a strip; its guests are told at the pointer."""
    sample = panel.samples.get(name)
    share = unavailable(sample) if sample else None
    guests = [guest.name for guest in panel.membership.guests if guest.host == name]
    memory = "memory not known" if share is None else f"{share:.0%} of memory in use"
    words = f"{name}: {memory}, {'guests ' if guests else 'no guests'}{', '.join(guests)}"
    box = "box" if guests else "box idle"
    parts = [
        f'<g class="{"unknown" if share is None else shade(share)}"><title>{escape(words)}</title>',
        f'<rect class="{box}" x="{x:.1f}" y="{top}" width="{SMALL_WIDTH:.1f}" height="{SMALL}" rx="4"/>',
        f'<text class="on" x="{x + 7:.1f}" y="{top + 14}">{escape(name)}</text>',
    ]
    if share is not None:
        right = x + SMALL_WIDTH - 7
        parts.append(f'<text class="on end" x="{right:.1f}" y="{top + 14}">{share:.0%}</text>')
    cores = sample.cores if sample else []
    size = (SMALL_WIDTH - 14) / max(1, len(cores))
    for number, use in enumerate(cores):
        parts.append(
            f'<g class="{shade(use)}"><rect class="core" x="{x + 7 + number * size:.1f}" y="{top + 18}" '
            f'width="{size:.1f}" height="5"/></g>'
        )
    return [*parts, "</g>"]


def _tag(pool: str, has_guests: bool, guests_come: bool) -> str:
    """What is said of a host beside its name."""
    if guests_come and not has_guests:
        return "leased spare"
    if pool == "free" and not has_guests:
        return "spare"
    return "defunct" if pool == "defunct" else ""


def _tag_label(tag: str, x: float, y: float) -> str:
    width = 6.3 * len(tag) + 12
    bad = " bad" if tag == "defunct" else ""
    return (
        f'<rect class="tag{bad}" x="{x:.1f}" y="{y}" width="{width:.1f}" height="16" rx="8"/>'
        f'<text class="tag-text{bad}" x="{x + width / 2:.1f}" y="{y + 11.7}">{tag}</text>'
    )


def _ring(top: float) -> str:
    return f'<rect class="ring" x="{EDGE - 4}" y="{top - 4}" width="{INNER + 8}" height="{UNIT + 8}" rx="9"/>'


def _cores(sample: Sample | None, x: float, y: float) -> list[str]:
    cores = sample.cores if sample else []
    size = min(13.0, (INNER - 20) / max(1, len(cores)) - 2.5)
    return [
        f'<g class="{shade(use)}"><rect class="core" x="{x + i * (size + 2.5):.1f}" y="{y}" width="{size:.1f}" '
        f'height="9" rx="2"><title>core {i}: {use:.0%} in use</title></rect></g>'
        for i, use in enumerate(cores)
    ]


def _guests(panel: Panel, here: list[Guest], coming: list[Migration], hog: bool, top: float) -> list[str]:
    """A row of marks: the host's guests, those on their way, the process that fills the memory."""
    leaving = {m.guest for m in panel.moving}
    marks: list[tuple[str, str, str]] = []  # label, class, words
    for guest in here:
        label = short(guest.name)
        if guest.state == "lost":
            marks.append((label, "lost", f"guest {guest.name}: lost"))
        elif guest.name in leaving:
            marks.append((label, "leaving", f"guest {guest.name}: its ranks wait, it moves away"))
        elif guest.name in panel.moved:
            marks.append((label, "moved", f"guest {guest.name}: has moved here, pinned to core {_list(guest.cores)}"))
        elif guest.name in panel.job_guests:
            marks.append((label, "guest", f"guest {guest.name}, pinned to core {_list(guest.cores)}"))
        else:
            marks.append((label, "guest other", f"guest {guest.name}: not of this job"))
    marks += [(short(m.guest), "coming", f"guest {m.guest}: moves here from {m.source}") for m in coming]
    room = INNER - 20 - (46 if hog else 0)
    width = min(44.0, room / max(1, len(marks)) - 3)
    parts = []
    for number, (label, kind, words) in enumerate(marks):
        x = EDGE + 10 + number * (width + 3)
        parts.append(f'<g class="{kind}"><title>{escape(words)}</title>')
        parts.append(f'<rect class="mark" x="{x:.1f}" y="{top}" width="{width:.1f}" height="16" rx="4"/>')
        if width >= 6 * len(label):
            parts.append(f'<text class="mark-text" x="{x + width / 2:.1f}" y="{top + 11.8}">{escape(label)}</text>')
        parts.append("</g>")
    if hog:
        x = EDGE + INNER - 10 - 40
        parts.append(
            f'<g class="hog"><title>the process that simulates the failure</title><rect class="mark" x="{x}" y="{top}" '
            f'width="40" height="16" rx="4"/><text class="mark-text" x="{x + 20}" y="{top + 11.8}">hog</text></g>'
        )
    return parts


def short(guest: str) -> str:
    """A guest's name without leading zeros in its number: g0012 is g12."""
    letters = guest.rstrip("0123456789")
    number = guest[len(letters) :].lstrip("0") or guest[len(letters) :][-1:]
    return letters + number


def _list(cores: list[int]) -> str:
    return ", ".join(map(str, cores))


def _arrows(panel: Panel, tops: dict[str, float]) -> list[str]:
    """From the host that is left to where its guests go, beside the rack."""
    ways = sorted({(m.source, m.destination) for m in panel.moving})
    parts = []
    for source, destination in ways:
        if source not in tops or destination not in tops:
            continue
        x, start, end = EDGE + INNER + 4, tops[source] + UNIT / 2, tops[destination] + UNIT / 2
        bend = 14 if start < end else -14
        out = x + 26
        parts.append(
            f'<path class="way" d="M{x} {start} h5 Q{out} {start} {out} {start + bend} V{end - bend} '
            f'Q{out} {end} {x + 6} {end}"><title>{escape(source)} to {escape(destination)}</title></path>'
            f'<path class="tip" d="M{x} {end} l9 -5.5 v11 z"/>'
        )
    return parts
