"""What a person should know of jobs and nodes, and no alarm: said once when it begins, and once when it is over."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping

from failavoid.monitor.state import State
from failavoid.shared.messages import Finding, NodeHealth

log = logging.getLogger(__name__)
SKEW_S = 2.0  # clocks further apart than this spoil comparisons
DELAY_S = 2.0
LOSS = 0.02  # share of samples
UNHEARD_S = 30.0  # from when a node is in a job until its first sample should have come
_IS_IT_UP = "although a job runs there: is it up, its agent too, and its clock right? The journal says what is refused"

Subject = tuple[str, str]  # kind, subject


class Findings:
    """Those that hold now are given again at each look; what is not given any more is over."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._open: dict[str, dict[Subject, Finding]] = {}
        for finding in state.all(Finding):  # an earlier monitor's: what still holds is found again
            if finding.ended is None:
                finding.ended = finding.time
                state.put(_ident(finding), finding)

    def open(self) -> list[Finding]:
        """Those that hold now; for any thread."""
        return [finding for held in list(self._open.values()) for finding in list(held.values())]

    def look(self, about: str, now: float, holding: Mapping[Subject, str]) -> None:
        """Take everything that holds now ``about`` something (jobs, nodes): (kind, subject) -> text."""
        open_ = self._open.setdefault(about, {})
        for key in [key for key in open_ if key not in holding]:
            finding = open_.pop(key)
            finding.ended = now
            self._state.put(_ident(finding), finding)
            log.info("%s %s: no longer so", finding.subject, finding.kind)
        for key, text in holding.items():
            if key not in open_:
                open_[key] = Finding(key[0], key[1], now, text)
                self._state.put(_ident(open_[key]), open_[key])
                log.warning("%s %s: %s", key[1], key[0], text)


def _ident(finding: Finding) -> str:
    return f"{finding.kind} {finding.subject} {finding.time:.3f}"


def of_nodes(nodes: Iterable[NodeHealth], members: Mapping[str, float], now: float) -> dict[Subject, str]:
    """What is to be said of how samples arrive; a node that runs no job may be silent.

    ``members`` are the nodes of jobs, and since when they are known to be.
    """
    found: dict[Subject, str] = {}
    unheard = dict(members)
    for node in nodes:
        unheard.pop(node.node, None)
        if node.silent:
            if node.node in members:
                found[("silent", node.node)] = f"no samples any more, {_IS_IT_UP}"
            continue
        if node.recent_loss > LOSS:
            found[("lossy", node.node)] = (
                f"more than {LOSS:.0%} of its samples never arrived: see net.core.rmem_max on the head, and the network"
            )
        if abs(node.skew_s) > SKEW_S:
            found[("skewed", node.node)] = (
                f"its clock is more than {SKEW_S:g} s off the monitor's: synchronise the clocks"
            )
        elif node.delay_s > DELAY_S:
            found[("delayed", node.node)] = f"a sample came more than {DELAY_S:g} s late"
    for name, since in unheard.items():
        if now - since >= UNHEARD_S:
            found[("silent", name)] = f"no sample has come yet, {_IS_IT_UP}"
    return found
