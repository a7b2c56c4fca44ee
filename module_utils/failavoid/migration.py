"""Live migration of guests away from this host, peer-to-peer, so that it survives whoever asked for it.

The move itself is done by a process of its own, detached from the module that starts it. It keeps what happens
in one file an evacuation; a module that is called again finds the file and waits for the same move. What an
exception says is never taken for the outcome: both ends are asked.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Callable, List, Optional

from . import domain_xml, guest_state, guests, names
from .guests import GuestError

try:
    import libvirt
except ImportError:  # guests.connect says so
    libvirt = None

RECORDS = Path("/run/failavoid/migrations")
LIBVIRT_TLS_PORT = 16514
POLL_S = 0.05
STALL_S = 60.0  # no byte less to send for so long: the move is given up
SECONDS_PER_GIB = 120.0  # a limit, not an estimate
LEAST_LIMIT_S = 120.0


@dataclass
class Move:
    """One guest's move, and what is known of it; the names are those of messages.Migration."""

    guest: str
    source: str
    destination: str
    destination_address: str
    cores: List[int]
    numa_node: int
    state: str = "planned"  # planned | running | moved | failed | cancelled
    elapsed_s: Optional[float] = None
    downtime_ms: Optional[float] = None
    bytes: Optional[int] = None
    memory_bps: Optional[int] = None
    iterations: Optional[int] = None
    remaining: Optional[int] = None
    error: str = ""


@dataclass
class Record:
    """All moves of one evacuation from this host, as the file holds them."""

    evacuation: str
    moves: List[Move]
    process: int = 0
    began: float = 0.0
    ended: Optional[float] = None
    log: List[str] = field(default_factory=list)


def record_path(evacuation: str) -> Path:
    """Where the record of an evacuation lies; its name is checked, because it becomes a path."""
    return RECORDS / f"{names.check_name('evacuation', evacuation)}.json"


def read_record(evacuation: str) -> Optional[Record]:
    """The record of an evacuation's moves from this host, None if there is none."""
    try:
        data = json.loads(record_path(evacuation).read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    return Record(**{**data, "moves": [Move(**move) for move in data["moves"]]})


def write_record(record: Record) -> None:
    """Write a record at once or not at all."""
    RECORDS.mkdir(parents=True, exist_ok=True)
    guest_state.write_private(record_path(record.evacuation), json.dumps(asdict(record)))


def preflight(connection: Any, moves: List[Move]) -> None:
    """Check from here, with this host's own credentials, that every guest can move. Raises GuestError."""
    for move in moves:
        if not guests.is_running(connection, move.guest):
            raise GuestError(f"guest {move.guest} does not run on this host: nothing is moved")
    for address in sorted({move.destination_address for move in moves}):
        try:
            peer = libvirt.openReadOnly(peer_uri(address))
        except libvirt.libvirtError as error:
            raise GuestError(
                f"the destination {address} can't be reached from here over {peer_uri(address)} ({error}): "
                "check that libvirtd runs there, the certificates, and port 16514"
            ) from error
        peer.close()


def peer_uri(address: str) -> str:
    """The destination's libvirt, as the source host's daemon reaches it."""
    return f"qemu+tls://{address}/system"


def run_detached(record: Record) -> None:
    """Start the moves in a process that outlives this one; returns at once."""
    record.began = time.time()
    write_record(record)
    if os.fork():
        return
    # nothing of the caller may hold this process or be held by it
    os.setsid()
    if os.fork():
        os._exit(0)
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nothing, descriptor)
    os.closerange(3, 1024)
    try:
        record.process = os.getpid()
        perform(record)
    finally:
        os._exit(0)


def perform(record: Record) -> None:
    """Move all guests of a record at the same time, one thread a guest, and write the record as it goes."""
    lock = threading.Lock()

    def save() -> None:
        with lock:
            write_record(record)

    save()
    threads = [threading.Thread(target=_move, args=(record.evacuation, move, save)) for move in record.moves]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    record.ended = time.time()
    save()


def wait(evacuation: str, on_progress: Callable[[Record], None] = lambda _record: None) -> Record:
    """Wait until the moves of an evacuation have ended, whoever started them. Raises GuestError."""
    while True:
        record = read_record(evacuation)
        if record is None:
            raise GuestError(f"evacuation {evacuation}: the record of its moves is gone from {RECORDS}")
        if record.ended is not None:
            return record
        if record.process and not Path(f"/proc/{record.process}").exists():
            return _after_a_dead_mover(record)
        on_progress(record)
        time.sleep(POLL_S)


def abort(connection: Any, evacuation: str) -> List[str]:
    """Ask libvirt to give up the moves of an evacuation that still run; returns the guests' names."""
    record = read_record(evacuation)
    aborted = []
    for move in record.moves if record else []:
        domain = guests.find(connection, move.guest)
        if move.state == "running" and domain is not None:
            with contextlib.suppress(libvirt.libvirtError):
                domain.abortJob()
                aborted.append(move.guest)
    return aborted


def _move(evacuation: str, move: Move, save: Callable[[], None]) -> None:
    try:
        with guest_state.locked(move.guest, f"migration of {evacuation}") as path:
            connection = guests.connect()
            _migrate(connection, move, save)
            _settle(connection, move, path)
    except Exception as error:  # every end must be in the record: there is nobody to raise it to
        move.state, move.error = "failed", move.error or str(error)
    save()


