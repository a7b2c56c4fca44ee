"""The site the demonstration runs on: its inventory, SSH to its hosts, the services' API."""

from __future__ import annotations

import json
import os
import shlex
import ssl
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

PORTS = {"monitor": 7411, "resource_manager": 7412, "controller": 7413}


COMMAND_S = 60


class CommandError(Exception):
    """A command, or a question to a service, that failed; the message names where it was asked, and its own words."""


@dataclass
class Site:
    """An inventory's hosts with their variables, as Ansible sees them."""

    inventory: Path
    hosts: dict[str, dict[str, Any]]
    groups: dict[str, list[str]]

    @property
    def head(self) -> str:
        """The name of the head."""
        return self.groups["head"][0]

    def ssh(self, host: str, *argv: str) -> list[str]:
        """The command line that runs ``argv`` on ``host`` the way Ansible would."""
        settings = self.hosts[host]
        key = settings.get("ansible_ssh_private_key_file")
        return [
            "ssh",
            *(("-i", key) if key else ()),
            *shlex.split(settings.get("ansible_ssh_common_args", "")),
            "-o",
            "BatchMode=yes",
            f"{settings.get('ansible_user', 'root')}@{settings.get('ansible_host', host)}",
            shlex.join(argv),
        ]

    def run(self, host: str, *argv: str, check: bool = True) -> str:
        """Run ``argv`` on ``host`` and return what it printed. Raises CommandError."""
        try:
            done = subprocess.run(self.ssh(host, *argv), capture_output=True, text=True, timeout=COMMAND_S, check=False)
        except subprocess.TimeoutExpired:
            raise CommandError(f"{host}: {shlex.join(argv)} did not end within {COMMAND_S} s") from None
        if check and done.returncode:
            raise CommandError(
                f"{host}: {shlex.join(argv)} ended with {done.returncode}: {(done.stderr or done.stdout).strip()}"
            )
        return done.stdout

    def api(self, service: str) -> httpx.Client:
        """A client of one of the services on the head, as operator."""
        token = self.run(self.head, "cat", "/etc/failavoid/tokens/root").strip()
        return httpx.Client(
            base_url=self.url(service),
            headers={"Authorization": f"Bearer {token}"},
            verify=self.trust(),
            timeout=30,
        )

    def url(self, service: str) -> str:
        """The base URL of one of the services on the head."""
        return f"https://{self.hosts[self.head].get('ansible_host', self.head)}:{PORTS[service]}"

    def trust(self) -> ssl.SSLContext:
        """What a client of the services needs to know them: the site's authority, and no other."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(cadata=self.run(self.head, "cat", "/etc/failavoid/authority.pem"))
        return context


def read_inventory(inventory: Path) -> Site:
    """Ask ansible-inventory for the site's hosts, groups and variables. Raises CommandError."""
    command = [str(Path(sys.executable).parent / "ansible-inventory"), "-i", str(inventory), "--list"]
    environment = {**os.environ, "ANSIBLE_INVENTORY_UNPARSED_FAILED": "true"}  # or it would be taken for an empty one
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise CommandError(f"the inventory {inventory} can't be read: {done.stderr.strip()}")
    listing = json.loads(done.stdout)
    groups = {name: _members(listing, name) for name in listing if name != "_meta" and isinstance(listing[name], dict)}
    return Site(inventory, listing["_meta"]["hostvars"], groups)


def _members(listing: dict[str, Any], group: str) -> list[str]:
    entry = listing.get(group, {})
    members = list(entry.get("hosts", []))
    for child in entry.get("children", []):
        members += [host for host in _members(listing, child) if host not in members]
    return members
