"""What every role keeps to: documented variables, tags, a README that is true, units that may do what they must."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
from pathlib import Path

import jinja2
import pytest
import yaml
from exposure import exposure

ROLES = sorted(path for path in (Path(__file__).parents[2] / "roles").iterdir() if path.is_dir())
PHASES = {"check", "install", "configure", "run", "remove"}
SERVICES = ("agent", "controller", "monitor", "resource_manager")
# `systemd-analyze security`: 0 is a unit that may do nothing, 10 one that may do anything. The agent is root, because
# it looks at all processes, and keeps the host's own /proc.
EXPOSURE = {"agent": 3.0, "controller": 1.7, "monitor": 1.7, "resource_manager": 1.7}
# so that what it shares with a job's ranks is for the job's user alone
AGENTS_CAPABILITIES = "CAP_CHOWN CAP_FOWNER CAP_DAC_OVERRIDE"

every_role = pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)


def load(path):
    return yaml.safe_load(path.read_text()) if path.exists() else None


def specs_of(role):
    """Entry point -> its options."""
    points = load(role / "meta/argument_specs.yml")["argument_specs"]
    return {point: spec.get("options", {}) for point, spec in points.items()}


def tasks_of(role):
    """All tasks of a role with their tags, those of blocks with the block's."""

    def unfold(tasks, tags):
        for task in tasks:
            own = {*tags, *task.get("tags", [])}
            if "block" in task:
                yield from unfold(task["block"], own)
            else:
                yield task, own

    for file in sorted((role / "tasks").glob("*.yml")):
        for task, tags in unfold(load(file), set()):
            yield f"{file.name}: {task.get('name')}", task, tags


@every_role
def test_a_role_describes_every_entry_point(role):
    assert set(specs_of(role)) == {file.stem for file in (role / "tasks").glob("*.yml")}


@every_role
def test_what_is_documented_as_a_default_is_the_default(role):
    defaults = load(role / "defaults/main.yml") or {}
    documented = {name for options in specs_of(role).values() for name in options}
    assert set(defaults) <= documented
    for point, options in specs_of(role).items():
        for name, option in options.items():
            assert option.get("default") == defaults.get(name), f"{point}: {name}"


@every_role
def test_a_default_is_of_the_type_that_is_documented(role):
    kinds = {"bool": bool, "dict": dict, "float": (int, float), "int": int, "list": list, "path": str, "str": str}
    for options in specs_of(role).values():
        for name, option in options.items():
            default = option.get("default")
            templated = isinstance(default, str) and "{{" in default
            assert default is None or templated or isinstance(default, kinds[option["type"]]), name


@every_role
def test_a_role_has_a_readme_that_names_only_variables_it_has(role):
    text = (role / "README.md").read_text()
    assert text.startswith(f"# {role.name}\n")
    known = {name for options in specs_of(role).values() for name in options}
    assert set(re.findall(rf"`({role.name}_[a-z_]+)", text)) <= known


@every_role
def test_a_readme_names_every_further_entry_point(role):
    text = (role / "README.md").read_text()
    assert set(re.findall(r"`tasks_from: (\w+)\.yml`", text)) == set(specs_of(role)) - {"main"}


@every_role
def test_every_task_can_be_chosen_by_its_role_and_by_what_it_is_for(role):
    for where, task, tags in tasks_of(role):
        assert role.name in tags, where
        assert {f"{role.name}_{phase}" for phase in PHASES} & tags, where
        assert task.get("name"), where


def packages():
    """The packages that roles install on a machine that does not run the system image, by their variable."""
    defaults = [load(role / "defaults/main.yml") or {} for role in ROLES]
    return {name: value for given in defaults for name, value in given.items() if name.endswith("_packages")}


def test_packages_are_installed_by_a_variable_from_lists_that_are_not_too_old():
    """So that a machine that was just installed will do, and one of another system may have them already."""
    found = {}
    for role in ROLES:
        for where, task, _ in tasks_of(role):
            assert "apt-get" not in str(task), where
            if given := task.get("ansible.builtin.apt"):
                variable = given["name"].strip("{} ")
                found[variable] = (given["update_cache"], given["cache_valid_time"] > 0, task["when"])
    assert found == {name: (True, True, f"{name} | length > 0") for name in packages()}


def test_the_system_image_holds_what_roles_install_elsewhere():
    """Machines that run it are told to install nothing."""
    image = load(ROLES[0].parent / "sysimage/files/sysimage.yml")["root"]["packages"]
    for name, listed in packages().items():
        assert set(listed) <= set(image), name
    inventories = ROLES[0].parents[1] / "inventories"
    assert load(inventories / "testbed/group_vars/all/image.yml") == {name: [] for name in packages()}


