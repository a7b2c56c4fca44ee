"""The MPI barrier wrapper for mpi4py: ranks of an unmodified program stop while their guests move.

``python -m failavoid.mpi PROGRAM ARGUMENTS`` or, in the program, ``import failavoid.mpi`` before
``MPI.COMM_WORLD`` is used. Where the wrapper's library is at hand (library.py), it is loaded and stands in for
MPI's barrier; else ``mpi4py.MPI`` is wrapped when the program imports it (or now, if it has done so), so that the
program's own ``mpi4py.rc`` holds. Importing this package changes nothing but that.

Environment, the same on all ranks: FAILAVOID_JOB (without it barriers are mpi4py's own), FAILAVOID_EVERY
(look at every n-th barrier, default 1), FAILAVOID_LIMIT_S (seconds a rank waits at most for a move, default
900), FAILAVOID_RUN_DIR (default /run/failavoid). For each guest: FAILAVOID_GUEST (default its host name).
"""

from __future__ import annotations

from failavoid.mpi import library

TYPE_CHECKING = False  # typing's own, which each rank of a job would wait for at its start
if TYPE_CHECKING:
    import types
    from collections.abc import Callable
    from typing import Any

_library = library.load()


def should_migrate() -> bool:
    """Return whether a notice is there that the job has not handled: True or False on all ranks alike.

    Collective over COMM_WORLD. For programs with few barriers: ask at a good moment, and where
    the answer is True call ``MPI.COMM_WORLD.Barrier()``, which stops the ranks whose guests move.
    """
    return bool(_wrapper().should_migrate())


def set_callbacks(before: Callable[[str], object] | None = None, after: Callable[[str], object] | None = None) -> None:
    """Be called on every rank of a communicator whose barrier found a notice.

    ``before(kind)`` when nobody has stopped yet: with ``move`` guests are about to move, with ``checkpoint`` nothing
    will move and the application is to write a checkpoint. ``after(outcome)`` when all ranks run again after a stop:
    ``moved``, ``cancelled``, ``limit`` or ``no page``. Both may use MPI, barriers included; ``before`` must
    leave no message on its way. Set them on all ranks or on none.
    """
    _wrapper().set_callbacks(before, after)


def _wrapper() -> Any:
    if _library:
        return _library
    from mpi4py import MPI  # wrapped by now

    return vars(MPI)["_failavoid"]


def _install(module: types.ModuleType) -> None:
    from failavoid.mpi.mpi4py_wrapper import install

    install(module)


if not _library:
    from failavoid.mpi.after_import import after_import

    # mpi4py 4's wheels put a finder of their own first when the package is imported: come after that
    after_import("mpi4py", lambda _: after_import("mpi4py.MPI", _install))
