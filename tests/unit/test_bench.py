"""What measurements make of what they saw; the measuring itself needs the testbed."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from operator import sub, truediv
from pathlib import Path

import pytest

from failavoid.playbook_runner import PlaybookResult
from failavoid.shared.messages import Evacuation, Migration, Step
from tests.bench import agent, ansible, barrier, held, monitor, results
from tests.bench.evacuation import phases
from tests.bench.idle import Moved


def test_a_figure_is_the_median_of_its_samples_also_where_figures_are_grouped():
    samples = {"move_s": [3.0, 1.0, 2.0], "parallel_s": {"2": [1.0, 2.0], "4": [5.0]}}
    assert results.medians(samples) == {"move_s": 2.0, "parallel_s": {"2": 1.5, "4": 5.0}}


def test_figures_are_compared_within_their_round():
    assert results.each(sub, [5.0, 9.0], [3.0, 6.0]) == [2.0, 3.0]
    assert results.each(truediv, [6.0, 9.0], [3.0, 6.0]) == [2.0, 1.5]
    with pytest.raises(ValueError, match="shorter"):
        results.each(sub, [5.0, 9.0], [3.0])


def test_a_document_names_commit_and_machine_and_keeps_every_sample(tmp_path):
    samples: results.Samples = {}
    for seconds in (1.00004, 2.0, 4.0):
        results.add(samples, {"move_s": seconds})
    path = results.write("evacuation", results.document("qemu", samples, rounds=3), tmp_path)
    read = json.loads(path.read_text())
    assert read["move_s"] == 2.0
    assert read["samples"] == {"move_s": [1.0, 2.0, 4.0]}
    assert (read["domain_type"], read["rounds"]) == ("qemu", 3)
    assert read["cores"] >= 1
    assert read["git_commit"]
    assert [one.name for one in tmp_path.iterdir()] == ["evacuation.json"]


def evacuation(alarm: float, gathered: float) -> Evacuation:
    times = {"alarm": alarm, "leased": 101.0, "gathered": gathered, "verified": 110.0, "released": 110.5}
    steps = [Step(name, at - 0.1, at) for name, at in times.items()]
    steps.append(Step("prepare_destination", 102.0, 102.25))
    moves = [Migration("g1", "host01", "host05", [0], 0, elapsed_s=3.0, downtime_ms=1500.0)]
    return Evacuation("e1", "host01", "job-1", "RETIRED", spare="host05", migrations=moves, steps=steps)


def test_an_evacuation_counts_from_when_all_ranks_had_stopped():
    found = phases(evacuation(alarm=100.0, gathered=102.0), 103.5, 107.0)
    assert found["evacuation_s"] == 8.5
    assert found["accepted_to_released_s"] == 10.5
    assert (found["prepare_destination_s"], found["move_s"], found["downtime_ms"]) == (0.25, 3.0, 1500.0)
    ways = ["accepted_to_leased", "leased_to_gathered", "gathered_to_moving", "moving", "moved_to_verified"]
    parts = [found[f"{name}_s"] for name in [*ways, "verified_to_released"]]
    assert sum(parts) == pytest.approx(found["accepted_to_released_s"])


def test_an_evacuation_counts_from_the_alarms_acceptance_where_ranks_had_stopped_before():
    assert phases(evacuation(alarm=103.0, gathered=102.0), 103.5, 107.0)["evacuation_s"] == 7.5


def test_an_emulated_guest_stands_still_while_virsh_moves_it_and_one_under_kvm_does_not():
    still, live = held.script("g1", "10.77.1.5", True), held.script("g1", "10.77.1.5", False)
    assert "--live" not in still
    assert "--live --auto-converge" in live
    for script in (still, live):
        assert "--p2p --tls" in script
        assert "--xml /run/bench-g1.xml" in script
        assert "g1 qemu+tls://10.77.1.5/system tcp:10.77.1.5" in script


OUTPUT = [
    (0.0, ""),
    (1.0, "PLAY [Hosts] ****"),
    (1.5, "TASK [network : Make the bridge] ****"),
    (2.0, "ok: [host01]"),
    (2.5, "TASK [guest : Copy kernels] ****"),
    (3.0, "RUNNING HANDLER [guest : Restart] ****"),
    (3.25, "TASK [network : Make the bridge] ****"),
    (4.0, "PLAY RECAP ****"),
    (4.1, "head01   : ok=40   changed=0    unreachable=0    failed=0    skipped=6"),
    (4.1, "host01                     : ok=52   changed=2    unreachable=0    failed=1    skipped=3"),
]


def test_the_seconds_of_a_playbooks_tasks_are_told_apart():
    assert ansible.profile(OUTPUT) == {
        "start": 1.5,
        "network : Make the bridge": 1.75,
        "guest : Copy kernels": 0.5,
        "guest : Restart": 0.25,
    }


def test_what_a_playbook_changed_and_where_it_failed_is_read_from_its_recap():
    assert ansible.recap(line for _, line in OUTPUT) == (2, 1)


def test_the_parts_of_a_move_by_playbook_add_up_to_the_whole():
    tasks = {
        "host05": {
            "Prepare the destination": {"_began": 11.0, "_ended": 11.5},
            "Verify what has arrived": {"_began": 16.5, "_ended": 17.0},
        },
        "host04": {ansible.MOVE: {"_began": 11.75, "_ended": 16.25}},
    }
    moved = Moved(PlaybookResult(0, "successful", Path("log"), tasks), 10.0, 17.5, 3.0)
    assert ansible.parts(moved) == {
        "start": 1.0,
        "Prepare the destination": 0.5,
        "Verify what has arrived": 0.5,
        f"{ansible.MOVE}, beyond the move": 1.5,
        "between tasks": 0.5,
        "end": 0.5,
    }
    assert sum(ansible.parts(moved).values()) + moved.moving_s == moved.ended - moved.began


def barriers(transport: str, ranks: int, **figures: tuple[float, float]) -> list[dict[str, object]]:
    """Rows of one size: of each variant the microseconds of a barrier, and the lower end of the ratio's interval."""
    plain = {"plain": (100.0, 1.0), "paper": (200.0, 2.0), "plain_mpi4py": (100.0, 1.0)}
    return [
        {"mpi": "m", "ranks": ranks, "transport": transport, "variant": name, "us": us, "ratio_ci95": [lowest, 9.0]}
        for name, (us, lowest) in {**plain, **figures}.items()
    ]


