"""What the parts say to each other: the HTTP API's documents, as dataclasses.

Times are seconds since the epoch on the clock of whoever writes them, durations are
seconds, memory is kB as in /proc/meminfo, sizes of transfers are bytes.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
import types
import typing
from dataclasses import dataclass, field
from typing import Any, Dict, List, Optional, Tuple, Type, TypeVar

T = TypeVar("T")

POOLS = ("free", "allocated", "suspect", "defunct")
MARKS = ("drained", "suspect", "retired")
POLICIES = ("migrate", "checkpoint", "off")  # of a job whose host is about to fail
ON_DEADLINE = ("migrate", "cancel")  # when not all ranks stopped in time
ON_DEVICES = ("refuse", "unplug")  # to move guests that devices are passed through to
RESOURCES = ("guests", "hosts")
NOTICE_KINDS = ("move", "checkpoint")
EVACUATION_ENDS = ("RETIRED", "MOVED", "CHECKPOINTED", "CANCELLED", "FAILED")


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
    "psi_cpu",  # share of the last 10 s in which some task waited for it, 0..1
    "psi_memory",
    "psi_io",
    "psi_memory_full",  # in which all tasks waited at once
    "ecc_corrected",  # errors since the host booted
    "ecc_uncorrected",
    "ecc_corrected_per_h",  # over the last hour
    "temperature_c",  # of the hottest sensor
    "temperature_margin_c",  # the least distance of a sensor to its own critical temperature
    "fan_rpm",  # of the slowest fan
    "voltage_deviation",  # of the worst rail: 0 in the middle of its own limits, 1 at one of them
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
    move_recommended: bool = True  # False: the guests grow, and no free host has room for all of their memory
    relative_probability: Optional[float] = None  # of the value, by what was learned of the application; 0..1
    correlative_distance: Optional[float] = None  # Mahalanobis, of several metrics from the group's


@dataclass
class Alarm:
    """A predicted failure of ``host``, which runs guests of ``job``.

    With ``domain`` (``rack=r1``) all hosts of that failure domain are about to fail; ``host`` and ``job`` are empty.
    """

    id: str
    time: float
    host: str
    job: str
    rule: str
    metric: str
    value: float
    evidence: Evidence
    domain: str = ""


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
class Prediction:
    """What one rule, acting or not, said of a host of a job, and what came of it.

    ``outcome``: open | true (the host reached failure) | false (the rule no longer holds, or nothing came in time) |
    unknown (the host left its job before) | missed (the host failed, and the rule had said nothing).
    """

    id: str
    rule: str
    acting: bool
    mode: str  # the failure mode: memory, or one of the settings' modes
    host: str
    job: str
    time: float
    value: float
    predicted_failure_s: Optional[float] = None
    predicted_failure_interval_s: Optional[List[float]] = None
    doubt: Optional[float] = None  # of the logarithm of that time, its standard deviation as it was thought
    outcome: str = "open"
    ended: Optional[float] = None
    lead_s: Optional[float] = None  # from the prediction to the failure


@dataclass
class RuleScore:
    """How good one rule's predictions of a failure mode were so far."""

    rule: str
    mode: str
    acting: bool
    predictions: int
    true: int
    false: int
    unknown: int
    open: int
    missed: int
    precision: Optional[float]  # true / (true + false)
    recall: Optional[float]  # true / (true + missed)
    lead_median_s: Optional[float]
    lead_p5_s: Optional[float]
    interval_coverage: Optional[float]  # share of true ones whose failure was within the interval


@dataclass
class Predictions:
    """What each rule has predicted, and how often that was right."""

    rules: List[RuleScore]
    predictions: List[Prediction]


@dataclass
class Distribution:
    """What was learned of an application's use in ``runs``: how often ``metric`` was in each of the bins."""

    application: str
    metric: str
    runs: int
    bins: int
    counts: List[float]


@dataclass
class Finding:
    """What a person should know of a job or a node, and no alarm; ``ended`` when it was over.

    ``kind``: pressure (most hosts of a job are in danger: the application is at work) | alone (too few hosts to
    compare) | silent (no samples) | lossy (samples get lost) | delayed (samples come late) | skewed (a clock is off).
    """

    kind: str
    subject: str  # a job, a host or a guest
    time: float
    text: str
    ended: Optional[float] = None


