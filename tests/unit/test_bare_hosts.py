"""A job that has hosts without guests: an alarm leads to a notice and a checkpoint, never to a move."""

import subprocess
import sys
import threading
from pathlib import Path

import pytest
from evacuation_world import World
from fastapi.testclient import TestClient
from test_controller import SECRET, bearer

from failavoid.agent import ranks
from failavoid.agent.settings import Settings
from failavoid.controller.api import build_app
from failavoid.monitor.groups import groups_of
from failavoid.shared.http import ApiError
from failavoid.shared.messages import GuestReport, Job, JobRequest, Notice, to_dict
from failavoid.shared.page import job_folder
from failavoid.shared.tokens import mint

AGENT = bearer("host", "host5")


@pytest.fixture
def world(tmp_path):
    """Job bare-1 has host4 and host5."""
    world = World(tmp_path, gather_timeout_s=20.0)
    request = JobRequest("ada", 1234, 2345, "ssh-ed25519 A", 2)
    job = Job("bare-1", request, "running", resource="hosts", hosts=["host4", "host5"])
    world.manager.membership.jobs.append(job)
    for host in world.manager.membership.hosts[3:]:
        host.pool = "allocated"
    world.manager.change()
    world.around.cluster.refresh()
    yield world
    world.alive.clear()


@pytest.fixture
def api(world):
    return TestClient(build_app(world.controller, SECRET))


def alarm(world):
    return world.alarm("host5", job="bare-1")


def test_its_hosts_are_compared_with_one_another(world):
    groups = {group.job: group.hosts for group in groups_of(world.manager.membership)}
    assert groups["bare-1"] == ("host4", "host5")


def test_an_alarm_asks_for_a_checkpoint_and_nothing_moves(world, api):
    evacuation = world.until_state(alarm(world), "NOTICED")
    notice = api.get("/hosts/host5/notice", headers=AGENT).json()
    assert (notice["job"], notice["kind"], notice["affected"]) == ("bare-1", "checkpoint", ["host5"])
    assert notice["owner"] == [1234, 2345]
    for state in ("ready", "resumed"):
        said = to_dict(GuestReport("bare-1", notice["epoch"], state, 8))
        assert api.post("/hosts/host5/report", json=said, headers=AGENT).status_code == 200
    ended = world.until_state(evacuation, "CHECKPOINTED")
    assert ended.plan.decision == "checkpoint"
    assert "host5 itself, without guests: nothing of it can move" in ended.plan.reasons[0]
    assert ended.steps[-1].detail == "the job runs on host5 itself and stays there"
    assert (ended.migrations, world.playbook_runs, world.manager.requests) == ([], 0, [])
    assert world.manager.suspected == {"host5"}
    assert not world.around.board.is_open("bare-1")


def test_its_own_policy_may_be_to_hear_of_nothing(world):
    world.manager.membership.jobs[-1].request.policy = "off"
    world.manager.change()
    assert alarm(world) is None


def test_an_operator_is_told_that_it_would_be_a_checkpoint(world, api):
    (plan,) = api.get("/plan?host=host5", headers=bearer("reader")).json()
    assert (plan["decision"], plan["job"]) == ("checkpoint", "bare-1")


@pytest.mark.parametrize("headers", [bearer("host", "host4"), bearer("guest", "host5"), bearer("user", "ada")])
def test_a_hosts_agent_alone_speaks_for_it(world, api, headers):
    said = to_dict(GuestReport("bare-1", 1, "ready", 8))
    assert api.get("/hosts/host5/notice", headers=headers).status_code == 403
    assert api.post("/hosts/host5/report", json=said, headers=headers).status_code == 403


def test_a_host_with_guests_has_no_notice_of_its_own(world, api):
    headers = bearer("host", "host1")
    assert api.get("/hosts/host1/notice?timeout=0.05", headers=headers).json() == {}
    said = to_dict(GuestReport("job-1", 1, "ready", 8))
    assert api.post("/hosts/host1/report", json=said, headers=headers).status_code == 409


def settings(**changes):
    return Settings(
        **{
            "node": "host5",
            "kind": "host",
            "token": mint(SECRET, "host", "host5"),
            "monitor": ("127.0.0.1", 1),
            "controller": "http://head",
            **changes,
        }
    )


def test_a_hosts_agent_makes_the_page_for_the_jobs_user(tmp_path):
    agent = ranks.Ranks(settings(), str(tmp_path))
    agent._take(to_dict(Notice("bare-1", 1, 0, [], 0, 0, owner=[1234, 2345])))
    folder = Path(job_folder("bare-1", str(tmp_path)))
    assert [(folder / name).stat().st_gid for name in (".", "page", "slots")] == [2345] * 3
    assert (folder / "slots").stat().st_uid == 1234
    assert (folder / "slots").stat().st_mode & 0o777 == 0o700


def test_a_notice_that_does_not_say_whose_the_job_is_is_refused(tmp_path):
    agent = ranks.Ranks(settings(), str(tmp_path))
    with pytest.raises(ValueError, match="does not say whose job bare-1 is"):
        agent._take(to_dict(Notice("bare-1", 1, 0, [], 0, 0)))


RANK = """
import sys, time
from failavoid.shared.page import Page, Slot
page, slot = Page(sys.argv[1]), Slot(sys.argv[1])
while not page.epoch:
    time.sleep(0.01)
assert page.read().kind == "checkpoint"
slot.checkpointed(page.epoch)
sys.stdin.read()
"""


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_ranks_on_the_host_are_told_and_heard_through_its_agent(world, api, tmp_path, monkeypatch):
    over = threading.Event()

    def call(method, url, token, body=None, timeout=0.0):
        if over.is_set():
            raise SystemExit  # the thread's end
        path = url.removeprefix("http://head").replace("timeout=25", "timeout=0.2")
        answer = api.request(method, path, json=body, headers={"Authorization": f"Bearer {token}"})
        if answer.status_code != 200:
            raise ApiError(answer.status_code, answer.text)
        return answer.json()

    monkeypatch.setattr(ranks, "call", call)
    agent = ranks.Ranks(settings(), str(tmp_path / "run"))
    listener = threading.Thread(target=agent.listen, daemon=True)
    listener.start()
    threading.Thread(target=agent.watch, daemon=True).start()
    folder = job_folder("bare-1", str(tmp_path / "run"))
    world.until(lambda: Path(folder, "page").exists())
    with subprocess.Popen([sys.executable, "-c", RANK, folder], stdin=subprocess.PIPE) as rank:
        world.until(lambda: any(Path(folder, "slots").iterdir()))
        ended = world.until_state(alarm(world), "CHECKPOINTED")
        rank.stdin.close()
    assert rank.returncode == 0
    over.set()
    listener.join()
    assert next(step.detail for step in ended.steps if step.name == "gathered") == "1 of 1 guests ready"
