"""The state directory that a host keeps of each of its guests.

``/var/lib/failavoid/guests/GUEST/`` holds ``state.json`` (what, where, since when), ``domain.xml``,
``identity.json`` (QEMU alone reads it), ``console.log`` and ``lock``.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import socket
import time
from pathlib import Path
from typing import IO, Any, Dict, Iterator, List, Optional

from . import names

GUESTS = Path("/var/lib/failavoid/guests")
QEMU_USER = "libvirt-qemu"


class GuestLockedError(Exception):
    """Somebody else is acting on the guest; the message says who."""


def directory(guest: str, base: Optional[Path] = None) -> Path:
    """The state directory of ``guest``; its name is checked, because it becomes a path."""
    return (base or GUESTS) / names.check_name("guest", guest)


@contextlib.contextmanager
def locked(guest: str, act: str, base: Optional[Path] = None) -> Iterator[Path]:
    """Hold the guest's lock on this host while doing ``act``. Raises GuestLockedError if it is held.

    The kernel gives the lock up with its process: nobody has to clear one by hand.
    """
    path = directory(guest, base)
    with _lock_file(path) as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.seek(0)
            raise GuestLockedError(
                f"guest {guest} on {socket.gethostname()} is locked by: {lock.read().strip() or 'somebody'}. "
                "Wait until that is done, or end it"
            ) from None
        if not _is_at(lock, path / "lock"):
            raise GuestLockedError(f"guest {guest} on {socket.gethostname()} has just been removed: try again")
        lock.truncate(0)
        lock.write(f"{act}, process {os.getpid()}, since {time.strftime('%Y-%m-%d %H:%M:%S')}\n")
        lock.flush()
        yield path
        lock.truncate(0)


def _lock_file(path: Path) -> IO[str]:
    path.mkdir(parents=True, exist_ok=True)
    path.chmod(0o711)
    return (path / "lock").open("a+")


def _is_at(file: IO[str], path: Path) -> bool:
    """Whether an open file is still the one at ``path``: its directory may have been removed meanwhile."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def write_private(path: Path, text: str, group: Optional[str] = None) -> None:
    """Write a file that root alone may read, and ``group`` if one is given and exists."""
    new = path.with_name(f"{path.name}.new")
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)
    if group:
        with contextlib.suppress(LookupError):
            shutil.chown(new, group=group)
            new.chmod(0o640)
    new.replace(path)


def note(path: Path, **fields: Any) -> Dict[str, Any]:
    """Add ``fields`` to state.json of the state directory ``path`` and return all of it."""
    state = read(path) or {}
    state.update(fields, host=socket.gethostname(), since=time.time())
    write_private(path / "state.json", json.dumps(state, indent=1, sort_keys=True))
    return state


def read(path: Path) -> Optional[Dict[str, Any]]:
    """state.json of a state directory, None if there is none."""
    try:
        loaded = json.loads((path / "state.json").read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    return dict(loaded)


def remove(path: Path) -> None:
    """Remove a state directory, its secret first."""
    (path / "identity.json").unlink(missing_ok=True)
    shutil.rmtree(path, ignore_errors=True)


def known(base: Optional[Path] = None) -> List[str]:
    """Names of the guests this host keeps a state directory of."""
    base = base or GUESTS
    if not base.is_dir():
        return []
    return sorted(path.name for path in base.iterdir() if (path / "state.json").exists())