@dataclass
class NodeHealth:
    """How a node's samples arrive. ``skew_s``: its clock less the monitor's, by the quickest of the last samples.

    ``recent_loss`` is the share of its last one or two minutes' samples that never came, ``delay_s`` how much later the
    last one came than the quickest.
    """

    node: str
    kind: str  # host | guest
    last: float  # arrival, the monitor's clock
    received: int
    lost: int
    recent_loss: float
    delay_s: float
    skew_s: float
    silent: bool


@dataclass
class HostHistory:
    """A host's ``metric`` over time, as the display draws it: on a scale of 0..1, None where nothing was heard.

    ``centre`` is that of the hosts it is compared with; beyond ``low`` and ``high`` it is an outlier. The levels of
    danger and failure are given for the metric that is judged.
    """

    host: str
    metric: str
    times: List[float]
    values: List[Optional[float]]
    centre: List[Optional[float]]
    low: List[Optional[float]]
    high: List[Optional[float]]
    peers: int
    threshold: Optional[float] = None
    failure: Optional[float] = None


@dataclass
class HostCores:
    """The share of each core in use, 0..1."""

    host: str
    cores: List[float]


@dataclass
class Recording:
    """The hosts' ``metric`` while an evacuation went on: ``frames`` are base64 of a byte a host, of each of ``times``.

    The byte is the share in steps of 1/254; 255 is a host that was silent.
    """

    evacuation: str
    metric: str
    hosts: List[str]
    times: List[float]
    frames: List[str]


@dataclass
class Mark:
    """What keeps a host from new work, and whose word that is: the program clears no mark but its own."""

    kind: str  # of MARKS
    who: str
    by_program: bool  # not set by a person
    time: float
    reason: str


@dataclass
class Device:
    """A host's PCI device that can be passed through to a guest; the same ``kind`` does the same on every host."""

    kind: str
    address: str  # of PCI on its host, such as 0000:3b:02.1


@dataclass
class Host:
    """A physical node. ``numa`` maps NUMA nodes' numbers to cores, ``domains`` kinds of failure domain to names.

    ``hugepages`` are those that were set aside: NUMA node -> size of a page in kB -> number of pages. They are part of
    ``memory_kb``. ``devices`` are for guests: kind -> PCI addresses.

    ``pool`` and ``reason`` follow from the marks, the jobs and the leases: retired is defunct, a job makes it
    allocated, another mark suspect. A reserved spare takes the guests of evacuations alone.
    """

    name: str
    address: str
    pool: str = "free"
    memory_kb: int = 0
    numa: Dict[str, List[int]] = field(default_factory=dict)
    reason: str = ""
    warnings: List[str] = field(default_factory=list)
    marks: List[Mark] = field(default_factory=list)
    hardware_class: str = ""  # guests move between hosts of one class
    reserved_spare: bool = False
    domains: Dict[str, str] = field(default_factory=dict)  # e.g. {"rack": "r1", "psu": "p3"}
    hugepages: Dict[str, Dict[str, int]] = field(default_factory=dict)
    devices: Dict[str, List[str]] = field(default_factory=dict)


@dataclass
class Guest:
    """A job's virtual resource: one KVM guest, pinned to ``cores`` of one NUMA node.

    A warm guest has booted and waits for its job: it is ``user``'s, or anyone's if that is empty.
    """

    name: str
    uuid: str
    host: str
    address: str
    memory_kb: int
    cores: List[int]
    numa_node: int
    user: str
    # booting | warm | relocating (to a host of its job) | assigned (is being told its user and job) | ready | lost
    state: str = "booting"
    job: Optional[str] = None
    image: str = ""  # digest of the system image it booted
    hardware_class: str = ""  # of the host it booted on: where its CPU is known to work
    idle_since: Optional[float] = None  # when its last job ended
    hugepage_kb: int = 0  # size of the pages that back its memory; 0: ordinary ones
    devices: List[Device] = field(default_factory=list)  # of its host, passed through to it


