"""The page through which a guest's agent and the ranks in the guest speak to each other.

A folder in RAM for each job, made by the agent (root), without locks and without network
code in the ranks::

    /run/failavoid/jobs/JOB/page           agent -> ranks: the job's Notice, one 8-byte word a number
    /run/failavoid/jobs/JOB/slots/PID.HEX  rank -> agent: one file a rank, made and owned by the rank

A rank maps the page and looks at the epoch with a single 8-byte load. What belongs together
(an epoch and its affected guests) is read with a checksum, so that a page caught half-written
is read again, on any processor, and also if its writer died.

A rank holds a lock on its slot for as long as it lives. The kernel drops it when the process
ends, however it ends: a rank that crashed leaves nothing behind that counts.

The layout is described in docs/barrier-protocol.md; failavoid/mpi/shim/page.c is the ranks' side in C.
"""

# pathlib alone costs an agent on an emulated CPU as much as the rest of its start
# ruff: noqa: PTH101, PTH103, PTH104, PTH108, PTH116, PTH118, PTH123, PTH208
from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import stat
import struct
import threading
import time
import zlib
from collections.abc import Sequence
from typing import NamedTuple

RUN_DIR = "/run/failavoid"
SIZE = 65536  # bytes of a page: the names of 1000 guests; RAM is taken only as far as it is written

KINDS = ("move", "checkpoint")  # of a notice; on the page they are numbered from 1

_MAGIC = int.from_bytes(b"favoid\0\2", "little")  # ends with the layout's version
_SLOT_MAGIC = int.from_bytes(b"faslot\0\2", "little")
_MAGIC_AT, _SERIAL, _EPOCH, _KIND, _DONE, _CANCELLED, _LENGTH, _CHECKSUM = range(8)
_HEAD = struct.Struct("=8Q")
_TEXT = _HEAD.size  # where the lines begin: the host that is left, the new host, the affected guests
_SLOT = struct.Struct("=4Q")  # magic, pid, epoch at which the rank is stopped, epoch of its last checkpoint
_STOPPED, _CHECKPOINTED = 2, 3
_TRIES = 50


class PageError(Exception):
    """A page that can't be used; the message says which, why and the way out."""


class Posted(NamedTuple):
    """What a page holds: the last epoch, its affected guests, and the last epochs that ended either way.

    ``kind`` is that of the epoch: with ``checkpoint`` nothing moves. ``source`` and ``destination`` are
    the host that is left and the new one, empty where they are not known.
    """

    serial: int
    epoch: int
    affected: tuple[str, ...]
    done: int
    cancelled: int
    kind: str = KINDS[0]
    source: str = ""
    destination: str = ""

    @property
    def open(self) -> bool:
        """Whether the last epoch has neither been done nor cancelled."""
        return self.epoch > max(self.done, self.cancelled)


def job_folder(job: str, run_dir: str = RUN_DIR) -> str:
    """Return the folder that holds the page and the slots of ``job``."""
    return os.path.join(run_dir, "jobs", job)


class Page:
    """A rank's view of its job's page. Raises PageError if there is none, or none of this layout."""

    def __init__(self, folder: str) -> None:
        self.path = os.path.join(folder, "page")
        self._map = _map(self.path, writable=False)
        self._words = memoryview(self._map).cast("Q")

    @property
    def epoch(self) -> int:
        """The last posted epoch: one load, this is what an eligible barrier costs."""
        return self._words[_EPOCH]

    @property
    def done(self) -> int:
        """The last epoch whose guests have all moved."""
        return self._words[_DONE]

    @property
    def cancelled(self) -> int:
        """The last epoch that ended without a move."""
        return self._words[_CANCELLED]

    def read(self) -> Posted | None:
        """Return what belongs together; None if the page stays half-written (its writer died)."""
        for _ in range(_TRIES):
            posted = _read(self._map)
            if posted is not None:
                return posted
            time.sleep(0.001)
        return None


