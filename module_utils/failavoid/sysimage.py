"""The system image: declaration, digests, the tree of each node class, and the store that holds versions.

A node's root file system is a class's tree laid over the image's root (overlayfs), with
something writable on top: RAM, or a folder of the host. The store::

    roots/<digest>                      what the packages give, read-only
    images/<digest>/manifest.json       what the image is made of
    images/<digest>/root                -> ../../roots/<digest of the root>
    images/<digest>/classes/<class>     what a class of nodes adds
    current                             -> images/<digest>, switched atomically
    staging/<class>                     what other programs add to a class before it is published

Digests are over content alone (declaration; paths, modes and bytes of what is staged), so the same
content has the same digest on every machine.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import stat
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Tuple

FORMAT = 1  # raise it when the same declaration is to give different trees
MARK = "usr/lib/failavoid/image.json"  # in each class's tree: which image and class a node runs
_NAME = re.compile(r"[a-z0-9-]{1,63}")
_DIGEST = re.compile(r"[0-9a-f]{16}")
_UNIT_PATHS = ("etc/systemd/system", "usr/lib/systemd/system", "lib/systemd/system")


class SysimageError(Exception):
    """A declaration, a staged tree or a store that can't be used; the message says what to do."""


@dataclass
class File:
    """A declared file: ``path`` from the root, without a leading slash."""

    path: str
    content: str
    mode: int = 0o644


@dataclass
class Tree:
    """Declared files and links (path -> target)."""

    files: List[File] = field(default_factory=list)
    links: Dict[str, str] = field(default_factory=dict)


@dataclass
class Root:
    """What determines the root: change ``serial`` to fetch the packages' newest versions."""

    suite: str
    kernel: str
    initrd_modules: List[str]
    packages: List[str]
    serial: int
    leave_out: List[str]
    tree: Tree


@dataclass
class NodeClass:
    """What one kind of node adds to the root."""

    name: str
    init: str
    kernel_arguments: str
    tree: Tree
    enabled: List[str]
    masked: List[str]


@dataclass
class Declaration:
    """A whole system image."""

    root: Root
    classes: Dict[str, NodeClass]


# -- the declaration ---------------------------------------------------------------------------------------


def parse_declaration(data: Any, sources: Dict[str, str]) -> Declaration:
    """Build a Declaration from parsed YAML; ``sources`` are the texts that ``source:`` may name.

    Raises SysimageError that names the key at fault.
    """
    data = _keys(data, "the declaration", {"root", "classes"}, set())
    root = _keys(
        data["root"],
        "root",
        {"suite", "kernel", "initrd_modules", "packages"},
        {"serial", "leave_out", "files", "links"},
    )
    classes: Dict[str, NodeClass] = {}
    for name, value in _mapping(data["classes"], "classes").items():
        where = f"classes.{name}"
        if not _NAME.fullmatch(str(name)):
            raise SysimageError(f"{where}: a class's name has 1 to 63 of the characters a-z, 0-9 and '-'")
        value = _keys(value, where, {"init"}, {"files", "links", "services", "kernel_arguments"})
        services = _keys(value.get("services", {}), f"{where}.services", set(), {"enabled", "masked"})
        classes[name] = NodeClass(
            name=name,
            init=str(value["init"]),
            kernel_arguments=str(value.get("kernel_arguments", "")),
            tree=_parse_tree(value, where, sources),
            enabled=sorted(_strings(services.get("enabled", []), f"{where}.services.enabled")),
            masked=sorted(_strings(services.get("masked", []), f"{where}.services.masked")),
        )
    if not classes:
        raise SysimageError("classes: at least one class is needed")
    return Declaration(
        Root(
            suite=str(root["suite"]),
            kernel=str(root["kernel"]),
            initrd_modules=_strings(root["initrd_modules"], "root.initrd_modules"),
            packages=sorted(set(_strings(root["packages"], "root.packages"))),
            serial=int(root.get("serial", 1)),
            leave_out=sorted(_strings(root.get("leave_out", []), "root.leave_out")),
            tree=_parse_tree(root, "root", sources),
        ),
        classes,
    )


