"""Guests that an administrator starts, moves and removes with the playbooks alone, without the resource manager."""

from __future__ import annotations

import itertools
import json
import shlex
import subprocess
import sys
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from failavoid.demo.site import Site
from failavoid.playbook_runner import PlaybookResult, run_playbook

PROJECT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
STORE = "/var/lib/failavoid/sysimage"
BOOT = "/var/lib/failavoid/boot"
DIRECTORIES = "/var/lib/failavoid/guests"
LIMIT_S = 400.0
_serial = itertools.count(1)


@dataclass
class ByHand:
    """A site, the guests that were started on it by hand, and the keys to get into them."""

    site: Site
    folder: Path
    guests: dict[str, dict[str, Any]] = field(default_factory=dict)
    host_of: dict[str, str] = field(default_factory=dict)

    def play(self, playbook: str, **variables: Any) -> PlaybookResult:
        """Run a playbook as the services do, with a log of its own."""
        ident = f"{playbook.removesuffix('.yml')}-{next(_serial)}"
        return run_playbook(playbook, self.site.inventory, variables, ident, self.folder / "logs", LIMIT_S)

    def shell(self, host: str, script: str, check: bool = True) -> str:
        """Run a shell script on a host."""
        return self.site.run(host, "sh", "-c", script, check=check)

    def describe(self, name: str, number: int, **changes: Any) -> dict[str, Any]:
        """A guest as launch.yml takes it; ``number`` makes its address, one of no guest of the resource manager."""
        manifest = json.loads(self.site.run(self.site.head, "cat", f"{STORE}/current/manifest.json"))
        guest = manifest["classes"]["guest"]
        head = self.site.hosts[self.site.head]["ansible_host"]
        address = ".".join([*head.split(".")[:2], "3", str(number)])
        boot = f"{BOOT}/{manifest['root']}"
        return {
            "name": name,
            "uuid": str(uuid.uuid5(uuid.NAMESPACE_DNS, f"{name}.{number}")),
            "memory_kb": 262144,
            "vcpus": 1,
            "cores": [number % 2],
            "numa_node": 0,
            "address": address,
            "user": "tester",
            "image": manifest["digest"],
            "kernel": f"{boot}/vmlinuz",
            "initrd": f"{boot}/initrd.img",
            "cmdline": (
                f"console=ttyS0 net.ifnames=0 ip={address}:::255.255.0.0:{name}:eth0:off "
                f"nfsroot={head}:{STORE},vers=3,nolock,tcp failavoid.image={manifest['digest']} "
                f"failavoid.class=guest init={guest['init']} {guest['kernel_arguments']}"
            ),
            **changes,
        }

    def identity(self, guest: dict[str, Any]) -> dict[str, Any]:
        """What the guest is told through its fw_cfg."""
        key, public = self.folder / "host_key", (self.folder / "user_key.pub").read_text().strip()
        return {
            "name": guest["name"],
            "uuid": guest["uuid"],
            "address": guest["address"],
            "prefix": 16,
            "user": {"name": "tester", "uid": 4242, "gid": 4242},
            "authorized_keys": [public],
            "root_authorized_keys": [public],
            "ssh_host_key": key.read_text(),
            "mounts": [],
            "hosts": {guest["name"]: guest["address"]},
        }

    def launch(self, host: str, *guests: dict[str, Any]) -> PlaybookResult:
        """Start guests on a host."""
        for guest in guests:
            self.guests[guest["name"]] = guest
            self.host_of[guest["name"]] = host
        return self.play(
            "launch.yml",
            launch_guests=[{**guest, "host": host} for guest in guests],
            launch_identities={guest["name"]: self.identity(guest) for guest in guests},
        )

    def move(self, evacuation: str, destination: str, *names: str, **variables: Any) -> PlaybookResult:
        """Move guests away from the host they are on."""
        return self.play("migrate.yml", **self.moves(evacuation, destination, *names), **variables)

    def moves(self, evacuation: str, destination: str, *names: str) -> dict[str, Any]:
        """The variables of migrate.yml."""
        return {
            "evacuation": evacuation,
            "migrate_guests": [
                {
                    "name": name,
                    "address": self.guests[name]["address"],
                    "source": self.host_of[name],
                    "destination": destination,
                    "destination_address": self.site.hosts[destination]["ansible_host"],
                    "cores": self.guests[name]["cores"],
                    "numa_node": 0,
                }
                for name in names
            ],
        }

    def remove(self, host: str, *names: str, **words: Any) -> PlaybookResult:
        """Remove guests from a host."""
        return self.play("remove-guests.yml", remove_guests=[{"host": host, "name": name, **words} for name in names])

    def run(self, name: str, *command: str) -> str:
        """Run a command as root inside a guest."""
        address = self.guests[name]["address"]
        known = self.folder / "known_hosts"
        known.write_text(f"{address} {(self.folder / 'host_key.pub').read_text()}")
        words = ["-i", self.folder / "user_key", "-o", f"UserKnownHostsFile={known}", "-o", "StrictHostKeyChecking=yes"]
        words += ["-o", "BatchMode=yes", "-o", "IdentitiesOnly=yes", f"root@{address}", shlex.join(command)]
        return subprocess.run(["ssh", *words], capture_output=True, text=True, timeout=90, check=True).stdout

    def domains(self, host: str) -> dict[str, str]:
        """Libvirt's guests on a host, with their states."""
        shown = self.site.run(host, "virsh", "list", "--all").splitlines()[2:]
        return {words[1]: " ".join(words[2:]) for words in map(str.split, shown) if words}

    def state(self, host: str, name: str) -> dict[str, Any]:
        """What a host's state directory says of a guest."""
        return dict(json.loads(self.site.run(host, "cat", f"{DIRECTORIES}/{name}/state.json")))

    def filter(self, host: str) -> str:
        """The taps' filter on a host."""
        return self.site.run(host, "nft", "list", "table", "bridge", "failavoid", check=False)

    def clear(self, *names: str) -> None:
        """Remove guests wherever they are, also those that a run that was killed has left."""
        self.play(
            "remove-guests.yml",
            remove_guests=[{"host": host, "name": name} for host in self.site.groups["hypervisor"] for name in names],
        )


def make(site: Site, folder: Path) -> ByHand:
    """Make the keys of guests started by hand."""
    for key in ("user_key", "host_key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / key], check=True)
    return ByHand(site, folder)


def adhoc(site: Site, host: str, module: str, check: bool = False, **arguments: Any) -> dict[str, Any]:
    """Run one of the project's modules on a host, by Ansible, and return its result."""
    words = [BIN / "ansible", "-i", site.inventory, host, "-m", module, "-a", json.dumps(arguments)]
    done = subprocess.run(
        [*words, *(("--check",) if check else ())],
        cwd=PROJECT,
        env={"PATH": f"{BIN}:/usr/bin:/bin:/usr/sbin", "HOME": "/root", "ANSIBLE_CALLBACK_RESULT_FORMAT": "json"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    return dict(json.loads(done.stdout.partition(" => ")[2]))


def said(result: PlaybookResult, host: str, task: str) -> dict[str, Any]:
    """What a host said at the end of a task."""
    return result.host_results[host][task]
