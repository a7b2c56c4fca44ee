"""The guest's agent brings notices to the page, and reports what the slots say."""

import http.server
import json
import threading

import pytest

from failavoid.agent import ranks
from failavoid.agent.settings import Settings
from failavoid.shared.messages import Notice, to_dict
from failavoid.shared.page import Page, Posted, SlotState, job_folder


class Slots:
    """What the agent finds when it looks at the slots."""

    def __init__(self, monkeypatch):
        self.states = []
        monkeypatch.setattr(ranks, "live_slots", lambda _folder: list(self.states))

    def are(self, *stopped):
        self.states = [SlotState(pid, epoch) for pid, epoch in enumerate(stopped, 100)]

    def have_checkpoints_of(self, *epochs):
        self.states = [SlotState(pid, 0, epoch) for pid, epoch in enumerate(epochs, 100)]


@pytest.fixture
def slots(monkeypatch):
    return Slots(monkeypatch)


@pytest.fixture
def agent(tmp_path):
    settings = Settings("g1", "guest", "guest.g1.0.x", ("127.0.0.1", 1), "http://127.0.0.1:1/")
    return ranks.Ranks(settings, str(tmp_path))


def notice(**changes):
    return to_dict(Notice(**{**to_dict(Notice("job-1", 1, 0, [], 0, 0)), **changes}))


def due(agent):
    """What the agent would report now: (state, epoch, ranks), or None."""
    if not agent._pending():
        return None
    report = agent._due(agent._job, agent._page.posted, agent._page.folder)
    return report and (report.state, report.epoch, report.ranks)


def test_a_notice_is_written_on_its_job_s_page(agent, tmp_path):
    assert agent._take(notice(serial=5, epoch=2, affected=["g1", "g2"], done=1)) == 5
    page = Page(job_folder("job-1", str(tmp_path)))
    assert page.read() == Posted(5, 2, ("g1", "g2"), 1, 0)
    agent._take(notice(serial=6, epoch=3, affected=["g1"], kind="checkpoint", source="host01"))
    assert page.read() == Posted(6, 3, ("g1",), 1, 0, "checkpoint", "host01")


def test_what_a_notice_asks_about_arrivals_is_reported(agent, monkeypatch):
    said, came = [], threading.Event()
    monkeypatch.setattr(ranks, "call", lambda *words, **_: (said.append(words), came.set()))
    agent._take(notice(epoch=1, affected=["g1"], arrivals=[{"guest": "g1", "address": "10.0.0.1", "peer": "g2"}]))
    assert came.wait(20)
    method, url, _, report = said[0]
    assert (method, url) == ("POST", "http://127.0.0.1:1/guests/g1/report")
    assert (report["state"], report["epoch"]) == ("root", 1)


@pytest.mark.parametrize(
    "bad", [{"job": "../../etc"}, {"epoch": "one"}, {"unknown": 1}, {"affected": "g1"}, {"epoch": -1}, {"kind": "swap"}]
)
def test_a_notice_that_is_none_is_refused(agent, bad):
    with pytest.raises(ValueError, match=r"\w"):
        agent._take({**notice(), **bad})


def test_a_guest_is_ready_when_every_live_rank_is_stopped_at_this_epoch(agent, slots):
    agent._take(notice(epoch=2, affected=["g1"], done=1))
    for stopped in ((), (0,), (2, 0), (2, 1)):
        slots.are(*stopped)
        assert due(agent) is None, stopped
    slots.are(2, 2)
    assert due(agent) == ("ready", 2, 2)


def test_a_checkpoint_is_ready_when_every_live_rank_has_written_it(agent, slots):
    agent._take(notice(epoch=2, affected=["g1"], done=1, kind="checkpoint"))
    for epochs in ((), (2, 0), (1, 1)):
        slots.have_checkpoints_of(*epochs)
        assert due(agent) is None, epochs
    slots.have_checkpoints_of(2, 2)
    assert due(agent) == ("ready", 2, 2)
    agent._reported["ready"] = 2
    agent._take(notice(epoch=2, affected=["g1"], done=2, kind="checkpoint"))
    assert due(agent) == ("resumed", 2, 2)