def _parse_tree(data: Dict[str, Any], where: str, sources: Dict[str, str]) -> Tree:
    tree = Tree()
    for number, item in enumerate(data.get("files", [])):
        here = f"{where}.files[{number}]"
        item = _keys(item, here, {"path"}, {"content", "source", "mode"})
        if ("content" in item) == ("source" in item):
            raise SysimageError(f"{here}: give either 'content' or 'source'")
        if "source" in item and item["source"] not in sources:
            raise SysimageError(f"{here}: there is no file {item['source']!r} beside the declaration")
        content = item["content"] if "content" in item else sources[item["source"]]
        mode = item.get("mode", "0644")
        if not isinstance(mode, str) or not re.fullmatch(r"0?[0-7]{3,4}", mode):
            raise SysimageError(f"{here}.mode: write it as a string such as '0755', not {mode!r}")
        tree.files.append(File(_path(item["path"], here), str(content), int(mode, 8)))
    for path, target in _mapping(data.get("links", {}), f"{where}.links").items():
        tree.links[_path(path, f"{where}.links")] = str(target)
    paths = [f.path for f in tree.files] + list(tree.links)
    twice = sorted({path for path in paths if paths.count(path) > 1})
    if twice:
        raise SysimageError(f"{where}: /{twice[0]} is declared twice")
    return tree


def _path(value: Any, where: str) -> str:
    path = str(value)
    if not path.startswith("/") or ".." in path.split("/") or path.endswith("/"):
        raise SysimageError(f"{where}: {path!r} is not an absolute path of a file")
    return path.lstrip("/")


def _keys(data: Any, where: str, needed: set[str], optional: set[str]) -> Dict[str, Any]:
    mapping = _mapping(data, where)
    missing = sorted(needed - set(mapping))
    unknown = sorted(set(mapping) - needed - optional)
    if missing:
        raise SysimageError(f"{where}: {missing[0]!r} is missing")
    if unknown:
        raise SysimageError(f"{where}: unknown key {unknown[0]!r}; known are {', '.join(sorted(needed | optional))}")
    return mapping


def _mapping(data: Any, where: str) -> Dict[str, Any]:
    if not isinstance(data, dict):
        raise SysimageError(f"{where}: a mapping is needed, not {type(data).__name__}")
    return {str(key): value for key, value in data.items()}


def _strings(data: Any, where: str) -> List[str]:
    if not isinstance(data, list) or not all(isinstance(item, str) for item in data):
        raise SysimageError(f"{where}: a list of strings is needed")
    return data


# -- digests -----------------------------------------------------------------------------------------------


def root_digest(declaration: Declaration) -> str:
    """Return the digest of the root: of everything declared that determines it."""
    root = declaration.root
    parts = [root.suite, root.serial, root.kernel, root.initrd_modules, root.packages, root.leave_out]
    return _digest([FORMAT, parts, _describe_tree(root.tree)])


def image_digest(declaration: Declaration, staging: Path) -> str:
    """Return the digest of the image: root, classes and what is staged for them."""
    classes = {
        name: [
            c.init,
            c.kernel_arguments,
            c.enabled,
            c.masked,
            _describe_tree(c.tree),
            describe_folder(staging / name),
        ]
        for name, c in declaration.classes.items()
    }
    return _digest([FORMAT, root_digest(declaration), classes])


def _describe_tree(tree: Tree) -> List[Any]:
    return [sorted([f.path, f.mode, f.content] for f in tree.files), sorted(tree.links.items())]


def describe_folder(folder: Path) -> List[List[str]]:
    """List a folder's content by path, mode and bytes; times, owners and bytecode do not count."""
    entries = []
    for path, name in _walk(folder):
        info = path.lstat()
        if stat.S_ISLNK(info.st_mode):
            entries.append([name, "link", str(path.readlink())])
        elif stat.S_ISDIR(info.st_mode):
            entries.append([name, "folder", oct(stat.S_IMODE(info.st_mode))])
        elif stat.S_ISREG(info.st_mode):
            content = hashlib.sha256(path.read_bytes()).hexdigest()
            entries.append([name, oct(stat.S_IMODE(info.st_mode)), content])
        else:
            raise SysimageError(f"{path}: only files, folders and links can be part of an image; remove it")
    return sorted(entries)


