"""What the playbooks do before they change anything, on this machine as if it were a site's hosts."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

PROJECT = Path(__file__).parents[2]
PLAYBOOKS = sorted(path.name for path in (PROJECT / "playbooks").glob("*.yml"))
INVENTORIES = sorted(path.name for path in (PROJECT / "inventories").iterdir())
FOR_A_SITE = [name for name in INVENTORIES if not name.startswith("testbed")]
# what the services give to the playbooks that they run, as .ansible-lint has it
GIVEN = yaml.safe_load((PROJECT / ".ansible-lint").read_text())["extra_vars"]


def play(playbook, inventory, *words, **variables):
    command = [
        Path(sys.executable).parent / "ansible-playbook",
        "-i",
        inventory,
        PROJECT / "playbooks" / playbook,
        *words,
    ]
    environment = {**os.environ, "ANSIBLE_CONFIG": str(PROJECT / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1"}
    given = ["--extra-vars", json.dumps(variables)] if variables else []
    return subprocess.run([*command, *given], env=environment, capture_output=True, text=True, check=False)


def assert_nothing_was_changed(done):
    recap = done.stdout.split("PLAY RECAP")[1].strip().splitlines()[1:]
    assert recap
    assert all("changed=0" in line for line in recap), recap


@pytest.fixture(scope="module")
def inventory(tmp_path_factory):
    """This machine as head and as two hosts."""
    here = {"ansible_connection": "local"}
    path = tmp_path_factory.mktemp("inventory") / "hosts.yml"
    groups = {"head": {"hosts": {"head01": here}}, "hypervisor": {"hosts": {"host01": here, "host02": here}}}
    path.write_text(yaml.safe_dump(groups))
    return path


@pytest.mark.parametrize("playbook", PLAYBOOKS)
def test_a_playbook_is_one_for_ansible(playbook):
    done = play(playbook, PROJECT / "inventories/testbed", "--syntax-check", **GIVEN)
    assert done.returncode == 0, done.stderr


OF_THE_TESTBED = {"demo.yml", "testbed.yml", "testbed-clean.yml"}  # for root alone


@pytest.mark.parametrize("playbook", sorted(set(PLAYBOOKS) - OF_THE_TESTBED))
def test_a_playbook_becomes_root_by_itself(playbook):
    """The services run it with an inventory of their own; what an inventory says would count on this machine too."""
    for play in yaml.safe_load((PROJECT / "playbooks" / playbook).read_text()):
        for task in play.get("tasks", []) if "become" not in play else []:
            acts = not {"ansible.builtin.assert", "ansible.builtin.raw"} & set(task)  # a connection is root's or not
            assert not acts or "become" in task, task["name"]
        assert "roles" not in play or play["become"] is True, play["name"]


def test_what_is_done_on_the_machine_that_runs_ansible_is_done_as_who_runs_it():
    files = [*PROJECT.glob("roles/*/tasks/*.yml"), *PROJECT.glob("playbooks/*.yml")]
    text = [task for file in files for task in re.split(r"\n(?= *- name: )", file.read_text())]
    local = [task for task in text if "delegate_to: localhost" in task]
    assert len(local) == 3
    assert all("become: false" in task for task in local)


@pytest.mark.parametrize("name", INVENTORIES)
def test_an_inventory_sets_only_variables_that_a_role_has(name):
    options = set()
    for specs in PROJECT.glob("roles/*/meta/argument_specs.yml"):
        for entry in yaml.safe_load(specs.read_text())["argument_specs"].values():
            options |= set(entry.get("options", {}))
    roles = {path.name for path in (PROJECT / "roles").iterdir()}
    of_a_host = {"testbed_host_class", "testbed_host_memory_mib", "testbed_host_binds", "testbed_host_nice"}
    for file in (PROJECT / "inventories" / name).glob("group_vars/*/*.yml"):
        for variable in yaml.safe_load(file.read_text()):
            if any(variable.startswith(f"{role}_") for role in roles):
                assert variable in options | of_a_host, file


@pytest.mark.parametrize("playbook", PLAYBOOKS)
def test_a_playbook_gives_no_store_of_its_own_in_place_of_the_inventorys(playbook):
    for play in yaml.safe_load((PROJECT / "playbooks" / playbook).read_text()):
        assert not [name for name in play.get("vars", {}) if name.endswith("_store") and not name.startswith("_")]


PORTS = {"monitor_port": 8411, "resource_manager_port": 8412, "controller_port": 8413}
WHO_ASKS_WHOM = """
- hosts: host01
  gather_facts: false
  tasks:
    - ansible.builtin.include_vars: "{{ roles }}/{{ item }}/defaults/main.yml"
      loop: [agent, monitor, resource_manager, controller]
    - ansible.builtin.copy:
        dest: "{{ said }}"
        content: "{{ asked | combine({'cli': cli | from_yaml}) | to_json }}"
      vars:
        cli: "{{ lookup('ansible.builtin.template', roles ~ '/resource_manager/templates/cli.yml.j2') }}"
        asked:
          monitor: "{{ [agent_monitor, resource_manager_monitor] }}"
          resource_manager: "{{ [monitor_resource_manager, controller_resource_manager] }}"
          controller: "{{ [agent_controller, monitor_controller, resource_manager_controller] }}"