@dataclass
class JobRequest:
    """What a user asks for. Guests are placed ``guests_per_host`` to a host, a rank in each.

    A job on ``hosts`` runs without guests: nothing of it can move, an alarm leads to a notice and a checkpoint.
    """

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
    guest_vcpus: int = 1
    hardware_class: str = ""  # of its hosts; empty: any one
    resource: str = ""  # of RESOURCES; empty: the site's choice, by the expected time
    expected_s: Optional[float] = None  # how long the job will run
    on_deadline: str = ""  # of ON_DEADLINE; empty: the site's
    guest_hugepage_kb: Optional[int] = None  # 0: ordinary pages; None: the site's
    guest_devices: List[str] = field(default_factory=list)  # kinds of what is passed through to each guest
    on_devices: str = ""  # of ON_DEVICES; empty: the site's


@dataclass
class Job:
    """A job and the guests its ranks run on, or the ``hosts`` if its ``resource`` is these."""

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
    known_hosts: str = ""  # host keys of what the ranks run on, in the form of ssh's known_hosts
    resource: str = "guests"  # of RESOURCES
    hosts: List[str] = field(default_factory=list)  # given without guests


@dataclass
class JobAlive:
    """A job's client is there, and asks for the job once its state is not ``state``, or after ``timeout`` seconds."""

    state: str = ""
    timeout: float = 0.0


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
class Assigned:
    """A warm guest has its user, or ``error`` says why not."""

    error: str = ""


@dataclass
class Reason:
    """Why something is done, for the people who will ask."""

    reason: str = ""


@dataclass
class Cause:
    """Why a host is marked, and for which evacuation and job if it is for one."""

    reason: str = ""
    evacuation: str = ""
    job: str = ""


@dataclass
class LeaseRequest:
    """Asks for a host that an evacuation's guests can move to; asked again, the same lease is renewed.

    A free host is given, never one of ``avoid_hosts`` or of a failure domain (``rack=r1``) of ``avoid_domains``. With
    ``host`` that one alone will do, with ``packed_onto`` those. Where no free host is left, one that an evacuation of
    ``beside`` has leased may be shared; with ``pack`` it is an allocated host of the guests' job that has room for
    them, or several of these.
    """

    evacuation: str
    guests: List[str] = field(default_factory=list)
    avoid_hosts: List[str] = field(default_factory=list)
    avoid_domains: List[str] = field(default_factory=list)
    beside: List[str] = field(default_factory=list)
    pack: bool = False
    host: str = ""
    packed_onto: List[str] = field(default_factory=list)


@dataclass
class Lease:
    """A spare held for an evacuation until ``expires``.

    ``packed_onto`` are all hosts, ``host`` among them, where no single one has room for all guests.
    """

    id: str
    host: str
    evacuation: str
    expires: float
    packed_onto: List[str] = field(default_factory=list)


@dataclass
class PlacementRequest:
    """Asks for cores for guests on a host."""

    guests: List[str]
    host: str


@dataclass
class Placement:
    """Where one guest is to run, or runs: ``cores`` are of NUMA node ``numa_node`` of ``host``, as are ``devices``."""

    guest: str
    host: str
    cores: List[int]
    numa_node: int
    devices: List[Device] = field(default_factory=list)


@dataclass
class RelocationRequest:
    """Asks that guests without ranks move to the hosts of the job that takes them; ``id`` is the asker's."""

    id: str
    job: str
    placements: List[Placement]


@dataclass
class Commit:
    """Says that the guests of a lease's evacuation now run where they were placed."""

    placements: List[Placement]


@dataclass
class Difference:
    """What a host's libvirt says otherwise than the mapping does; ``guest`` may be a stranger's name."""

    host: str
    guest: str
    words: str
    since: float


@dataclass
class Membership:
    """The resource manager's whole picture; ``version`` grows with every change."""

    version: int
    hosts: List[Host]
    guests: List[Guest]
    jobs: List[Job]
    differences: List[Difference] = field(default_factory=list)


@dataclass
class Assignment:
    """What a warm guest is told when a job takes it: the part of an identity that was open."""

    job: str
    user: Dict[str, Any]  # name, uid, gid
    authorized_keys: List[str]
    hosts: Dict[str, str]  # name -> address of all the job's guests and the head


