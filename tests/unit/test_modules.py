"""What the modules say of themselves, held against what they take and what they return."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import libvirt
import pytest
import yaml
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.common.parameters import remove_values

from tests.unit.ansible_modules import NAMES, PROJECT, Ended, documented, load, run, specification
from tests.unit.migration_world import XML

TYPES = {"bool": bool, "dict": dict, "float": (int, float), "int": int, "list": list, "str": str}
ANSIBLES_OWN = {"changed", "diff", "msg", "failed", "invocation"}

every_module = pytest.mark.parametrize("name", NAMES)


# -- what they take ----------------------------------------------------------------------------------------


def assert_same_options(where, documented_options, specified):
    assert set(documented_options) == set(specified), where
    for option, said in documented_options.items():
        taken, here = specified[option], f"{where}.{option}"
        assert said["type"] == taken["type"], here
        assert said.get("elements") == taken.get("elements"), here
        assert said.get("required", False) == taken.get("required", False), here
        assert said.get("choices") == taken.get("choices"), here
        default = taken.get("default")
        assert (
            json.loads(said["default"])
            if default == {} and isinstance(said.get("default"), str)
            else said.get("default")
        ) == default, here
        if "options" in taken:
            assert_same_options(here, said["suboptions"], taken["options"])


@every_module
def test_a_module_takes_what_it_documents(name):
    assert_same_options(name, documented(name, "DOCUMENTATION")["options"], specification(name)["argument_spec"])


@every_module
def test_a_module_says_truly_whether_it_can_check(name):
    support = documented(name, "DOCUMENTATION")["attributes"]["check_mode"]["support"]
    assert (support == "full") == specification(name)["supports_check_mode"]


@every_module
def test_a_modules_examples_use_options_that_it_has(name):
    options = set(documented(name, "DOCUMENTATION")["options"])
    examples = yaml.safe_load(load(name).EXAMPLES)
    assert examples
    for example in examples:
        assert set(example[name] or {}) <= options


def test_every_module_is_shown_by_ansible_doc():
    command = [Path(sys.executable).parent / "ansible-doc", "--type", "module", "--json", *NAMES]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    shown = json.loads(done.stdout)
    assert set(shown) == set(NAMES)
    for name, said in shown.items():
        assert said["doc"]["short_description"], name
        assert said["examples"], name
        assert said["return"], name


# -- what they return --------------------------------------------------------------------------------------


def assert_documented(where, said, value):
    """Hold a value against its documentation, and what it contains."""
    if value is None:
        return
    assert isinstance(value, TYPES[said["type"]]), f"{where}: {value!r} is no {said['type']}"
    for number, element in enumerate(value) if said["type"] == "list" else ():
        if "elements" in said:
            assert isinstance(element, TYPES[said["elements"]]), f"{where}[{number}]"
    if "contains" in said:
        for one in value if said["type"] == "list" else [value]:
            assert set(one) <= set(said["contains"]), where
            for key, inner in one.items():
                assert_documented(f"{where}.{key}", said["contains"][key], inner)


def assert_returns_what_it_documents(name, ended):
    said = documented(name, "RETURN")
    returned = {key: value for key, value in ended.result.items() if key not in ANSIBLES_OWN}
    assert set(returned) <= set(said), name
    must = {"always"} if ended.failed else {"always", "success"}
    assert {key for key, value in said.items() if value["returned"] in must} <= set(returned), name
    for key, value in returned.items():
        assert_documented(f"{name}.{key}", said[key], value)


@pytest.fixture
def guest_module(tmp_path, monkeypatch):
    """The module failavoid_guest on libvirt's own test driver, with one guest that this process is the QEMU of."""
    module = load("failavoid_guest")
    from ansible.module_utils.failavoid import guest_state, guests, taps

    monkeypatch.setattr(guest_state, "GUESTS", tmp_path / "guests")
    monkeypatch.setattr(guest_state, "QEMU_USER", "root")
    monkeypatch.setattr(guests, "BOOT", tmp_path / "boot")
    monkeypatch.setattr(guests, "process_of", lambda name: os.getpid())
    monkeypatch.setattr(taps, "allow", lambda address: None)
    monkeypatch.setattr(taps, "forbid", lambda address: None)
    connection = libvirt.open("test:///default")
    monkeypatch.setattr(guests, "connect", lambda: connection)
    domain = connection.createXML(XML.format(kind="test", name="g1", backing="", devices=""))
    yield module
    with contextlib.suppress(libvirt.libvirtError):
        domain.destroy()
    connection.close()


