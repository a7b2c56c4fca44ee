"""One evacuation as the rest of the controller sees it: what it may be asked, and the thread that goes its way."""

from __future__ import annotations

import logging
import sqlite3

from failavoid.controller.fleet import Fleet, destinations
from failavoid.controller.ranks import Ranks
from failavoid.controller.spare import SpareFailedError
from failavoid.controller.steps import Steps
from failavoid.controller.surroundings import Surroundings
from failavoid.controller.way.back import cancelled, end_attempt, failed
from failavoid.controller.way.next_step import go_on
from failavoid.controller.way.under_way import CancelledEvacuation, FailedEvacuation, UnderWay
from failavoid.shared.messages import EVACUATION_ENDS, Evacuation, Gate

log = logging.getLogger(__name__)

BEFORE_THE_MOVE = ("PREDICTED", "LEASED", "NOTICED", "GATHERED")
_LIVES = 3  # so often an evacuation goes on after an error of the controller itself


class EvacuationRun:
    """One evacuation under way. Its thread runs `run`; the others are for the API's threads."""

    def __init__(self, evacuation: Evacuation, around: Surroundings, fleet: Fleet) -> None:
        self.evacuation = evacuation
        self.around = around
        self._steps = Steps(evacuation, around.journal, around.changed)
        self._ranks = Ranks(evacuation, around, fleet, self._steps)
        self._way = UnderWay(evacuation, around, fleet, self._steps, self._ranks)

    # -- what others ask -----------------------------------------------------------------------------------

    def gate(self, attempt: int) -> Gate:
        """Return whether guests may move: as soon as that is in the journal, as long as the move is waited for.

        And only to a spare that is known to be ours: who asks may have been out of reach for long.
        """
        evacuation = self.evacuation
        moving = evacuation.state == "MIGRATING" and not self._steps.ending
        over = self._steps.ending or evacuation.state not in (*BEFORE_THE_MOVE, "MIGRATING")
        lost = evacuation.failed_spares.keys() & set(destinations(evacuation))
        mine = attempt == evacuation.attempt and not lost
        opened = self._way.opened and self._way.spare.is_ours
        return Gate(evacuation.id, moving and mine and opened, over or not mine)

    def cancel(self, reason: str) -> bool:
        """Ask for the evacuation's end; False if its guests may be moving already, or it has ended.

        What is granted is in the journal: a restart does not forget it.
        """
        with self.around.changed:
            if self.evacuation.state not in BEFORE_THE_MOVE:
                return False
            if not self.evacuation.cancel:
                self.evacuation.cancel = reason
                try:
                    self.around.journal.save(self.evacuation)
                except Exception:
                    self.evacuation.cancel = ""  # what is refused has no effect
                    raise
            self.around.changed.notify_all()
            return True

    def confirm(self, who: str) -> bool:
        """Let an evacuation go on that waits for a person; False if none is waited for."""
        with self.around.changed:
            if not self.evacuation.needs_confirmation or self.evacuation.state in EVACUATION_ENDS:
                return False
            if not self.evacuation.confirmed_by:
                self.evacuation.confirmed_by = who
                try:
                    self.around.journal.save(self.evacuation)
                except Exception:
                    self.evacuation.confirmed_by = ""  # what is refused has no effect
                    raise
            self.around.changed.notify_all()
            return True

    def lose_destination(self, host: str, reason: str) -> None:
        """Take note that a host that guests are to go to is about to fail itself; those on their way already go on."""
        with self.around.changed:
            evacuation = self.evacuation
            if evacuation.state in BEFORE_THE_MOVE:
                evacuation.failed_spares.setdefault(host, reason)
                self.around.journal.save(evacuation)
                self.around.changed.notify_all()

    @property
    def in_epoch(self) -> bool:
        """Whether its guests' ranks must not run yet."""
        ended = self.evacuation.state in EVACUATION_ENDS
        return (
            bool(self.evacuation.epoch) and not ended and not self._steps.ending and not self._steps.begun("released")
        )

    @property
    def holds_epoch(self) -> bool:
        """Whether guests have still to say something about its notice."""
        ended = self.evacuation.state in EVACUATION_ENDS
        return bool(self.evacuation.epoch) and not ended and not self._steps.is_done("released")

    @property
    def gives_up(self) -> bool:
        """Whether it is on its way to CANCELLED."""
        return bool(self.evacuation.cancel) or self._steps.begun("cancelled")

    @property
    def wants_spare(self) -> bool:
        """Whether it is about to take one."""
        evacuation = self.evacuation
        going_on = not evacuation.cancel and not self._steps.ending
        return evacuation.state == "PREDICTED" and evacuation.kind == "move" and going_on

    @property
    def may_join_soon(self) -> bool:
        """Whether it is on its way to a first notice."""
        evacuation = self.evacuation
        waits = evacuation.needs_confirmation and not evacuation.confirmed_by
        early = evacuation.state in ("PREDICTED", "LEASED") and not evacuation.epoch
        return early and not waits and not self.ready_for_notice and not evacuation.cancel and not self._steps.ending

    @property
    def affected(self) -> list[str]:
        """The guests its notice is about."""
        return self._ranks.affected

    @property
    def has_moved(self) -> bool:
        """Whether a guest moved or may have; of a checkpoint, whether there was time for it."""
        return self._ranks.has_moved

    @property
    def ready_for_notice(self) -> bool:
        """Whether it waits for the job's notice."""
        return self._way.ready_for_notice

    # -- its thread ------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Go on from the present state to an end.

        What can't be written down, or be ended at all, ends the controller: a restart takes it up, while nobody would
        take up an open evacuation that has no thread any more.
        """
        try:
            self._live()
        except sqlite3.Error:
            log.critical("%s: the journal can't be used: the controller ends", self.evacuation.id, exc_info=True)
            self.around.give_up()
        except Exception:
            log.critical("%s: it can't be ended: the controller ends", self.evacuation.id, exc_info=True)
            self.around.give_up()

    def _live(self) -> None:
        """Come to an end, also after some errors of the controller itself. Raises what keeps it from that."""
        reason = ""
        for _ in range(_LIVES):
            try:
                if reason:  # every step may be repeated
                    self.around.clock.sleep(self.around.limits.retry_s)
                self._to_an_end()
                return
            except sqlite3.Error:
                raise
            except Exception as error:
                log.exception("%s: an error of the controller itself", self.evacuation.id)
                reason = f"the controller made an error ({type(error).__name__}: {error}); its log has the details"
        if self.evacuation.state in BEFORE_THE_MOVE:
            cancelled(self._way, reason)
        else:
            failed(self._way, reason)

    def _to_an_end(self) -> None:
        while self.evacuation.state not in EVACUATION_ENDS:
            try:
                try:
                    go_on(self._way)
                except SpareFailedError as failure:
                    end_attempt(self._way, str(failure), failure.dead)
            except CancelledEvacuation as reason:
                cancelled(self._way, str(reason))
            except FailedEvacuation as reason:
                failed(self._way, str(reason))
