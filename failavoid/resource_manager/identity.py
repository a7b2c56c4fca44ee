"""What a guest is told: at its boot through its host, and, if it was warm then, when a job takes it.

Nothing that a warm guest is told later is secret: its SSH host key and its token it has from its boot.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from failavoid.resource_manager import placement
from failavoid.resource_manager.image import Image, ImageError
from failavoid.resource_manager.settings import Settings
from failavoid.shared.messages import Assignment, Guest, JobRequest, to_dict
from failavoid.shared.names import check_name
from failavoid.shared.tokens import mint

GUEST_AUTHORITY = "/run/failavoid/authority.pem"  # where guest-identity writes the authority


class Identities:
    """Makes what guests are told, from the settings and the site's secret."""

    def __init__(self, settings: Settings, secret: bytes) -> None:
        self._settings = settings
        self._secret = secret

    def at_boot(
        self, guest: Guest, request: JobRequest | None, ssh_key: str, addresses: dict[str, str]
    ) -> dict[str, Any]:
        """The identity a guest reads at its boot; without a request it will be warm and ask for its user."""
        head = self._settings.head_address
        agent: dict[str, Any] = {
            "node": guest.name,
            "kind": "guest",
            "token": mint(self._secret, "guest", guest.name, guest.uuid),
            **self._services(),
            "authority": GUEST_AUTHORITY,
            "interval_s": self._settings.guest_interval_s,
        }
        identity = {
            **self._sites(),
            "name": guest.name,
            "uuid": guest.uuid,
            "address": guest.address,
            "ssh_host_key": ssh_key,
            "agent": agent,
            "hosts": {**addresses, "head": head},
        }
        if request is None:
            agent["resource_manager"] = f"https://{head}:{self._settings.port}"
        else:
            identity |= _users(request)
        return identity

    def assignment(self, job: str, request: JobRequest, addresses: dict[str, str]) -> Assignment:
        """What a warm guest is told when a job takes it."""
        users = _users(request)
        hosts = {**addresses, "head": self._settings.head_address}
        return Assignment(job, users["user"], users["authorized_keys"], hosts)

    def terms(self, request: JobRequest | None, image: str) -> str:
        """A digest of what a guest is told: one that was told something else can't serve this job.

        Without a request, of what a warm guest was told. ``image`` is the digest of what it booted.
        """
        told = [
            self._sites() | (_users(request) if request else {}),
            image,
            self._settings.head_address,
            self._services(),
            self._settings.guest_interval_s,
            mint(self._secret, "guest", "terms"),  # with another secret its token is worth nothing
        ]
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]

    def launched(self, guest: Guest, image: Image) -> dict[str, Any]:
        """A guest as launch.yml takes it."""
        boot = f"{self._settings.boot}/{image.root}"
        mask = placement.netmask(self._settings.prefix)
        return {
            "host": check_name("host", guest.host),
            "name": check_name("guest", guest.name),
            "uuid": guest.uuid,
            "memory_kb": guest.memory_kb,
            "vcpus": len(guest.cores),
            "hugepage_kb": guest.hugepage_kb,
            "devices": [to_dict(device) for device in guest.devices],
            "cores": guest.cores,
            "numa_node": guest.numa_node,
            "address": guest.address,
            "user": guest.user,
            "image": image.digest,
            "kernel": f"{boot}/vmlinuz",
            "initrd": f"{boot}/initrd.img",
            "cmdline": (
                f"console=ttyS0 net.ifnames=0 ip={guest.address}:::{mask}:{guest.name}:eth0:off "
                f"nfsroot={self._settings.head_address}:{self._settings.sysimage},vers=3,nolock,tcp "
                f"failavoid.image={image.digest} failavoid.class=guest init={image.init} {image.arguments}"
            ).strip(),
        }

    def _authority(self) -> str:
        """The site's authority (PEM), by which guests know the services. Raises ImageError."""
        try:
            return Path(self._settings.tls.authority).read_text()
        except OSError as error:
            raise ImageError(
                f"guests can't be told the site's authority: {self._settings.tls.authority}: {error.strerror}; "
                "the role hypervisor installs it (tasks_from head.yml)"
            ) from error

    def _services(self) -> dict[str, str]:
        """Where its agent finds the monitor and the controller: on the head, at the ports where this service does."""
        head = self._settings.head_address
        monitor, controller = (urlsplit(url).port or 443 for url in (self._settings.monitor, self._settings.controller))
        return {"monitor": f"{head}:{monitor}", "controller": f"https://{head}:{controller}"}

    def _sites(self) -> dict[str, Any]:
        """The part of an identity that all guests share."""
        return {
            "authority": self._authority(),
            "prefix": self._settings.prefix,
            "root_authorized_keys": self._settings.guest_root_keys,
            "mounts": self._settings.guest_mounts,
        }


def _users(request: JobRequest) -> dict[str, Any]:
    """The part of an identity that all guests of a job share."""
    return {
        "user": {"name": request.user, "uid": request.uid, "gid": request.gid},
        "authorized_keys": [request.public_key],
    }


def host_key() -> tuple[str, str]:
    """A new SSH host key for a guest: private and public part, as OpenSSH writes them."""
    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    ).decode()
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH).decode()
    return private, public
