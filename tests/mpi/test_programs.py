"""Programs in C, Fortran and Python take part however they were built, and may ask and be told."""

import os
import re
import shlex
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from tests.mpi.installations import HERE, MPICH4, MPICH5, OPENMPI4, OPENMPI5, PROJECT, SHIM, Flavour, run
from tests.mpi.site import GUESTS, JOB
from tests.mpi.test_jobs import C_ON_BOTH, finalize, on, stop_and_go_on


@on(Flavour(MPICH4, "c"), Flavour(OPENMPI4, "c"))
@pytest.mark.parametrize("option", ["-DMPIF", "-DMPI_F08"])
class TestFortran:
    """By mpif.h and by mpi_f08."""

    @pytest.fixture
    def binary(self, site, option):
        if not Path(site.flavour.mpi.fortran).exists():
            pytest.skip(f"no {site.flavour.mpi.fortran}: {site.flavour.mpi.way_out}")
        return str(site.builds.fortran(site.flavour.mpi, option))

    def test_ranks_stop_and_go_on_at_barriers_of_the_world_and_of_a_duplicate(self, site, binary):
        job = site.start(GUESTS, binary=binary)
        for word, guest in (("world", "g1"), ("dup", "g3")):
            job.do(word)
            job.wait_for_barriers(5)
            site.notice(guest)
            assert site.ready(guest) == GUESTS.count(guest)
            site.done()
            site.resumed(guest)
            job.wait_for_barriers(2)
        job.do("off")
        job.wait_for_barriers(2)
        site.notice("g2")
        job.wait_for_barriers(20)
        assert not site.has_reported("g2", "ready"), "mpi_pcontrol does not switch the wrapper off"
        job.do("on")
        site.ready("g2")
        site.done()
        site.resumed("g2")
        job.end()
        assert len(job.said()) == 3

    def test_finalize_with_a_notice_pending_only_deregisters(self, site, binary):
        finalize(site, binary=binary)


@on(Flavour(OPENMPI4, "c"))
def test_ranks_in_c_with_threads_and_ranks_in_fortran_may_be_of_one_job(site):
    for name, file in site.builds.c_and_fortran(site.flavour.mpi).items():
        shutil.copy(file, site.folder / name)
    job = site.start(GUESTS, "ring", binary=str(site.folder / "c_and_fortran"))
    job.wait_for_barriers(5)
    for guest in ("g1", "g2"):
        site.notice(guest)
        site.ready(guest)
        time.sleep(0.2)
        site.done()
        site.resumed(guest)
        job.wait_for_barriers(2)
    job.end()


@on(Flavour(MPICH5, "c"))
def test_programs_of_the_standard_abi_stop_and_go_on(site):
    compiler = f"{site.flavour.mpi.mpicc}_abi"
    stop_and_go_on(site, binary=str(site.builds.c(site.flavour.mpi, compiler=compiler)))


@on(Flavour(MPICH4, "c"), Flavour(OPENMPI4, "c"))
def test_a_program_may_be_linked_to_the_library(site):
    variables = {"PKG_CONFIG_PATH": str(site.builds.folder)}
    options = shlex.split(run(["pkg-config", "--cflags", "--libs", "failavoid-mpi"], **variables))
    options = ["-DLINKED", *options, f"-Wl,-rpath,{site.builds.folder}"]
    binary = site.builds.c(site.flavour.mpi, HERE / "programs.c", *options)
    stop_and_go_on(site, do="asking", binary=str(binary), wrapper=False)


@on(Flavour(MPICH4, "c"))
def test_a_program_with_mpi_linked_into_it_takes_the_static_library(site):
    folder = site.builds.folder
    libraries = ["-lhwloc", "-lucp", "-luct", "-lucs", "-lslurm", "-lpmi", "-lm", "-lpthread", "-ldl"]
    static = ["-DSTATIC", "-DLINKED", f"{folder}/libfailavoid-mpi.a", "-Wl,-Bstatic", "-lmpich", "-Wl,-Bdynamic"]
    include = "-I/usr/include/x86_64-linux-gnu/mpich"
    wanted = [lib for lib in libraries if linkable(lib)]
    binary = site.builds.c(site.flavour.mpi, HERE / "programs.c", *static, include, *wanted, compiler="gcc")
    assert "libmpi" not in run(["ldd", str(binary)])
    stop_and_go_on(site, do="callbacks", binary=str(binary), wrapper=False)


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