GUEST = {"name": "g1", "cores": [0], "numa_node": 0, "address": "10.77.2.3"}


@pytest.mark.parametrize(
    ("state", "guest", "check"),
    [
        ("info", GUEST, False),
        ("arrived", GUEST, False),
        ("arrived", GUEST, True),
        ("expected", {**GUEST, "name": "g2"}, True),
        ("expected", GUEST, False),  # refused: it is there
        ("unexpected", GUEST, False),
        ("absent", GUEST, True),
        ("absent", GUEST, False),
        ("arrived", {"name": "g1"}, False),  # refused: not enough is said
    ],
)
def test_failavoid_guest_returns_what_it_documents(guest_module, state, guest, check):
    ended = run(guest_module, check=check, state=state, guests=[guest])
    if ended.failed and "guests" not in ended.result:
        assert "g1" in ended.result["msg"]
    else:
        assert_returns_what_it_documents("failavoid_guest", ended)


def test_failavoid_guest_says_in_check_mode_what_it_would_start_and_what_it_would_refuse(guest_module):
    new = {**GUEST, "name": "g2", "uuid": "11111111-8f2b-4f0e-9a51-0c8c6a1b2c3d", "memory_kb": 1024}
    new.update(kernel="/boot/vmlinuz", initrd="/boot/initrd.img", cmdline="")
    started = run(guest_module, check=True, domain_type="qemu", guests=[new])
    assert started.result["changed"] is True
    assert started.result["diff"] == {"before": "g2: absent\n", "after": "g2: running\n"}
    assert_returns_what_it_documents("failavoid_guest", started)
    refused = run(guest_module, check=True, domain_type="qemu", guests=[{**new, "name": "g1"}])
    assert "another guest named g1 runs on this host" in refused.result["msg"]


def test_failavoid_guest_removes_once_and_says_so(guest_module):
    check = run(guest_module, check=True, state="absent", guests=[GUEST]).result
    first = run(guest_module, state="absent", guests=[GUEST]).result
    second = run(guest_module, state="absent", guests=[GUEST]).result
    assert [check["changed"], first["changed"], second["changed"]] == [True, True, False]
    assert check["diff"] == first["diff"] == {"before": "g1: running\n", "after": "g1: absent\n"}


@pytest.fixture
def migrate_module(tmp_path, monkeypatch):
    module = load("failavoid_migrate")
    from ansible.module_utils.failavoid import guests, migration

    monkeypatch.setattr(migration, "RECORDS", tmp_path)
    connection = libvirt.open("test:///default")
    monkeypatch.setattr(guests, "connect", lambda: connection)
    yield module
    connection.close()


def test_failavoid_migrate_returns_what_it_documents(migrate_module):
    move = {**GUEST, "destination": "host05", "destination_address": "10.77.1.5"}
    migration = migrate_module.migration
    moved = migration.Move("g1", "host01", "host05", "10.77.1.5", [0], 0, "moved", 1.5, 20.0, 4096, 2048, 3, 0)
    migration.write_record(migration.Record("evac-1", [moved], ended=1.0))
    again = run(migrate_module, evacuation="evac-1", guests=[move])
    assert (again.failed, again.result["changed"]) == (False, False)
    assert_returns_what_it_documents("failavoid_migrate", again)
    refused = run(migrate_module, evacuation="evac-2", guests=[move])
    assert "guest g1 does not run on this host" in refused.result["msg"]
    assert_returns_what_it_documents("failavoid_migrate", refused)


