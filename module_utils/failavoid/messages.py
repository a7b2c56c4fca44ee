"""What the parts say to each other: the HTTP API's documents, as dataclasses.

Times are seconds since the epoch on the clock of whoever writes them, durations are
seconds, memory is kB as in /proc/meminfo, sizes of transfers are bytes.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from dataclasses import dataclass, field
from typing import Any, Dict, List, Optional, Type, TypeVar

T = TypeVar("T")

POOLS = ("free", "allocated", "defunct")
POLICIES = ("migrate", "off")


@dataclass
class Sample:
    """One collection on one node. ``metrics`` holds the names of METRICS that the node offers."""

    node: str
    kind: str  # host | guest
    time: float
    metrics: Dict[str, float]
    cores: List[float] = field(default_factory=list)  # share of each core in use, 0..1


METRICS = (
    "mem_total_kb",
    "mem_available_kb",
    "mem_active_kb",
    "guests_rss_kb",  # hosts only: resident memory of the guests' QEMU processes
    "swap_used_kb",
    "cpu",  # share of all cores in use, 0..1
    "load1",
)


@dataclass
class Evidence:
    """Why an alarm was raised, so that a person can judge it."""

    value: float  # of the metric, as a share of the host's memory, 0..1
    centre: float  # of the group: mean or median, by the rule
    scale: float  # of the group: standard deviation or scaled MAD, by the rule
    z: float
    threshold: float
    slope_per_s: Optional[float] = None
    predicted_failure_s: Optional[float] = None  # from the alarm on
    predicted_failure_interval_s: Optional[List[float]] = None  # [earliest, latest], 80 %
    pressure_from: Optional[str] = None  # host | guests
    peers: int = 0
    settings: Dict[str, Any] = field(default_factory=dict)


@dataclass
class Alarm:
    """A predicted failure of ``host``, which runs guests of ``job``."""

    id: str
    time: float
    host: str
    job: str
    rule: str
    metric: str
    value: float
    evidence: Evidence


@dataclass
class RuleEvent:
    """The first time a rule, acting or not, held for a host of a job."""

    rule: str
    host: str
    job: str
    time: float
    metric: str
    value: float


@dataclass
class Host:
    """A physical node. ``numa`` maps a NUMA node's number to its cores."""

    name: str
    address: str
    pool: str = "free"
    memory_kb: int = 0
    numa: Dict[str, List[int]] = field(default_factory=dict)
    reason: str = ""
    warnings: List[str] = field(default_factory=list)


@dataclass
class Guest:
    """A job's virtual resource: one KVM guest, pinned to ``cores`` of one NUMA node."""

    name: str
    uuid: str
    host: str
    address: str
    memory_kb: int
    cores: List[int]
    numa_node: int
    user: str
    state: str = "booting"  # booting | ready | lost
    job: Optional[str] = None
    image: str = ""  # digest of the system image it booted


@dataclass
class JobRequest:
    """What a user asks for. Guests are placed ``guests_per_host`` to a host, a rank in each."""

    user: str
    uid: int
    gid: int
    public_key: str  # the user's, for SSH to the guests
    hosts: int
    guests_per_host: int = 1
    guest_memory_kb: int = 262144
    policy: str = "migrate"
    every: int = 1  # ranks look for a notice at every n-th barrier
    name: str = "job"


@dataclass
class Job:
    """A job and the guests its ranks run on."""

    id: str
    request: JobRequest
    state: str  # allocating | ready | running | completed | failed
    guests: List[str] = field(default_factory=list)
    command: List[str] = field(default_factory=list)
    created: float = 0.0
    started: Optional[float] = None
    ended: Optional[float] = None
    exit_status: Optional[int] = None
    message: str = ""
    image: str = ""
    known_hosts: str = ""  # host keys of the guests, in the form of ssh's known_hosts


@dataclass
class JobStarted:
    """A job's client says what it runs in the job's guests."""

    command: List[str] = field(default_factory=list)


@dataclass
class JobEnded:
    """A job's client says how its program ended; ``exit_status`` is null where there is none."""

    exit_status: Optional[int] = None
    message: str = ""


@dataclass
class Lease:
    """A spare held for an evacuation until ``expires``."""

    id: str
    host: str
    evacuation: str
    expires: float


@dataclass
class LeaseRequest:
    """Asks for a spare for an evacuation; asked again, the same one."""

    evacuation: str


@dataclass
class PlacementRequest:
    """Asks for cores for guests on a host."""

    guests: List[str]
    host: str


@dataclass
class Placement:
    """Where one guest is to run, or runs: ``cores`` are of NUMA node ``numa_node`` of ``host``."""

    guest: str
    host: str
    cores: List[int]
    numa_node: int


@dataclass
class Commit:
    """Says that the guests of a lease's evacuation now run where they were placed."""

    placements: List[Placement]


