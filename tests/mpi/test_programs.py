"""Programs in C, Fortran and Python take part however they were built, and may ask and be told."""

import os
import re
import shlex
import subprocess
import time
from pathlib import Path

import pytest

from tests.mpi.installations import HERE, MPICH4, MPICH5, OPENMPI4, OPENMPI5, PROJECT, SHIM, Flavour, run
from tests.mpi.site import JOB, Site, bytes_received, wait_for
from tests.mpi.test_barrier import done, notice, stop_and_go_on

GUESTS = ("g1", "g1", "g2", "g3")
C_ON_BOTH = (Flavour(MPICH5, "c"), Flavour(OPENMPI5, "c"))


def on(*flavours: Flavour):
    return pytest.mark.parametrize("flavour", flavours, ids=lambda flavour: flavour.name)


@on(Flavour(MPICH4, "c"), Flavour(OPENMPI4, "c"))
@pytest.mark.parametrize("source", ["loop_mpif", "loop_mpi_f08"])
def test_fortran_programs_stop_and_go_on(site, source):
    if not Path(site.flavour.mpi.fortran).exists():
        pytest.skip(f"no {site.flavour.mpi.fortran}: {site.flavour.mpi.way_out}")
    stop_and_go_on(site, "loop", binary=str(site.builds.fortran(site.flavour.mpi, HERE / f"{source}.f90")))


@on(Flavour(MPICH5, "c"))
def test_programs_of_the_standard_abi_stop_and_go_on(site):
    compiler = f"{site.flavour.mpi.mpicc}_abi"
    stop_and_go_on(site, "loop", binary=str(site.builds.c(site.flavour.mpi, compiler=compiler)))


@on(Flavour(MPICH4, "c"), Flavour(OPENMPI4, "c"))
def test_a_program_may_be_linked_to_the_library(site):
    variables = {"PKG_CONFIG_PATH": str(site.builds.folder)}
    options = shlex.split(run(["pkg-config", "--cflags", "--libs", "failavoid-mpi"], **variables))
    options = ["-DLINKED", *options, f"-Wl,-rpath,{site.builds.folder}"]
    binary = site.builds.c(site.flavour.mpi, HERE / "programs.c", *options)
    stop_and_go_on(site, "asking", binary=str(binary), wrapper=False)


@on(Flavour(MPICH4, "c"))
def test_a_program_with_mpi_linked_into_it_takes_the_static_library(site):
    folder = site.builds.folder
    libraries = ["-lhwloc", "-lucp", "-luct", "-lucs", "-lslurm", "-lpmi", "-lm", "-lpthread", "-ldl"]
    static = ["-DSTATIC", "-DLINKED", f"{folder}/libfailavoid-mpi.a", "-Wl,-Bstatic", "-lmpich", "-Wl,-Bdynamic"]
    include = "-I/usr/include/x86_64-linux-gnu/mpich"
    wanted = [lib for lib in libraries if linkable(lib)]
    binary = site.builds.c(site.flavour.mpi, HERE / "programs.c", *static, include, *wanted, compiler="gcc")
    assert "libmpi" not in run(["ldd", str(binary)])
    stop_and_go_on(site, "callbacks", binary=str(binary), wrapper=False)


def linkable(library: str) -> bool:
    """Whether the linker finds a library: which ones MPICH was built with differs."""
    found = run(["gcc", f"-print-file-name=lib{library[2:]}.so"]).strip()
    return Path(found).is_absolute()


def test_the_library_runs_with_old_c_libraries(builds):
    symbols = run(["objdump", "-T", str(builds.library)])
    versions = {tuple(map(int, v.split("."))) for v in re.findall(r"GLIBC_([\d.]+)", symbols)}
    assert (2, 2, 5) in versions
    assert max(versions) <= (2, 25)
    assert "MPI_" not in {line.split()[-1][:4] for line in symbols.splitlines() if "*UND*" in line}


@on(Flavour(OPENMPI5, "python"), Flavour(OPENMPI5, "library"), Flavour(MPICH5, "c"))
def test_a_program_without_barriers_may_ask(site):
    job = site.start(GUESTS, "asking", FAILAVOID_EVERY="1000")
    job.wait_for_barriers(20)
    notice(site, 1, ["g2"])
    site.wait_for_report("g2", "ready", 1)
    done(site, 1)
    site.wait_for_report("g2", "resumed", 1)
    job.wait_for_barriers(20)
    job.end()
    assert len(job.said()) == 1


