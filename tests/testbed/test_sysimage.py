"""The system image on a running testbed: guests boot from it over NFS, by hand, without the resource manager."""

from __future__ import annotations

import json
import shlex
import subprocess
import time
import uuid
from pathlib import Path

import pytest

STORE = "/var/lib/failavoid/sysimage"
ADDRESS = "10.77.3.250"  # of no guest of the resource manager
UP = "failavoid: guest by-hand is up"
# Waits for one of the patterns on the console; prints the console. The guest is killed with its process id.
WAIT = """
for i in $(seq 1 600); do
  grep -qE {patterns} /run/by-hand.console && break
  kill -0 "$(cat /run/by-hand.pid)" || break
  sleep 0.2
done
cat /run/by-hand.console
"""


class Guest:
    """A guest started with QEMU alone on one host, as the resource manager would describe it."""

    def __init__(self, site, host, folder):
        self.site, self.host, self.folder = site, host, folder
        self.manifest = json.loads(site.run(site.head, "cat", f"{STORE}/current/manifest.json"))
        self.user_key = self._key("user")
        self.host_key = self._key("host")

    def _key(self, name):
        path = self.folder / name
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path], check=True)
        return path

    def identity(self, **changes):
        public = self.user_key.with_suffix(".pub").read_text().strip()
        return {
            "name": "by-hand",
            "uuid": str(uuid.uuid4()),
            "address": ADDRESS,
            "prefix": 16,
            "user": {"name": "tester", "uid": 4242, "gid": 4242},
            "authorized_keys": [public],
            "root_authorized_keys": [public],
            "ssh_host_key": self.host_key.read_text(),
            "mounts": [],
            "hosts": {"by-hand": ADDRESS},
            **changes,
        }

    def put(self, path, data):
        subprocess.run(
            self.site.ssh(self.host, "sh", "-c", f"umask 077; cat >{path}"), input=data, check=True, timeout=60
        )

    def boot(self, identity=None, image=None, until=UP):
        """Boot, wait for a line on the console, return the console."""
        self.end()
        boot = Path(STORE) / "roots" / self.manifest["root"] / "boot"
        for name in ("vmlinuz", "initrd.img"):
            self.put(f"/run/by-hand.{name}", (boot / name).read_bytes())
        guest = self.manifest["classes"]["guest"]
        head = self.site.hosts[self.site.head]["ansible_host"]
        append = (
            f"root=/dev/nfs nfsroot={head}:{STORE},v3,tcp,nolock ip={ADDRESS}:::255.255.0.0:by-hand:eth0:off"
            f" net.ifnames=0 console=ttyS0 failavoid.image={image or self.manifest['digest']} failavoid.class=guest"
            f" init={guest['init']} {guest['kernel_arguments']}"
        )
        tap = "ip tuntap add by-hand mode tap && ip link set by-hand master br0 up"
        self.site.run(self.host, "sh", "-c", tap)
        command = ["qemu-system-x86_64", "-accel", "tcg,tb-size=64", "-machine", "q35", "-m", "256", "-nodefaults"]
        command += ["-display", "none", "-serial", "file:/run/by-hand.console", "-pidfile", "/run/by-hand.pid"]
        command += ["-kernel", "/run/by-hand.vmlinuz", "-initrd", "/run/by-hand.initrd.img", "-append", append]
        command += ["-netdev", "tap,id=n,ifname=by-hand,script=no,downscript=no", "-device", "virtio-rng-pci"]
        command += ["-device", "virtio-net-pci,netdev=n,mac=52:54:00:00:03:fa", "-daemonize"]
        if identity is not None:
            self.put("/run/by-hand.identity", json.dumps(identity).encode())
            command += ["-fw_cfg", "name=opt/failavoid/identity,file=/run/by-hand.identity"]
        self.site.run(self.host, *command)
        wait = WAIT.format(patterns=shlex.quote(f"{until}|failavoid: error"))
        done = subprocess.run(
            self.site.ssh(self.host, "sh", "-c", wait), capture_output=True, text=True, timeout=200, check=True
        )
        return done.stdout

    def end(self):
        self.site.run(
            self.host,
            "sh",
            "-c",
            "kill $(cat /run/by-hand.pid); sleep 0.5; ip link del by-hand; rm -f /run/by-hand.*",
            check=False,
        )

    def run(self, user, *command):
        """Run a command in the guest over SSH with the identity's keys."""
        known = self.folder / "known_hosts"
        known.write_text(f"{ADDRESS} {self.host_key.with_suffix('.pub').read_text()}")
        words = ["-i", self.user_key, "-o", f"UserKnownHostsFile={known}", "-o", "StrictHostKeyChecking=yes"]
        words += ["-o", "BatchMode=yes", "-o", "IdentitiesOnly=yes", f"{user}@{ADDRESS}", shlex.join(command)]
        return subprocess.run(["ssh", *words], capture_output=True, text=True, timeout=90, check=False)


