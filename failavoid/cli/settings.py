"""Where the services are and who asks: /etc/failavoid/cli.yml and the environment."""

from __future__ import annotations

import getpass
import os
from dataclasses import dataclass, field
from pathlib import Path

SETTINGS = Path("/etc/failavoid/cli.yml")
TOKENS = Path("/etc/failavoid/tokens")


class CliError(Exception):
    """A refusal for the person at the terminal: one sentence, and the exit status."""

    def __init__(self, message: str, status: int = 1) -> None:
        super().__init__(message)
        self.status = status


@dataclass
class CliSettings:
    """What `failavoid` can be told. ``mpi_network`` is the network MPI's connections use."""

    monitor: str = "http://127.0.0.1:7411"
    resource_manager: str = "http://127.0.0.1:7412"
    controller: str = "http://127.0.0.1:7413"
    mpi_network: str = ""
    mpi_arguments: list[str] = field(default_factory=list)


def load(path: Path = SETTINGS) -> CliSettings:
    """Read the settings; FAILAVOID_{MONITOR,RESOURCE_MANAGER,CONTROLLER}_URL override them."""
    if path.exists():
        from failavoid.services import SettingsError, load_settings

        try:
            settings = load_settings(CliSettings, path)
        except SettingsError as error:
            raise CliError(str(error)) from error
    else:
        settings = CliSettings()
    for service in ("monitor", "resource_manager", "controller"):
        url = os.environ.get(f"FAILAVOID_{service.upper()}_URL")
        if url:
            setattr(settings, service, url)
    return settings


def token() -> str:
    """The caller's token: FAILAVOID_TOKEN, or the user's file in /etc/failavoid/tokens. Raises CliError."""
    given = os.environ.get("FAILAVOID_TOKEN")
    if given:
        return given
    path = Path(os.environ.get("FAILAVOID_TOKEN_FILE", TOKENS / getpass.getuser()))
    try:
        return path.read_text().strip()
    except OSError as error:
        raise CliError(
            f"{path}: your token can't be read ({error.strerror}). An administrator adds users with "
            "service_common_job_users; another file is named by FAILAVOID_TOKEN_FILE",
            status=4,
        ) from error