@on(Flavour(OPENMPI5, "python"), Flavour(OPENMPI5, "library"), Flavour(MPICH5, "c"))
def test_the_application_is_told_before_and_after_on_every_rank(site):
    job = site.start(GUESTS, "callbacks")
    job.wait_for_barriers(3)
    notice(site, 1, ["g1"])
    site.wait_for_report("g1", "ready", 1)
    assert marks(site, "before-move") == 4
    assert marks(site, "after") == 0
    done(site, 1)
    wait_for("all ranks are told that they run on", lambda: marks(site, "after-moved") == 4)
    for guest in ("g1", "g2", "g3"):
        site.controller.tell(guest, epoch=2, affected=["g1"], kind="checkpoint")
    assert site.wait_for_report("g1", "ready", 2) == 2, "the controller does not hear of the checkpoint"
    assert marks(site, "before-checkpoint") == 4
    job.wait_for_barriers(5)
    done(site, 2)
    site.wait_for_report("g1", "resumed", 2)
    job.end()
    assert "the program was told to write a checkpoint" in job.said()[1]


def marks(site: Site, what: str) -> int:
    return len(list(site.folder.glob(f"{what}-*-told")))


def test_a_checkpoint_that_nobody_can_write_stops_nobody_and_is_not_reported(site):
    job = site.start(GUESTS, "loop")
    job.wait_for_barriers(5)
    for guest in ("g1", "g2", "g3"):
        site.controller.tell(guest, epoch=1, affected=["g1"], kind="checkpoint")
    wait_for("the user hears of it", job.said)
    job.wait_for_barriers(20)
    for guest in ("g1", "g2", "g3"):
        site.controller.tell(guest, cancelled=1)
    site.wait_for_report("g1", "resumed", 1)
    job.end()
    assert [line.split(": ", 2)[2] for line in job.said()] == [
        "a checkpoint is asked for, but the program has no callback for it (epoch 1)"
    ]
    assert site.controller.reported("g1", "ready", 1) is None


def test_the_line_in_the_output_says_where_guests_went(site):
    job = site.start(GUESTS, "loop")
    job.wait_for_barriers(5)
    for guest in ("g1", "g2", "g3"):
        site.controller.tell(guest, epoch=1, affected=["g1", "g2"], source="host01", destination="host07")
    site.wait_for_report("g1", "ready", 1)
    site.wait_for_report("g2", "ready", 1)
    done(site, 1)
    site.wait_for_report("g2", "resumed", 1)
    job.wait_for_barriers(3)
    job.end()
    (line,) = job.said()
    assert f"job {JOB}: guests g1, g2 moved from host01 to host07; 3 ranks stopped for" in line


@on(Flavour(OPENMPI5, "c"), Flavour(MPICH5, "c"))
@pytest.mark.parametrize("python_first", [True, False])
def test_ranks_with_either_wrapper_may_be_of_one_job(site, python_first):
    mpi = site.flavour.mpi
    flavours = [Flavour(mpi, "python"), Flavour(mpi, "c")] * 2
    flavours = flavours if python_first else flavours[::-1]
    job = site.start(GUESTS, "loop", flavours=flavours)
    job.wait_for_barriers(5)
    for epoch, affected in ((1, ["g1"]), (2, ["g2", "g3"])):
        notice(site, epoch, affected)
        assert [site.wait_for_report(guest, "ready", epoch) for guest in affected] == [
            GUESTS.count(g) for g in affected
        ]
        done(site, epoch)
        for guest in affected:
            site.wait_for_report(guest, "resumed", epoch)
        job.wait_for_barriers(3)
    job.end()
    assert len(job.said()) == 2


@on(*C_ON_BOTH)
def test_threads_may_be_stopped_at_barriers_of_their_own(site):
    job = site.start(GUESTS, "threads")
    job.wait_for_barriers(5)
    for epoch in (1, 2, 3):
        notice(site, epoch, ["g1"])
        site.wait_for_report("g1", "ready", epoch)
        done(site, epoch)
        site.wait_for_report("g1", "resumed", epoch)
        job.wait_for_barriers(3)
    job.end()


@on(*C_ON_BOTH)
def test_what_is_pending_survives_a_stop(site):
    job = site.start(GUESTS, "pending", tcp=True)
    job.wait_for_barriers(2)
    for epoch in (1, 2):
        notice(site, epoch, ["g1"])
        site.wait_for_report("g1", "ready", epoch)
        time.sleep(0.3)
        done(site, epoch)
        site.wait_for_report("g1", "resumed", epoch)
        job.wait_for_barriers(2)
    job.end()