"""


def test_services_that_a_site_has_on_other_ports_are_found_there_by_all_who_ask_them(tmp_path):
    (tmp_path / "ask.yml").write_text(WHO_ASKS_WHOM)
    here = {"ansible_connection": "local"}
    groups = {"head": {"hosts": {"head01": {**here, "ansible_host": "10.0.0.1"}}}, "h": {"hosts": {"host01": here}}}
    groups |= {name.removesuffix("_port"): {"children": {"head": {}}} for name in PORTS}
    (tmp_path / "hosts.yml").write_text(yaml.safe_dump(groups))
    said = tmp_path / "said.json"
    done = play(tmp_path / "ask.yml", tmp_path / "hosts.yml", roles=str(PROJECT / "roles"), said=str(said), **PORTS)
    assert done.returncode == 0, done.stdout
    asked = json.loads(said.read_text())
    cli = asked.pop("cli")
    for service, urls in asked.items():
        for url in [*urls, cli[service]]:
            assert url.endswith(f":{PORTS[f'{service}_port']}"), service


HOW_HOSTS_ARE_REACHED = """
- hosts: head01
  gather_facts: false
  tasks:
    - ansible.builtin.include_vars: "{{ role }}/defaults/main.yml"
    - ansible.builtin.copy:
        dest: "{{ said }}/{{ item | basename }}"
        content: "{{ lookup('ansible.builtin.template', role ~ '/templates/' ~ item ~ '.j2') }}"
      loop: [inventory/hosts.yml, ssh/known_hosts]
      vars:
        service_common_hosts: "{{ groups['hypervisor'] }}"
        _service_common_left_out:
          results:
            - {item: host01, content: "{{ 'ssh-ed25519 AAA1 root@host01' | b64encode }}"}
            - {item: host02, content: "{{ 'ssh-ed25519 AAA2 root@host02' | b64encode }}"}
            - {item: host03, content: "{{ 'ssh-ed25519 AAA3 root@host03' | b64encode }}"}
