"""The role's template makes settings that the resource manager takes."""

import json
from pathlib import Path

import jinja2
import yaml

from failavoid.resource_manager.settings import Hooks, Settings, WarmPool
from failavoid.services import load_settings

ROLE = Path(__file__).parents[2] / "roles/resource_manager"


def settings(tmp_path, hosts, left_out=(), **variables):
    """The settings for hosts, by name: their variables and what the role hypervisor found; some were left out."""
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.filters |= {"to_json": json.dumps, "bool": bool, "zip": zip}
    defaults = yaml.safe_load((ROLE / "defaults/main.yml").read_text())
    found = {
        "memory_kb": 4096,
        "numa": {"0": [0, 1]},
        "domain_type": "kvm",
        "cpu": "EPYC",
        "hugepages": {},
        "devices": {},
    }
    hostvars = {
        name: {
            "ansible_host": f"10.0.0.{number}",
            "hypervisor_found": {
                "boot_id": changes.pop("boot_id", name),
                "host": {**found, **changes.pop("found", {})},
            },
            **changes,
        }
        for number, (name, changes) in enumerate(hosts.items(), 1)
    }
    for name in left_out:
        del hostvars[name]["hypervisor_found"]
    given = {
        **defaults,
        "ansible_managed": "made by a test",
        "hostvars": hostvars,
        "_resource_manager_left_out": {
            "results": [{"item": name, "host": found, "boot_id": name} for name in left_out]
        },
        "resource_manager_hosts": list(hosts),
        "resource_manager_spares": 1,
        "resource_manager_head_address": "10.0.0.100",
        "resource_manager_guest_network": "10.0.2.0/24",
        "resource_manager_monitor": "https://127.0.0.1:7411",
        "resource_manager_controller": "https://127.0.0.1:7413",
        **variables,
    }
    path = tmp_path / "resource_manager.yml"
    path.write_text(environment.from_string((ROLE / "templates/resource_manager.yml.j2").read_text()).render(given))
    return load_settings(Settings, path)


def test_the_defaults_are_settings(tmp_path):
    made = settings(tmp_path, {"host01": {}})
    assert (made.warm_pools, made.hooks, made.compatible, made.share_cores) == ([], Hooks(), {}, False)
    assert made.hosts[0].numa == {"0": [0, 1]}


def test_guests_boot_from_the_store_that_the_image_is_published_in(tmp_path):
    default = yaml.safe_load((ROLE.parent / "sysimage/defaults/main.yml").read_text())["sysimage_store"]
    assert settings(tmp_path, {"host01": {}}).sysimage == default
    assert settings(tmp_path, {"host01": {}}, sysimage_store="/data/images").sysimage == "/data/images"


def test_a_host_that_a_run_leaves_out_keeps_its_place(tmp_path):
    everywhere = settings(tmp_path, {"host01": {}, "host02": {}})
    assert settings(tmp_path, {"host01": {}, "host02": {}}, left_out=["host02"]) == everywhere


def test_hosts_on_one_kernel_are_one_machine_and_others_each_their_own(tmp_path):
    given = {"host01": "a", "host02": "a", "host03": "b", "host04": "", "host05": ""}
    made = settings(tmp_path, {name: {"boot_id": boot_id} for name, boot_id in given.items()})
    assert [host.machine for host in made.hosts] == ["host01", "host01", "host03", "", ""]


def test_what_hosts_offer_comes_through(tmp_path):
    offered = {"hugepages": {"0": {"2048": 512}}, "devices": {"ib-vf": ["0000:3b:00.1"]}}
    host = settings(tmp_path, {"host01": {"found": offered}}).hosts[0]
    assert (host.hugepages, host.devices) == (offered["hugepages"], offered["devices"])


def test_pools_and_commands_come_through(tmp_path):
    made = settings(
        tmp_path,
        {"host01": {}},
        resource_manager_warm_pools=[{"guests": 2, "user": "ada"}],
        resource_manager_hooks={"alarm": ["echo $FAILAVOID_HOST"], "must_succeed": True},
    )
    assert made.warm_pools == [WarmPool(2, user="ada")]
    assert made.hooks == Hooks(alarm=["echo $FAILAVOID_HOST"], must_succeed=True)


def test_a_hosts_class_is_the_inventorys_word_or_its_processors_unless_all_are_alike(tmp_path):
    made = settings(
        tmp_path,
        {
            "host01": {"failavoid_hardware_class": "rome", "failavoid_reserved_spare": True},
            "host02": {},
            "host03": {"guest_cpu_model": "EPYC-Rome"},
            "host04": {"found": {"domain_type": "qemu"}},
        },
    )
    assert [host.hardware_class for host in made.hosts] == ["rome", "EPYC", "", ""]
    assert [host.reserved_spare for host in made.hosts] == [True, False, False, False]
