"""What the controller does and says: evacuations, plans, events, and how far guests that move have come."""

from __future__ import annotations

import sys
import time
from typing import Any

from failavoid.cli import tables
from failavoid.cli.api import call, name
from failavoid.shared.messages import EVACUATION_ENDS

Document = dict[str, Any]

LOOK_S = 0.5  # at moves under way
POLL_S = 25.0  # for events


def ended(evacuation: Document) -> bool:
    """Whether nothing more will happen to it."""
    return evacuation["state"] in EVACUATION_ENDS


def switch(status: Document) -> str:
    """Say loudly what keeps the controller from acting by itself, if anything does."""
    words = []
    if status["stopped"]:
        since, reason = tables.moment(status["since"]), status["reason"] or "no reason given"
        words.append(
            f"NEW EVACUATIONS ARE STOPPED by {status['stopped_by']} since {since}: {reason}"
            " ('failavoid allow-evacuations' lets them begin again)"
        )
    if status["mode"] == "observe":
        words.append("MODE OBSERVE: alarms are only recorded")
    elif status["mode"] == "recommend":
        words.append("MODE RECOMMEND: evacuations wait for 'failavoid confirm ID'")
    return "\n".join(words)


def follow_moves(evacuation: Document) -> None:
    """Show a bar for each guest that moves, until the evacuation has ended; on a terminal alone."""
    if ended(evacuation) or not sys.stdout.isatty():
        return
    from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TransferSpeedColumn

    where = f"/evacuations/{name(evacuation['id'])}"
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns) as progress:
        state = progress.add_task(evacuation["state"], total=None)
        bars: dict[str, TaskID] = {}
        while not ended(evacuation):
            for move in call("controller", "GET", f"{where}/progress"):
                if move["guest"] not in bars:
                    bars[move["guest"]] = progress.add_task(move["guest"])
                total = move["processed"] + move["remaining"]
                progress.update(bars[move["guest"]], total=total, completed=move["processed"])
            time.sleep(LOOK_S)
            evacuation = call("controller", "GET", where)
            progress.update(state, description=evacuation["state"])


def words(event: Document) -> str:
    """An event in one line."""
    detail = event["detail"]
    if event["what"] == "step":
        text = f"{detail['evacuation']}: {detail['step']} {detail['mark']}"
        return f"{text}: {detail['words']}" if detail["words"] else text
    if event["what"] == "request":
        text = " ".join(filter(None, [detail["act"], detail["subject"]]))
        outcome = f" -> {detail['outcome']}" if detail["outcome"] else ""
        return (f"{text}: {detail['reason']}" if detail["reason"] else text) + outcome
    if event["what"] == "alarm":
        place = detail.get("domain") or f"{detail['host']}, job {detail['job']}"
        return f"alarm {detail['alarm']} of {place}: {detail['outcome']}"
    return f"alarm {detail['alarm']} withdrawn: {detail['reason']} -> {detail['outcome']}"


def line(event: Document) -> str:
    """An event as `failavoid events` prints it."""
    return f"{event['number']:>6} {tables.moment(event['time'])} {event['who']:<12} {words(event)}"


def events(after: int, follow: bool, show: Any, service: str = "controller") -> None:
    """Pass on every event after a number to ``show``; with ``follow`` also those to come, for ever."""
    while True:
        wait = POLL_S if follow else 0.0
        found = call(service, "GET", f"/events?after={after}&timeout={wait:g}", timeout=POLL_S + 10)
        for event in found["events"]:
            show(event)
        if not found["events"] and not follow:
            return
        after = found["last"]