@dataclass
class Reason:
    """Why something is done, for the people who will ask."""

    reason: str = ""


@dataclass
class Membership:
    """The resource manager's whole picture; ``version`` grows with every change."""

    version: int
    hosts: List[Host]
    guests: List[Guest]
    jobs: List[Job]


@dataclass
class Notice:
    """What the ranks of a job are told through their guest's page.

    ``epoch`` numbers the job's notices from 1; ``affected`` are the guests that will
    move; ``done`` and ``cancelled`` are the last epochs that ended either way.
    """

    job: str
    serial: int
    epoch: int
    affected: List[str]
    done: int
    cancelled: int


@dataclass
class GuestReport:
    """A guest's agent speaks for its ranks: how many live ones are registered and stopped."""

    job: str
    epoch: int
    state: str  # ready (all stopped at the barrier) | resumed (all run again)
    ranks: int


@dataclass
class Migration:
    """The move of one guest, with libvirt's own statistics once it has ended."""

    guest: str
    source: str
    destination: str
    cores: List[int]
    numa_node: int
    state: str = "planned"  # planned | running | moved | failed | cancelled
    elapsed_s: Optional[float] = None
    downtime_ms: Optional[float] = None
    bytes: Optional[int] = None
    memory_bps: Optional[int] = None
    iterations: Optional[int] = None
    pin_verified: Optional[bool] = None
    error: str = ""
    address: str = ""  # the guest's: its tap on the destination may speak with it


@dataclass
class Step:
    """A step of an evacuation: ``begun`` before its side effect, ``done`` after it."""

    name: str
    begun: float
    done: Optional[float] = None
    detail: str = ""


@dataclass
class Evacuation:
    """All affected guests of a host leave it. States: ARCHITECTURE in docs."""

    id: str
    host: str
    job: str
    state: str
    epoch: int = 0
    alarm: Optional[Alarm] = None
    reason: str = ""
    spare: Optional[str] = None
    lease: Optional[str] = None
    steps: List[Step] = field(default_factory=list)
    migrations: List[Migration] = field(default_factory=list)
    error: str = ""


@dataclass
class EvacuationRequest:
    """An operator's order that guests leave a host."""

    host: str
    reason: str = ""


@dataclass
class Gate:
    """Whether the guests of an evacuation may move now; ``cancelled`` ends the wait for good."""

    evacuation: str
    open: bool
    cancelled: bool = False


def to_dict(message: Any) -> Dict[str, Any]:
    """Return a message as plain dicts and lists, ready for JSON."""
    return dataclasses.asdict(message)


def from_dict(cls: Type[T], data: Any) -> T:
    """Build a message from parsed JSON. Raises ValueError that names the field at fault."""
    return typing.cast(T, _decode(cls, data, cls.__name__))


def _decode(kind: Any, data: Any, where: str) -> Any:
    origin = typing.get_origin(kind)
    if dataclasses.is_dataclass(kind):
        return _decode_dataclass(kind, data, where)
    if origin in (typing.Union, getattr(types, "UnionType", typing.Union)):
        if data is None:
            return None
        return _decode(next(arg for arg in typing.get_args(kind) if arg is not type(None)), data, where)
    if origin is list:
        if not isinstance(data, list):
            raise ValueError(f"{where}: a list is needed, not {type(data).__name__}")
        (item,) = typing.get_args(kind)
        return [_decode(item, value, f"{where}[{i}]") for i, value in enumerate(data)]
    if origin is dict:
        if not isinstance(data, dict):
            raise ValueError(f"{where}: an object is needed, not {type(data).__name__}")
        _key, item = typing.get_args(kind)
        return {key: _decode(item, value, f"{where}.{key}") for key, value in data.items()}
    if kind is Any:
        return data
    if kind is float and isinstance(data, int) and not isinstance(data, bool):
        return float(data)
    if not isinstance(data, kind) or (isinstance(data, bool) and kind is not bool):
        raise ValueError(f"{where}: {kind.__name__} is needed, not {data!r}")
    if kind is str and any("\ud800" <= letter <= "\udfff" for letter in data):  # JSON can say it, nothing can write it
        raise ValueError(f"{where}: {data!r} is no Unicode text")
    return data


def _decode_dataclass(kind: Any, data: Any, where: str) -> Any:
    if not isinstance(data, dict):
        raise ValueError(f"{where}: an object is needed, not {type(data).__name__}")
    hints = typing.get_type_hints(kind)
    known = {f.name: f for f in dataclasses.fields(kind)}
    unknown = sorted(set(data) - set(known))
    if unknown:
        raise ValueError(f"{where}: unknown field {unknown[0]!r}; known are {', '.join(known)}")
    for name, f in known.items():
        required = f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        if required and name not in data:
            raise ValueError(f"{where}: field {name!r} is missing")
    return kind(**{name: _decode(hints[name], value, f"{where}.{name}") for name, value in data.items()})