"""


def test_services_reach_each_host_as_its_own_user_and_at_its_own_port_and_not_as_the_head_is_reached(tmp_path):
    (tmp_path / "write.yml").write_text(HOW_HOSTS_ARE_REACHED)
    hosts = {
        "host01": {"ansible_host": "10.0.0.1", "ansible_port": 22},
        "host02": {"ansible_host": "10.0.0.2", "ansible_user": "debian", "ansible_port": 2222},
        "host03": {"ansible_host": "10.0.0.3", "ansible_user": "me", "service_common_ssh_user": "services"},
    }
    head = {"ansible_connection": "local", "ansible_user": "of-the-head", "ansible_port": 9}
    groups = {"head": {"hosts": {"head01": head}}, "hypervisor": {"hosts": hosts}}
    (tmp_path / "hosts.yml").write_text(yaml.safe_dump(groups))
    (tmp_path / "said").mkdir()
    role, said = PROJECT / "roles/service_common", tmp_path / "said"
    done = play(tmp_path / "write.yml", tmp_path / "hosts.yml", role=str(role), said=str(said))
    assert done.returncode == 0, done.stdout
    listed = [Path(sys.executable).parent / "ansible-inventory", "-i", said / "hosts.yml", "--list"]
    listing = subprocess.run(listed, capture_output=True, text=True, check=True).stdout
    reached = json.loads(listing)["_meta"]["hostvars"]
    assert [(reached[host]["ansible_user"], reached[host].get("ansible_port")) for host in hosts] == [
        ("root", 22),
        ("debian", 2222),
        ("services", None),
    ]
    known = [line for line in (said / "known_hosts").read_text().splitlines() if line]
    assert known == [
        "10.0.0.1 ssh-ed25519 AAA1",
        "[10.0.0.2]:2222 ssh-ed25519 AAA2",
        "10.0.0.3 ssh-ed25519 AAA3",
    ]


@pytest.mark.parametrize("name", FOR_A_SITE)
def test_an_inventory_to_copy_is_wrong_in_nothing_but_that_its_hosts_are_not_there(name):
    """Asked of this machine, in place of the hosts: what the inventory itself says must fit together."""
    done = play("validate.yml", PROJECT / "inventories" / name, ansible_connection="local")
    assert "hostnamectl" in done.stdout
    for words in (
        "The group",
        "no spare",
        "guest_network",
        "guests' network",
        "nfs_server_clients",
        "the same address",
    ):
        assert words not in done.stdout, done.stdout


def test_all_that_is_wrong_is_said_at_once_and_nothing_is_changed(inventory):
    users = {"service_common_job_users": ["john.doe"], "service_common_readers": ["site.watch"]}
    done = play("validate.yml", inventory, **users)
    assert done.returncode != 0
    assert_nothing_was_changed(done)
    for words in (
        "service_common_job_users: user name 'john.doe' is not allowed",
        "service_common_readers: user name 'site.watch' is not allowed",
        "The group 'monitor' must hold the head",
        "resource_manager_guest_network is not set",
        "call themselves",
    ):
        assert words in done.stdout


@pytest.mark.parametrize(
    "words", [[], ["--limit", "host01"], ["--tags", "agent"], ["--limit", "host01", "--tags", "agent"]]
)
def test_no_way_of_deploying_goes_round_the_check(inventory, words):
    done = play("site.yml", inventory, "--check", *words)
    assert done.returncode != 0
    assert done.stdout.count("PLAY [") == 1, done.stdout
    assert_nothing_was_changed(done)


@pytest.mark.parametrize("words", [[], ["--tags", "agent"], ["--limit", "head01,host01,host02"]])
def test_nothing_is_removed_unless_it_is_meant(inventory, words):
    done = play("remove.yml", inventory, *words)
    assert done.returncode != 0
    assert "This removes failavoid from head01, host01, host02." in " ".join(done.stdout.split())
    assert_nothing_was_changed(done)


def test_who_wants_to_remove_guests_does_not_remove_the_site(inventory):
    guests = [{"host": "host01", "name": "g0001"}]
    done = play("remove.yml", inventory, remove_confirmed=True, remove_guests=guests)
    assert done.returncode != 0
    assert "playbooks/remove-guests.yml" in done.stdout
    assert_nothing_was_changed(done)


USED, UNUSED = "a" * 16, "b" * 16


@pytest.fixture
def store(tmp_path):
    """A store with an image that is current and one that nobody uses."""
    for digest in (USED, UNUSED):
        (tmp_path / "store/roots" / digest).mkdir(parents=True)
        (tmp_path / "store/images" / digest).mkdir(parents=True)
        (tmp_path / "store/images" / digest / "root").symlink_to(f"../../roots/{digest}")
    (tmp_path / "store/current").symlink_to(f"images/{USED}")
    return tmp_path / "store"


def prune(tmp_path, store, *words, **of_host02):
    """Do what sysimage.yml does when it has published; returns all that Ansible says."""
    here = {"ansible_connection": "local"}
    hosts = {"host01": here, "host02": {**here, **of_host02}}
    head = {"head01": {**here, "sysimage_prune": True}}  # the head's alone, as in group_vars/head
    (tmp_path / "hosts.yml").write_text(yaml.safe_dump({"head": {"hosts": head}, "hypervisor": {"hosts": hosts}}))
    begin = ["--start-at-task", "Look at the host's own image and at its guests'"]
    done = play("sysimage.yml", tmp_path / "hosts.yml", *begin, *words, sysimage_store=str(store))
    assert "failed=0" in done.stdout, done.stdout
    return " ".join((done.stdout + done.stderr).split())


def test_images_that_nobody_uses_are_removed_when_all_hosts_were_asked(tmp_path, store):
    said = prune(tmp_path, store)
    assert "No image was removed" not in said
    assert [path.name for path in (store / "images").iterdir()] == [USED]


NOT_THERE = {"ansible_connection": "ssh", "ansible_host": "127.0.0.1", "ansible_port": 1}


@pytest.mark.parametrize(
    ("words", "of_host02", "named"),
    [
        (["--limit", "head01"], {}, "host01, host02"),
        (["--limit", "head01,host01"], {}, "host02"),
        ([], NOT_THERE, "host02"),
        ([], {"ansible_become_exe": "/nonexistent", "ansible_become_user": "daemon"}, "host02"),
    ],
    ids=["all left out", "one left out", "not reachable", "does not let us look"],
)
def test_no_image_is_removed_while_a_host_could_not_be_asked(tmp_path, store, words, of_host02, named):
    said = prune(tmp_path, store, *words, **of_host02)
    assert f"No image was removed: {named} could not be asked" in said
    assert {path.name for path in (store / "images").iterdir()} == {USED, UNUSED}


def test_it_is_asked_what_is_in_use_after_all_else_and_right_before_images_are_removed():
    plays = [play["name"] for play in yaml.safe_load((PROJECT / "playbooks/sysimage.yml").read_text())]
    assert plays[-2:] == ["Find out which images are in use", "Remove the images that nothing uses"]


def test_a_host_without_the_bridge_that_guests_join_does_not_return(inventory):
    done = play("restore.yml", inventory, restore_host="host01", network_bridge="nobr9", ansible_become=False)
    assert done.returncode != 0
    said = " ".join(done.stdout.split())
    assert "host01 has no bridge nobr9" in said
    assert "--limit 'HEAD:host01' and without tags" in said
    assert_nothing_was_changed(done)
