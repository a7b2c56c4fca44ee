"""The barrier's protocol, on a model: threads for ranks, a meeting point for the communicator."""

import os
import random
import subprocess
import sys
import threading

import pytest

from failavoid.mpi.mpi4py_wrapper import Settings
from failavoid.mpi.protocol import CANCELLED, LIMIT, MOVED, Agreed, Callbacks, Exchange, Held, Rank, Record, Share
from failavoid.shared.page import Page, PageWriter, Posted

PATIENCE_S = 20.0


class Meeting:
    """What all ranks bring to a collective, once all have come."""

    def __init__(self, size):
        self.size = size
        self._barrier = threading.Barrier(size, timeout=PATIENCE_S)
        self._brought = [None] * size

    def all(self, rank, value):
        self._brought[rank] = value
        self._barrier.wait()
        values = list(self._brought)
        self._barrier.wait()
        return values


class ModelChannel:
    """A communicator, as one of its ranks sees it."""

    def __init__(self, rank, meeting, mail):
        self.rank = rank
        self._meeting = meeting
        self._mail = mail

    def highest(self, word):
        return max(self._meeting.all(self.rank, word))

    def exchange(self, record):
        return self._meeting.all(self.rank, record)

    def share(self, root, agreed, ranks):
        assert (agreed is not None) == (self.rank == root)
        return self._meeting.all(self.rank, agreed)[root]

    def tell(self, root, outcome):
        return self._mail.tell(self.rank, root, outcome)


class Mail:
    """The leader's word to each of the others; nobody waits for those who have not fetched it."""

    def __init__(self, size):
        self._size = size
        self._changed = threading.Condition()
        self._posted = [[] for _ in range(size)]

    def tell(self, rank, root, outcome):
        with self._changed:
            if rank == root:
                for box in self._posted:
                    box.append(outcome)
                self._changed.notify_all()
            assert self._changed.wait_for(lambda: self._posted[rank], PATIENCE_S), "the leader's word never came"
            return self._posted[rank].pop(0)


class ModelPage:
    """One guest's page, posted to by the test."""

    epoch = property(lambda self: self.posted.epoch)
    done = property(lambda self: self.posted.done)
    cancelled = property(lambda self: self.posted.cancelled)

    def __init__(self):
        self.posted = Posted(0, 0, (), 0, 0)

    def read(self):
        return self.posted


class ModelSlot:
    def __init__(self):
        self.stopped = 0
        self.checkpoint = 0

    def checkpointed(self, epoch):
        self.checkpoint = epoch

    def stop(self, epoch):
        self.stopped = epoch

    def resume(self):
        self.stopped = 0

    def deregister(self):
        self.stopped = None


class Model:
    """Ranks on guests; ``guests[i]`` is that of rank i."""

    def __init__(self, guests, limit_s=PATIENCE_S):
        self.guests = guests
        self.pages = {guest: ModelPage() for guest in guests}
        self.held: list[Held] = []
        self.left = [0] * len(guests)
        self.last = False
        meeting, mail = Meeting(len(guests)), Mail(len(guests))
        self.ranks, self.threads = [], []
        for number, guest in enumerate(guests):
            rank = Rank(guest, "somewhere", limit_s, self.held.append)
            rank.page, rank._slot = self.pages[guest], ModelSlot()
            self.ranks.append(rank)
            channel = ModelChannel(number, meeting, mail)
            self.threads.append(threading.Thread(target=self._run, args=(number, channel), daemon=True))

    def run(self):
        for thread in self.threads:
            thread.start()

    def _run(self, number, channel):
        while channel.highest(number == 0 and not self.last):  # rank 0 decides, as programs do
            self.ranks[number].barrier(channel)
            self.left[number] += 1

    def post(self, guest, **changes):
        self.pages[guest].posted = self.pages[guest].posted._replace(**changes)

    def ready(self, guest, epoch):
        return all(
            rank._slot.stopped == epoch for rank, where in zip(self.ranks, self.guests, strict=True) if where == guest
        )

    def wait(self, condition):
        pause = threading.Event()
        for _ in range(int(PATIENCE_S / 0.002)):
            if condition():
                return
            pause.wait(0.002)
        raise AssertionError("it never happened")

    def join(self):
        before = self.left[0]
        self.wait(lambda: self.left[0] > before + 2)
        self.last = True
        for thread in self.threads:
            thread.join(PATIENCE_S)
            assert not thread.is_alive(), "a rank waits for ever"
        assert len(set(self.left)) == 1