@on(*C_ON_BOTH)
def test_nothing_is_sent_to_stopped_ranks_of_64(site):
    guests = [f"g{number // 8}" for number in range(64)]
    job = site.start(guests, "loop", tcp=True)
    job.wait_for_barriers(2)
    names = sorted(set(guests))
    notice(site, 1, ["g0", "g3"], names)
    assert [site.wait_for_report(guest, "ready", 1) for guest in ("g0", "g3")] == [8, 8]
    stopped = [*range(8), *range(24, 32)]
    before = [bytes_received(job.pid(rank)) for rank in stopped]
    time.sleep(1)
    assert [bytes_received(job.pid(rank)) for rank in stopped] == before
    done(site, 1, names)
    site.wait_for_report("g3", "resumed", 1)
    job.wait_for_barriers(1)
    job.end()


@on(Flavour(MPICH5, "c"))
def test_settings_that_make_no_sense_are_said_once_and_passed_over(site):
    job = site.start(GUESTS, "loop", FAILAVOID_EVERY="often", FAILAVOID_LIMIT_S="-1")
    job.wait_for_barriers(5)
    job.end()
    assert [re.sub("^.*variable ", "", line) for line in job.said()] == [
        "FAILAVOID_EVERY is 'often'; give a number, at least 1: going on with 1",
        "FAILAVOID_LIMIT_S is '-1'; give a number, at least 1: going on with 900",
    ]


def test_the_library_does_nothing_in_processes_without_mpi(builds):
    done = subprocess.run(
        ["ls", "/"], env={**os.environ, "LD_PRELOAD": str(builds.library), "FAILAVOID_JOB": JOB}, capture_output=True
    )
    assert (done.returncode, done.stderr) == (0, b"")


def example(language: str) -> str:
    """The guide's example in one language."""
    (text,) = re.findall(rf"^```{language}\n(.*?)^```$", (PROJECT / "docs/mpi-users.md").read_text(), re.M | re.S)
    return text


@on(Flavour(OPENMPI5, "python"), Flavour(OPENMPI4, "c"), Flavour(MPICH4, "c"))
def test_the_guides_examples_run(site, tmp_path):
    mpi, folder = site.flavour.mpi, site.builds.folder
    link = [f"-I{SHIM}", f"-L{folder}", "-lfailavoid-mpi", f"-Wl,-rpath,{folder}"]
    programs = {}
    if site.flavour.wrapper == "python":
        (tmp_path / "example.py").write_text(example("python"))
        programs["python"] = [mpi.python, "-m", "failavoid.mpi", str(tmp_path / "example.py")]
    else:
        for language, compiler, suffix in (("c", mpi.mpicc, "c"), ("fortran", mpi.fortran, "f90")):
            source, made = tmp_path / f"example.{suffix}", tmp_path / f"example-{language}"
            source.write_text(example(language))
            run([compiler, str(source), *link, "-o", str(made)])
            programs[language] = [str(made)]
    for language, program in programs.items():
        variables = {**mpi.environment(False), "FAILAVOID_JOB": JOB, "FAILAVOID_RUN_DIR": str(tmp_path)}
        said = run([*mpi.launcher(), "-n", "2", *program], PYTHONPATH=str(PROJECT), **variables)
        assert "total 198" in said, language
        assert said.count("no page in") == 1, language


@on(Flavour(OPENMPI5, "python"), Flavour(OPENMPI4, "c"), Flavour(MPICH5, "c"), Flavour(MPICH4, "c"))
def test_failavoid_mpirun_starts_any_program_with_either_launcher(site, tmp_path):
    mpi = site.flavour.mpi
    (tmp_path / "stop").touch()
    program = tmp_path / "program.py"
    program.write_text("from mpi4py import MPI\nMPI.COMM_WORLD.Barrier()\n")
    words = [mpi.python, str(program)] if mpi.python else [str(site.builds.c(mpi)), "finalize", str(tmp_path)]
    (tmp_path / "end").touch()
    variables = {**mpi.environment(False), "FAILAVOID_JOB": JOB, "FAILAVOID_RUN_DIR": str(tmp_path)}
    variables |= {"FAILAVOID_LIBRARY": str(site.builds.library), "FAILAVOID_MPIRUN": mpi.mpirun}
    options = mpi.launcher()[1:]
    said = run([str(PROJECT / "roles/mpi_wrapper/files/failavoid-mpirun"), *options, "-n", "2", *words], **variables)
    assert said.count("no page in") == 1, "the library is not in the ranks"