@pytest.fixture(scope="module")
def by_hand(site, tmp_path_factory):
    guest = Guest(site, site.groups["hypervisor"][-1], tmp_path_factory.mktemp("guest"))
    yield guest
    guest.end()


@pytest.fixture(scope="module")
def guest(by_hand, site):
    """A guest that is up, with an identity."""
    home = {"source": f"{site.hosts[site.head]['ansible_host']}:/home", "target": "/home", "type": "nfs"}
    site.run(site.head, "install", "-d", "-o", "4242", "-g", "4242", "-m", "0700", "/home/tester")
    console = by_hand.boot(by_hand.identity(mounts=[{**home, "options": "vers=3,nolock,proto=tcp"}]))
    assert UP in console, console[-2000:]
    yield by_hand
    site.run(site.head, "rm", "-rf", "/home/tester")


def test_a_guest_runs_the_image_it_was_told_to(guest):
    mark = json.loads(guest.run("root", "cat", "/usr/lib/failavoid/image.json").stdout)
    assert (mark["image"], mark["class"]) == (guest.manifest["digest"], "guest")


def test_a_guest_has_its_name_and_knows_its_hosts(guest):
    assert guest.run("root", "hostname").stdout.strip() == "by-hand"
    assert ADDRESS in guest.run("root", "getent", "hosts", "by-hand").stdout


def test_the_user_gets_in_with_the_key_and_has_a_home_over_nfs(guest, site):
    done = guest.run("tester", "sh", "-c", "id -u && pwd && echo kept >~/file")
    assert done.stdout.split() == ["4242", "/home/tester"], done.stderr
    assert site.run(site.head, "cat", "/home/tester/file").strip() == "kept"


def test_the_user_may_lock_memory_for_mpi(guest):
    assert guest.run("tester", "sh", "-c", "ulimit -l").stdout.strip() == "unlimited"


def test_the_user_reads_no_secret(guest):
    for path in ("/run/failavoid/identity.json", "/etc/ssh/ssh_host_ed25519_key", "/etc/shadow"):
        done = guest.run("tester", "cat", path)
        assert "Permission denied" in done.stderr, path
    raw = "/sys/firmware/qemu_fw_cfg/by_name/opt/failavoid/identity/raw"
    assert guest.run("tester", "cat", raw).stdout == ""


def test_no_secret_is_on_the_kernel_command_line_or_in_the_image(guest, site):
    secret = guest.host_key.read_text().splitlines()[2]
    assert secret not in guest.run("root", "cat", "/proc/cmdline").stdout
    keys = site.run(
        site.head,
        "sh",
        "-c",
        f"ls {STORE}/roots/*/etc/ssh/ssh_host* {STORE}/images/*/classes/*/etc/ssh/ssh_host*",
        check=False,
    )
    assert keys == ""


def test_what_a_guest_writes_stays_in_its_ram(guest, site):
    assert guest.run("root", "sh", "-c", "echo mine >/etc/motd && cat /etc/motd").stdout.strip() == "mine"
    root = f"{STORE}/roots/{guest.manifest['root']}"
    assert "mine" not in site.run(site.head, "cat", f"{root}/etc/motd", check=False)


def test_the_store_can_not_be_written_over_nfs(guest):
    done = guest.run("root", "touch", "/run/failavoid/store/x")
    assert "Read-only file system" in done.stderr
    again = guest.run("root", "sh", "-c", "mount -o remount,rw /run/failavoid/store && touch /run/failavoid/store/x")
    assert again.returncode != 0


def test_passwords_let_nobody_in(guest):
    methods = subprocess.run(
        [
            "ssh",
            "-o",
            "PreferredAuthentications=none",
            "-o",
            "StrictHostKeyChecking=no",
            "-o",
            "UserKnownHostsFile=/dev/null",
            f"root@{ADDRESS}",
            "true",
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "Permission denied (publickey)" in methods.stderr


def test_sshd_is_started_again_when_it_ends(guest):
    guest.run("root", "sh", "-c", "kill $(pgrep -o -x sshd)")
    for _ in range(40):
        if guest.run("root", "true").returncode == 0:
            return
        time.sleep(0.5)
    pytest.fail("sshd did not come back")


def test_a_mount_that_fails_is_told_on_the_console(guest, by_hand, site):
    wrong = {"source": f"{site.hosts[site.head]['ansible_host']}:/nowhere", "target": "/home", "type": "nfs"}
    console = by_hand.boot(by_hand.identity(mounts=[{**wrong, "options": "vers=3,nolock,proto=tcp"}]))
    assert "failavoid: error: the identity could not be applied" in console
    assert "/nowhere could not be mounted on /home" in console
    assert UP not in console


def test_an_image_that_is_not_there_is_named_on_the_console(guest, by_hand):
    console = by_hand.boot(by_hand.identity(), image="0123456789abcdef")
    assert "failavoid: error: image 0123456789abcdef is not in the store" in console


def test_a_guest_without_an_identity_comes_up_and_says_so(guest, by_hand):
    console = by_hand.boot()
    assert UP in console
    assert "this guest was given no identity" in console
