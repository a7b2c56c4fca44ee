"""What the tests of network boot make: an image store, a head in a container, QEMU machines on its bridge.

All of it lies in build/netboot, with names and addresses of its own, so that a testbed can run beside it.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from failavoid.demo.site import Site, read_inventory
from failavoid.shared import containers
from failavoid.shared.sysimage import parse_declaration, root_digest

HERE = Path(__file__).resolve().parent
PROJECT = HERE.parents[1]
FOLDER = PROJECT / "build" / "netboot"
STORE = FOLDER / "sysimage"
BUILT = Path("/var/lib/failavoid/sysimage")  # where 'make testbed' leaves the image
BRIDGE, MACHINES_ADDRESS, NETWORK, PREFIX = "failavoid1", "10.78.0.254", "10.78.0.0/16", 16
HEAD, HEAD_ADDRESS = "boothead", "10.78.0.1"
BOOT_S = 900  # an emulated machine's systemd starts libvirt and all that in a minute of an idle machine's time


@dataclass
class Booted:
    """A machine that boots over the network: its name and addresses, and whether its firmware is UEFI."""

    name: str
    address: str
    mac: str
    uefi: bool = False


BIOS = Booted("booted01", "10.78.1.1", "52:54:00:78:01:01")
OTHER_MAC = "52:54:00:78:99:99"
UEFI = Booted("booted02", "10.78.1.2", "52:54:00:78:01:0A", uefi=True)


class BootError(Exception):
    """A machine that did not come up; the message has the end of its console."""


def testbed() -> containers.Testbed:
    """The bridge, and the head on it."""
    binds = [str(STORE)]
    head = containers.Container(HEAD, "head", HEAD_ADDRESS, memory_mib=1024, binds=binds)
    return containers.Testbed(
        base=FOLDER / "testbed",
        store=STORE,
        bridge=BRIDGE,
        address=MACHINES_ADDRESS,
        prefix=PREFIX,
        containers=[head],
        group="failavoid-netboot",
    )


def inventory(key: Path, host_key: Path) -> dict[str, Any]:
    """A site whose head is a container, and whose two hosts have no disks."""
    every = {
        "ansible_user": "root",
        "ansible_python_interpreter": "/usr/bin/python3",
        "ansible_ssh_private_key_file": str(key),
        "ansible_ssh_common_args": f"-o UserKnownHostsFile={FOLDER}/known_hosts -o StrictHostKeyChecking=yes "
        "-o IdentitiesOnly=yes -o ConnectTimeout=60",
        "nfs_server_store": str(STORE),
        "nfs_server_clients": [NETWORK],
        "netboot_store": str(STORE),
        "guest_image_store": str(STORE),
        "guest_cache": str(FOLDER / "cache"),
        "resource_manager_guest_network": "10.78.2.0/23",
        "resource_manager_prefix": PREFIX,
        # hosts without disks have one SSH host key in common, or nobody would know them after they have booted
        "sysimage_site": {
            "classes": {
                "host": {
                    "files": [
                        {"path": "/root/.ssh/authorized_keys", "content": _public(key), "mode": "0600"},
                        {"path": "/etc/ssh/ssh_host_ed25519_key", "content": host_key.read_text(), "mode": "0600"},
                        {"path": "/etc/ssh/ssh_host_ed25519_key.pub", "content": _public(host_key)},
                    ]
                }
            }
        },
    }
    hosts = {
        booted.name: {
            "ansible_host": booted.address,
            "netboot_mac": booted.mac,
            "netboot_kernel_arguments": "console=ttyS0",
        }
        for booted in (BIOS, UEFI)
    }
    on_the_head = ("nfs_server", "netboot_server", "monitor", "resource_manager", "controller")
    return {
        "machine": {"hosts": {"localhost": {"ansible_connection": "local"}}},
        "head": {"hosts": {HEAD: {"ansible_host": HEAD_ADDRESS}}},
        "hypervisor": {"hosts": hosts, "vars": {"network_uplink": "boot0", "hypervisor_packages": []}},
        **{group: {"children": {"head": {}}} for group in on_the_head},
        "failavoid": {"children": {"head": {}, "hypervisor": {}}, "vars": every},
    }


def make() -> Site:
    """Publish the image, run the head, and let it serve. Takes a minute if the image's root is there already."""
    clean()
    bed = testbed()
    (STORE / "roots").mkdir(parents=True, exist_ok=True)
    _take_root()
    host_key = FOLDER / "host_key"
    containers.prepare(bed)
    for path in (host_key, host_key.with_suffix(".pub")):
        path.unlink(missing_ok=True)
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "host", "-f", host_key], check=True)
    hosts = FOLDER / "hosts.yml"
    hosts.write_text(yaml.safe_dump(inventory(bed.base / "ssh/id_ed25519", host_key)))
    known = "".join(f"{booted.address} {_public(host_key)}" for booted in (BIOS, UEFI))
    (FOLDER / "known_hosts").write_text((bed.base / "ssh/known_hosts").read_text() + known)
    play(hosts, "sysimage.yml", "--limit", "machine", sysimage_builder="machine")
    containers.start(bed, bed.containers[0])
    containers.await_ready(bed, bed.containers[0], BOOT_S)
    play(hosts, "netboot.yml")
    return read_inventory(hosts)