def test_failavoid_migrate_gives_an_evacuation_up_once(migrate_module):
    results = [run(migrate_module, check=check, evacuation="evac-1", state="aborted") for check in (True, False, False)]
    assert [ended.result["changed"] for ended in results] == [True, True, False]
    for ended in results:
        assert_returns_what_it_documents("failavoid_migrate", ended)


def test_failavoid_certificates_returns_what_it_documents_and_issues_once(tmp_path):
    module = load("failavoid_certificates")
    given = {"state": "issued", "authority": str(tmp_path), "hosts": [{"name": "host01", "address": "10.77.1.1"}]}
    results = [run(module, check=check, **given) for check in (True, False, False, True)]
    assert [ended.result["changed"] for ended in results] == [True, True, False, False]
    given["hosts"] = [{"name": "host01", "address": "10.77.1.2"}]
    results += [run(module, check=check, **given) for check in (True, False, True)]
    assert [ended.result["changed"] for ended in results[4:]] == [True, True, False]
    for ended in results:
        assert_returns_what_it_documents("failavoid_certificates", ended)


def test_failavoid_token_returns_what_it_documents(tmp_path):
    module = load("failavoid_token")
    missing = run(module, role="host", subjects=["host01"], secret=str(tmp_path / "secret"))
    assert "run it first" in missing.result["msg"]
    (tmp_path / "secret").write_text("s" * 48)
    ended = run(module, role="host", subjects=["host01"], secret=str(tmp_path / "secret"))
    assert set(ended.result["tokens"]) == {"host01"}
    assert_returns_what_it_documents("failavoid_token", ended)


def test_failavoid_bundle_returns_what_it_documents(tmp_path):
    given = {"project": str(PROJECT), "requirements": str(PROJECT / "requirements/head.txt"), "cache": str(tmp_path)}
    ended = run(load("failavoid_bundle"), check=True, **given)
    assert ended.result["changed"]
    assert not any(tmp_path.iterdir())
    assert_returns_what_it_documents("failavoid_bundle", ended)


@pytest.mark.parametrize("state", ["published", "pruned"])
def test_failavoid_sysimage_returns_what_it_documents(tmp_path, state):
    declaration = yaml.safe_load((PROJECT / "roles/sysimage/files/sysimage.yml").read_text())
    files = PROJECT.glob("roles/sysimage/files/*")
    sources = {file.name: file.read_text() for file in files}
    ended = run(
        load("failavoid_sysimage"),
        check=True,
        state=state,
        store=str(tmp_path / "store"),
        declaration=json.dumps(declaration),
        sources=json.dumps(sources),
    )
    assert (ended.failed, ended.result["changed"]) == (False, state == "published")
    assert not (tmp_path / "store").exists()
    assert_returns_what_it_documents("failavoid_sysimage", ended)


def test_failavoid_sysimage_shows_and_logs_no_key_that_an_image_holds_and_its_results_stay_readable(
    tmp_path, monkeypatch
):
    logged = []
    monkeypatch.setattr(AnsibleModule, "log", lambda self, msg, log_args=None: logged.append((msg, log_args)))
    key, store = "-----BEGIN OPENSSH PRIVATE KEY-----", str(tmp_path / "store")
    root = {"suite": "bookworm", "kernel": "amd64", "initrd_modules": [], "packages": ["store"]}
    files = [{"path": "/etc/ssh/ssh_host_ed25519_key", "content": key}, {"path": "/b", "source": "b"}]
    given = {
        "store": store,
        "declaration": json.dumps({"root": root, "classes": {"host": {"init": "/sbin/init", "files": files}}}),
        "sources": json.dumps({"b": key}),
    }
    module = load("failavoid_sysimage")
    ended = run(module, check=True, **given)
    assert (ended.failed, ended.result["built"]) == (False, ["root", "image"])
    wrong = run(module, check=True, **{**given, "declaration": given["declaration"][:-1]})
    assert "declaration: give it as JSON" in wrong.result["msg"]
    said = json.dumps([ended.result, wrong.result, logged], default=str)
    assert store in said  # it was logged what the module was called with
    assert "PRIVATE KEY" not in said
    masked = specification("failavoid_sysimage")["argument_spec"]
    whole = {given[name] for name, option in masked.items() if option.get("no_log")}
    assert remove_values(ended.result, whole) == ended.result