def _walk(folder: Path) -> Iterator[Tuple[Path, str]]:
    for where, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if name != "__pycache__"]
        for name in folders + files:
            path = Path(where, name)
            yield path, str(path.relative_to(folder))


def _digest(data: Any) -> str:
    text = json.dumps(data, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


# -- trees -------------------------------------------------------------------------------------------------


def write_tree(tree: Tree, folder: Path) -> None:
    """Write declared files and links below ``folder``."""
    for file in tree.files:
        path = _make_parents(folder, file.path)
        path.write_text(file.content)
        path.chmod(file.mode)
    for name, target in tree.links.items():
        path = _make_parents(folder, name)
        path.symlink_to(target)


def write_class(node_class: NodeClass, folder: Path, root: Path, staged: Path) -> None:
    """Write a class's tree: what is staged, then what is declared, then its services as links.

    ``root`` is the tree it will lie over: folders that exist there keep their mode, and none
    of its links may be hidden by a folder. Raises SysimageError.
    """
    folder.mkdir(mode=0o755)
    if staged.is_dir():
        shutil.copytree(staged, folder, symlinks=True, dirs_exist_ok=True)
    for name in [f.path for f in node_class.tree.files] + list(node_class.tree.links):
        with contextlib.suppress(FileNotFoundError):
            (folder / name).unlink()
    write_tree(node_class.tree, folder)
    units = Path("etc/systemd/system")
    for unit in node_class.masked:
        _make_parents(folder, str(units / unit)).symlink_to("/dev/null")
    for unit in node_class.enabled:
        for link, target in unit_links(unit, [folder, root]):
            path = _make_parents(folder, str(units / link))
            if not path.is_symlink():
                path.symlink_to(target)
    for path, name in _walk(folder):
        below = root / name
        if path.is_dir() and not path.is_symlink():
            if below.is_symlink():
                raise SysimageError(
                    f"class {node_class.name}: /{name} is a link to {below.readlink()} in the root and would be"
                    f" hidden by a folder; use the path it points to"
                )
            path.chmod(stat.S_IMODE(below.stat().st_mode) if below.is_dir() else 0o755)
        if os.geteuid() == 0:
            os.lchown(path, 0, 0)


def _make_parents(folder: Path, name: str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def unit_links(unit: str, trees: List[Path]) -> List[Tuple[str, str]]:
    """Return what ``systemctl enable`` would link: (link below /etc/systemd/system, target).

    The unit's ``Also=`` is not followed: each enabled unit is declared. Raises SysimageError.
    """
    for tree in trees:
        for folder in _UNIT_PATHS:
            path = tree / folder / unit
            if path.is_file():
                return _install_links(unit, f"/{folder}/{unit}", path.read_text())
    raise SysimageError(f"service {unit} is to be enabled, but neither the root nor the class has such a unit")


def _install_links(unit: str, target: str, text: str) -> List[Tuple[str, str]]:
    section, links = "", []
    for line in map(str.strip, text.splitlines()):
        if line.startswith("["):
            section = line
        key, _, value = line.partition("=")
        if section != "[Install]" or line.startswith(("#", ";")):
            continue
        if key.strip() in ("WantedBy", "RequiredBy"):
            kind = "wants" if key.strip() == "WantedBy" else "requires"
            links += [(f"{wanting}.{kind}/{unit}", target) for wanting in value.split()]
        elif key.strip() == "Alias":
            links += [(alias, target) for alias in value.split()]
    if not links:
        raise SysimageError(f"service {unit} can't be enabled: its unit has no [Install] section")
    return links


# -- the store ---------------------------------------------------------------------------------------------


class Store:
    """The folder that holds roots and images."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.staging = self.path / "staging"

    def root(self, digest: str) -> Path:
        """Return where a root is."""
        return self.path / "roots" / digest

    def image(self, digest: str) -> Path:
        """Return where an image is."""
        return self.path / "images" / digest

    def current(self) -> Optional[str]:
        """Return the current image's digest, or None."""
        link = self.path / "current"
        return link.readlink().name if link.is_symlink() and link.exists() else None

    @contextlib.contextmanager
    def locked(self, patience_s: float = 300.0) -> Iterator[int]:
        """Hold the store's lock, and remove what an interrupted build left behind.

        Yields the lock's file descriptor: who passes it on to a program it starts keeps the store locked until
        that program has ended too. Waits ``patience_s`` seconds at most. Raises SysimageError.
        """
        for name in ("roots", "images", "staging"):
            (self.path / name).mkdir(parents=True, exist_ok=True)
            (self.path / name).chmod(0o755)
        with (self.path / ".lock").open("w") as lock:
            deadline = time.monotonic() + patience_s
            while not _try_lock(lock.fileno()):
                if time.monotonic() > deadline:
                    raise SysimageError(f"{self.path}: another program is building an image there; wait for it to end")
                time.sleep(0.2)
            for leftover in self.path.glob("*/.building-*"):
                remove_tree(leftover)
            yield lock.fileno()

    def publish(self, declaration: Declaration, digest: str) -> Path:
        """Make the image ``digest`` from its root, which must be there, and what is staged."""
        root_name = root_digest(declaration)
        root = self.root(root_name)
        building = self.path / "images" / f".building-{digest}"
        classes = building / "classes"
        classes.mkdir(parents=True)
        (building / "root").symlink_to(f"../../roots/{root_name}")
        for name, node_class in declaration.classes.items():
            write_class(node_class, classes / name, root, self.staging / name)
            mark = _make_parents(classes / name, MARK)
            mark.write_text(json.dumps({"image": digest, "class": name, "root": root_name}) + "\n")
            mark.chmod(0o644)
        manifest = {
            "digest": digest,
            "root": root_name,
            "suite": declaration.root.suite,
            "kernel": f"roots/{root_name}/boot/vmlinuz",
            "initrd": f"roots/{root_name}/boot/initrd.img",
            "classes": {
                name: {"init": c.init, "kernel_arguments": c.kernel_arguments}
                for name, c in declaration.classes.items()
            },
        }
        (building / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
        for path in (building, classes):
            path.chmod(0o755)
        building.rename(self.image(digest))
        return self.image(digest)

    def switch(self, digest: str) -> None:
        """Make ``digest`` the current image, atomically."""
        new = self.path / ".current"
        with contextlib.suppress(FileNotFoundError):
            new.unlink()
        new.symlink_to(f"images/{digest}")
        new.rename(self.path / "current")

    def unused(self, keep: List[str]) -> Tuple[List[str], List[str]]:
        """Return the images, and the roots, that neither ``keep`` nor the current image needs.

        What an overlay of this machine, or a QEMU of it, uses is kept too.
        """
        used = set(keep) | {str(self.current())}
        texts = [Path("/proc/self/mountinfo").read_text()]
        for process in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                text = process.read_bytes().decode(errors="replace")
                if "failavoid.image=" in text:
                    texts.append(text)
        images = self._digests("images")
        used |= {digest for digest in images if any(digest in text for text in texts)}
        roots = {self.image(digest).joinpath("root").readlink().name for digest in used & set(images)}
        roots |= {digest for digest in self._digests("roots") if any(digest in text for text in texts)}
        return sorted(set(images) - used), sorted(set(self._digests("roots")) - roots)

    def remove(self, images: List[str], roots: List[str]) -> None:
        """Remove images and roots."""
        for path in [self.image(digest) for digest in images] + [self.root(digest) for digest in roots]:
            gone = path.with_name(f".building-{path.name}")
            path.rename(gone)
            remove_tree(gone)

    def _digests(self, kind: str) -> List[str]:
        folder = self.path / kind
        return sorted(p.name for p in folder.glob("*") if _DIGEST.fullmatch(p.name)) if folder.is_dir() else []


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def remove_tree(path: Path) -> None:
    """Remove a folder; refuse when something is mounted in it, so that nobody's files are lost."""
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    inside = [line.split()[4] for line in mounts if line.split()[4].startswith(f"{path}/")]
    if inside:
        raise SysimageError(f"{path} can't be removed: {inside[0]} is mounted in it; unmount it")
    shutil.rmtree(path)