def clean() -> None:
    """Leave nothing that runs; roots and packages stay for the next time."""
    containers.clean(testbed())


def _public(key: Path) -> str:
    return key.with_suffix(".pub").read_text() if key.suffix != ".pub" else key.read_text()


def _take_root() -> None:
    """Take the image's root from where 'make testbed' left it, if it is there; its files get further names."""
    files = PROJECT / "roles/sysimage/files"
    sources = {path.name: path.read_text() for path in files.iterdir()}
    digest = root_digest(parse_declaration(yaml.safe_load(sources["sysimage.yml"]), sources))
    root, copy = BUILT / "roots" / digest, STORE / "roots" / digest
    if copy.exists() or not root.exists():
        return
    part = copy.with_name(f".building-{digest}")
    same = root.stat().st_dev == copy.parent.stat().st_dev
    subprocess.run(["cp", "-a", *(("-l",) if same else ()), root, part], check=True)
    part.rename(copy)


def play(hosts: Path, playbook: str, *words: str, **variables: Any) -> str:
    """Run a playbook of the project, or one beside this file, and return what it says."""
    done = _play(hosts, playbook, *words, **variables)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
    return done.stdout


def refused(hosts: Path, playbook: str, *words: str, **variables: Any) -> str:
    """Run a playbook that is to end with a refusal, before it has changed anything, and return what it says."""
    done = _play(hosts, playbook, *words, **variables)
    assert done.returncode != 0, done.stdout[-4000:]
    recap = done.stdout.split("PLAY RECAP")[1]
    assert set(re.findall(r"changed=(\d+)", recap)) == {"0"}, recap
    return " ".join(done.stdout.split())