def test_failavoid_sysimage_prunes_once_and_touches_nothing_in_check_mode(tmp_path):
    module, (used, unused) = load("failavoid_sysimage"), ("a" * 16, "b" * 16)
    for digest in (used, unused):
        (tmp_path / "roots" / digest).mkdir(parents=True)
        (tmp_path / "images" / digest).mkdir(parents=True)
        (tmp_path / "images" / digest / "root").symlink_to(f"../../roots/{digest}")
    (tmp_path / "current").symlink_to(f"images/{used}")
    (tmp_path / "roots/.building-interrupted").mkdir()

    def prune(check):
        return run(module, check=check, state="pruned", store=str(tmp_path)).result

    before = sorted(tmp_path.rglob("*"))
    checked = prune(check=True)
    assert sorted(tmp_path.rglob("*")) == before
    pruned = prune(check=False)
    assert (checked["changed"], checked["removed"], checked["diff"]) == (True, pruned["removed"], pruned["diff"])
    assert [path.name for kind in ("images", "roots") for path in (tmp_path / kind).iterdir()] == [used, used]
    assert prune(check=True)["changed"] is False


@pytest.mark.parametrize("check", [True, False])
def test_failavoid_sysimage_removes_nothing_while_a_host_was_not_asked(tmp_path, check):
    (tmp_path / "images" / ("b" * 16)).mkdir(parents=True)
    given = {"state": "pruned", "store": str(tmp_path), "not_asked": ["host07"]}
    ended = run(load("failavoid_sysimage"), check=check, **given)
    assert (ended.failed, ended.result["changed"], ended.result["removed"]) == (False, False, [])
    assert (tmp_path / "images" / ("b" * 16)).is_dir()
    assert_returns_what_it_documents("failavoid_sysimage", ended)


def test_failavoid_numa_info_returns_what_it_documents_and_finds_the_same_again(tmp_path):
    module, path = load("failavoid_numa_info"), str(tmp_path / "host.json")
    results = [run(module, check=check, domain_type="qemu", path=path) for check in (True, False, False)]
    assert [ended.result["changed"] for ended in results] == [True, True, False]
    for ended in results:
        assert_returns_what_it_documents("failavoid_numa_info", ended)


OWN_ID = """
from tests.unit.ansible_modules import load
print(load("failavoid_numa_info").boot_id())
"""


def test_containers_on_one_machine_tell_its_kernels_boot_id_whatever_id_they_were_given(tmp_path):
    (tmp_path / "id").write_text("11111111-2222-3333-4444-555555555555\n")
    cover = 'mount --bind "$1" "$2" && shift 2 && exec "$@"'
    covered = ["unshare", "--mount", "sh", "-c", cover, "-", str(tmp_path / "id"), "/proc/sys/kernel/random/boot_id"]
    command = [sys.executable, "-c", OWN_ID]
    env = {**os.environ, "PYTHONPATH": str(PROJECT)}
    said = [
        subprocess.run(words, env=env, capture_output=True, text=True, check=True).stdout.strip()
        for words in (command, [*covered, *command])
    ]
    assert len(said[0]) == 36
    assert said[1] == said[0]


def test_failavoid_survey_returns_what_it_documents():
    assert_returns_what_it_documents("failavoid_survey", run(load("failavoid_survey"), asked=1.5))