@pytest.mark.parametrize("seed", range(12))
def test_whatever_the_order_in_which_guests_hear_of_it_all_affected_ranks_stop_and_all_go_on(seed):
    chance = random.Random(seed)
    guests = [f"g{chance.randrange(5)}" for _ in range(chance.randrange(2, 9))]
    names = sorted(set(guests))
    model = Model(guests)
    model.run()
    for epoch in (1, 2, 3):
        affected = tuple(chance.sample(names, chance.randrange(1, len(names) + 1)))
        for guest in chance.sample(names, len(names)):
            model.post(guest, epoch=epoch, affected=affected)
            threading.Event().wait(chance.choice([0, 0, 0.005, 0.02]))
        model.wait(lambda affected=affected, epoch=epoch: all(model.ready(guest, epoch) for guest in affected))
        left = list(model.left)
        threading.Event().wait(0.02)
        assert model.left == left, "a rank left the barrier while guests moved"
        how = chance.choice(["done", "cancelled"])
        for guest in chance.sample(names, len(names)):
            model.post(guest, **{how: epoch})
            threading.Event().wait(chance.choice([0, 0, 0.01]))
    model.join()
    assert [held.epoch for held in model.held] == [1, 2, 3]


def test_ranks_without_a_page_take_part_in_what_others_bring():
    model = Model(["g0", "g1", "g2"])
    model.ranks[1].page = model.ranks[1]._slot = None
    model.ranks[1]._gone = True
    model.post("g0", epoch=1, affected=("g0", "g1"))
    model.run()
    model.wait(lambda: model.ready("g0", 1))
    model.post("g0", done=1)
    model.join()
    assert model.held[0].outcome == MOVED


def test_a_limit_that_passed_handles_nothing():
    model = Model(["g0", "g1"], limit_s=0.03)
    model.post("g0", epoch=1, affected=("g0",))
    model.run()
    model.wait(lambda: len(model.held) >= 2)
    model.post("g0", done=1)
    model.join()
    assert [held.outcome for held in model.held[:2]] == [LIMIT, LIMIT]


def test_a_notice_that_ended_before_the_barrier_stops_nobody():
    model = Model(["g0", "g1"])
    for guest in model.pages:
        model.post(guest, epoch=4, affected=("g0",), done=3, cancelled=4)
    model.run()
    model.join()
    assert model.held == []


def test_guests_without_ranks_stop_nobody():
    model = Model(["g0", "g1"])
    model.post("g0", epoch=1, affected=("g7",))
    model.run()
    model.join()
    assert model.held == []


def test_a_rank_that_is_switched_off_brings_nothing_but_stops_with_the_others():
    model = Model(["g0", "g0"])
    model.ranks[0].enabled = False
    model.post("g0", epoch=1, affected=("g0",))
    model.run()
    model.wait(lambda: model.ready("g0", 1))
    model.post("g0", cancelled=1)
    model.join()
    assert model.held[0].outcome == CANCELLED


def test_the_lowest_rank_that_brought_the_epoch_tells_who_is_affected_by_its_own_list():
    records = [Record(0, "g0"), Record(2, "g1"), Record(1, "g2"), Record(2, "g3")]
    notice = Posted(7, 2, ("g3", "g1"), 1, 0)
    hold = Rank("g1", None, 1.0).hold(1, 2, notice)
    assert next(hold) == Exchange(records[1])
    assert hold.send(records) == Share(1, Agreed("move", (False, True, False, True)), 4)
    hold = Rank("g3", None, 1.0).hold(3, 2, notice._replace(affected=("g0",)))
    next(hold)
    assert hold.send(records) == Share(1, None, 4)


def test_the_application_is_told_on_every_rank_before_anybody_stops_and_after_all_run_again():
    model = Model(["g0", "g1", "g2"])
    told = []

    def before(kind):
        assert not any(rank._slot.stopped for rank in model.ranks)
        told.append(kind)
        calls.wait()  # as a callback that communicates: nobody stops before all are through

    calls = threading.Barrier(3, timeout=PATIENCE_S)
    for rank in model.ranks:
        rank.callbacks = Callbacks(before, told.append)
    model.post("g1", epoch=1, affected=("g1",))
    model.run()
    model.wait(lambda: model.ready("g1", 1))
    assert told == ["move"] * 3
    model.post("g1", done=1)
    model.join()
    assert told == ["move"] * 3 + ["moved"] * 3