def _play(hosts: Path, playbook: str, *words: str, **variables: Any) -> subprocess.CompletedProcess[str]:
    path = next(path for path in (PROJECT / "playbooks" / playbook, HERE / playbook) if path.exists())
    command = [Path(sys.executable).parent / "ansible-playbook", "-i", hosts, path, *words]
    given = {
        "sysimage_store": str(STORE),
        "sysimage_package_cache": str(FOLDER / "packages"),
        # the head runs the system image, which holds them
        "nfs_server_packages": [],
        "netboot_packages": [],
        "sysimage_packages": [],
        **variables,
    }
    done = subprocess.run(
        [*command, "-e", json.dumps(given)],
        cwd=PROJECT,
        env={**os.environ, "ANSIBLE_CONFIG": str(PROJECT / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    (FOLDER / f"{Path(playbook).stem}.log").write_text(done.stdout + done.stderr)
    return done


def module(hosts: Path, host: str, name: str, **arguments: Any) -> dict[str, Any]:
    """Run one of the project's modules on a host, by Ansible, and return its result."""
    words = [Path(sys.executable).parent / "ansible", "-i", hosts, host, "-m", name]
    words += ["-a", json.dumps(arguments)] if arguments else []
    done = subprocess.run(
        words,
        cwd=PROJECT,
        env={**os.environ, "ANSIBLE_CALLBACK_RESULT_FORMAT": "json", "ANSIBLE_NOCOLOR": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert " => " in done.stdout, done.stdout + done.stderr
    return json.loads(done.stdout.partition(" => ")[2])


class Machine:
    """A QEMU machine on the bridge: four CPUs on two NUMA nodes, no disk, a second card that leads nowhere."""

    def __init__(self, booted: Booted) -> None:
        self.booted = booted
        self.console = FOLDER / f"{booted.name}.console"
        self.console.unlink(missing_ok=True)
        self.tap = f"fa-{booted.name}"
        self._ip("tuntap", "add", "dev", self.tap, "mode", "tap")
        self._ip("link", "set", "dev", self.tap, "master", BRIDGE, "up")
        self.qemu = subprocess.Popen(self._command(), stdin=subprocess.DEVNULL)

    def _ip(self, *words: str, check: bool = True) -> None:
        subprocess.run(["ip", *words], check=check, capture_output=True)

    def _command(self) -> list[str]:
        words = "qemu-system-x86_64 -nodefaults -display none -machine q35 -accel tcg,thread=multi,tb-size=512"
        words += " -cpu qemu64,-svm"  # its guests are to be emulated on every machine that runs this
        words += " -m 3072 -smp 4,sockets=2,cores=2,threads=1"
        for node in (0, 1):
            words += f" -object memory-backend-ram,id=node{node},size=1536M"
            words += f" -numa node,nodeid={node},memdev=node{node},cpus={2 * node}-{2 * node + 1}"
        # first on the bus, so that the kernel names it first: a host is to boot from the card that its firmware took
        words += " -netdev user,id=other,restrict=on -device virtio-net-pci,netdev=other,addr=2,romfile="
        words += f",mac={OTHER_MAC}"
        words += f" -netdev tap,id=boot,ifname={self.tap},script=no,downscript=no"
        words += f" -device virtio-net-pci,netdev=boot,addr=3,bootindex=0,mac={self.booted.mac}"
        words += ",romfile=" if self.booted.uefi else ""  # UEFI's own driver and PXE, not the card's iPXE
        words += " -bios /usr/share/ovmf/OVMF.fd" if self.booted.uefi else ""
        return [*words.split(), "-device", "virtio-rng-pci", "-serial", f"file:{self.console}"]

    def await_console(self, pattern: str, patience_s: float = BOOT_S) -> str:
        """Wait until the console shows ``pattern``, and return all it shows. Raises BootError."""
        deadline = time.monotonic() + patience_s
        while True:
            said = self.console.read_text(errors="replace") if self.console.exists() else ""
            if re.search(pattern, said):
                return said
            reason = f"its console did not show {pattern!r} in {patience_s:.0f} s"
            if failed := re.search("failavoid: error: .*|Kernel panic.*", said):
                reason = failed[0]
            elif self.qemu.poll() is not None:
                reason = f"QEMU ended with {self.qemu.returncode}"
            elif time.monotonic() < deadline:
                time.sleep(0.5)
                continue
            raise BootError(f"{self.booted.name}: {reason}. The end of {self.console}:\n{said[-2000:]}")

    def await_ssh(self) -> None:
        """Wait until it answers on SSH. Raises BootError."""
        if (
            not containers.wait_for(
                lambda: containers.answers_ssh(self.booted.address) or self.qemu.poll() is not None, BOOT_S, 1.0
            )
            or self.qemu.poll() is not None
        ):
            self.await_console("(?!)", 0)

    def end(self) -> None:
        """End it, and take its cable away."""
        self.qemu.kill()
        self.qemu.wait()
        self._ip("link", "del", self.tap, check=False)
