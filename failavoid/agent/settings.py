"""The agent's settings: a small JSON file, readable by root alone because it holds the token."""

from __future__ import annotations

import json

KINDS = ("host", "guest")
INTERVAL_S = {"host": 1.0, "guest": 5.0}


class SettingsError(Exception):
    """Settings that can't be used: the message names the file, the setting and the way out."""


class Settings:
    """What one agent needs to know.

    ``monitor`` is the (address, port) samples go to, ``controller`` the base URL that a
    guest's agent asks for notices, ``resource_manager`` the one that a warm guest's asks for
    its user, ``authority`` the file of the authority that must have signed their certificates,
    ``metrics`` the names to send (all if None), ``plugins`` modules that offer more
    (`failavoid.agent.ipmi`), ``job_user`` the user and the group (numbers) of the job's ranks
    in a guest: nobody else can touch what they share with the agent.
    """

    __slots__ = (
        "authority",
        "controller",
        "interval_s",
        "job_user",
        "kind",
        "metrics",
        "monitor",
        "node",
        "plugins",
        "resource_manager",
        "token",
    )

    def __init__(
        self,
        node: str,
        kind: str,
        token: str,
        monitor: tuple[str, int],
        controller: str = "",
        interval_s: float = 1.0,
        metrics: frozenset[str] | None = None,
        resource_manager: str = "",
        job_user: tuple[int, int] | None = None,
        plugins: tuple[str, ...] = (),
        authority: str = "",
    ) -> None:
        self.node = node
        self.kind = kind
        self.token = token
        self.monitor = monitor
        self.controller = controller
        self.interval_s = interval_s
        self.metrics = metrics
        self.resource_manager = resource_manager
        self.job_user = job_user
        self.plugins = plugins
        self.authority = authority


def load(path: str) -> Settings:
    """Read the settings file. Raises SettingsError."""
    try:
        with open(path) as file:  # noqa: PTH123  # pathlib alone costs as much as the rest of the start
            data = json.load(file)
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise SettingsError(f"{path}: is not JSON: {error}") from error
    if not isinstance(data, dict):
        raise SettingsError(f"{path}: an object is needed")
    unknown = sorted(set(data) - set(Settings.__slots__))
    if unknown:
        raise SettingsError(f"{path}: unknown setting {unknown[0]!r}; known are {', '.join(Settings.__slots__)}")
    for name in ("node", "kind", "token", "monitor"):
        if not isinstance(data.get(name), str) or not data[name]:
            raise SettingsError(f"{path}: setting {name!r} is missing or no text")
    kind, token, node = data["kind"], data["token"], data["node"]
    if kind not in KINDS:
        raise SettingsError(f"{path}: setting 'kind' is {kind!r}; it must be host or guest")
    if token.split(".")[:2] != [kind, node] or token.count(".") != 3:
        raise SettingsError(f"{path}: setting 'token' is not one of {kind} {node}: deploy the agent again")
    metrics = data.get("metrics")
    if metrics is not None and not (isinstance(metrics, list) and all(isinstance(m, str) for m in metrics)):
        raise SettingsError(f"{path}: setting 'metrics' must be a list of names, or null for all")
    plugins = data.get("plugins") or []
    if not isinstance(plugins, list) or not all(isinstance(one, str) for one in plugins):
        raise SettingsError(f"{path}: setting 'plugins' must be a list of names of Python modules")
    return Settings(
        node=node,
        kind=kind,
        token=token,
        monitor=_address(path, data["monitor"]),
        controller=str(data.get("controller") or ""),
        interval_s=_interval(path, data.get("interval_s"), kind),
        metrics=None if metrics is None else frozenset(metrics),
        resource_manager=str(data.get("resource_manager") or ""),
        job_user=_job_user(path, data.get("job_user")),
        plugins=tuple(plugins),
        authority=str(data.get("authority") or ""),
    )


def _job_user(path: str, value: object) -> tuple[int, int] | None:
    if value is None:
        return None
    if isinstance(value, list) and len(value) == 2 and all(type(number) is int and number > 0 for number in value):
        return value[0], value[1]
    raise SettingsError(f"{path}: setting 'job_user' is {value!r}; give the numbers of the user and of the group")


def _address(path: str, text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise SettingsError(f"{path}: setting 'monitor' is {text!r}; give it as ADDRESS:PORT")
    return host.strip("[]"), int(port)


def _interval(path: str, value: object, kind: str) -> float:
    if value is None:
        return INTERVAL_S[kind]
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0.05 <= value <= 3600:
        raise SettingsError(f"{path}: setting 'interval_s' is {value!r}; give seconds from 0.05 to 3600")
    return float(value)
