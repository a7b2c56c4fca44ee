"""Hosts that are ready to run guests: what listens where, and who may read what."""

import json

testinfra_hosts = ["ansible://hypervisor"]


def test_libvirt_listens_on_the_hosts_network_alone(host):
    address = host.ansible.get_variables()["ansible_host"]
    listening = [one for one in host.socket.get_listening_sockets() if one.endswith(":16514")]
    assert listening == [f"tcp://{address}:16514"]


def test_keys_are_for_those_who_use_them(host):
    assert host.file("/etc/pki/libvirt/private/serverkey.pem").mode == 0o600
    key = host.file("/etc/pki/qemu/server-key.pem")
    assert (key.user, key.group, key.mode) == ("root", "libvirt-qemu", 0o640)


def test_moves_never_go_in_the_clear(host):
    text = host.file("/etc/libvirt/qemu.conf").content_string
    assert "migrate_tls_force = 1" in text
    assert "migrate_tls_x509_verify = 1" in text


def test_libvirt_answers_another_host_over_tls_and_nobody_without_a_certificate(host):
    other = "10.77.1.2" if host.check_output("hostname") == "host01" else "10.77.1.1"
    assert host.run(f"virsh --readonly -c qemu+tls://{other}/system version").rc == 0
    assert host.run(f"virsh --readonly -c 'qemu+tls://{other}/system?pkipath=/var/empty' version").rc != 0


def test_the_host_knows_what_it_offers(host):
    facts = json.loads(host.file("/etc/failavoid/host.json").content_string)
    assert facts["domain_type"] in ("kvm", "qemu")
    assert facts["cores"]
    assert facts["memory_kb"] > 0


def test_the_bridge_has_the_hosts_address(host):
    assert host.interface("br0").exists
    assert any(address.startswith("10.77.1.") for address in host.interface("br0").addresses)