@dataclass
class Arrival:
    """A guest that has moved, and the guest of its job that is to reach it at ``address``; ``peer`` may be empty."""

    guest: str
    address: str
    peer: str


@dataclass
class Notice:
    """What the ranks of a job are told through their guest's page, and the agents of its guests.

    ``epoch`` numbers the job's notices from 1; ``affected`` are the guests that will
    move; ``done`` and ``cancelled`` are the last epochs that ended either way.
    ``kind`` is that of the epoch: with ``checkpoint`` the application is to write a checkpoint, nothing moves, and the
    affected guests are those that are in danger. ``arrivals`` are for the agents: what to check before ranks run on.
    ``source`` and ``destination`` are the host that is left and the new one, for the line in the job's output.
    The ``affected`` of a job on hosts without guests are hosts; ``owner`` tells their agents the job's user and group.
    """

    job: str
    serial: int
    epoch: int
    affected: List[str]
    done: int
    cancelled: int
    kind: str = "move"  # of NOTICE_KINDS
    arrivals: List[Arrival] = field(default_factory=list)
    source: str = ""
    destination: str = ""
    owner: List[int] = field(default_factory=list)  # uid, gid


@dataclass
class GuestReport:
    """A guest's agent speaks for its ranks (how many live ones are registered), and of guests that have moved.

    So does the agent of a host that a job has without guests.

    ``ready``: all ranks have stopped at the barrier (of a notice of kind ``checkpoint``: each has written its
    checkpoint). ``resumed``: all run again. ``root``: this guest has moved, and its root file system answers.
    ``reached``: the guest ``about``, which has moved, can be reached from here.
    """

    job: str
    epoch: int
    state: str  # ready | resumed | root | reached
    ranks: int
    about: str = ""


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
    dirty_bps: Optional[int] = None  # bytes that the guest wrote to its memory in a second, meanwhile
    pin_verified: Optional[bool] = None
    error: str = ""
    address: str = ""  # the guest's: its tap on the destination may speak with it
    attempt: int = 1  # of the evacuation; a guest that stayed moves in a later one
    devices: List[Device] = field(default_factory=list)  # of the destination, plugged in there


@dataclass
class Relocation:
    """The moves of guests that no ranks run in yet; ``ended`` once it is known where each of them is.

    Their states are then ``moved``, ``failed`` (it stayed where it was) or ``running`` (where it is is not clear).
    """

    id: str
    job: str
    migrations: List[Migration]
    begun: float
    ended: Optional[float] = None
    error: str = ""


@dataclass
class Step:
    """A step of an evacuation: ``begun`` before its side effect, ``done`` after it."""

    name: str
    begun: float
    done: Optional[float] = None
    detail: str = ""


@dataclass
class GuestPlan:
    """What is expected of one guest's move. ``devices`` of the source are passed through to it and can't move.

    Of a job on hosts without guests it is the host, and nothing moves.
    """

    guest: str
    memory_kb: int
    seconds: float
    dirty_bps: Optional[float] = None  # bytes it writes to its memory in a second
    devices: List[str] = field(default_factory=list)


@dataclass
class Plan:
    """What is best done for a job's guests on a host that is about to fail, estimated before anything is stopped."""

    host: str
    job: str
    decision: str  # migrate | checkpoint | nothing helps | off
    reasons: List[str]
    needed_s: float  # for the whole evacuation once its ranks have stopped
    lead_s: Optional[float] = None  # until the predicted failure
    bandwidth_bps: float = 0.0  # bytes a second
    guests: List[GuestPlan] = field(default_factory=list)


@dataclass
class Evacuation:
    """All guests of a job leave a host. States: docs/evacuations.md.

    ``attempt`` counts the spares that were tried; ``failed_spares`` are those that were given up, with the reason.
    ``packed_onto`` are all hosts that guests go to, the ``spare`` among them, where that is not one alone.
    ``cancel`` is why it is to end before its guests move, from the moment on at which that was granted.
    """

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
    kind: str = "move"  # of NOTICE_KINDS
    domain: str = ""  # the failure domain it was begun for, e.g. rack=r1
    plan: Optional[Plan] = None
    attempt: int = 1
    failed_spares: Dict[str, str] = field(default_factory=dict)
    cancel: str = ""
    needs_confirmation: bool = False
    confirmed_by: str = ""
    packed_onto: List[str] = field(default_factory=list)


