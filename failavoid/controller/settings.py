"""The controller's settings, from /etc/failavoid/controller.yml."""

from __future__ import annotations

from dataclasses import dataclass, field

from failavoid.controller.limits import MODES, Limits, Policy, one_of
from failavoid.services import Tls, check_url


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
    mode: str = "act"  # act | recommend: a person confirms each evacuation | observe: alarms are only recorded
    limits: Limits = field(default_factory=Limits)
    policy: Policy = field(default_factory=Policy)

    def __post_init__(self) -> None:
        self.tls.check(self.listen)
        one_of("mode", self.mode, MODES)
        for name in ("url", "resource_manager"):
            check_url(name, getattr(self, name))
        if not 0 < self.port < 65536:
            raise ValueError(f"setting 'port' is {self.port}; it must be from 1 to 65535")
