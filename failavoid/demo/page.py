"""The report as one HTML file that needs no network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, select_autoescape
from markupsafe import Markup

from failavoid.demo import figures
from failavoid.demo.record import Record


def render(record: Record, report: dict[str, Any]) -> str:
    """Return the page for a record and the report made from it."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=select_autoescape(["j2", "html"]), trim_blocks=True
    )
    protected = record.runs.get("protected")
    evacuation = protected.evacuations[-1] if protected and protected.evacuations else None
    moved = {m.guest for m in evacuation.migrations if m.state == "moved"} if evacuation else set()
    racks = figures.panels(record, protected, moved) if protected else []
    zero = next((s.done or s.begun for s in evacuation.steps if s.name == "alarm"), 0.0) if evacuation else 0.0
    return environment.get_template("report.html.j2").render(
        record=record,
        report=report,
        racks=[(panel.title, Markup(figures.rack(panel, record.hosts))) for panel in racks],
        charts=[
            (run, Markup(figures.memory_chart(run, run.evacuations[-1] if run.evacuations else None)))
            for run in record.runs.values()
        ],
        timeline=Markup(figures.timeline_chart(evacuation, zero)) if evacuation else "",
        legend=[(figures.colour(share / 10), share * 10) for share in range(11)],
    )
