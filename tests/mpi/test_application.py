"""The demonstration's program computes what can be checked, and an evacuation changes nothing about it."""

import pytest

from tests.mpi.installations import OPENMPI4, OPENMPI5, PROJECT, Flavour
from tests.mpi.site import Site

pytestmark = pytest.mark.parametrize(
    "flavour", [Flavour(OPENMPI5, "python"), Flavour(OPENMPI4, "library")], ids=lambda flavour: flavour.name
)

APPLICATION = PROJECT / "failavoid/demo/application.py"


def run(site: Site, *arguments: str, guests=("g1", "g2", "g3"), program=str(APPLICATION)):
    site.start(guests, *arguments, with_agents=True, program=program)
    return site.job


def test_memory_grows_to_its_limit_and_the_result_is_right(site):
    job = run(
        site, "--start-mb", "2", "--grow-mb-s", "20", "--limit-mb", "12", "--hold-s", "0.5", "--interval-s", "0.05"
    )
    assert job.process.wait(60) == 0, job.errors.read_text()
    lines = job.output.read_text().splitlines()
    assert lines[-1] == "RESULT correct"
    assert "12 MiB a rank" in lines[-2]
    assert lines[0].startswith("iteration 1: 2 MiB a rank")


def test_the_result_is_right_after_ranks_were_stopped(site):
    job = run(site, "--start-mb", "2", "--steps", "40", "--interval-s", "0.05")
    site.notice("g1", "g3")
    site.ready("g1")
    site.ready("g3")
    site.done()
    assert job.process.wait(60) == 0, job.errors.read_text()
    assert job.output.read_text().splitlines()[-1] == "RESULT correct"
    assert len(job.said()) == 1


def test_an_altered_message_and_a_lost_page_make_the_result_wrong(site):
    faults = {
        "message": "block_after = app.block_after\n"
        "def fault(steps, rank, ranks):\n"
        "    block = block_after(steps, rank, ranks)\n"
        "    block[7] += steps == 0 and rank == 1\n"
        "    return block\n"
        "app.block_after = fault\n",
        "page": "wrong_pages = app.Memory.wrong_pages\n"
        "def fault(memory):\n"
        "    memory._chunks[0][5, 0] = 0\n"
        "    return wrong_pages(memory)\n"
        "app.Memory.wrong_pages = fault\n",
    }
    for name, fault in faults.items():
        program = site.folder / f"{name}.py"
        program.write_text(
            f"import sys\nsys.path.insert(0, {str(APPLICATION.parent)!r})\nimport application as app\n"
            f"{fault}sys.exit(app.main())\n"
        )
        job = run(site, "--start-mb", "1", "--steps", "4", "--interval-s", "0", program=str(program))
        assert job.process.wait(60) != 0
        assert "RESULT wrong" in job.output.read_text()
        for guest in list(site.agents):
            site.end_agent(guest)
