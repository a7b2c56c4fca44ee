"""A guest that was started: libvirt's word, the kernel's, and the network's."""

import json

testinfra_hosts = ["ansible://host04"]


def test_the_guest_runs_and_is_transient(host):
    assert "running" in host.check_output("virsh domstate molecule")
    assert "Persistent:     no" in host.check_output("virsh dominfo molecule")


def test_the_guest_is_pinned(host):
    assert host.check_output("virsh vcpupin molecule 0").splitlines()[-1].split() == ["0", "0"]


def test_its_state_directory_says_so_and_its_identity_is_for_its_qemu_alone(host):
    folder = "/var/lib/failavoid/guests/molecule"
    state = json.loads(host.file(f"{folder}/state.json").content_string)
    assert (state["state"], state["address"]) == ("running", "10.77.3.240")
    identity = host.file(f"{folder}/identity.json")
    assert identity.mode == 0o640
    assert "libvirt-qemu" in (identity.user, identity.group)


def test_no_key_of_the_guest_is_in_a_process_list(host):
    assert "OPENSSH PRIVATE KEY" not in host.check_output("cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' '")


def test_the_guest_is_reached(host):
    assert host.run("ping -c 1 -W 5 10.77.3.240").rc == 0
