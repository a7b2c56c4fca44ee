"""What the role `guest` has on a host, played on this machine with folders of the test's own."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

PROJECT = Path(__file__).parents[2]
OLD, NEW = "a" * 16, "b" * 16
PLAYBOOK = """
- hosts: hypervisor
  gather_facts: false
  roles: [guest]
"""
INVENTORY = """
all: {vars: {ansible_connection: local, guest_image_store: FOLDER/store, guest_cache: FOLDER/cache}}
head: {hosts: {head01: }}
hypervisor: {hosts: {host01: }}
"""


def test_a_host_can_boot_every_root_that_the_store_holds_so_that_it_can_take_guests_of_any(tmp_path):
    def run(*words):
        command = [Path(sys.executable).parent / "ansible-playbook", "-i", "inventory.yml", "playbook.yml", *words]
        environment = {**os.environ, "ANSIBLE_CONFIG": str(PROJECT / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1"}
        environment["ANSIBLE_ROLES_PATH"] = str(tmp_path / "roles")
        done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
        held = sorted(str(path.relative_to(tmp_path / "boot")) for path in (tmp_path / "boot").rglob("*.*"))
        return done, held

    shutil.copytree(PROJECT / "roles/guest", tmp_path / "roles/guest")
    tasks = tmp_path / "roles/guest/tasks/main.yml"
    tasks.write_text(tasks.read_text().replace("/var/lib/failavoid/boot", str(tmp_path / "boot")))
    (tmp_path / "playbook.yml").write_text(PLAYBOOK)
    (tmp_path / "inventory.yml").write_text(INVENTORY.replace("FOLDER", str(tmp_path)))
    nothing, _ = run()
    assert nothing.returncode != 0
    for root in (OLD, NEW, ".building-interrupted"):
        (tmp_path / "store/roots" / root / "boot").mkdir(parents=True)
        if root in (OLD, NEW):
            (tmp_path / "store/roots" / root / "boot/vmlinuz-6.1").write_text(f"kernel of {root}")
            (tmp_path / "store/roots" / root / "boot/vmlinuz").symlink_to("vmlinuz-6.1")
            (tmp_path / "store/roots" / root / "boot/initrd.img").write_text(f"initrd of {root}")
    checked, before = run("--check")
    assert (checked.returncode, before) == (0, []), checked.stdout
    done, held = run()
    assert done.returncode == 0, done.stdout
    assert held == [f"{root}/initrd.img" for root in (OLD, NEW)]
    assert [(tmp_path / "boot" / root / "vmlinuz").read_text() for root in (OLD, NEW)] == [
        f"kernel of {root}" for root in (OLD, NEW)
    ]
    for words in ((), ("--check",)):
        assert "changed=0" in run(*words)[0].stdout
