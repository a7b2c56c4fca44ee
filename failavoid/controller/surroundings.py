"""What evacuations work with."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from failavoid.controller.clock import Clock
from failavoid.controller.journal import Journal
from failavoid.controller.limits import Limits, Policy
from failavoid.controller.manager import Cluster, ResourceManager
from failavoid.controller.notices import NoticeBoard
from failavoid.controller.planning import Planner
from failavoid.controller.playbooks import AbortMoves, MigrateGuests
from failavoid.controller.verification import Verifier
from failavoid.services import Changes


@dataclass
class Surroundings:
    """The parts that all evacuations share; tests put other things in its place.

    ``changed`` guards all of the controller's memory and is notified of whatever an evacuation may wait for.
    ``give_up`` ends the process: what can't be written to the journal must not happen, and a restart takes it up.
    """

    journal: Journal
    board: NoticeBoard
    manager: ResourceManager
    cluster: Cluster
    migrate: MigrateGuests
    abort: AbortMoves
    verifier: Verifier
    planner: Planner
    limits: Limits
    policy: Policy
    changed: threading.Condition
    news: Changes  # what long polls wait for
    clock: Clock
    give_up: Callable[[], None]
