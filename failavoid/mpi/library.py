"""The barrier wrapper's library (shim/, in C) under Python: found, loaded, and asked.

Loaded before mpi4py.MPI it stands in for MPI's barrier there, as it does when it is preloaded (LD_PRELOAD).
Imports as little as it can, because every rank of a job waits for it: the protocol in Python stays outside until it is
called for.
"""

from __future__ import annotations

import ctypes
import os
import sys

TYPE_CHECKING = False  # as in __init__.py
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

NAME = "libfailavoid-mpi.so"
_PLACES = (os.path.dirname(__file__), "/opt/failavoid/lib")  # noqa: PTH120

_BEFORE_OR_AFTER = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_void_p)


class Library:
    """The two functions of shim/failavoid.h that programs call."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        self._kept: list[object] = []

    def should_migrate(self) -> bool:
        """See failavoid.mpi.should_migrate. Raises RuntimeError if MPI returns an error."""
        from mpi4py import MPI  # noqa: F401  # initialises MPI

        flag = ctypes.c_int()
        error = self._library.failavoid_should_migrate(ctypes.byref(flag))
        if error:
            raise RuntimeError(f"failavoid_should_migrate: MPI returned the error {error}")
        return bool(flag.value)

    def set_callbacks(
        self, before: Callable[[str], object] | None = None, after: Callable[[str], object] | None = None
    ) -> None:
        """See failavoid.mpi.set_callbacks."""
        from failavoid.mpi.protocol import OUTCOMES
        from failavoid.shared.page import KINDS

        kinds = dict(enumerate(KINDS, 1))
        functions = [_in_c(before, kinds), _in_c(after, OUTCOMES)]
        self._library.failavoid_set_callbacks(*functions, None)
        self._kept = functions  # as long as the library may call them


def _in_c(function: Callable[[str], object] | None, words: Mapping[int, str]) -> object:
    def call(number: int, _context: object) -> None:
        assert function is not None
        function(words[number])

    return _BEFORE_OR_AFTER(call) if function else _BEFORE_OR_AFTER()


def load(environment: Mapping[str, str] = os.environ) -> Library | None:
    """Return the library if this process runs with it; load it where that is possible and comes early enough.

    FAILAVOID_LIBRARY names its file; empty, it is not loaded. Raises OSError if that file can't be loaded.
    """
    loaded = ctypes.CDLL(None)
    if hasattr(loaded, "failavoid_should_migrate"):
        return Library(loaded)
    named = environment.get("FAILAVOID_LIBRARY")
    if named == "" or "mpi4py.MPI" in sys.modules:
        return None
    paths = [named] if named else [os.path.join(folder, NAME) for folder in _PLACES]  # noqa: PTH118
    path = next((path for path in paths if named or os.path.exists(path)), None)  # noqa: PTH110
    return Library(ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL)) if path else None
