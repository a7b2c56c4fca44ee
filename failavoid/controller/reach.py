"""Whether the ends of an evacuation answer, and whether it is the head that is cut off from its hosts."""

from __future__ import annotations

import contextlib
import logging

from failavoid.controller.fleet import destinations
from failavoid.controller.spare import Spare, SpareFailedError
from failavoid.controller.surroundings import Surroundings
from failavoid.shared.messages import Evacuation

log = logging.getLogger(__name__)


class Reach:
    """What ``evacuation`` can reach; its ``spare`` stays leased while it waits."""

    def __init__(self, evacuation: Evacuation, around: Surroundings, spare: Spare) -> None:
        self._evacuation = evacuation
        self._around = around
        self._spare = spare

    def spare_is_dead(self) -> bool:
        """Whether the spare's libvirt does not answer while the source's does: then nobody else should get it.

        Where neither answers it may be this host that is cut off, and no spare is lost for that. The spare is asked
        twice: the way to it may be open again when the source is asked.
        """
        asked, spare = self._around.verifier.can_be_asked, self._evacuation.spare or ""
        return not asked(spare) and asked(self._evacuation.host) and not asked(spare)

    def wait_while_cut_off(self) -> bool:
        """Where neither end answers, wait: the next spare could not be reached either.

        Returns whether it was the head that was cut off, and is back. What becomes of the lease is not looked at here.
        """
        evacuation, around = self._evacuation, self._around
        verifier, began, cut_off = around.verifier, around.clock.now(), False
        while not around.cluster.job_is_over(evacuation.job) and not evacuation.cancel:
            if any(map(verifier.can_be_asked, (*destinations(evacuation), evacuation.host))):
                return cut_off
            if not cut_off and verifier.head_is_cut_off():
                cut_off = True
                log.error("%s: THE HEAD IS CUT OFF from most hosts: it waits", evacuation.id)
            if verifier.gives_up(began, around.limits.settle_timeout_s):
                log.error("%s: neither %s nor %s answers", evacuation.id, evacuation.host, evacuation.spare)
                break
            with contextlib.suppress(SpareFailedError):
                self._spare.keep(guests_move=True)
            around.clock.sleep(around.limits.retry_s)
        return False
