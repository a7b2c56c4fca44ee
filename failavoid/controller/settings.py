"""The controller's settings, from /etc/failavoid/controller.yml."""

from __future__ import annotations

from dataclasses import dataclass, field, fields

from failavoid.controller.evacuation import Limits
from failavoid.services import Tls

ON_DEADLINE = ("migrate", "cancel")


@dataclass
class Settings:
    """What the controller can be told. ``url`` is where hosts reach it: migrations wait at its gate."""

    url: str
    listen: str = "0.0.0.0"
    port: int = 7413
    tls: Tls = field(default_factory=Tls)
    secret: str = "/etc/failavoid/secret"
    resource_manager: str = "https://127.0.0.1:7412"
    inventory: str = "/etc/failavoid/inventory"
    state_dir: str = "/var/lib/failavoid/controller"
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        self.tls.check(self.listen)
        for name in ("url", "resource_manager"):
            if not getattr(self, name).startswith(("http://", "https://")):
                raise ValueError(f"setting {name!r} is {getattr(self, name)!r}; give it as https://ADDRESS:PORT")
        if not 0 < self.port < 65536:
            raise ValueError(f"setting 'port' is {self.port}; it must be from 1 to 65535")
        if self.limits.on_deadline not in ON_DEADLINE:
            raise ValueError(
                f"setting 'on_deadline' is {self.limits.on_deadline!r}; use one of {', '.join(ON_DEADLINE)}"
            )
        for limit in fields(Limits):
            value = getattr(self.limits, limit.name)
            if isinstance(value, float) and not 0 < value <= 86400:
                raise ValueError(f"setting {limit.name!r} is {value}; it must be from 0 to 86400 seconds")
