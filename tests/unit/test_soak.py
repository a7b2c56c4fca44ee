"""What the soak test makes of what it saw; the evacuations themselves need the testbed."""

from __future__ import annotations

import contextlib
import copy
import json
import subprocess
import sys
from types import SimpleNamespace

import pytest

from failavoid.shared.messages import Evacuation, Migration, Step
from tests.soak import __main__ as soak

HELD = {
    "counts": {"processes": 80, "qemus": 2, "taps": 2, "records_of_moves": 4},
    "services": {"failavoid-controller": {"memory_kb": 90_000, "threads": 12, "files": 30}},
}
NODES = ("head01", "host01", "host02")


def node_by_node():
    return {node: copy.deepcopy(HELD) for node in NODES}


def test_what_a_node_holds_is_counted_by_its_own_python():
    done = subprocess.run([sys.executable, "-c", soak.HOLDINGS.read_text()], capture_output=True, text=True, check=True)
    held = json.loads(done.stdout)
    assert set(HELD["counts"]) <= set(held["counts"])
    assert held["counts"]["processes"] > 0


def test_nothing_has_leaked_where_guests_are_elsewhere_and_services_have_filled_their_caches():
    before, after = node_by_node(), node_by_node()
    after["host01"]["counts"] = {"processes": 70, "qemus": 0, "taps": 0, "records_of_moves": 54}
    after["host02"]["counts"] = {"processes": 95, "qemus": 4, "taps": 4, "records_of_moves": 54}
    after["head01"]["services"]["failavoid-controller"] = {"memory_kb": 110_000, "threads": 14, "files": 35}
    assert soak.leaks(before, after, 50) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda held: held["counts"].update(taps=3), "taps: 6 before, 7 after 50 evacuations"),
        (lambda held: held["counts"].update(processes=120), "processes: 240 before, 280 after 50 evacuations"),
        (
            lambda held: held["services"]["failavoid-controller"].update(memory_kb=140_000),
            "failavoid-controller on host02: 90000 kB before, 140000 kB after",
        ),
        (
            lambda held: held["services"]["failavoid-controller"].update(files=41),
            "failavoid-controller on host02: 30 files before, 41 after",
        ),
    ],
)
def test_a_leak_is_named(change, words):
    before, after = node_by_node(), node_by_node()
    change(after["host02"])
    assert soak.leaks(before, after, 50) == [words]


class PlayedJob:
    """A job whose evacuations go well, up to one."""

    def __init__(self, fails_at):
        self.number, self.fails_at = 0, fails_at
        self.job = SimpleNamespace(said=lambda words: words == "RESULT correct")

    def guests(self):
        return [SimpleNamespace(host="host01")]

    def free(self):
        return 3

    def restore(self):
        pass

    def goes_on(self):
        return True

    def finish(self):
        return 0

    def evacuate(self, _host):
        self.number += 1
        return f"evac-{self.number}"

    def ended(self, name):
        state = "FAILED" if self.number == self.fails_at else "RETIRED"
        done = Evacuation(name, "host01", "job-1", state)
        done.steps = [Step("alarm", 10.0, 10.0), Step("released", 11.0, 12.5)]
        done.migrations = [Migration("g0001", "host01", "host02", [0], 0, downtime_ms=300.0)]
        done.error = "no spare" if state == "FAILED" else ""
        return done


@pytest.mark.parametrize(("fails_at", "status", "evacuations"), [(0, 0, 7), (4, 1, 3)])
def test_a_soak_leaves_its_figures_also_where_an_evacuation_ends_it(
    tmp_path, monkeypatch, fails_at, status, evacuations
):
    monkeypatch.setattr(sys, "argv", ["soak", "--evacuations", "7"])
    monkeypatch.setattr(soak, "PROJECT", tmp_path)
    monkeypatch.setattr(soak, "read_inventory", lambda _path: None)
    monkeypatch.setattr(soak, "connect", lambda _site: None)
    monkeypatch.setattr(soak, "look", lambda _site: node_by_node())
    monkeypatch.setattr(soak, "long_job", lambda *_words, **_named: contextlib.nullcontext(PlayedJob(fails_at)))
    assert soak.main() == status
    written = json.loads((tmp_path / "build/soak/soak.json").read_text())
    assert (written["evacuations"], written["leaks"], written["result_correct"]) == (evacuations, [], True)
    assert written["released_s"] == 2.5
    assert written["failure"] == ("evacuation 4: evac-4: FAILED no spare" if fails_at else "")