# What is called on the head, where, and the package that brings it.
CALLED_ON_THE_HEAD = [
    ('"certtool"', "library/failavoid_certificates.py", "gnutls-bin"),
    ("import libvirt", "failavoid/controller/libvirt_view.py", "python3-libvirt"),
    ('"mmdebstrap"', "module_utils/failavoid/sysimage_build.py", "mmdebstrap"),
    ('"mpirun"', "failavoid/cli/mpi.py", "openmpi-bin"),
    ("showmount", "roles/nfs_server/tasks/main.yml", "nfs-common"),
    ("sqlite3 /var", "docs/site-guide.md", "sqlite3"),
    ("ssh-keygen", "roles/service_common/files/install.sh", "openssh-client"),
    ("/usr/lib/ipxe", "roles/netboot/tasks/main.yml", "ipxe"),
    ("/usr/sbin/dnsmasq", "roles/netboot/templates/failavoid-netboot.service.j2", "dnsmasq-base"),
]


@pytest.mark.parametrize(("word", "where", "package"), CALLED_ON_THE_HEAD, ids=lambda value: value.split("/")[-1])
def test_a_bare_head_gets_what_is_called_there(word, where, package):
    assert word in (ROLES[0].parents[1] / where).read_text()
    assert any(package in listed for name, listed in packages().items() if name != "hypervisor_packages")


# What a role writes and its absent.yml leaves, and why that is right.
LEFT = {
    "service_common": {
        "~{{ service_common_ssh_user }}/.ssh/authorized_keys": "hosts_absent.yml takes the services' line out of it",
        "/etc/failavoid/secret": "with remove_state, together with /etc/failavoid",
    },
    "nfs_server": {"{{ nfs_server_store }}": "the role sysimage's"},
    "hypervisor": {"/etc/libvirt/qemu.conf": "libvirt's own, of which the block is taken out"},
    "netboot": {"/etc/failavoid": "the folder of all of the head's services, service_common's"},
    "guest": {"{{ guest_cache }}/boot/{{ item[0] }}/": "a cache of the machine that runs Ansible"},
}
WRITERS = ("copy", "template", "file", "blockinfile", "lineinfile", "fetch")


def written_by(role):
    """The paths of files that a role's tasks write, those of loops one by one."""
    for _, task, tags in tasks_of(role):
        if f"{role.name}_remove" in tags:
            continue
        for writer in WRITERS:
            given = task.get(f"ansible.builtin.{writer}", {})
            path = given.get("dest") or given.get("path")
            if path is None or (writer == "file" and path.endswith(".d")):  # folders are removed when they are empty
                continue
            for item in task.get("loop", [None]):
                values = item if isinstance(item, dict) else {}
                yield re.sub(r"\{\{ item\.(\w+) \}\}", lambda found, values=values: values[found[1]], path)


@every_role
def test_what_a_role_writes_it_removes(role):
    removed = (role / "tasks/absent.yml").read_text().replace('"', "")
    for path in written_by(role):
        path = path.removeprefix(f"{{{{ {role.name}_root }}}}")
        within = [path.rstrip("/"), *map(str, Path(path).parents)]
        named = any(re.search(rf"{re.escape(place)}[\n,\]]", removed) for place in within if len(place) > 1)
        assert named or path in LEFT.get(role.name, {}), path


@every_role
def test_nothing_that_holds_a_key_or_a_token_is_shown(role):
    for where, task, _ in tasks_of(role):
        if "failavoid_token" in task or task.get("failavoid_certificates", {}).get("state") == "issued":
            assert task.get("no_log") is True, where


def unit(role):
    """A service's unit as the role writes it with its defaults."""
    name = role.replace("_", "-")
    template = (ROLES[0].parent / role / f"templates/failavoid-{name}.service.j2").read_text()
    defaults = load(ROLES[0].parent / role / "defaults/main.yml")
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    return environment.from_string(template).render(defaults, ansible_managed="made by a test")


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_can_write_only_its_own_state_and_takes_only_its_share_of_memory(service):
    settings = dict(line.split("=", 1) for line in unit(service).splitlines() if re.match(r"\w+=", line))
    assert settings["ProtectSystem"] == "strict"
    assert settings["NoNewPrivileges"] == "yes"
    assert settings["CapabilityBoundingSet"] == (AGENTS_CAPABILITIES if service == "agent" else "")
    assert settings["SystemCallFilter"] == "@system-service"
    assert re.fullmatch(r"\d+[MG]", settings["MemoryMax"])
    assert service == "agent" or settings["User"] == "failavoid"


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_is_as_little_exposed_as_it_was(service, tmp_path):
    path = tmp_path / f"failavoid-{service.replace('_', '-')}.service"
    path.write_text(unit(service))
    assert exposure(path) <= EXPOSURE[service]


