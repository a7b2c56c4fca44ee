"""What is asked of a host's libvirt, on libvirt's own test driver."""

import libvirt
import pytest

from failavoid.controller import libvirt_view
from failavoid.controller.libvirt_view import RUNNING, GuestFacts, facts, look, progress


@pytest.fixture
def host(monkeypatch):
    """A host with one domain, "test", that answers whatever its address is."""
    opened = libvirt.openReadOnly
    monkeypatch.setattr(libvirt, "openReadOnly", lambda _uri: opened("test:///default"))
    monkeypatch.setattr(libvirt_view.socket, "create_connection", lambda *_, **__: libvirt_view.socket.socket())
    return "10.0.0.1"


def test_what_runs_on_a_host_is_seen(host):
    assert look(host) == {"test": RUNNING}


def test_what_a_plan_needs_to_know_is_asked(host):
    assert facts(host) == {"test": GuestFacts([], None)}


def test_a_host_that_cannot_say_how_far_moves_are_says_nothing(host):
    assert progress(host, ["test"]) == []


def test_a_host_that_does_not_answer_is_not_seen():
    assert look("127.0.0.1", timeout_s=0.2) is None
    assert facts("127.0.0.1", timeout_s=0.2) is None
