"""The page between a guest's agent and its ranks: read whole or not at all, and only the living count."""

import os
import subprocess
import sys
import time

import pytest

from failavoid.shared.page import SIZE, Page, PageError, PageWriter, SlotState, job_folder, live_slots

RANK = """
import sys
from failavoid.shared.page import Slot
slot = Slot(sys.argv[1])
print("registered", flush=True)
for line in sys.stdin:
    word, _, epoch = line.strip().partition(" ")
    getattr(slot, word)(*([int(epoch)] if epoch else []))
    print("done", flush=True)
"""


class Rank:
    """A process with a slot, told what to do line by line."""

    def __init__(self, folder):
        command = [sys.executable, "-c", RANK, str(folder)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
        assert self.process.stdout.readline() == "registered\n"

    def do(self, what):
        self.process.stdin.write(what + "\n")
        assert self.process.stdout.readline() == "done\n"

    def kill(self):
        self.process.kill()
        self.process.wait()


@pytest.fixture
def rank(tmp_path):
    PageWriter(str(tmp_path))
    ranks = []

    def start():
        ranks.append(Rank(tmp_path))
        return ranks[-1]

    yield start
    for one in ranks:
        one.kill()


def test_a_rank_reads_what_the_agent_posts(tmp_path):
    writer = PageWriter(str(tmp_path))
    page = Page(str(tmp_path))
    assert (page.epoch, page.done, page.cancelled) == (0, 0, 0)
    assert not page.read().open
    writer.post(4, 1, ["g001", "g002"], 0, 0)
    assert page.epoch == 1
    assert page.read() == (4, 1, ("g001", "g002"), 0, 0)
    assert page.read().open
    writer.post(5, 1, ["g001", "g002"], 1, 0)
    assert page.done == 1
    assert not page.read().open


def test_a_page_is_readable_by_all_and_writable_by_the_agent_alone(tmp_path):
    folder = job_folder("job-1", str(tmp_path))
    previous = os.umask(0o077)
    try:
        PageWriter(folder)
    finally:
        os.umask(previous)
    modes = [os.stat(os.path.join(folder, name)).st_mode & 0o7777 for name in (".", "page", "slots")]  # noqa: PTH116, PTH118
    assert modes == [0o755, 0o644, 0o1777]


def test_an_agent_that_comes_back_keeps_the_page_that_ranks_have_mapped(tmp_path):
    PageWriter(str(tmp_path)).post(7, 2, ["g1"], 1, 0)
    page = Page(str(tmp_path))
    again = PageWriter(str(tmp_path))
    assert again.posted == (7, 2, ("g1",), 1, 0)
    again.post(8, 2, ["g1"], 2, 0)
    assert page.done == 2


def test_epochs_never_go_back_and_what_nobody_would_end_counts_as_cancelled(tmp_path):
    writer = PageWriter(str(tmp_path))
    writer.post(7, 3, ["g1"], 2, 0)
    writer.post(1, 0, [], 0, 0)
    assert writer.posted == (1, 3, ("g1",), 2, 3)
    assert not Page(str(tmp_path)).read().open


WRITER = """
import itertools, sys
from failavoid.shared.page import PageWriter
writer = PageWriter(sys.argv[1])
for epoch in itertools.count(1):
    writer.post(epoch, epoch, [f"g{epoch}-{i}" for i in range(epoch % 7 * 20)], epoch - 1, 0)
"""


def test_a_half_written_page_is_never_taken_for_whole(tmp_path):
    PageWriter(str(tmp_path))
    page = Page(str(tmp_path))
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)])
    try:
        seen = set()
        while len(seen) < 300:
            assert writer.poll() is None
            posted = page.read()
            if posted is not None and posted.epoch:
                assert posted.affected == tuple(f"g{posted.epoch}-{i}" for i in range(posted.epoch % 7 * 20))
                assert posted.done == posted.epoch - 1
                seen.add(posted.epoch)
    finally:
        writer.kill()
        writer.wait()


def test_a_writer_that_died_half_way_leaves_no_notice_until_it_is_back(tmp_path):
    PageWriter(str(tmp_path)).post(1, 1, ["g1"], 0, 0)
    with (tmp_path / "page").open("r+b") as file:
        file.seek(64)
        file.write(b"x")
    page = Page(str(tmp_path))
    assert page.read() is None
    PageWriter(str(tmp_path)).post(1, 1, ["g1"], 0, 0)
    assert page.read().affected == ("g1",)


def test_more_names_than_a_page_holds_are_refused_with_a_way_out(tmp_path):
    with pytest.raises(PageError, match=r"2000 affected guests take .* shorter names"):
        PageWriter(str(tmp_path)).post(1, 1, ["g" * 50] * 2000, 0, 0)


@pytest.mark.parametrize(("content", "why"), [(b"", "is no page"), (b"x" * SIZE, "another version")])
def test_what_is_no_page_is_refused_by_ranks_and_replaced_by_the_agent(tmp_path, content, why):
    (tmp_path / "page").write_bytes(content)
    with pytest.raises(PageError, match=why):
        Page(str(tmp_path))
    PageWriter(str(tmp_path))
    assert Page(str(tmp_path)).epoch == 0


def test_no_page_is_said_with_its_path(tmp_path):
    with pytest.raises(PageError, match=f"{tmp_path}/page: No such file"):
        Page(str(tmp_path))


def test_the_agent_sees_where_each_rank_is_stopped(tmp_path, rank):
    first, second = rank(), rank()
    first.do("stop 3")
    assert sorted(live_slots(str(tmp_path))) == sorted(
        [SlotState(first.process.pid, 3), SlotState(second.process.pid, 0)]
    )
    first.do("resume")
    assert {slot.stopped for slot in live_slots(str(tmp_path))} == {0}


def test_a_rank_that_deregistered_no_longer_counts(tmp_path, rank):
    rank().do("deregister")
    assert live_slots(str(tmp_path)) == []


def test_a_rank_that_died_is_forgotten_even_if_its_number_lives_on(tmp_path, rank):
    dead, living = rank(), rank()
    dead.do("stop 1")
    dead.kill()
    # as if a new process had got the dead one's number
    (tmp_path / "slots" / str(dead.process.pid)).rename(tmp_path / "slots" / str(os.getpid()))
    assert live_slots(str(tmp_path)) == [SlotState(living.process.pid, 0)]
    assert os.listdir(tmp_path / "slots") == [str(living.process.pid)]  # noqa: PTH208


def test_looking_at_slots_does_not_disturb_the_living(tmp_path, rank):
    rank()
    for _ in range(3):
        assert len(live_slots(str(tmp_path))) == 1


def test_what_a_user_puts_among_the_slots_is_passed_over(tmp_path):
    PageWriter(str(tmp_path))
    slots = tmp_path / "slots"
    os.mkfifo(slots / "1")
    (slots / "2").mkdir()
    (slots / "3").symlink_to("/etc/passwd")
    (slots / "nonsense").write_text("")
    began = time.monotonic()
    assert live_slots(str(tmp_path)) == []
    assert time.monotonic() - began < 5, "a FIFO blocked the agent"


def test_a_folder_without_slots_has_no_ranks(tmp_path):
    assert live_slots(str(tmp_path / "none")) == []