def _migrate(connection: Any, move: Move, save: Callable[[], None]) -> None:
    domain = guests.find(connection, move.guest)
    if domain is None:
        move.error = "it is not on this host"
        return
    pinned = domain_xml.destination_xml(
        domain.XMLDesc(libvirt.VIR_DOMAIN_XML_MIGRATABLE | libvirt.VIR_DOMAIN_XML_SECURE), move.cores, move.numa_node
    )
    flags = (
        libvirt.VIR_MIGRATE_LIVE
        | libvirt.VIR_MIGRATE_PEER2PEER
        | libvirt.VIR_MIGRATE_TLS
        | libvirt.VIR_MIGRATE_AUTO_CONVERGE
    )
    parameters = {
        libvirt.VIR_MIGRATE_PARAM_URI: f"tcp:{move.destination_address}",
        libvirt.VIR_MIGRATE_PARAM_DEST_XML: pinned,
    }
    move.state = "running"
    save()
    over = threading.Event()
    watcher = threading.Thread(target=_watch, args=(move, over, save), daemon=True)
    watcher.start()
    began = time.monotonic()
    try:
        domain.migrateToURI3(peer_uri(move.destination_address), parameters, flags)
    except libvirt.libvirtError as error:
        move.error = str(error)
        move.state = "cancelled" if error.get_error_code() == libvirt.VIR_ERR_OPERATION_ABORTED else "failed"
    finally:
        over.set()
    move.elapsed_s = round(time.monotonic() - began, 3)
    watcher.join()


def _watch(move: Move, over: threading.Event, save: Callable[[], None]) -> None:
    """Follow a move's progress; give it up when it stalls or lasts too long for the guest's size.

    A fixed limit would end healthy moves of large guests, so it grows with memory, and a move that still
    gets on is only bounded by it.
    """
    connection = guests.connect()
    domain = guests.find(connection, move.guest)
    if domain is None:
        return
    limit = max(LEAST_LIMIT_S, SECONDS_PER_GIB * domain.maxMemory() / 1024**2)
    began = moved_on = time.monotonic()
    least: Optional[int] = None
    while not over.wait(0.2):
        with contextlib.suppress(libvirt.libvirtError):
            remaining = domain.jobStats().get("data_remaining")
            if remaining is not None and (least is None or remaining < least):
                least, moved_on = remaining, time.monotonic()
                move.remaining = remaining
                save()
        now = time.monotonic()
        if now - moved_on > STALL_S or now - began > limit:
            move.error = f"given up after {now - began:.0f} s: {'no progress' if now - began <= limit else 'too long'}"
            with contextlib.suppress(libvirt.libvirtError):
                domain.abortJob()
            return


def _settle(connection: Any, move: Move, path: Path) -> None:
    """Decide from both ends what became of a move, and note it; on ambiguity nothing is started or destroyed."""
    here = guests.is_running(connection, move.guest)
    try:
        peer = libvirt.openReadOnly(peer_uri(move.destination_address))
    except libvirt.libvirtError as error:
        if move.state == "running":  # libvirt said it went well
            move.state = "moved"
        move.error = move.error or f"the destination does not answer afterwards: {error}"
        return
    there = guests.is_running(peer, move.guest)
    if there and not here:
        move.state, move.error = "moved", ""
        _statistics(peer, move)
        guests.forget(path)
    elif here and not there:
        if move.state == "running":
            move.state = "failed"
        move.error = move.error or "libvirt reports success, but the guest still runs here"
        _pin_again(connection, move, path)
    else:
        where = "on both ends" if here else "on neither end"
        move.state = "failed"
        move.error = (
            f"guest {move.guest} runs {where} ({move.error or 'no error was reported'}). Nothing was started or "
            f"destroyed: look at {move.source} and {move.destination} and decide"
        )
    peer.close()


def _statistics(peer: Any, move: Move) -> None:
    """Libvirt's own figures of the completed move, from the destination (the source forgot the guest)."""
    domain = guests.find(peer, move.guest)
    if domain is None:
        return
    with contextlib.suppress(libvirt.libvirtError):
        stats = domain.jobStats(libvirt.VIR_DOMAIN_JOB_STATS_COMPLETED | libvirt.VIR_DOMAIN_JOB_STATS_KEEP_COMPLETED)
        move.downtime_ms = stats.get("downtime")
        move.bytes = stats.get("data_processed") or stats.get("memory_processed")
        move.memory_bps = stats.get("memory_bps")
        move.iterations = stats.get("memory_iteration")
        if stats.get("time_elapsed"):
            move.elapsed_s = stats["time_elapsed"] / 1000


def _pin_again(connection: Any, move: Move, path: Path) -> None:
    """Put a guest that stayed back on its cores: auto-converge and an abort may have changed what it may use."""
    state = guest_state.read(path) or {}
    domain = guests.find(connection, move.guest)
    if domain is None or not state.get("cores"):
        return
    cores = set(state["cores"])
    width = max(os.cpu_count() or 1, max(cores) + 1)
    with contextlib.suppress(libvirt.libvirtError):
        for vcpu in range(domain.maxVcpus()):
            domain.pinVcpu(vcpu, tuple(core in cores for core in range(width)))


def _after_a_dead_mover(record: Record) -> Record:
    """The process that moved the guests is gone: libvirt's daemons may still be moving them. Ask both ends."""
    connection = guests.connect()
    for move in record.moves:
        if move.state in ("moved", "failed", "cancelled"):
            continue
        deadline = time.monotonic() + LEAST_LIMIT_S
        while time.monotonic() < deadline:
            domain = guests.find(connection, move.guest)
            if domain is None or domain.jobInfo()[0] == libvirt.VIR_DOMAIN_JOB_NONE:
                break
            time.sleep(0.5)
        move.error = "the process that moved it ended"
        with guest_state.locked(move.guest, f"migration of {record.evacuation}") as path:
            _settle(connection, move, path)
    record.ended = time.time()
    write_record(record)
    return record
