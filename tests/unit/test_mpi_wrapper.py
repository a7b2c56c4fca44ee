"""The barrier's protocol, on a model: threads for ranks, a meeting point for the communicator."""

import os
import random
import subprocess
import sys
import threading

import pytest

from failavoid.mpi.mpi4py_wrapper import Settings
from failavoid.mpi.protocol import CANCELLED, LIMIT, MOVED, Agreement, Held, Rank, View, agree
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

    def exchange(self, view):
        return self._meeting.all(self.rank, view)

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


def test_ranks_agree_on_the_list_of_the_lowest_rank_that_brought_the_epoch():
    views = [View(0, "g0", ()), View(2, "g1", ("g3", "g1")), View(1, "g2", ("g0",)), View(2, "g3", ("g0",))]
    assert agree(2, views) == Agreement(("g3", "g1"), (1, 3))


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
    assert os.listdir(tmp_path / "slots") == [str(os.getpid())]  # noqa: PTH208
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
