"""The page between a guest's agent and its ranks: read whole or not at all, and only the living count."""

import os
import subprocess
import sys
import time

import pytest

from failavoid.shared.page import SIZE, Page, PageError, PageWriter, Posted, Slot, SlotState, job_folder, live_slots

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
    writer.post(Posted(4, 1, ("g001", "g002"), 0, 0))
    assert page.epoch == 1
    assert page.read() == Posted(4, 1, ("g001", "g002"), 0, 0)
    assert page.read().open
    writer.post(Posted(5, 1, ("g001", "g002"), 1, 0))
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


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to a job's user")
def test_a_page_with_an_owner_is_for_the_job_s_own_user_alone(tmp_path):
    PageWriter(job_folder("job-1", str(tmp_path)), (4001, 4001))
    tmp_path.chmod(0o755)
    found = {}
    for user in (4001, 4002):
        pid = os.fork()
        if pid == 0:
            os.chdir(tmp_path)
            os.setgroups([])
            os.setgid(user)
            os.setuid(user)
            can = [os.access("jobs/job-1/page", mode) for mode in (os.R_OK, os.W_OK)]
            can.append(os.access("jobs/job-1/slots", os.W_OK))
            os._exit(sum(1 << bit for bit, yes in enumerate(can) if yes))
        found[user] = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert found == {4001: 0b101, 4002: 0}, "bits: reads the page, writes the page, makes slots"


def test_a_page_says_what_kind_of_notice_it_is_and_where_guests_go(tmp_path):
    told = Posted(5, 2, ("g1", "g2"), 1, 0, "move", "host01", "host07")
    PageWriter(str(tmp_path)).post(told)
    assert Page(str(tmp_path)).read() == told
    PageWriter(str(tmp_path)).post(told._replace(epoch=3, kind="checkpoint", destination=""))
    assert Page(str(tmp_path)).read() == (5, 3, ("g1", "g2"), 1, 0, "checkpoint", "host01", "")


def test_an_agent_that_comes_back_keeps_the_page_that_ranks_have_mapped(tmp_path):
    PageWriter(str(tmp_path)).post(Posted(7, 2, ("g1",), 1, 0))
    page = Page(str(tmp_path))
    again = PageWriter(str(tmp_path))
    assert again.posted == Posted(7, 2, ("g1",), 1, 0)
    again.post(Posted(8, 2, ("g1",), 2, 0))
    assert page.done == 2


def test_epochs_never_go_back_and_what_nobody_would_end_counts_as_cancelled(tmp_path):
    writer = PageWriter(str(tmp_path))
    writer.post(Posted(7, 3, ("g1",), 2, 0))
    writer.post(Posted(1, 0, (), 0, 0))
    assert writer.posted == Posted(1, 3, ("g1",), 2, 3)
    assert not Page(str(tmp_path)).read().open


WRITER = """
import itertools, sys
from failavoid.shared.page import PageWriter, Posted
writer = PageWriter(sys.argv[1])
for epoch in itertools.count(1):
    writer.post(Posted(epoch, epoch, tuple(f"g{epoch}-{i}" for i in range(epoch % 7 * 20)), epoch - 1, 0))
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
    PageWriter(str(tmp_path)).post(Posted(1, 1, ("g1",), 0, 0))
    with (tmp_path / "page").open("r+b") as file:
        file.seek(64)
        file.write(b"x")
    page = Page(str(tmp_path))
    assert page.read() is None
    PageWriter(str(tmp_path)).post(Posted(1, 1, ("g1",), 0, 0))
    assert page.read().affected == ("g1",)


def test_more_names_than_a_page_holds_are_refused_with_a_way_out(tmp_path):
    with pytest.raises(PageError, match=r"2000 affected guests take .* shorter names"):
        PageWriter(str(tmp_path)).post(Posted(1, 1, ("g" * 50,) * 2000, 0, 0))


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


def test_of_several_threads_that_are_stopped_the_last_one_counts(tmp_path, rank):
    one = rank()
    for what, stopped in (("stop 3", 3), ("stop 3", 3), ("resume", 3), ("resume", 0)):
        one.do(what)
        assert [slot.stopped for slot in live_slots(str(tmp_path))] == [stopped]


def test_the_agent_sees_which_checkpoint_is_written(tmp_path, rank):
    rank().do("checkpointed 4")
    assert [(slot.stopped, slot.checkpointed) for slot in live_slots(str(tmp_path))] == [(0, 4)]


def test_ranks_of_one_number_are_two(tmp_path):
    PageWriter(str(tmp_path))
    slots = [Slot(str(tmp_path)), Slot(str(tmp_path))]  # as in two containers with process numbers of their own
    assert len({slot.path for slot in slots}) == 2


def test_a_rank_that_deregistered_no_longer_counts(tmp_path, rank):
    rank().do("deregister")
    assert live_slots(str(tmp_path)) == []


def test_a_rank_that_died_is_forgotten_even_if_its_number_lives_on(tmp_path, rank):
    dead, living = rank(), rank()
    dead.do("stop 1")
    dead.kill()
    # as if a new process had got the dead one's number
    (left,) = (tmp_path / "slots").glob(f"{dead.process.pid}.*")
    left.rename(tmp_path / "slots" / f"{os.getpid()}.00000000")
    assert live_slots(str(tmp_path)) == [SlotState(living.process.pid, 0)]
    (only,) = (tmp_path / "slots").iterdir()
    assert only.name.startswith(f"{living.process.pid}.")


def test_looking_at_slots_does_not_disturb_the_living(tmp_path, rank):
    rank()
    for _ in range(3):
        assert len(live_slots(str(tmp_path))) == 1


def test_what_a_user_puts_among_the_slots_is_passed_over(tmp_path):
    PageWriter(str(tmp_path))
    slots = tmp_path / "slots"
    os.mkfifo(slots / "1.fifo")
    (slots / "2.folder").mkdir()
    (slots / "3.link").symlink_to("/etc/passwd")
    (slots / "nonsense").write_text("")
    began = time.monotonic()
    assert live_slots(str(tmp_path)) == []
    assert time.monotonic() - began < 5, "a FIFO blocked the agent"


def test_a_folder_without_slots_has_no_ranks(tmp_path):
    assert live_slots(str(tmp_path / "none")) == []