class PageWriter:
    """The agent's side of a page, which is made if there is none.

    An existing page is kept, with what it says: ranks have it mapped. With ``owner``, the user and the group
    of the job, nobody else can look at the page or make slots. Raises PageError.
    """

    def __init__(self, folder: str, owner: tuple[int, int] | None = None) -> None:
        self.folder = folder
        path = os.path.join(folder, "page")
        slots = os.path.join(folder, "slots")
        try:
            os.makedirs(slots, exist_ok=True)
            try:
                self._map = _map(path, writable=True)
            except PageError:
                _make(path)
                self._map = _map(path, writable=True)
            if owner is None:
                for name, mode in ((folder, 0o755), (path, 0o644), (slots, 0o1777)):  # slots as in /tmp
                    _give(name, mode, 0, 0)
            else:
                _give(slots, 0o700, *owner)
                _give(path, 0o640, 0, owner[1])
                _give(folder, 0o750, 0, owner[1])
        except OSError as error:
            raise PageError(f"{path}: the page can't be made: {error.strerror}") from error
        self._words = memoryview(self._map).cast("Q")
        words = self._words
        self.posted = _read(self._map) or Posted(0, words[_EPOCH], (), words[_DONE], words[_CANCELLED])

    def post(self, new: Posted) -> None:
        """Write what the controller says. Epochs never go back: ranks remember what they have handled.

        A controller that knows fewer epochs than the page has lost its state, and nobody
        would ever end the open one: it counts as cancelled. Raises PageError if the names
        of the affected guests are too long for a page.
        """
        before = self.posted
        if new.epoch < before.epoch:
            new = before._replace(serial=new.serial, done=new.done, cancelled=before.epoch)
        new = new._replace(done=max(new.done, before.done), cancelled=max(new.cancelled, before.cancelled))
        text = "".join(f"{line}\n" for line in (new.source, new.destination, *new.affected)).encode()
        if _TEXT + len(text) > SIZE:
            raise PageError(
                f"{self.folder}: the names of {len(new.affected)} affected guests take {len(text)} bytes, "
                f"{SIZE - _TEXT} fit: use shorter names or evacuate fewer guests at once"
            )
        numbers = (new.serial, new.epoch, KINDS.index(new.kind) + 1, new.done, new.cancelled, len(text))
        words = self._words
        self._map[_TEXT : _TEXT + len(text)] = text
        for word, number in enumerate(numbers, _SERIAL):
            if word != _EPOCH:
                words[word] = number
        words[_CHECKSUM] = _checksum(numbers, text)
        words[_EPOCH] = new.epoch  # the last: it is what ranks look at
        self.posted = new


