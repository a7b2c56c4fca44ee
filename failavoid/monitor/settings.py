"""The monitor's settings, from /etc/failavoid/monitor.yml."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from failavoid.prediction.modes import Mode
from failavoid.prediction.settings import RULES, RuleSettings
from failavoid.services import Tls, check_url

METRICS = ("unavailable", "active")
OCCASIONS = ("alarm", "evacuation", "no-spare", "silent")  # of alerts


@dataclass(frozen=True)
class SourceSettings:
    """Where samples come from: ``kind`` names a plug-in (`sources`), ``options`` are its own."""

    kind: str
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class AlertSettings:
    """Somebody who is told of ``occasions``: a ``webhook``, which is posted JSON at ``url``, or ``mail``."""

    kind: str
    url: str = ""
    to: list[str] = field(default_factory=list)
    sender: str = "failavoid@localhost"
    server: str = "localhost"
    port: int = 25
    starttls: bool = False
    occasions: list[str] = field(default_factory=lambda: list(OCCASIONS))

    def __post_init__(self) -> None:
        if self.kind not in ("webhook", "mail"):
            raise ValueError(f"setting 'kind' is {self.kind!r}; use webhook or mail")
        if self.kind == "webhook" and not self.url.startswith(("http://", "https://")):
            raise ValueError(f"setting 'url' of a webhook is {self.url!r}; give it as https://...")
        if self.kind == "mail" and not self.to:
            raise ValueError("setting 'to' is empty: mail to nobody; give its receivers as [ADDRESS]")
        for occasion in self.occasions:
            if occasion not in OCCASIONS:
                raise ValueError(f"setting 'occasions' has {occasion!r}; use some of {', '.join(OCCASIONS)}")

    @property
    def name(self) -> str:
        """For messages; a webhook's path may hold a secret."""
        return ", ".join(self.to) if self.kind == "mail" else "/".join(self.url.split("/")[:3])


@dataclass(frozen=True)
class Settings:
    """What the monitor can be told. ``rule`` raises alarms; all others run beside it and are noted."""

    listen: str = "0.0.0.0"
    port: int = 7411  # TCP: the API; UDP: samples
    tls: Tls = field(default_factory=Tls)
    secret: str = "/etc/failavoid/secret"
    state: str = ""  # folder of what is kept between runs; nothing is if empty
    archive_mb: int = 2048  # MiB of samples kept there; 0: none
    resource_manager: str = "https://127.0.0.1:7412"
    controller: str = "https://127.0.0.1:7413"
    interval_s: float = 1.0  # between judgements: the hosts' sampling interval
    stale_s: float = 5.0  # a host's last value counts for this long
    history_s: float = 3600.0
    history_mb: int = 1024  # MiB of memory that the history may take: beyond it the oldest samples go sooner
    reraise_s: float = 30.0  # an alarm whose cause stays is raised again after this
    judged_after_s: float = 3600.0  # a prediction that did not come true by then was wrong
    migration_factor: float = 2.0  # the horizon is at least this many times the slow migrations of this site
    rule: str = "robust"
    metric: str = "unavailable"
    rules: RuleSettings = field(default_factory=RuleSettings)
    applications: dict[str, dict[str, float]] = field(default_factory=dict)  # changes of ``rules`` for one application
    modes: list[Mode] = field(default_factory=list)  # failures other than of memory
    sources: list[SourceSettings] = field(default_factory=lambda: [SourceSettings("agents")])
    alerts: list[AlertSettings] = field(default_factory=list)
    display_url: str = ""  # under which people reach this service, for links in alerts

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
            ("history_mb", 1, 1 << 24),
            ("reraise_s", 1.0, 86400.0),
            ("judged_after_s", 1.0, 7 * 86400.0),
            ("migration_factor", 1.0, 100.0),
            ("archive_mb", 0, 1 << 24),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                raise ValueError(f"setting {name!r} is {value}; it must be from {low:g} to {high:g}")
        for name in ("resource_manager", "controller"):
            check_url(name, getattr(self, name))
        for application, changes in self.applications.items():
            try:
                self.rules.changed_by(changes)
            except ValueError as error:
                raise ValueError(f"setting 'applications', {application!r}: {error}") from error
        for mode in self.modes:
            try:
                mode.settings(self.rules)
            except ValueError as error:
                raise ValueError(f"setting 'modes', {mode.name!r}: {error}") from error
        names = [mode.name for mode in self.modes]
        if len(set(names)) < len(names):
            raise ValueError(f"setting 'modes' names one twice: {', '.join(names)}")

    def rules_of(self, application: str) -> RuleSettings:
        """The rules' settings for the memory of an application's hosts."""
        return self.rules.changed_by(self.applications.get(application, {}))
