#!/usr/bin/python
# Copyright: the failavoid authors
# Apache License 2.0 (see LICENSE)
"""Ansible module: pack the services and what they need into one file for the head."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: failavoid_bundle
short_description: Pack the services and what they need into one file
description:
  - Builds the project's wheel and collects the pinned wheels it needs, with the installer C(uv), in one tar
    file, so that the head needs no package index.
  - Runs on the machine that runs Ansible. The file is made again only when the sources or the pins changed.
version_added: "0.1.0"
options:
  project:
    description: The checkout to pack, or the folder C(share/failavoid) of an installed wheel.
    type: path
    required: true
  requirements:
    description: File with the pinned requirements.
    type: path
    required: true
  cache:
    description: Folder that keeps bundles and downloaded wheels.
    type: path
    required: true
  python_version:
    description: Python version of the head.
    type: str
    default: "3.11"
attributes:
  check_mode:
    support: full
    description: Says whether a bundle would be made.
  diff_mode:
    support: none
    description: The bundle is a binary file.
  idempotent:
    support: full
    description: The same sources and pins give the same digest and no change.
author:
  - The failavoid authors (@failavoid)
"""

EXAMPLES = r"""
- name: Pack the services
  failavoid_bundle:
    project: /usr/local/share/failavoid
    requirements: /usr/local/share/failavoid/requirements/head.txt
    cache: /var/cache/failavoid
  delegate_to: localhost
"""

RETURN = r"""
path:
  description: The bundle.
  returned: always
  type: str
digest:
  description: First 16 hexadecimal digits of the SHA-256 over sources and pins.
  returned: always
  type: str
"""

import hashlib
import shutil
import sys
import tarfile
import tempfile
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

SOURCES = ("pyproject.toml", "failavoid", "module_utils", "playbooks", "roles", "library")


def source_digest(project: Path, requirements: Path, python_version: str) -> str:
    """Digest of all that determines the bundle: paths, bytes, pins, Python version."""
    digest = hashlib.sha256(python_version.encode() + requirements.read_bytes())
    for top in SOURCES:
        path = project / top
        files = sorted(path.rglob("*")) if path.is_dir() else [path]
        for file in files:
            if file.is_file() and "__pycache__" not in file.parts:
                digest.update(str(file.relative_to(project)).encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:16]


def run(module: AnsibleModule, what: str, *argv: str, cwd: str | None = None) -> None:
    """Run a command; its failure ends the module with a sentence and the command's own words."""
    status, output, errors = module.run_command(list(argv), cwd=cwd)
    if status:
        module.fail_json(msg=f"{what} failed ({' '.join(argv)}): {(errors or output).strip()[-2000:]}")


def collect_wheels(module: AnsibleModule, requirements: Path, cache: Path, python_version: str) -> Path:
    """Download the pinned wheels once; a folder is renamed into place only when complete."""
    digest = hashlib.sha256(python_version.encode() + requirements.read_bytes()).hexdigest()[:16]
    wheels = cache / f"wheels-{digest}"
    if not wheels.is_dir():
        partial = Path(tempfile.mkdtemp(dir=cache, prefix="wheels-partial-"))
        run(
            module,
            "downloading the services' requirements",
            *(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"),
            *("--python-version", python_version, "--dest", str(partial), "-r", str(requirements)),
        )
        partial.chmod(0o755)
        partial.rename(wheels)
    return wheels


def build(module: AnsibleModule, project: Path, requirements: Path, wheels: Path, bundle: Path) -> None:
    """Make the bundle beside its final name, then rename it."""
    with tempfile.TemporaryDirectory(dir=bundle.parent) as folder:
        run(
            module,
            "building the project's wheel",
            *(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder),
            cwd=str(project),
        )
        partial = Path(folder) / "bundle.tar"
        with tarfile.open(partial, "w") as tar:
            for wheel in [*sorted(wheels.glob("*.whl")), *sorted(Path(folder).glob("*.whl"))]:
                tar.add(wheel, f"wheels/{wheel.name}")
            tar.add(requirements, "requirements.txt")
            tar.add(find_uv(module), "uv")
        partial.rename(bundle)


def find_uv(module: AnsibleModule) -> str:
    """The installer lies beside the Python that runs Ansible."""
    uv = Path(sys.executable).parent / "uv"
    found = str(uv) if uv.exists() else shutil.which("uv")
    if not found:
        module.fail_json(
            msg=f"uv is not installed beside {sys.executable}: run 'make venv', or install the extra failavoid[deploy]"
        )
    return str(found)


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "project": {"type": "path", "required": True},
            "requirements": {"type": "path", "required": True},
            "cache": {"type": "path", "required": True},
            "python_version": {"type": "str", "default": "3.11"},
        },
        supports_check_mode=True,
    )
    project, requirements, cache = (Path(module.params[name]) for name in ("project", "requirements", "cache"))
    python_version = module.params["python_version"]
    digest = source_digest(project, requirements, python_version)
    bundle = cache / f"bundle-{digest}.tar"
    changed = not bundle.exists()
    if changed and not module.check_mode:
        cache.mkdir(parents=True, exist_ok=True)
        wheels = collect_wheels(module, requirements, cache, python_version)
        build(module, project, requirements, wheels, bundle)
        for old in cache.glob("bundle-*.tar"):
            if old != bundle:
                old.unlink()
    module.exit_json(changed=changed, path=str(bundle), digest=digest)


if __name__ == "__main__":
    main()