class Slot:
    """A rank's word to its guest's agent: that it lives, and where it is stopped. Raises OSError."""

    def __init__(self, folder: str) -> None:
        self._pid = os.getpid()
        # not the number alone: in containers ranks of one guest may have the same
        name = f"{self._pid}.{os.urandom(4).hex()}"
        self.path = os.path.join(folder, "slots", name)
        hidden = os.path.join(folder, "slots", f".{name}")
        # Kept open: closing any descriptor of the file would drop the lock.
        self._file = os.open(hidden, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        os.write(self._file, _SLOT.pack(_SLOT_MAGIC, self._pid, 0, 0))
        fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self._words = memoryview(mmap.mmap(self._file, _SLOT.size)).cast("Q")
        os.rename(hidden, self.path)  # visible only now that it is locked
        self._stopping = threading.Lock()
        self._stopped = 0

    def stop(self, epoch: int) -> None:
        """Say that a thread of this rank is stopped at a barrier, outside MPI, for ``epoch``."""
        with self._stopping:
            self._stopped += 1
            self._words[_STOPPED] = epoch

    def resume(self) -> None:
        """Say that the thread runs again; of several that were stopped, the last one counts."""
        with self._stopping:
            self._stopped -= 1
            if not self._stopped:
                self._words[_STOPPED] = 0

    def checkpointed(self, epoch: int) -> None:
        """Say that the checkpoint which was asked for in ``epoch`` is written."""
        self._words[_CHECKPOINTED] = epoch

    def deregister(self) -> None:
        """Say that this rank no longer takes part. In a child of the rank's process: do nothing."""
        if os.getpid() == self._pid:
            with contextlib.suppress(OSError):
                os.unlink(self.path)


class SlotState(NamedTuple):
    """A live rank as the agent sees it: the epoch at which it is stopped, that of its last checkpoint, or 0."""

    pid: int
    stopped: int
    checkpointed: int = 0


def live_slots(folder: str) -> list[SlotState]:
    """Return the live ranks of the job whose folder this is; remove what dead ones left behind.

    The files are the ranks', so nothing in them is trusted: what is no slot is passed over.
    """
    slots = os.path.join(folder, "slots")
    try:
        names = os.listdir(slots)
    except OSError:
        return []
    found = []
    for name in names:
        if name.startswith("."):
            continue  # it is being made
        state = _look(os.path.join(slots, name))
        if state is not None:
            found.append(state)
    return found


def _look(path: str) -> SlotState | None:
    try:
        # not blocking: it may be a FIFO
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return None
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                return None
        else:
            with contextlib.suppress(OSError):
                os.unlink(path)  # nobody holds the lock: the rank is gone
            return None
        data = os.pread(descriptor, _SLOT.size, 0)
    finally:
        os.close(descriptor)
    if len(data) != _SLOT.size:
        return None
    magic, pid, stopped, checkpointed = _SLOT.unpack(data)
    return SlotState(pid, stopped, checkpointed) if magic == _SLOT_MAGIC else None


def _make(path: str) -> None:
    new = f"{path}.new"
    numbers = (0, 0, 1, 0, 0, 0)
    with open(new, "wb") as file:
        file.write(_HEAD.pack(_MAGIC, *numbers, _checksum(numbers, b"")))
        file.truncate(SIZE)
    os.rename(new, path)


def _map(path: str, writable: bool) -> mmap.mmap:
    access = mmap.ACCESS_WRITE if writable else mmap.ACCESS_READ
    try:
        with open(path, "r+b" if writable else "rb") as file:
            if os.fstat(file.fileno()).st_size != SIZE:
                raise PageError(f"{path}: is no page: it has {os.fstat(file.fileno()).st_size} bytes")
            page = mmap.mmap(file.fileno(), SIZE, access=access)
    except OSError as error:
        raise PageError(f"{path}: {error.strerror}") from error
    if page[:8] != struct.pack("=Q", _MAGIC):
        page.close()
        raise PageError(f"{path}: is a page of another version: deploy the agent and the MPI wrapper together")
    return page


def _read(page: mmap.mmap) -> Posted | None:
    _, *numbers, checksum = _HEAD.unpack_from(page)
    serial, epoch, kind, done, cancelled, length = numbers
    if _TEXT + length > SIZE or not 1 <= kind <= len(KINDS):
        return None
    text = page[_TEXT : _TEXT + length]
    if _checksum(numbers, text) != checksum:
        return None
    source, destination, *affected = text.decode().split("\n")[:-1] or ("", "")
    return Posted(serial, epoch, tuple(affected), done, cancelled, KINDS[kind - 1], source, destination)


def _checksum(numbers: Sequence[int], text: bytes) -> int:
    return zlib.crc32(text, zlib.crc32(struct.pack(f"={len(numbers)}Q", *numbers)))


def _give(path: str, mode: int, user: int, group: int) -> None:
    found = os.stat(path)
    if os.geteuid() == 0 and (found.st_uid, found.st_gid) != (user, group):
        os.chown(path, user, group)
    if stat.S_IMODE(found.st_mode) != mode:
        os.chmod(path, mode)
