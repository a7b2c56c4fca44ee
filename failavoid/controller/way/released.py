"""The ways to RELEASED and to the ends of an evacuation that went well: RETIRED, MOVED and CHECKPOINTED."""

from __future__ import annotations

import logging

from failavoid.controller.manager import ManagerError
from failavoid.controller.verification import MOVED
from failavoid.controller.way.under_way import FailedEvacuation, UnderWay
from failavoid.shared.messages import Placement

log = logging.getLogger(__name__)


def release(way: UnderWay) -> None:
    """Say where the guests run now, and let the ranks run on."""
    # Before the ranks run: a job that ends right away is then cleaned up where its guests are.
    committed = commit(way, attempts=1)
    way.ranks.release()
    if not committed:
        commit(way, None)
    with way.around.changed:
        log.info("%s: RELEASED the ranks of %s", way.evacuation.id, way.evacuation.job)
        way.evacuation.state = "RELEASED"
        way.around.journal.save(way.evacuation)
        way.around.changed.notify_all()  # the job's next evacuation may post its notice


def commit(way: UnderWay, attempts: int | None) -> bool:
    """Tell the resource manager where the guests run now; without ``attempts`` until it has heard."""
    if way.steps.is_done("committed"):
        return True
    moved = [m for m in way.moves() if m.state == MOVED]
    placements = [Placement(m.guest, m.destination, m.cores, m.numa_node, m.devices) for m in moved]
    way.steps.begin("committed")
    try:
        if not way.spare.commit(placements, attempts):
            return False
    except ManagerError as refusal:
        # the lease ends with the commit: its answer may have been lost, or written down no more
        hosts = {guest.name: guest.host for guest in way.around.cluster.refresh().guests}
        if any(hosts.get(m.guest, m.destination) != m.destination for m in moved):
            raise FailedEvacuation(str(refusal)) from refusal
    way.steps.done("committed", None)
    return True


def finish(way: UnderWay) -> None:
    """Retire the host, once the playbook has ended well too and nobody else leaves it."""
    if way.move is not None:
        way.around.clock.wait(way.playbook_ended)
        assert way.move.result is not None
        if way.move.result.failures and not way.job_over():
            raise FailedEvacuation("; ".join(f"the playbook: {failure}" for failure in way.move.result.failures))
    way.around.clock.wait(lambda: not way.fleet.others_leave(way.evacuation))
    if others := staying(way):
        log.error("%s: %s is not retired: it has %s", way.evacuation.id, way.evacuation.host, others)
        way.steps.begin("retired")
        way.steps.done("retired", "MOVED", f"not retired: it has {others}")
        return
    retire(way, "RETIRED")


def staying(way: UnderWay) -> str:
    """Say which other jobs' guests stay on the host, if any do."""
    guests = way.around.cluster.refresh().guests
    found = [g for g in guests if g.host == way.evacuation.host and g.job not in (None, way.evacuation.job)]
    found = [g for g in found if g.state != "lost" and g.job and not way.around.cluster.job_is_over(g.job)]
    return ", ".join(f"{guest.name} of job {guest.job}" for guest in found)


def retire(way: UnderWay, state: str | None) -> bool:
    """Have the host retired, however long that takes; True. Raises FailedEvacuation."""
    evacuation = way.evacuation
    way.steps.begin("retired")
    try:
        give_up = way.around.manager.retire
        way.spare.insist(lambda: give_up(evacuation.host, way.cause(), evacuation.id, evacuation.job))
    except ManagerError as refusal:
        raise FailedEvacuation(str(refusal)) from refusal
    way.steps.done("retired", state)
    return True


def checkpointed(way: UnderWay) -> None:
    """Let the ranks run on, which had time to write a checkpoint: nothing is to move."""
    way.ranks.release()
    way.steps.begin("checkpointed")
    job, host = way.around.cluster.job(way.evacuation.job), way.evacuation.host
    bare = job is not None and job.resource == "hosts"
    words = f"the job runs on {host} itself and stays there" if bare else f"the job's guests stay on {host}"
    way.steps.done("checkpointed", "CHECKPOINTED", words)