def test_the_library_does_nothing_in_processes_without_mpi(builds):
    done = subprocess.run(
        ["ls", "/"], env={**os.environ, "LD_PRELOAD": str(builds.library), "FAILAVOID_JOB": JOB}, capture_output=True
    )
    assert (done.returncode, done.stderr) == (0, b"")


def guide(pattern: str) -> str:
    """The one place in the guide that is like this."""
    (text,) = re.findall(pattern, (PROJECT / "docs/mpi-users.md").read_text(), re.M | re.S)
    return str(text)


def example(language: str) -> str:
    """The guide's example in one language."""
    return guide(rf"^```{language}\n(.*?)^```$")


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
    program = tmp_path / "program.py"
    program.write_text("from mpi4py import MPI\nMPI.COMM_WORLD.Barrier()\n")
    words = [mpi.python, str(program)] if mpi.python else [str(site.builds.c(mpi)), "once", str(tmp_path)]
    variables = {**mpi.environment(False), "FAILAVOID_JOB": JOB, "FAILAVOID_RUN_DIR": str(tmp_path)}
    variables |= {"FAILAVOID_LIBRARY": str(site.builds.library), "FAILAVOID_MPIRUN": mpi.mpirun}
    options = mpi.launcher()[1:]
    said = run([str(PROJECT / "roles/mpi_wrapper/files/failavoid-mpirun"), *options, "-n", "2", *words], **variables)
    assert said.count("no page in") == 1, "the library is not in the ranks"


# the folders are where they are in a guest, seen by this shell alone
IN_GUEST = """
mount -t tmpfs tmpfs /opt && mkdir /opt/failavoid && mount --bind "$INSTALLED" /opt/failavoid
mount -t tmpfs tmpfs /run && mkdir /run/failavoid && mount --bind "$IN_RUN" /run/failavoid
"""


@on(*C_ON_BOTH)
@pytest.mark.parametrize("alone", ["", " --pid"])
def test_the_guides_line_for_apptainer_makes_ranks_in_containers_take_part(site, alone):
    """With a stand-in for Apptainer (tests/mpi/apptainer), also where each rank sees no process but its own.

    Over TCP then: MPIs name their shared memory by process numbers, which are the same in all ranks.
    """
    mpi, installed = site.flavour.mpi, site.folder / "installed"
    for source, place in ((site.builds.library, "lib"), (PROJECT / "roles/mpi_wrapper/files/failavoid-mpirun", "bin")):
        (installed / place).mkdir(parents=True)
        shutil.copy(source, installed / place)
    line = guide(r"^\| in Apptainer \| `([^`]*)` \|$")
    for written, meant in (
        (" -n 8", f" {' '.join(mpi.launcher()[1:])} -n 2"),
        (" exec", f" exec{alone}"),
        (" ./program", f" {site.builds.c(mpi)} loop {site.folder}"),
    ):
        assert line.count(written) == 1
        line = line.replace(written, meant)
    site.start_agents(["g1"])
    variables = {
        "PATH": f"{HERE}:/opt/failavoid/bin:{os.environ['PATH']}",
        "INSTALLED": str(installed),
        "IN_RUN": str(site.run_dir("g1")),
        "FAILAVOID_GUEST": "g1",
        "FAILAVOID_MPIRUN": mpi.mpirun,
    }
    job = site.launch(["unshare", "--mount", "sh", "-ec", f"{IN_GUEST}exec {line}"], 2, tcp=bool(alone), **variables)
    job.wait_for_barriers(5)
    site.notice("g1")
    assert site.ready("g1") == 2
    site.done()
    site.resumed("g1")
    job.wait_for_barriers(2)
    job.end()
    (said,) = job.said()
    assert "guest g1 moved; 2 ranks stopped for" in said
