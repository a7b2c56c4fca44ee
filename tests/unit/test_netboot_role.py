"""What a host that boots over the network is told: its script, and who answers it."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import jinja2
import pytest
import yaml
from exposure import exposure

ROLE = Path(__file__).parents[2] / "roles/netboot"
IMAGE = {
    "digest": "5b663bd9d1414be2",
    "root": "182703fa0ac0ef3d",
    "classes": {"host": {"init": "/usr/sbin/init", "kernel_arguments": "quiet"}},
}
HOSTS = {
    "node01": {"ansible_host": "10.30.1.1", "netboot_mac": "52:54:00:12:34:5A"},
    "node02": {
        "ansible_host": "10.30.1.2",
        "netboot_mac": "52:54:00:12:34:5b",
        "netboot_ram": "8G",
        "netboot_kernel_arguments": "console=ttyS0 intel_iommu=on",
    },
}


def text(template, **changes):
    """A template of the role with its defaults, those of a head at 10.30.0.1, and ``changes``."""
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True, trim_blocks=True)
    given = {
        **yaml.safe_load((ROLE / "defaults/main.yml").read_text()),
        "ansible_managed": "made by a test",
        "netboot_address": "10.30.0.1",
        "netboot_prefix": 16,
        "hostvars": HOSTS,
        "_netboot_hosts": sorted(HOSTS),
        "_netboot_image": IMAGE,
        **changes,
    }
    mask = yaml.safe_load((ROLE / "vars/main.yml").read_text())["_netboot_netmask"]
    given["_netboot_netmask"] = environment.from_string(mask).render(given).strip()
    return environment.from_string((ROLE / "templates" / template).read_text()).render(given)


def kernel_line(host, **changes):
    (line,) = [line for line in text("host.ipxe.j2", item=host, **changes).splitlines() if line.startswith("kernel ")]
    return line.removesuffix(" || goto failed").split()


def test_a_host_boots_the_current_image_with_its_own_name_address_and_card():
    assert kernel_line("node01") == [
        "kernel",
        "182703fa0ac0ef3d/vmlinuz",
        "initrd=initrd.img",
        "net.ifnames=0",
        "BOOTIF=01-52-54-00-12-34-5a",
        "ip=10.30.1.1:::255.255.0.0:node01:boot0:off",
        "nfsroot=10.30.0.1:/var/lib/failavoid/sysimage,vers=3,nolock,tcp",
        "failavoid.image=5b663bd9d1414be2",
        "failavoid.class=host",
        "init=/usr/sbin/init",
        "quiet",
    ]


def test_a_host_may_have_its_own_share_of_ram_and_arguments_of_its_kernel():
    words = kernel_line("node02")
    assert "failavoid.ram=8G" in words
    assert words[-2:] == ["console=ttyS0", "intel_iommu=on"]


@pytest.mark.parametrize(("prefix", "mask"), [(8, "255.0.0.0"), (23, "255.255.254.0"), (30, "255.255.255.252")])
def test_a_hosts_netmask_follows_from_the_prefix(prefix, mask):
    (ip,) = [word for word in kernel_line("node01", netboot_prefix=prefix) if word.startswith("ip=")]
    assert ip.split(":")[3] == mask


def test_a_host_gets_a_way_out_where_the_site_names_one():
    words = kernel_line("node01", netboot_gateway="10.30.0.254")
    assert "ip=10.30.1.1::10.30.0.254:255.255.0.0:node01:boot0:off" in words


def test_the_initial_ram_disk_reads_every_word_that_the_script_gives_it():
    reads = (ROLE.parent / "sysimage/files/initrd-init").read_text()
    for word in kernel_line("node02"):
        key = word.partition("=")[0]
        if key.startswith("failavoid.") or key in ("BOOTIF", "ip", "nfsroot", "init"):
            assert re.search(rf"^    {re.escape(key)}=", reads, re.MULTILINE), key


def test_each_host_is_known_by_its_card_and_gets_its_own_script():
    said = text("netboot.conf.j2").splitlines()
    assert "dhcp-host=52:54:00:12:34:5a,set:node01,10.30.1.1,node01,infinite" in said
    assert "dhcp-boot=tag:ipxe,tag:node01,node01.ipxe,,10.30.0.1" in said
    assert "dhcp-range=10.30.0.1,static,255.255.0.0" in said
    assert "dhcp-ignore=tag:!known" in said


def test_where_another_server_gives_addresses_none_are_given():
    said = text("netboot.conf.j2", netboot_dhcp="other")
    assert "dhcp-range=10.30.0.1,proxy,255.255.0.0" in said
    assert "static" not in said


@pytest.mark.parametrize("changes", [{}, {"netboot_dhcp": "other"}, {"netboot_gateway": "10.30.0.254"}], ids=str)
def test_the_server_takes_its_settings(changes, tmp_path):
    path = tmp_path / "netboot.conf"
    path.write_text(text("netboot.conf.j2", **changes))
    done = subprocess.run(
        ["/usr/sbin/dnsmasq", "--test", f"--conf-file={path}"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_only_what_the_role_has_put_there_is_served():
    said = text("netboot.conf.j2").splitlines()
    assert "tftp-root=/var/lib/failavoid/netboot" in said
    assert "port=0" in said, "it is no name server"


def test_the_server_may_bind_its_ports_and_answer_and_no_more(tmp_path):
    path = tmp_path / "failavoid-netboot.service"
    path.write_text(text("failavoid-netboot.service.j2"))
    assert exposure(path) <= 2.5
