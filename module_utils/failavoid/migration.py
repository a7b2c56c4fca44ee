"""Live migration of guests away from this host, peer-to-peer, so that it survives whoever asked for it.

The move itself is done by a process of its own, detached from the module that starts it. It keeps what happens
in one file an evacuation, and holds that evacuation's lock while it lives; a module that is called again waits for the
same move. What an exception says is never taken for the outcome: both ends are asked.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional

from . import devices, domain_xml, guest_state, guests, hugepages, names
from .guests import GuestError
from .moves import LEAST_LIMIT_S, Limits, Move, Record

try:
    import libvirt
except ImportError:  # guests.connect says so
    libvirt = None

RECORDS = Path("/run/failavoid/migrations")
LIBVIRT_TLS_PORT = 16514
# The last of QEMU's 49152-49215 is used last: who connects to a port where a guest is expected would be taken for it.
LAST_MOVE_PORT = 49215
PAGE = 4096  # bytes, where libvirt does not say it
POLL_S = 0.05
WATCH_S = 0.2
CONNECT_S = 5.0
PREPARE_S_PER_GIB = 2.0  # of silence at the beginning: the destination clears hugepages before anything comes
ENDED = ("moved", "failed", "cancelled")
KEPT_RECORDS = 100  # of evacuations that have ended; the controller's journal keeps what became of them


def record_path(evacuation: str) -> Path:
    """Where the record of an evacuation lies; its name is checked, because it becomes a path."""
    return RECORDS / f"{names.check_name('evacuation', evacuation)}.json"


def read_record(evacuation: str) -> Optional[Record]:
    """The record of an evacuation's moves from this host, None if there is none."""
    try:
        data = json.loads(record_path(evacuation).read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    return Record(**{**data, "moves": [Move(**move) for move in data["moves"]], "limits": Limits(**data["limits"])})


def write_record(record: Record) -> None:
    """Write a record at once or not at all."""
    RECORDS.mkdir(parents=True, exist_ok=True)
    guest_state.write_private(record_path(record.evacuation), json.dumps(asdict(record)))


def preflight(connection: Any, moves: List[Move], boot_files: Dict[str, List[str]]) -> None:
    """Check from here, with this host's own credentials, that every guest can move. Raises GuestError.

    ``boot_files`` is what guests can boot on a destination, by its name; destinations it does not name are not checked.
    """
    definitions = {}
    for move in moves:
        domain = guests.find(connection, move.guest)
        if domain is None or domain.state()[0] != libvirt.VIR_DOMAIN_RUNNING:
            raise GuestError(f"guest {move.guest} does not run on this host: nothing is moved")
        xml = definitions[move.guest] = domain.XMLDesc()
        held = boot_files.get(move.destination)
        missing = [path for path in domain_xml.boot_files(xml) if held is not None and path not in held]
        if missing:
            raise GuestError(
                f"guest {move.guest} boots {' and '.join(missing)}, which {move.destination} does not have: "
                "run the role 'guest' there"
            )
        try:
            devices.check_given(move.guest, xml, guest_state.directory(move.guest), move.destination, move.devices)
        except devices.DeviceError as error:
            raise GuestError(str(error)) from error
    for destination, address in sorted({(move.destination, move.destination_address) for move in moves}):
        peer = look_at(address)
        try:
            coming = [(definitions[move.guest], move.numa_node) for move in moves if move.destination == destination]
            lacking = hugepages.lacking(peer, coming)
        finally:
            peer.close()
        if lacking:
            raise GuestError(f"{destination} {'; '.join(lacking)}: nothing is moved")
        check_way(address)


def look_at(address: str) -> Any:
    """Ask another host's libvirt, read-only, as the one at ``address``. Raises GuestError with what may be wrong."""
    try:
        # libvirt itself would wait minutes for a host that is gone
        socket.create_connection((address, LIBVIRT_TLS_PORT), timeout=CONNECT_S).close()
        return libvirt.openReadOnly(peer_uri(address))
    except (OSError, libvirt.libvirtError) as error:
        raise GuestError(
            f"the host {address} can't be reached from here over {peer_uri(address)} ({error}): "
            f"check that libvirtd runs there, the certificates, and port {LIBVIRT_TLS_PORT}"
        ) from error


def check_way(address: str) -> None:
    """Check that nothing keeps guests' memory from the host at ``address``, or raise GuestError: firewalls are silent.

    Nobody listens there yet: that the host itself says so is what is wanted.
    """
    try:
        socket.create_connection((address, LAST_MOVE_PORT), timeout=CONNECT_S).close()
    except ConnectionRefusedError:
        pass
    except OSError as error:
        raise GuestError(
            f"guests' memory can't be sent to {address}, whose port {LAST_MOVE_PORT} can't be reached from here "
            f"({error}): TCP 49152-{LAST_MOVE_PORT} must be open between hosts"
        ) from error


def peer_uri(address: str) -> str:
    """The destination's libvirt, as the source host's daemon reaches it."""
    return f"qemu+tls://{address}/system"


def start(record: Record) -> bool:
    """Start an evacuation's moves in a process that outlives this one; returns at once.

    False if they were started before: two callers may have come to the gate. Raises GuestError for a name that was
    used for other moves.
    """
    with _mover_lock(record.evacuation) as lock:
        if lock is None:
            return False
        before = read_record(record.evacuation)
        if before is not None:
            return False
        _forget_old_records()
        record.began = time.time()
        write_record(record)
        child = os.fork()
        if child == 0:
            _become_mover(record, lock)
        os.waitpid(child, 0)
    return True


def _forget_old_records() -> None:
    """Remove the oldest records: the folder lies in RAM."""
    ended = [path for path in RECORDS.glob("*.json") if _has_ended(path.stem)]
    for path in sorted(ended, key=lambda one: one.stat().st_mtime)[:-KEPT_RECORDS]:
        for suffix in (".json", ".lock", ".aborted"):
            path.with_suffix(suffix).unlink(missing_ok=True)


def _has_ended(evacuation: str) -> bool:
    record = read_record(evacuation)
    return record is not None and record.ended is not None


def _become_mover(record: Record, lock: int) -> None:
    """Move the guests in a process that nothing of the caller holds, and that holds nothing of the caller."""
    try:
        os.setsid()
        if os.fork():
            return
        nothing = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(nothing, descriptor)
        os.closerange(3, lock)
        os.closerange(lock + 1, 1024)
        record.process = os.getpid()
        perform(record)
    finally:
        os._exit(0)


@contextlib.contextmanager
def _mover_lock(evacuation: str) -> Iterator[Optional[int]]:
    """The lock that an evacuation's mover holds as long as it lives: its descriptor, None if the mover has it."""
    RECORDS.mkdir(parents=True, exist_ok=True)
    lock = os.open(record_path(evacuation).with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
        else:
            yield lock
    finally:
        os.close(lock)  # a mover forked meanwhile has its own copy, and so the lock


def perform(record: Record) -> None:
    """Move a record's guests, ``parallel`` at a time, one thread a guest, and write the record as it goes."""
    lock = threading.Lock()

    def save() -> None:
        with lock:
            write_record(record)

    save()
    if any(move.devices for move in record.moves):
        devices.listen()  # before any connection is opened
    with ThreadPoolExecutor(max_workers=max(1, record.limits.parallel)) as pool:
        for move in record.moves:
            pool.submit(_move, record, move, save)
    record.ended = time.time()
    save()


def wait(evacuation: str) -> Record:
    """Wait until the moves of an evacuation have ended, whoever started them. Raises GuestError."""
    while True:
        record = read_record(evacuation)
        if record is not None and record.ended is not None:
            return record
        with _mover_lock(evacuation) as lock:
            if lock is not None:  # nobody moves them, and nobody can begin now
                record = read_record(evacuation)
                if record is None:
                    raise GuestError(f"evacuation {evacuation}: the record of its moves is gone from {RECORDS}")
                return record if record.ended is not None else _after_a_dead_mover(record)
        time.sleep(POLL_S)


def used_before(connection: Any, record: Record, wanted: List[str]) -> None:
    """Raise GuestError if the record is not of these guests' move, but of another under the same name."""
    back = [m.guest for m in record.moves if m.state == "moved" and guests.is_running(connection, m.guest)]
    if sorted(wanted) != sorted(move.guest for move in record.moves) or (record.ended is not None and back):
        raise GuestError(
            f"the name {record.evacuation} was used on this host for another move, of "
            f"{', '.join(move.guest for move in record.moves)}: give this evacuation a name of its own"
        )


def abort(evacuation: str) -> List[Move]:
    """Give up an evacuation's moves from this host, also those that have not begun, and wait for their end.

    Returns them as they ended: what had moved already stays moved.
    """
    RECORDS.mkdir(parents=True, exist_ok=True)
    _abort_mark(evacuation).touch()
    with _mover_lock(evacuation) as lock:
        idle = lock is not None
    if idle and read_record(evacuation) is None:  # not begun: who waits at the gate finds the mark
        return []
    return wait(evacuation).moves


def is_aborted(evacuation: str) -> bool:
    """Whether somebody has given up this evacuation."""
    return _abort_mark(evacuation).exists()


def _abort_mark(evacuation: str) -> Path:
    return record_path(evacuation).with_suffix(".aborted")


def _move(record: Record, move: Move, save: Callable[[], None]) -> None:
    try:
        if is_aborted(record.evacuation):
            move.state, move.error = "cancelled", "given up before it began"
        else:
            with guest_state.locked(move.guest, f"migration of {record.evacuation}") as path:
                connection = guests.connect()
                _migrate(connection, record, move, path, save)
                _settle(connection, move, path)
    except Exception as error:  # every end must be in the record: there is nobody to raise it to
        move.state, move.error = "failed", move.error or str(error)
    save()


def _migrate(connection: Any, record: Record, move: Move, path: Path, save: Callable[[], None]) -> None:
    domain = guests.find(connection, move.guest)
    if domain is None:
        move.state, move.error = "failed", "it is not on this host"
        return
    move.state = "running"
    save()
    try:
        if move.devices:
            devices.unplug(domain, path, record.limits.unplug_s, lambda: is_aborted(record.evacuation))
    except devices.DeviceError as error:
        move.state, move.error = "cancelled" if is_aborted(record.evacuation) else "failed", str(error)
        return
    pinned = domain_xml.destination_xml(
        domain.XMLDesc(libvirt.VIR_DOMAIN_XML_MIGRATABLE | libvirt.VIR_DOMAIN_XML_SECURE), move.cores, move.numa_node
    )
    flags = libvirt.VIR_MIGRATE_PEER2PEER | libvirt.VIR_MIGRATE_TLS
    # QEMU's emulation misses what a guest writes while its memory is on its way (docs/testbed.md): it stands still
    if not domain_xml.is_emulated(pinned):
        flags |= libvirt.VIR_MIGRATE_LIVE | libvirt.VIR_MIGRATE_AUTO_CONVERGE
    parameters: Dict[str, Any] = {
        libvirt.VIR_MIGRATE_PARAM_URI: f"tcp:{move.destination_address}",
        libvirt.VIR_MIGRATE_PARAM_LISTEN_ADDRESS: move.destination_address,
        libvirt.VIR_MIGRATE_PARAM_DEST_XML: pinned,
    }
    if record.limits.connections > 1:
        flags |= libvirt.VIR_MIGRATE_PARALLEL
        parameters[libvirt.VIR_MIGRATE_PARAM_PARALLEL_CONNECTIONS] = record.limits.connections
    if record.limits.bandwidth_mib_s:
        parameters[libvirt.VIR_MIGRATE_PARAM_BANDWIDTH] = record.bandwidth_mib_s()
    over = threading.Event()
    watcher = _Watcher(record, move, over, save)
    watcher.start()
    began = time.monotonic()
    try:
        domain.migrateToURI3(peer_uri(move.destination_address), parameters, flags)
    except libvirt.libvirtError as error:
        aborted = is_aborted(record.evacuation) and not watcher.reason
        move.state = "cancelled" if aborted else "failed"
        move.error = watcher.reason or _words(error, move)
    finally:
        over.set()
        watcher.join()
    move.elapsed_s = round(time.monotonic() - began, 3)


def _words(error: Any, move: Move) -> str:
    if error.get_error_code() == libvirt.VIR_ERR_CPU_INCOMPATIBLE:
        return (
            f"{move.destination}'s processor lacks what the guest was started with ({error}): "
            "set guest_cpu_model to a model that all hosts offer"
        )
    return str(error)


class _Watcher(threading.Thread):
    """Follows a move, and ends it when it was given up, stalls, or lasts too long for the guest's size.

    A stall is that nothing is sent: what remains to be sent may well grow while a guest writes to its memory, and
    auto-converge needs its time.
    """

    def __init__(self, record: Record, move: Move, over: threading.Event, save: Callable[[], None]) -> None:
        super().__init__(daemon=True)
        self.reason = ""
        self._record, self._move, self._over, self._save = record, move, over, save

    def run(self) -> None:
        domain = guests.find(guests.connect(), self._move.guest)
        if domain is None:
            return
        memory_kb = domain.maxMemory()
        limit, stall_s = self._record.limit_s(memory_kb), self._record.limits.stall_s
        prepare_s = stall_s + PREPARE_S_PER_GIB * memory_kb / 1024**2
        began = moved_on = time.monotonic()
        sent = -1
        while not self._over.wait(WATCH_S):
            with contextlib.suppress(libvirt.libvirtError):
                job = domain.jobStats()
                now_sent, remaining = job.get("data_processed", 0), job.get("data_remaining")
                if job.get("memory_dirty_rate"):  # pages a second; it is not among the figures of a completed move
                    self._move.dirty_bps = job["memory_dirty_rate"] * job.get("memory_page_size", PAGE)
                if now_sent > sent:
                    sent, moved_on = now_sent, time.monotonic()
                if remaining != self._move.remaining:
                    self._move.remaining = remaining
                    self._save()
            now = time.monotonic()
            if now - moved_on > (stall_s if sent > 0 else prepare_s):
                self.reason = f"given up after {now - began:.0f} s: nothing was sent for {now - moved_on:.0f} s"
            elif now - began > limit:
                self.reason = f"given up after {now - began:.0f} s: too long for a guest of its size"
            if self.reason or is_aborted(self._record.evacuation):
                with contextlib.suppress(libvirt.libvirtError):  # asked again until the move has ended
                    domain.abortJob()


def _settle(connection: Any, move: Move, path: Path) -> None:
    """Decide from both ends what became of a move, and note it; on ambiguity nothing is started or destroyed."""
    here = guests.find(connection, move.guest)
    if here is not None and here.state()[0] == libvirt.VIR_DOMAIN_RUNNING:
        _pin_again(here, guest_state.read(path) or {})
    try:
        peer = look_at(move.destination_address)
    except GuestError as error:
        _settle_alone(connection, move, path, str(error))
        return
    try:
        there = guests.find(peer, move.guest)
        if here is None and there is not None and there.state()[0] == libvirt.VIR_DOMAIN_RUNNING:
            move.state, move.error = "moved", ""
            _statistics(there, move)
            guests.forget(path)
        elif there is None and here is not None and here.state()[0] == libvirt.VIR_DOMAIN_RUNNING:
            if move.state != "cancelled":
                move.state = "failed"
            move.error = move.error or "libvirt reports success, but the guest still runs here"
            _put_back_devices(here, move, path)
        else:
            where = f"is {_seen(here)} on {move.source} and {_seen(there)} on {move.destination}"
            move.state, move.error = "failed", _ambiguous(move, where)
    finally:
        peer.close()


def _settle_alone(connection: Any, move: Move, path: Path, error: str) -> None:
    """The same where the destination can't be asked any more."""
    if guests.is_running(connection, move.guest):
        if move.state != "cancelled":
            move.state = "failed"
        move.error = f"it runs on {move.source} still; {move.error or 'libvirt reported no error'}; {error}"
        _put_back_devices(guests.find(connection, move.guest), move, path)
    elif move.state == "running" and guests.find(connection, move.guest) is None:
        # libvirt gives a guest up only after the destination has confirmed that it runs there
        move.state, move.error = "moved", error
        guests.forget(path)
    else:
        move.state, move.error = "failed", _ambiguous(move, f"does not run on {move.source}, and {error}")


def _ambiguous(move: Move, where: str) -> str:
    return (
        f"guest {move.guest} {where} ({move.error or 'no error was reported'}). Nothing was started or "
        f"destroyed: look with 'virsh list --all' at {move.source} and {move.destination} and decide"
    )


def _seen(domain: Any) -> str:
    if domain is None:
        return "absent"
    return "running" if domain.state()[0] == libvirt.VIR_DOMAIN_RUNNING else "there but not running"


def _statistics(domain: Any, move: Move) -> None:
    """Libvirt's own figures of the completed move, from the destination (the source forgot the guest)."""
    with contextlib.suppress(libvirt.libvirtError):
        stats = domain.jobStats(libvirt.VIR_DOMAIN_JOB_STATS_COMPLETED | libvirt.VIR_DOMAIN_JOB_STATS_KEEP_COMPLETED)
        move.downtime_ms = stats.get("downtime")
        move.bytes = stats.get("data_processed") or stats.get("memory_processed")
        move.memory_bps = stats.get("memory_bps")
        move.iterations = stats.get("memory_iteration")
        move.remaining = None
        if stats.get("time_elapsed"):
            move.elapsed_s = stats["time_elapsed"] / 1000


def _put_back_devices(domain: Any, move: Move, path: Path) -> None:
    """Give a guest that stayed its devices again; that it can't be is told with the move."""
    try:
        devices.put_back(domain, path)
    except devices.DeviceError as error:
        move.error = f"{move.error}; {error}"


def _pin_again(domain: Any, state: Dict[str, Any]) -> None:
    """Put a guest that stayed back on its cores: auto-converge and an abort may have changed what it may use."""
    cores: List[int] = state.get("cores") or []
    if not cores:
        return
    width = max(os.cpu_count() or 1, max(cores) + 1)

    def only(chosen: List[int]) -> Any:
        return tuple(core in chosen for core in range(width))

    with contextlib.suppress(libvirt.libvirtError):
        for vcpu in range(domain.maxVcpus()):
            domain.pinVcpu(vcpu, only([cores[vcpu % len(cores)]]))
        domain.pinEmulator(only(cores))


def _after_a_dead_mover(record: Record) -> Record:
    """The process that moved the guests is gone: libvirt's daemons may still be moving them. Ask both ends."""
    connection = guests.connect()
    for move in record.moves:
        if move.state in ENDED:
            continue
        if move.state == "planned":
            move.state, move.error = "failed", "the process that was to move it ended before"
            continue
        deadline = time.monotonic() + LEAST_LIMIT_S
        while time.monotonic() < deadline:
            domain = guests.find(connection, move.guest)
            if domain is None or not _has_job(domain):
                break
            if is_aborted(record.evacuation):
                with contextlib.suppress(libvirt.libvirtError):
                    domain.abortJob()
            time.sleep(0.5)
        with guest_state.locked(move.guest, f"migration of {record.evacuation}") as path:
            move.error = "the process that moved it ended"
            # no success was reported to anybody: "running" would be read as one where the destination is silent
            move.state = "cancelled" if is_aborted(record.evacuation) else "failed"
            _settle(connection, move, path)
    record.ended = time.time()
    write_record(record)
    return record


def _has_job(domain: Any) -> bool:
    try:
        return bool(domain.jobInfo()[0] != libvirt.VIR_DOMAIN_JOB_NONE)
    except libvirt.libvirtError:
        return False  # it is gone: it may have left just now
