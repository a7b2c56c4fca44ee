"""Building an image's root with mmdebstrap, from the packages of the machine's own apt sources."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import List

from .sysimage import (
    Declaration,
    Store,
    SysimageError,
    remove_tree,
    root_digest,
    write_tree,
)

# A root is the same for all nodes: what makes one machine differ from another, or is secret, goes. Services
# are enabled by node classes, so what packages enable for themselves goes too.
_LIB = "/usr/lib/failavoid"
_CLEAN = """
set -eu
cd "$1"
rm -f etc/ssh/ssh_host_* etc/apt/apt.conf.d/99mmdebstrap etc/hostname etc/resolv.conf var/lib/dbus/machine-id
rm -rf etc/systemd/system/*.wants etc/systemd/system/*.requires
rm -f etc/libvirt/qemu/networks/autostart/*
: >etc/machine-id
ln -sf "$(basename "$(ls boot/vmlinuz-* | sort -V | tail -n 1)")" boot/vmlinuz
rm -f vmlinuz vmlinuz.old initrd.img initrd.img.old
chmod 0644 boot/vmlinuz-*
"""


def apt_sources(suite: str, own_suite: str) -> List[str]:
    """Return the machine's own apt sources of ``suite``, as lines of sources.list.

    Where it has none, it is of another release, ``own_suite``: then the same archives are asked for ``suite``.
    """
    command = ["apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE) $(COMPONENT)"]
    result = subprocess.run([*command, "Identifier: Packages"], capture_output=True, text=True)
    listed = [words for words in map(str.split, result.stdout.splitlines()) if len(words) == 3 and words[2] == "main"]
    for there in (suite, own_suite):
        found = {
            f"deb {uri} {suite}{release[len(there) :]} main"
            for uri, release, _ in listed
            if release == there or release.startswith(f"{there}-")
        }
        if found:
            return sorted(found)
    return []


def release_of_machine() -> str:
    """Return the code name of the release that this machine runs; empty if it does not say."""
    for line in Path("/etc/os-release").read_text().splitlines():
        key, _, value = line.partition("=")
        if key == "VERSION_CODENAME":
            return value.strip('"')
    return ""


def apt_options() -> List[str]:
    """Return the machine's own apt settings of proxies and certificates."""
    command = ["apt-config", "dump", "--no-empty", "--format", '%f "%v";%n']
    lines: List[str] = []
    for scheme in ("http", "https"):
        result = subprocess.run([*command, f"Acquire::{scheme}"], capture_output=True, text=True)
        lines += [line for line in result.stdout.splitlines() if '"' in line]
    return lines


def build_root(store: Store, declaration: Declaration, package_cache: Path, lock: int) -> Path:
    """Make the root of ``declaration`` in ``store``; the caller holds the store's lock, ``lock`` is its descriptor.

    Raises SysimageError with the last lines of the build's output.
    """
    root = declaration.root
    digest = root_digest(declaration)
    if shutil.which("mmdebstrap") is None:
        raise SysimageError("mmdebstrap is missing on this host: install the package mmdebstrap")
    archives = package_cache / "archives"
    archives.mkdir(parents=True, exist_ok=True)
    building = store.path / "roots" / f".building-{digest}"
    tree = store.path / "roots" / f".building-{digest}.tree"
    tree.mkdir(mode=0o755)
    write_tree(root.tree, tree)
    quoted = shlex.quote(str(archives))
    modules = shlex.join(root.initrd_modules)
    command = [
        "mmdebstrap",
        "--mode=root",
        "--variant=minbase",
        f"--include={','.join([*root.packages, f'linux-image-{root.kernel}'])}",
    ]
    command += [f"--aptopt={line}" for line in apt_options()]
    command += [f"--dpkgopt=path-exclude={pattern}" for pattern in root.leave_out]
    command += [
        "--skip=download/empty",
        "--skip=essential/unlink",
        f'--setup-hook=mkdir -p "$1/var/cache/apt/archives" && cp -a {quoted}/. "$1/var/cache/apt/archives/"',
        # before any package is configured: the kernel's package makes the initramfs with these
        f'--extract-hook=cp -a --no-preserve=ownership {shlex.quote(str(tree))}/. "$1/"',
        f'--customize-hook=find "$1/var/cache/apt/archives" -maxdepth 1 -name "*.deb" -exec cp -a -t {quoted} {{}} +',
        f'--customize-hook=chroot "$1" {_LIB}/make-initrd {_LIB}/initrd-init /boot/initrd.img {modules}',
        f"--customize-hook={_CLEAN}",
        root.suite,
        str(building),
        *apt_sources(root.suite, release_of_machine()),
    ]
    log = store.path / "build.log"
    with log.open("w") as output:
        environment = {**os.environ, "INITRD": "No"}  # the kernel's package is not to make one of its own
        status = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment, pass_fds=[lock]
        ).returncode
    if status != 0:
        lines = log.read_text().splitlines()[-8:]
        raise SysimageError(
            f"mmdebstrap could not build the image's root (status {status}). Its last lines, all are in {log}: "
            + " / ".join(lines)
        )
    with contextlib.suppress(FileNotFoundError):
        remove_tree(tree)
    building.chmod(0o755)
    (building / "usr/lib/failavoid").mkdir(parents=True, exist_ok=True)
    (building / "usr/lib/failavoid/packages.json").write_text(json.dumps(_packages(building), indent=1) + "\n")
    building.rename(store.root(digest))
    return store.root(digest)


def _packages(root: Path) -> dict[str, str]:
    result = subprocess.run(
        ["dpkg-query", f"--admindir={root}/var/lib/dpkg", "-W", "-f", "${Package} ${Version}\n"],
        capture_output=True,
        text=True,
        check=True,
    )
    return dict(line.split() for line in result.stdout.splitlines())
