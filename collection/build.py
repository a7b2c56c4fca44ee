"""Builds the project as an Ansible collection: python collection/build.py [FOLDER], by default build/collection.

The collection is the project in another layout: modules and module_utils become plugins, whose imports and names are
rewritten, and the sources that hosts, guests and the head are installed from lie in ``project``. What belongs
to the testbed is left out.
"""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import tomllib
import yaml

PROJECT = Path(__file__).resolve().parents[1]
NAMESPACE = "failavoid.failavoid"
PYTHON_PACKAGE = f"ansible_collections.{NAMESPACE}.plugins.module_utils"
OF_THE_TESTBED = {
    "modules": {"failavoid_container", "failavoid_preflight"},
    "module_utils": {"cgroups", "containers", "preflight"},
    "playbooks": {"demo", "testbed", "testbed-clean"},
    "roles": {"testbed_host"},
}
LEFT_OUT = shutil.ignore_patterns("__pycache__", "*.pyc", "*.so", "*.o")
# What `ansible-test sanity` says, and why that is all right: the licence is not Ansible's own; a state of guests asks
# and changes nothing; a probe is watched while it runs; modules are no plugins in the project; guests have busybox,
# and iPXE has a language of its own.
IGNORED = {
    "plugins/modules/*.py": "validate-modules:missing-gplv3-license",
    "plugins/modules/guest.py": "validate-modules:parameter-state-invalid-choice",
    "plugins/modules/numa_info.py": "validate-modules:use-run-command-not-popen",
    "project/library/*.py": "shebang",
    **{
        f"{place}roles/{name}": "shebang"
        for place in ("", "project/")
        for name in (
            "netboot/templates/host.ipxe.j2",
            *(f"sysimage/files/guest-{part}" for part in ("agent", "announce", "setup", "sshd")),
        )
    },
}


def module_names() -> dict[str, str]:
    """A module's name in the project -> its name in the collection."""
    found = sorted(path.stem for path in (PROJECT / "library").glob("*.py"))
    return {name: name.removeprefix("failavoid_") for name in found if name not in OF_THE_TESTBED["modules"]}


def rewrite_python(text: str, modules: dict[str, str]) -> str:
    """A module's source, as it stands in a collection."""
    text = text.replace("from ansible.module_utils.failavoid", f"from {PYTHON_PACKAGE}")
    for name, new in modules.items():
        text = re.sub(rf"^module: {name}$", f"module: {new}", text, flags=re.MULTILINE)
        text = text.replace(f"M({name})", f"M({NAMESPACE}.{new})")
    return rewrite_tasks(text, modules)


def rewrite_tasks(text: str, modules: dict[str, str]) -> str:
    """Tasks of a role, a playbook or an example, as they stand in a collection."""
    for name, new in modules.items():
        text = re.sub(rf"^(\s+){name}:", rf"\1{NAMESPACE}.{new}:", text, flags=re.MULTILINE)
    text = text.replace("playbook_dir ~ '/../build", "playbook_dir ~ '/../project/build")
    return text.replace("{{ role_path }}/../..", "{{ role_path }}/../../project")


def copy_rewritten(source: Path, target: Path, modules: dict[str, str]) -> None:
    """Copy a folder; its YAML files as they stand in a collection."""
    shutil.copytree(source, target, ignore=LEFT_OUT)
    for file in target.rglob("*.yml"):
        file.write_text(rewrite_tasks(file.read_text(), modules))


def deployed_from() -> list[str]:
    """What a site is deployed from: the same as an installed wheel has in share/failavoid."""
    settings = tomllib.loads((PROJECT / "pyproject.toml").read_text())
    return list(settings["tool"]["hatch"]["build"]["targets"]["wheel"]["shared-data"])


def version() -> str:
    """The package's version."""
    found = re.search(r'__version__ = "(.*)"', (PROJECT / "failavoid/__init__.py").read_text())
    assert found, "failavoid/__init__.py names no version"
    return found[1]


def lay_out(target: Path) -> None:
    """Write the collection's tree, ready for ansible-galaxy."""
    modules = module_names()
    for folder in ("plugins/modules", "plugins/module_utils", "roles", "playbooks", "meta", "tests/sanity"):
        (target / folder).mkdir(parents=True)
    for name, new in modules.items():
        source = (PROJECT / "library" / f"{name}.py").read_text()
        (target / "plugins/modules" / f"{new}.py").write_text(rewrite_python(source, modules))
    for file in (PROJECT / "module_utils/failavoid").glob("*.py"):
        if file.stem not in OF_THE_TESTBED["module_utils"]:
            shutil.copy(file, target / "plugins/module_utils")
    for role in (PROJECT / "roles").iterdir():
        if role.name not in OF_THE_TESTBED["roles"]:
            copy_rewritten(role, target / "roles" / role.name, modules)
    for playbook in (PROJECT / "playbooks").glob("*.yml"):
        if playbook.stem not in OF_THE_TESTBED["playbooks"]:
            (target / "playbooks" / playbook.name).write_text(rewrite_tasks(playbook.read_text(), modules))
    shutil.copytree(PROJECT / "inventories/example", target / "inventories/example")
    for name in deployed_from():
        source, copy = PROJECT / name, target / "project" / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(source, copy, ignore=LEFT_OUT) if source.is_dir() else shutil.copy(source, copy)
    metadata = (PROJECT / "collection/metadata.yml").read_text()
    (target / "galaxy.yml").write_text(f"{metadata}version: {version()}\n")
    for name in ("collection/README.md", "LICENSE", "CHANGELOG.md"):
        shutil.copy(PROJECT / name, target)
    (target / "meta/runtime.yml").write_text('---\nrequires_ansible: ">=2.19.0"\n')
    ignored = [
        f"{file.relative_to(target)} {rule}\n"
        for pattern, rule in IGNORED.items()
        for file in sorted(target.glob(pattern))
    ]
    (target / "tests/sanity/ignore-2.19.txt").write_text("".join(ignored))


def check(target: Path) -> None:
    """Refuse a tree in which something was forgotten: a module that imports from the project's layout."""
    for file in (target / "plugins").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("ansible.module_utils.failavoid"):
                raise SystemExit(f"{file}: imports from {node.module}, which is not there in a collection")
    for file in [*(target / "roles").rglob("*.yml"), *(target / "playbooks").rglob("*.yml")]:
        for document in yaml.safe_load_all(file.read_text()):
            for name in OF_THE_TESTBED["modules"] & set(_keys(document)):
                raise SystemExit(f"{file}: uses {name}, which the collection does not have")


def _keys(value: object) -> list[str]:
    if isinstance(value, dict):
        return [*map(str, value), *(key for inner in value.values() for key in _keys(inner))]
    return [key for inner in value for key in _keys(inner)] if isinstance(value, list) else []


def main() -> None:
    """Lay the collection out and pack it; prints where it is."""
    build = Path(sys.argv[1] if len(sys.argv) > 1 else PROJECT / "build/collection").resolve()
    target = build / "ansible_collections" / NAMESPACE.replace(".", "/")
    shutil.rmtree(target, ignore_errors=True)
    lay_out(target)
    check(target)
    galaxy = Path(sys.executable).parent / "ansible-galaxy"
    subprocess.run([galaxy, "collection", "build", "--force", "--output-path", build, target], check=True)


if __name__ == "__main__":
    main()
