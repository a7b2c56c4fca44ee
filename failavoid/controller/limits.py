"""How long evacuations wait for others, and what they do where there is a choice."""

from __future__ import annotations

from dataclasses import dataclass, fields

from failavoid.shared.messages import ON_DEADLINE, ON_DEVICES

MODES = ("act", "recommend", "observe")


@dataclass
class Limits:
    """How long an evacuation waits for others, in seconds."""

    gather_timeout_s: float = 60.0  # for ranks to find the notice, where no time of failure is predicted
    gather_minimum_s: float = 2.0  # however close the failure is
    expected_migration_s: float = 10.0  # kept free before the predicted failure, or longer by the plan
    on_deadline: str = "migrate"  # of ON_DEADLINE, for jobs that don't say
    migration_timeout_s: float = 300.0  # for the playbook, beside the guests' memory
    migration_s_per_gib: float = 120.0  # on top, for each GiB of the guests that move
    settle_timeout_s: float = 30.0  # for both hosts to agree where a guest is
    cut_off_timeout_s: float = 900.0  # instead of these, while most hosts are silent: the head is cut off then
    reach_timeout_s: float = 20.0  # for a moved guest and its peer to say that it can be reached
    resume_timeout_s: float = 30.0  # for ranks to say that they run again
    retry_s: float = 2.0  # between attempts to reach the resource manager
    give_back_timeout_s: float = 30.0  # for the playbook to end and the spare to be returned after a cancellation
    join_timeout_s: float = 2.0  # for evacuations of the same job that begin at the same time, to share its notice
    confirm_timeout_s: float = 3600.0  # for a person to confirm, in mode recommend

    def __post_init__(self) -> None:
        one_of("on_deadline", self.on_deadline, ON_DEADLINE)
        for limit in fields(self):
            value = getattr(self, limit.name)
            if isinstance(value, float) and not 0 < value <= 86400:
                raise ValueError(f"setting {limit.name!r} is {value}; it must be from 0 to 86400 seconds")


@dataclass
class Policy:
    """What an evacuation does where there is a choice, and what its plan reckons with."""

    attempts: int = 3  # spares that are tried, where one fails
    on_no_spare: str = "pack"  # pack onto hosts of the job that have room | leave the guests where they are
    on_short_lead: str = "migrate"  # migrate all the same | cancel: where the plan says that nothing helps
    on_devices: str = "refuse"  # of ON_DEVICES, for jobs that don't say: refuse to move their guests, or unplug them
    checkpoint_s: float = 0.0  # that a checkpoint takes; 0: no job is relied on to write one in time
    bandwidth_bps: float = 125e6  # bytes a second from host to host, until moves were measured
    overhead_s: float = 2.0  # of an evacuation beside the transfer

    def __post_init__(self) -> None:
        one_of("on_no_spare", self.on_no_spare, ("pack", "leave"))
        one_of("on_short_lead", self.on_short_lead, ("migrate", "cancel"))
        one_of("on_devices", self.on_devices, ON_DEVICES)
        if not 1 <= self.attempts <= 10:
            raise ValueError(f"setting 'attempts' is {self.attempts}; it must be from 1 to 10")
        if self.bandwidth_bps <= 0:
            raise ValueError(f"setting 'bandwidth_bps' is {self.bandwidth_bps}; give bytes a second, more than 0")
        for name in ("checkpoint_s", "overhead_s"):
            if getattr(self, name) < 0:
                raise ValueError(f"setting {name!r} is {getattr(self, name)}; give seconds, 0 or more")


def one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    """Raise ValueError if a setting is none of the words it may be."""
    if value not in known:
        raise ValueError(f"setting {name!r} is {value!r}; use one of {', '.join(known)}")
