"""Where the services are and who asks: /etc/failavoid/cli.yml and the environment."""

from __future__ import annotations

import os
import pwd
from dataclasses import dataclass, field
from pathlib import Path

SETTINGS = Path("/etc/failavoid/cli.yml")
TOKENS = Path("/etc/failavoid/tokens")
SERVICES = ("monitor", "resource_manager", "controller")

# exit statuses
FAILED = 1
WRONG_WORDS = 2
REFUSED = 3  # the service said no
NO_TOKEN = 4
NO_SERVICE = 5
NOT_TRUSTED = 6  # who answers has no certificate of the site's for that address


class CliError(Exception):
    """A refusal for the person at the terminal: one sentence, and the exit status.

    ``answer`` is the HTTP status a service answered with, 0 if it was none's.
    """

    def __init__(self, message: str, status: int = FAILED, answer: int = 0) -> None:
        super().__init__(message)
        self.status = status
        self.answer = answer


@dataclass
class CliSettings:
    """What `failavoid` can be told.

    ``authority`` is the file of the site's authority, which must have signed the services' certificates;
    ``mpi_network`` is the network MPI's connections use.
    """

    monitor: str = "https://127.0.0.1:7411"
    resource_manager: str = "https://127.0.0.1:7412"
    controller: str = "https://127.0.0.1:7413"
    authority: str = "/etc/failavoid/authority.pem"
    mpi_network: str = ""
    mpi_arguments: list[str] = field(default_factory=list)


def load(path: Path | None = None) -> CliSettings:
    """Read the settings; FAILAVOID_{MONITOR,RESOURCE_MANAGER,CONTROLLER}_URL and _AUTHORITY override them.

    Raises CliError.
    """
    import yaml

    from failavoid.shared.http import keeps_tokens
    from failavoid.shared.messages import from_dict

    path = path or SETTINGS
    settings = CliSettings()
    if path.exists():
        try:
            settings = from_dict(CliSettings, yaml.safe_load(path.read_text()) or {})
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise CliError(f"{path} can't be used: {' '.join(str(error).split())}") from error
    for service in SERVICES:
        url = os.environ.get(f"FAILAVOID_{service.upper()}_URL")
        if url:
            setattr(settings, service, url.rstrip("/"))
        given = getattr(settings, service)
        if not keeps_tokens(given):
            raise CliError(
                f"the {service.replace('_', ' ')} is given as {given!r}: give it as https://ADDRESS:PORT, in {path} or "
                f"FAILAVOID_{service.upper()}_URL, or your token would cross the network in the clear",
                WRONG_WORDS,
            )
    settings.authority = os.environ.get("FAILAVOID_AUTHORITY") or settings.authority
    return settings


def user() -> pwd.struct_passwd:
    """Who runs this program, by the kernel's word: the environment's may be another's. Raises CliError."""
    try:
        return pwd.getpwuid(os.getuid())
    except KeyError as error:
        raise CliError(f"there is no user with the id {os.getuid()} on this host") from error


def token() -> str:
    """The caller's token: FAILAVOID_TOKEN, or the user's file in /etc/failavoid/tokens. Raises CliError."""
    given = os.environ.get("FAILAVOID_TOKEN")
    if given:
        return given.strip()
    named = os.environ.get("FAILAVOID_TOKEN_FILE")
    path = Path(named) if named else TOKENS / user().pw_name
    try:
        return path.read_text().strip()
    except OSError as error:
        raise CliError(
            f"{path}: your token can't be read ({error.strerror}). An administrator adds users with "
            "service_common_job_users; another file is named by FAILAVOID_TOKEN_FILE",
            NO_TOKEN,
        ) from error