def test_an_unaffected_guest_has_nothing_to_say(agent, slots):
    slots.are(1)
    agent._take(notice(epoch=1, affected=["g2"]))
    assert due(agent) is None


def test_ranks_have_resumed_when_the_epoch_has_ended_and_none_is_stopped(agent, slots):
    slots.are(1, 1)
    agent._take(notice(epoch=1, affected=["g1"], done=1))
    assert due(agent) is None
    slots.are(0, 0)
    assert due(agent) == ("resumed", 1, 2)


def test_a_guest_whose_ranks_never_stopped_still_says_that_they_run(agent, slots):
    agent._take(notice(epoch=1, affected=["g1"], cancelled=1))
    assert due(agent) == ("resumed", 1, 0)


def test_a_guest_of_another_job_starts_anew_and_the_old_page_goes(agent, slots, tmp_path):
    slots.are()
    agent._take(notice(epoch=3, affected=["g1"], done=3))
    agent._reported = {"ready": 3, "resumed": 3}
    agent._take(notice(job="job-2", serial=9, epoch=1, affected=["g1"]))
    slots.are(1)
    assert due(agent) == ("ready", 1, 1)
    assert [folder.name for folder in (tmp_path / "jobs").iterdir()] == ["job-2"]


def test_without_a_job_pages_go_but_not_under_living_ranks(agent, slots, tmp_path):
    slots.are(0)
    agent._take(notice())
    agent._take({})
    assert (tmp_path / "jobs/job-1/page").exists()
    slots.are()
    assert agent._take({}) == 0
    assert not (tmp_path / "jobs/job-1").exists()
    assert agent._take(notice(serial=3)) == 3
    assert (tmp_path / "jobs/job-1/page").exists()


def test_reports_that_do_not_get_through_are_repeated_and_refused_ones_are_not(tmp_path, slots, monkeypatch, capfd):
    answers, arrived = [503, 200, 404], []
    all_arrived = threading.Event()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            report = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            arrived.append((self.path, self.headers["Authorization"], report["state"]))
            self.send_response(answers[len(arrived) - 1])
            self.end_headers()
            if len(arrived) == len(answers):
                all_arrived.set()

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    monkeypatch.setattr(ranks, "PAUSE_S", (0.01, 0.02))
    settings = Settings("g1", "guest", "guest.g1.0.x", ("127.0.0.1", 1), f"http://127.0.0.1:{server.server_address[1]}")
    agent = ranks.Ranks(settings, str(tmp_path))
    agent._take(notice(epoch=1, affected=["g1"]))
    slots.are(1)
    threading.Thread(target=agent.watch, daemon=True).start()
    _until(lambda: agent._reported.get("ready") == 1)
    slots.are(0)
    agent._take(notice(serial=2, epoch=1, affected=["g1"], done=1))
    assert all_arrived.wait(20)
    _until(lambda: agent._reported.get("resumed") == 1)
    server.shutdown()
    server.server_close()
    assert arrived == [("/guests/g1/report", "Bearer guest.g1.0.x", state) for state in ("ready", "ready", "resumed")]
    said = capfd.readouterr().err
    assert said.count("does not get through") == 1
    assert "a report was refused" in said


def _until(condition):
    pause = threading.Event()
    for _ in range(2000):
        if condition():
            return
        pause.wait(0.01)
    raise AssertionError("it never happened")


def test_without_a_controller_the_agent_says_so_and_does_nothing(tmp_path, capfd):
    ranks.run(Settings("g1", "guest", "guest.g1.0.x", ("127.0.0.1", 1)), str(tmp_path))
    assert "no controller" in capfd.readouterr().err
