"""Run an unmodified mpi4py program: ``python -m failavoid.mpi [-m MODULE | -c CODE | PROGRAM] ARGUMENTS``."""

from __future__ import annotations

import os
import runpy
import sys
import types

_USAGE = "usage: python -m failavoid.mpi [-m MODULE | -c CODE | PROGRAM] [ARGUMENT ...]"


def main(arguments: list[str]) -> None:
    """Run the program as Python itself would."""
    option = arguments[0] if arguments[:1] in (["-m"], ["-c"]) else None
    rest = arguments[1:] if option else arguments
    if not rest or (option is None and rest[0].startswith("-")):
        sys.exit(_USAGE)
    program = rest[0]
    if option == "-m":
        _set_path(os.getcwd())  # noqa: PTH109
        sys.argv = rest
        runpy.run_module(program, run_name="__main__", alter_sys=True)
    elif option == "-c":
        _set_path("")
        sys.argv = ["-c", *rest[1:]]
        module = sys.modules["__main__"] = types.ModuleType("__main__")
        exec(compile(program, "<string>", "exec"), module.__dict__)
    else:
        _set_path(os.path.dirname(os.path.abspath(program)))  # noqa: PTH100, PTH120
        sys.argv = rest
        runpy.run_path(program, run_name="__main__")


def _set_path(first: str) -> None:
    """Let imports begin where they would without this module; with ``python -P`` they don't."""
    if not getattr(sys.flags, "safe_path", False):
        sys.path[0] = first


if __name__ == "__main__":
    main(sys.argv[1:])
