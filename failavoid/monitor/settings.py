"""The monitor's settings, from /etc/failavoid/monitor.yml."""

from __future__ import annotations

from dataclasses import dataclass, field

from failavoid.monitor.rules import RULES, RuleSettings
from failavoid.services import Tls

METRICS = ("unavailable", "active")


@dataclass(frozen=True)
class Settings:
    """What the monitor can be told. ``rule`` raises alarms; all others run beside it and are noted."""

    listen: str = "0.0.0.0"
    port: int = 7411  # TCP: the API; UDP: samples
    tls: Tls = field(default_factory=Tls)
    secret: str = "/etc/failavoid/secret"
    resource_manager: str = "https://127.0.0.1:7412"
    controller: str = "https://127.0.0.1:7413"
    interval_s: float = 1.0  # between judgements: the hosts' sampling interval
    stale_s: float = 5.0  # a host's last value counts for this long
    history_s: float = 3600.0
    reraise_s: float = 30.0  # an alarm whose cause stays is raised again after this
    rule: str = "robust"
    metric: str = "unavailable"
    rules: RuleSettings = field(default_factory=RuleSettings)

    def __post_init__(self) -> None:
        self.tls.check(self.listen)
        if self.rule not in RULES:
            raise ValueError(f"setting 'rule' is {self.rule!r}; use one of {', '.join(RULES)}")
        if self.metric not in METRICS:
            raise ValueError(f"setting 'metric' is {self.metric!r}; use one of {', '.join(METRICS)}")
        if not 0 < self.port < 65536:
            raise ValueError(f"setting 'port' is {self.port}; it must be from 1 to 65535")
        for name, low, high in (
            ("interval_s", 0.05, 60.0),
            ("stale_s", 0.1, 600.0),
            ("history_s", 1.0, 7 * 86400.0),
            ("reraise_s", 1.0, 86400.0),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                raise ValueError(f"setting {name!r} is {value}; it must be from {low:g} to {high:g}")
        for name in ("resource_manager", "controller"):
            if not getattr(self, name).startswith(("http://", "https://")):
                raise ValueError(f"setting {name!r} is {getattr(self, name)!r}; give it as https://ADDRESS:PORT")