def test_barriers_that_keep_within_their_aims_are_not_spoken_of():
    assert barrier.missed(barriers("tcp", 8, failavoid_c=(115.0, 1.1), failavoid_python=(130.0, 1.1))) == []
    assert barrier.missed(barriers("shm", 2, failavoid_c=(119.0, 1.19))) == []


@pytest.mark.parametrize(("transport", "lowest"), [("tcp", 1.11), ("shm", 1.31)])
def test_a_ratio_beyond_its_aim_is_named_with_all_that_it_is_of(transport, lowest):
    rows = barriers(transport, 4, paper=(900.0, 9.0), failavoid_c=(150.0, lowest))
    (sentence,) = barrier.missed(rows)
    assert sentence.startswith(f"failavoid_c, 4 ranks of m, {transport}: {lowest} times the plain barrier, aim 1.")


def test_what_is_added_is_held_against_the_papers_scheme():
    (sentence,) = barrier.missed(barriers("shm", 2, failavoid_mpi4py=(125.0, 1.21)))
    assert sentence.startswith("failavoid_mpi4py, 2 ranks of m, shm: 21.00 us more, aim 20.00")


def test_an_agents_cpu_time_is_that_of_its_process_alone():
    busy = "import time\nwhile time.process_time() < 0.3: pass\nprint(flush=True)\ninput()"
    with subprocess.Popen([sys.executable, "-c", busy], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.readline()
        used = agent.cpu_s(process.pid)
        time.sleep(0.2)
        assert 0.3 <= used <= agent.cpu_s(process.pid) < used + 0.1  # it waits
        assert agent.memory_kb(process.pid)["pss_kb"] <= agent.memory_kb(process.pid)["rss_kb"]
        process.communicate(b"\n")


def test_ingest_counts_every_sample_however_slow_the_machine_is():
    measured = monitor.ingest(200, 3)
    assert (measured["sent"], measured["received"]) == (600, 600)
    assert measured["hosts_per_cpu_s"] > 0
