"""What a wheel brings to a user who installs it without the roles."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
LIBRARY = "libfailavoid-mpi.so"


def build(folder, **variables):
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=PROJECT, env={**os.environ, **variables}, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    return wheel


def install(wheel, environment):
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    uv = [Path(sys.executable).parent / "uv", "pip", "install", "--quiet", "--offline", "--no-deps"]
    subprocess.run([*uv, "--python", environment / "bin/python", wheel], check=True)


@pytest.fixture(scope="module")
def with_library(tmp_path_factory):
    """An environment with the wheel that has the library."""
    folder = tmp_path_factory.mktemp("wheel")
    wheel = build(folder, HATCH_BUILD_HOOK_ENABLE_CUSTOM="true")
    assert "-py3-none-linux_" in wheel.name, "it holds a library for one architecture"
    install(wheel, folder / "environment")
    return folder / "environment"


def test_a_wheel_with_the_library_loads_it_into_python(with_library):
    code = "import failavoid.mpi as m; print(open('/proc/self/maps').read())"
    done = subprocess.run([with_library / "bin/python", "-c", code], cwd="/", capture_output=True, text=True)
    assert f"site-packages/failavoid/mpi/{LIBRARY}" in done.stdout, done.stderr


def test_failavoid_mpirun_of_a_wheel_preloads_its_library(with_library, tmp_path):
    launcher = tmp_path / "launcher"
    launcher.write_text("#!/bin/sh\n[ $1 = --version ] && echo HYDRA || printf '%s\\n' \"$@\"\n")
    launcher.chmod(0o755)
    variables = {"PATH": "/usr/bin:/bin", "FAILAVOID_MPIRUN": str(launcher)}
    command = [with_library / "bin/failavoid-mpirun", "-n", "2", "./program"]
    done = subprocess.run(command, env=variables, capture_output=True, text=True)
    option, name, library, *others = done.stdout.split()
    assert (option, name, others) == ("-genv", "LD_PRELOAD", ["-n", "2", "./program"]), done.stderr
    if not Path("/opt/failavoid/lib", LIBRARY).exists():  # that of the role comes first
        assert Path(library).resolve().is_relative_to(with_library)


def test_the_wheel_for_every_machine_has_no_binary_and_says_what_is_missing(tmp_path):
    wheel = build(tmp_path)
    assert wheel.name.endswith("-py3-none-any.whl")
    install(wheel, tmp_path / "environment")
    assert list((tmp_path / "environment").rglob("mpi/shim/barrier.c")), "the library can't be built from it"
    command = [tmp_path / "environment/bin/failavoid-mpirun", "true"]
    variables = {"PATH": "/usr/bin:/bin", "FAILAVOID_LIBRARY": str(tmp_path / LIBRARY)}
    done = subprocess.run(command, env=variables, capture_output=True, text=True)
    assert done.returncode == 1
    assert f"no {tmp_path / LIBRARY}: install it with the role mpi_wrapper" in done.stderr
