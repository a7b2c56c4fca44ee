"""Guests' agents say of guests that have moved whether they can be reached and their root file system answers."""

import socket
import threading
import time

import pytest

from failavoid.agent import arrivals
from failavoid.agent.arrivals import Arrivals, can_be_reached, nfs_below_root, root_answers
from failavoid.shared.messages import Arrival, GuestReport, Notice

MOUNTS = """\
22 1 0:20 / / rw,relatime - overlay overlay rw,lowerdir=/store/images/d1/root
23 22 0:21 / /run/failavoid/store ro,relatime - nfs 10.0.0.1:/store ro,vers=3
24 22 0:22 / /home rw,relatime - nfs4 10.0.0.1:/home rw
25 22 0:23 / /run rw - tmpfs tmpfs rw
"""


def notice(*asked, epoch=3):
    return Notice("job-1", 9, epoch, ["g1"], 0, 0, "move", list(asked))


class Heard(list):
    """Reports, as they arrive."""

    def __init__(self):
        super().__init__()
        self.came = threading.Condition()

    def __call__(self, report):
        with self.came:
            self.append(report)
            self.came.notify_all()

    def wait(self, number):
        with self.came:
            assert self.came.wait_for(lambda: len(self) >= number, 20)


@pytest.fixture
def heard():
    return Heard()


def test_a_guest_that_has_moved_tells_that_its_root_answers(heard):
    Arrivals("g1", heard).take(notice(Arrival("g1", "127.0.0.1", "g3")))
    heard.wait(1)
    assert heard == [GuestReport("job-1", 3, "root", 0)]


def test_its_peer_tells_that_it_reaches_it_as_soon_as_it_does(heard, monkeypatch):
    answers = iter([False, False, True])
    monkeypatch.setattr(arrivals, "can_be_reached", lambda _address: next(answers))
    Arrivals("g3", heard).take(notice(Arrival("g1", "10.0.0.9", "g3")))
    heard.wait(1)
    assert heard == [GuestReport("job-1", 3, "reached", 0, "g1")]


def test_others_say_nothing_and_nobody_says_it_twice(heard):
    asked = notice(Arrival("g1", "127.0.0.1", "g3"))
    Arrivals("g2", heard).take(asked)
    mine = Arrivals("g1", heard)
    mine.take(asked)
    mine.take(asked)
    mine.take(notice(Arrival("g1", "127.0.0.1", "g3"), epoch=4))
    heard.wait(2)
    time.sleep(0.05)
    assert sorted(report.epoch for report in heard) == [3, 4]


def test_nobody_goes_on_looking_when_nobody_asks(heard, monkeypatch):
    looks = []
    monkeypatch.setattr(arrivals, "can_be_reached", looks.append)
    monkeypatch.setattr(arrivals, "PAUSE_S", 0.01)
    peer = Arrivals("g3", heard)
    peer.take(notice(Arrival("g1", "10.0.0.9", "g3")))
    peer.take(notice())
    for thread in threading.enumerate():
        if thread.name == "arrival":
            thread.join(20)
            assert not thread.is_alive()
    assert heard == []


def test_a_guest_that_refuses_a_connection_is_reached(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setattr(arrivals, "PORT", server.getsockname()[1])
        assert can_be_reached("127.0.0.1")
    assert can_be_reached("127.0.0.1")
    monkeypatch.setattr(arrivals, "CONNECT_S", 0.05)
    assert not can_be_reached("255.255.255.255")


def test_the_nfs_mount_below_the_root_is_asked(tmp_path):
    mounts = tmp_path / "mountinfo"
    mounts.write_text(MOUNTS)
    assert nfs_below_root(str(mounts)) == ["/run/failavoid/store"]
    assert not root_answers(str(mounts))  # there is no such mount here
    mounts.write_text("22 1 0:20 / / rw,relatime - ext4 /dev/vda rw\n")
    assert root_answers(str(mounts))