def test_a_checkpoint_stops_nobody_and_is_noted_where_the_application_was_told():
    model = Model(["g0", "g1"])
    told = []
    model.ranks[1].callbacks = Callbacks(told.append)
    model.post("g0", epoch=1, affected=("g0",), kind="checkpoint")
    model.run()
    model.join()
    assert told == ["checkpoint"]
    assert [rank._slot.checkpoint for rank in model.ranks] == [0, 1]
    assert [(held.kind, held.guests, held.told) for held in model.held] == [("checkpoint", ("g0",), False)]
    assert [rank.handled for rank in model.ranks] == [1, 1]


def test_an_application_that_asked_counts_as_told():
    model = Model(["g0"])
    channel = ModelChannel(0, Meeting(1), Mail(1))
    assert not model.ranks[0].ask(channel)
    model.post("g0", epoch=1, affected=("g0",), kind="checkpoint")
    assert model.ranks[0].ask(channel)
    assert model.ranks[0].ask(channel), "asking handles nothing"
    model.ranks[0].barrier(channel)
    assert model.ranks[0]._slot.checkpoint == 1
    assert not model.ranks[0].ask(channel)


def test_the_leader_says_where_its_guests_went():
    model = Model(["g0", "g1"])
    model.post("g1", epoch=1, affected=("g1",), source="host01", destination="host09")
    model.run()
    model.wait(lambda: model.ready("g1", 1))
    model.post("g1", done=1)
    model.join()
    (held,) = model.held
    assert (held.guests, held.source, held.destination) == (("g1",), "host01", "host09")


def test_a_rank_looks_for_a_late_page_once_a_second(tmp_path):
    now = [0.0]
    rank = Rank("g0", str(tmp_path), 1.0, clock=lambda: now[0])
    assert not rank.find_page()
    PageWriter(str(tmp_path))
    now[0] = 0.9
    assert not rank.find_page()
    now[0] = 1.1
    assert rank.find_page()
    assert isinstance(rank.page, Page)
    (slot,) = (tmp_path / "slots").iterdir()
    assert slot.name.startswith(f"{os.getpid()}.")
    rank.deregister()
    assert not rank.find_page()
    assert os.listdir(tmp_path / "slots") == []  # noqa: PTH208


def test_the_environment_is_read_with_defaults():
    settings = Settings({"FAILAVOID_JOB": "job-1", "FAILAVOID_GUEST": "g1", "FAILAVOID_LIMIT_S": "0.5"})
    assert (settings.job, settings.guest, settings.run_dir) == ("job-1", "g1", "/run/failavoid")
    assert (settings.every, settings.limit_s) == (1, 0.5)
    assert Settings({}).guest == os.uname().nodename.partition(".")[0]


@pytest.mark.parametrize("name", ["FAILAVOID_EVERY", "FAILAVOID_LIMIT_S"])
@pytest.mark.parametrize("value", ["0", "-1", "often"])
def test_an_environment_that_makes_no_sense_is_refused_by_name(name, value):
    with pytest.raises(ValueError, match=f"{name} is '{value}'"):
        Settings({name: value})


PROGRAM = "import sys; print(__name__, sys.argv[1:], 'mpi4py.MPI' in sys.modules)"


@pytest.mark.parametrize("how", ["-c", "-m", "file"])
def test_a_program_runs_as_under_python_itself_and_mpi_starts_only_if_it_asks(tmp_path, how):
    (tmp_path / "program.py").write_text(PROGRAM)
    command = {"-c": ["-c", PROGRAM], "-m": ["-m", "program"], "file": [str(tmp_path / "program.py")]}[how]
    result = subprocess.run(
        [sys.executable, "-m", "failavoid.mpi", *command, "a", "-b"], capture_output=True, text=True, cwd=tmp_path
    )
    assert result.stdout == "__main__ ['a', '-b'] False\n", result.stderr


def test_without_a_program_usage_is_said():
    result = subprocess.run([sys.executable, "-m", "failavoid.mpi"], capture_output=True, text=True)
    assert result.returncode != 0
    assert "usage: python -m failavoid.mpi" in result.stderr