def test_failavoid_site_check_returns_what_it_documents():
    site = {"groups": {"head": ["head01"], "hypervisor": []}}
    deployer = {"folders": ["/var/cache"], "library": True}
    ended = run(load("failavoid_site_check"), site=site, hosts=[{"name": "head01"}], deployer=deployer)
    assert ended.failed
    assert "These hosts do not answer over SSH: head01." in ended.result["msg"]
    assert "The machine that runs Ansible" not in ended.result["msg"]
    assert_returns_what_it_documents("failavoid_site_check", ended)


TESTBED = {"base": "base", "store": "store", "bridge": "failavoid9", "address": "10.99.0.254/16", "group": "failavoid9"}


@pytest.mark.parametrize("state", ["started", "absent"])
def test_failavoid_container_returns_what_it_documents(tmp_path, monkeypatch, state):
    module = load("failavoid_container")
    monkeypatch.setattr(module.containers, "locked", contextlib.nullcontext)
    given = {**TESTBED, "base": str(tmp_path / "base"), "store": str(tmp_path / "store"), "state": state}
    ended = run(module, check=True, **given)
    assert not ended.failed, ended.result
    assert_returns_what_it_documents("failavoid_container", ended)


def test_failavoid_preflight_returns_what_it_documents(tmp_path):
    containers = [{"name": "host01", "node_class": "host", "address": "10.98.1.1", "memory_mib": 1}]
    given = {**TESTBED, "base": str(tmp_path / "base"), "store": str(tmp_path / "store"), "containers": containers}
    ended = run(load("failavoid_preflight"), **given)
    assert "host01: its ansible_host 10.98.1.1 is outside of 10.99.0.0/16" in ended.result["msg"]
    assert_returns_what_it_documents("failavoid_preflight", ended)


INTERFACE = """
import json
from tests.unit.ansible_modules import load, run
module = load("failavoid_interface")
for check in (True, False, False):
    ended = run(module, check=check, name="br9", uplink="cable9", address="10.99.0.1")
    print(json.dumps([ended.failed, ended.result]))
"""


def test_failavoid_interface_makes_a_bridge_once_and_returns_what_it_documents():
    uplink = "ip link add cable9 type veth peer name other9 && ip address add 10.99.0.1/24 dev cable9"
    prepare = f'mount -t sysfs none /sys && {uplink} && exec "$@"'
    done = subprocess.run(
        ["unshare", "--net", "--mount", "sh", "-c", prepare, "-", sys.executable, "-c", INTERFACE],
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    steps = [Ended(result, failed) for failed, result in map(json.loads, done.stdout.splitlines())]
    assert [ended.result.get("changed") for ended in steps] == [True, True, False]
    for ended in steps:
        assert_returns_what_it_documents("failavoid_interface", ended)
    assert steps[-1].result["interface"]["addresses"] == ["10.99.0.1/24"]
    checked, made, again = (ended.result["diff"] for ended in steps)
    assert checked == made
    assert again["before"] == again["after"] == made["after"]


WRONG = {
    "failavoid_certificates": {"state": "installed"},
    "failavoid_guest": {"state": "arrived", "guests": [{"name": "g1"}]},
    "failavoid_interface": {"name": "nobr9"},
    "failavoid_migrate": {"evacuation": "Not A Name"},
    "failavoid_numa_info": {"domain_type": "qemu", "cores": [99999]},
    "failavoid_sysimage": {"store": "/nowhere", "declaration": "{}"},
    "failavoid_token": {"role": "host", "subjects": ["host01"], "secret": "/nowhere"},
}


@pytest.mark.parametrize("name", WRONG)
def test_what_goes_wrong_on_a_host_is_told_with_its_name(name):
    ended = run(load(name), **WRONG[name])
    assert ended.failed
    assert ended.result["msg"].startswith(f"{socket.gethostname()}: "), ended.result["msg"]