@dataclass
class EvacuationRequest:
    """An operator's order that guests leave a host, or all hosts of a failure domain (``rack=r1``)."""

    host: str
    reason: str = ""


@dataclass
class MoveProgress:
    """How far a guest's move has come, in bytes, as its source's libvirt says."""

    guest: str
    processed: int
    remaining: int


@dataclass
class ControllerStatus:
    """What the controller may do: ``mode`` act, recommend or observe; ``stopped`` while new evacuations are stopped."""

    mode: str
    stopped: bool = False
    stopped_by: str = ""
    reason: str = ""
    since: Optional[float] = None


@dataclass
class Event:
    """Something that happened at a service, or was done through it: ``number`` gives the order in its audit log."""

    number: int
    time: float
    who: str
    what: str
    detail: Dict[str, Any] = field(default_factory=dict)


@dataclass
class Events:
    """Events after a number, oldest first; ``last`` is the number to ask after next."""

    events: List[Event]
    last: int


@dataclass
class Gate:
    """Whether the guests of an evacuation may move now; ``cancelled`` ends the wait for good."""

    evacuation: str
    open: bool
    cancelled: bool = False


def to_dict(message: Any) -> Dict[str, Any]:
    """Return a message as plain dicts and lists, ready for JSON; nothing of it is shared with the message."""
    return typing.cast(Dict[str, Any], _encode(message))


def _encode(value: Any) -> Any:
    """As dataclasses.asdict, which takes thrice as long: a whole membership is written and read all the time."""
    if isinstance(value, (str, int, float, type(None))):
        return value
    if isinstance(value, (list, tuple)):
        return [_encode(one) for one in value]
    if isinstance(value, dict):
        return {key: _encode(one) for key, one in value.items()}
    kind: Any = type(value)
    return {name: _encode(getattr(value, name)) for name in _fields(kind)[0]}


def from_dict(cls: Type[T], data: Any) -> T:
    """Build a message from parsed JSON. Raises ValueError that names the field at fault."""
    return typing.cast(T, _decode(cls, data, cls.__name__))


_hints = functools.lru_cache(maxsize=None)(typing.get_type_hints)  # finding them out takes longer than all the rest


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
    if kind is float and type(data) in (int, float):
        # JSON as Python reads it has NaN and Infinity, which no comparison and no answer can be made with
        if not -sys.float_info.max <= data <= sys.float_info.max:
            raise ValueError(f"{where}: a finite number is needed")
        return float(data)
    if not isinstance(data, kind) or (isinstance(data, bool) and kind is not bool):
        raise ValueError(f"{where}: {kind.__name__} is needed, not {data!r}")
    if kind is str and any("\ud800" <= letter <= "\udfff" for letter in data):  # JSON can say it, nothing can write it
        raise ValueError(f"{where}: {data!r} is no Unicode text")
    return data


def _decode_dataclass(kind: Any, data: Any, where: str) -> Any:
    if not isinstance(data, dict):
        raise ValueError(f"{where}: an object is needed, not {type(data).__name__}")
    hints, required = _fields(kind)
    unknown = sorted(set(data) - set(hints))
    if unknown:
        raise ValueError(f"{where}: unknown field {unknown[0]!r}; known are {', '.join(hints)}")
    for name in required:
        if name not in data:
            raise ValueError(f"{where}: field {name!r} is missing")
    values = {name: _decode(hints[name], value, f"{where}.{name}") for name, value in data.items()}
    try:
        return kind(**values)
    except ValueError as error:  # of a check of its own, which does not know where it is
        if "." not in where and "[" not in where:
            raise
        raise ValueError(f"{where}: {error}") from error


@functools.cache
def _fields(kind: Any) -> Tuple[Dict[str, Any], Tuple[str, ...]]:
    """A message's fields with their types, and those without a default; evaluating annotations takes its time."""
    hints, fields = typing.get_type_hints(kind), dataclasses.fields(kind)
    missing = dataclasses.MISSING
    required = (f.name for f in fields if f.default is missing and f.default_factory is missing)
    return {f.name: hints[f.name] for f in fields}, tuple(required)