PLAYED_SYSTEMCTL = """#!/bin/sh
case "$*" in
"--quiet is-active $SHOWN") [ -n "$SINCE" ] ;;
"show --property=$PROPERTY --value --timestamp=us+utc $SHOWN") echo "$SINCE" ;;
*) exit 1 ;;
esac
"""
# what each is started from, by its role, below a root of the test's own
STARTED_FROM = {
    "agent": [
        "etc/failavoid/agent.json",
        "etc/systemd/system/failavoid-agent.service",
        "opt/failavoid/lib/.agent-digest",
    ],
    **{
        role: [
            f"etc/failavoid/{role}.yml",
            f"etc/systemd/system/failavoid-{role.replace('_', '-')}.service",
            "etc/failavoid/tls/certificate.pem",
            "etc/failavoid/secret",
        ]
        for role in SERVICES[1:]
    },
    "nfs_server": ["etc/ganesha/ganesha.conf", "etc/systemd/system/nfs-ganesha.service.d/failavoid.conf"],
    "hypervisor": [
        "etc/libvirt/qemu.conf",
        "etc/systemd/system/libvirtd-tls.socket.d/failavoid.conf",
        "etc/pki/CA/cacert.pem",
        "etc/pki/libvirt/private/serverkey.pem",
        "etc/pki/qemu/client-cert.pem",
    ],
}
UNITS = {"nfs_server": "nfs-ganesha.service", "hypervisor": "libvirtd-tls.socket"}


def newer(role, root, since):
    """What the role says is newer than a service that was started at that time; "" if it was not."""
    unit = UNITS.get(role, f"failavoid-{role.replace('_', '-')}.service")
    (root / "bin").mkdir(exist_ok=True)
    (root / "bin/systemctl").write_text(PLAYED_SYSTEMCTL)
    (root / "bin/systemctl").chmod(0o755)
    if role == "agent":
        script, words = ROLES[0].parent / "agent/files/install.sh", ["", "python3"]
    elif role == "hypervisor":
        script, words = ROLES[0].parent / "hypervisor/files/newer.sh", []
    else:
        script = ROLES[0].parent / "service_common/files/newer.sh"
        own = STARTED_FROM[role] if role in UNITS else STARTED_FROM[role][:1]
        words = [unit, *(f"{root}/{name}" for name in own)]
    text = re.sub(r"(?<![\w.])/(?=etc/|opt/)|(?<=\$1)/(?=opt/)", f"{root}/", script.read_text())
    done = subprocess.run(
        ["/bin/sh", "-c", text, script.name, *words],
        env={
            "PATH": f"{root}/bin:/usr/bin:/bin",
            "SHOWN": unit,
            "PROPERTY": "ActiveEnterTimestamp" if unit.endswith(".socket") else "ExecMainStartTimestamp",
            "SINCE": since,
        },
        input="archive",
        capture_output=True,
        text=True,
        check=True,
    )
    return [line.removeprefix("changed: ").removeprefix(f"{root}/") for line in done.stdout.splitlines()]


@pytest.mark.parametrize("service", STARTED_FROM)
def test_a_service_that_a_run_left_behind_what_it_is_started_from_is_found_by_the_next(service, tmp_path):
    for name in STARTED_FROM[service]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (1_000_000_000.4,) * 2)
    if service == "agent":
        (tmp_path / STARTED_FROM["agent"][-1]).write_text(hashlib.sha256(b"archive").hexdigest() + "\n")
        os.utime(tmp_path / STARTED_FROM["agent"][-1], (1_000_000_000.4,) * 2)
    assert newer(service, tmp_path, "Sun 2001-09-09 01:46:40.500000 UTC") == []
    # libvirt's socket is to run; what else does not run is started, with what is there then
    assert newer(service, tmp_path, "") == (["libvirtd-tls.socket"] if service == "hypervisor" else [])
    assert sorted(newer(service, tmp_path, "Sun 2001-09-09 01:46:40.300000 UTC")) == sorted(STARTED_FROM[service])
    os.utime(tmp_path / STARTED_FROM[service][0])
    assert newer(service, tmp_path, "Sun 2001-09-09 01:46:40.500000 UTC") == STARTED_FROM[service][:1]


@pytest.mark.parametrize("service", SERVICES[1:])
def test_a_service_is_looked_at_before_its_handlers_are_run_and_restarted_if_it_is_behind(service):
    tasks = load(ROLES[0].parent / service / "tasks/main.yml")
    (look,) = [task for task in tasks if "newer.sh" in str(task)]
    flush = next(task for task in tasks if task.get("ansible.builtin.meta") == "flush_handlers")
    assert tasks.index(look) < tasks.index(flush)
    handlers = {handler["name"] for handler in load(ROLES[0].parent / service / "handlers/main.yml")}
    assert look["notify"] in handlers
    name = service.replace("_", "-")
    assert look["ansible.builtin.command"]["argv"][-2:] == [
        f"failavoid-{name}.service",
        f"/etc/failavoid/{service}.yml",
    ]


def test_the_nfs_servers_unit_is_hardened_as_far_as_a_file_server_can_be():
    text = (ROLES[0].parent / "nfs_server/templates/hardening.conf.j2").read_text()
    assert {"NoNewPrivileges=yes", "ProtectKernelModules=yes", "RestrictNamespaces=yes"} <= set(text.splitlines())
