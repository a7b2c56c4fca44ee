"""The system image: what its declaration may say, what its digests depend on, how versions come and go."""

import copy
import json
import os
import subprocess
from pathlib import Path

import pytest
import yaml

from failavoid.shared.sysimage import (
    MARK,
    Store,
    SysimageError,
    image_digest,
    parse_declaration,
    root_digest,
    unit_links,
)
from failavoid.shared.sysimage_build import apt_sources

FILES = Path(__file__).parents[2] / "roles" / "sysimage" / "files"
SMALL = {
    "root": {
        "suite": "bookworm",
        "kernel": "cloud-amd64",
        "initrd_modules": ["virtio_net"],
        "packages": ["busybox-static", "python3"],
        "files": [{"path": "/usr/lib/a", "content": "a\n"}],
    },
    "classes": {
        "host": {
            "init": "/usr/sbin/init",
            "files": [{"path": "/etc/b", "source": "b", "mode": "0750"}],
            "links": {"/etc/c": "b"},
            "services": {"enabled": ["ssh.service"], "masked": ["noise.timer"]},
        },
        "guest": {"init": "/usr/lib/init", "kernel_arguments": "quiet"},
    },
}
SOURCES = {"b": "text of b\n"}
SSH = "[Unit]\n[Service]\n[Install]\nWantedBy=multi-user.target\nAlias=sshd.service\n"


def declare(change=None):
    data = copy.deepcopy(SMALL)
    if change:
        change(data)
    return parse_declaration(data, SOURCES)


@pytest.fixture
def store(tmp_path):
    """A store whose root is built already."""
    store = Store(tmp_path / "store")
    root = store.root(root_digest(declare()))
    (root / "etc").mkdir(parents=True)
    (root / "usr/lib/systemd/system").mkdir(parents=True)
    (root / "usr/lib/systemd/system/ssh.service").write_text(SSH)
    (root / "lib").symlink_to("usr/lib")
    (root / "tmp").mkdir()
    (root / "tmp").chmod(0o1777)
    store.staging.mkdir()
    return store


def publish(store, declaration):
    digest = image_digest(declaration, store.staging)
    with store.locked():
        if not store.image(digest).exists():
            store.publish(declaration, digest)
        store.switch(digest)
    return digest


def staged(store, path, text="text", mode=0o644):
    file = store.staging / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    file.chmod(mode)
    return file


# -- the declaration


def test_the_projects_own_declaration_is_valid():
    sources = {path.name: path.read_text() for path in FILES.iterdir()}
    declaration = parse_declaration(yaml.safe_load((FILES / "sysimage.yml").read_text()), sources)
    assert set(declaration.classes) == {"host", "guest", "head"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.pop("root"), "'root' is missing"),
        (lambda d: d["root"].update(pakages=[]), "unknown key 'pakages'"),
        (lambda d: d["classes"].update({"../x": {"init": "/i"}}), "a class's name"),
        (lambda d: d["classes"]["host"]["files"].append({"path": "etc/x", "content": ""}), "not an absolute path"),
        (lambda d: d["classes"]["host"]["files"].append({"path": "/../x", "content": ""}), "not an absolute path"),
        (lambda d: d["classes"]["host"]["files"].append({"path": "/x"}), "either 'content' or 'source'"),
        (lambda d: d["classes"]["host"]["files"].append({"path": "/x", "source": "y"}), "no file 'y' beside"),
        (lambda d: d["classes"]["host"]["files"].append({"path": "/x", "content": "", "mode": 644}), "as a string"),
        (lambda d: d["classes"]["host"]["links"].update({"/etc/b": "x"}), "/etc/b is declared twice"),
        (lambda d: d["classes"]["host"]["services"].update(enabled="ssh"), "a list of strings"),
    ],
)
def test_a_wrong_declaration_is_told_where_it_is_wrong(change, message):
    with pytest.raises(SysimageError, match=message):
        declare(change)


# -- the packages' archives


@pytest.fixture
def archives(tmp_path, monkeypatch):
    """A machine that has Debian 12 from a mirror, and something else."""
    program = tmp_path / "apt-get"
    program.write_text(
        "#!/bin/sh\ncat <<END\n"
        "http://mirror/debian/ bookworm main\n"
        "http://mirror/debian/ bookworm-updates main\n"
        "http://mirror/debian/ bookworm contrib\n"
        "http://mirror/security/ bookworm-security main\n"
        "http://other/ tools-bookworm main\nEND\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")


@pytest.mark.parametrize("suite", ["bookworm", "trixie"])
def test_an_images_packages_come_from_the_machines_own_archives_whatever_its_release(archives, suite):
    assert apt_sources(suite, "bookworm") == [
        f"deb http://mirror/debian/ {suite} main",
        f"deb http://mirror/debian/ {suite}-updates main",
        f"deb http://mirror/security/ {suite}-security main",
    ]


def test_a_machine_that_is_no_debian_names_no_archives(archives):
    assert apt_sources("trixie", "noble") == []


# -- digests


def test_the_same_content_has_the_same_digest_on_any_machine(tmp_path):
    first, second = Store(tmp_path / "one"), Store(tmp_path / "two")
    for store, time in ((first, 1), (second, 10**9)):
        file = staged(store, "guest/opt/x")
        os.utime(file, (time, time))
        staged(store, "guest/opt/__pycache__/x.pyc", str(time))
    assert image_digest(declare(), first.staging) == image_digest(declare(), second.staging)


@pytest.mark.parametrize("path", ["root.serial", "root.suite", "root.kernel"])
def test_what_determines_the_root_changes_its_digest(path):
    assert root_digest(declare()) != root_digest(declare(lambda d: d["root"].update({path.split(".")[1]: "7"})))


def test_the_order_of_packages_does_not_matter():
    turned = declare(lambda d: d["root"]["packages"].reverse())
    assert root_digest(turned) == root_digest(declare())


def test_a_change_of_a_class_does_not_build_the_root_anew(tmp_path):
    changed = declare(lambda d: d["classes"]["guest"].update(init="/other"))
    assert root_digest(changed) == root_digest(declare())
    assert image_digest(changed, tmp_path) != image_digest(declare(), tmp_path)


def test_bytes_modes_and_links_of_what_is_staged_count(store):
    seen = {image_digest(declare(), store.staging)}
    file = staged(store, "guest/opt/x", "one")
    seen.add(image_digest(declare(), store.staging))
    file.write_text("two")
    seen.add(image_digest(declare(), store.staging))
    file.chmod(0o755)
    seen.add(image_digest(declare(), store.staging))
    file.unlink()
    file.symlink_to("y")
    seen.add(image_digest(declare(), store.staging))
    assert len(seen) == 5


def test_what_is_staged_for_no_class_does_not_count(store):
    before = image_digest(declare(), store.staging)
    staged(store, "nobody/etc/x")
    assert image_digest(declare(), store.staging) == before


# -- trees


def test_a_class_holds_its_files_links_and_services(store):
    staged(store, "host/opt/agent", "staged", 0o755)
    tree = store.image(publish(store, declare())) / "classes" / "host"
    assert (tree / "etc/b").read_text() == "text of b\n"
    assert (tree / "etc/b").stat().st_mode & 0o777 == 0o750
    assert str((tree / "etc/c").readlink()) == "b"
    assert (tree / "opt/agent").read_text() == "staged"
    wants = tree / "etc/systemd/system/multi-user.target.wants/ssh.service"
    assert str(wants.readlink()) == "/usr/lib/systemd/system/ssh.service"
    assert str((tree / "etc/systemd/system/sshd.service").readlink()) == "/usr/lib/systemd/system/ssh.service"
    assert str((tree / "etc/systemd/system/noise.timer").readlink()) == "/dev/null"


def test_what_is_declared_wins_over_what_is_staged(store):
    staged(store, "host/etc/b", "staged")
    tree = store.image(publish(store, declare())) / "classes" / "host"
    assert (tree / "etc/b").read_text() == "text of b\n"


def test_a_folder_keeps_the_mode_it_has_in_the_root(store):
    staged(store, "host/tmp/x")
    tree = store.image(publish(store, declare())) / "classes" / "host"
    assert (tree / "tmp").stat().st_mode & 0o7777 == 0o1777


def test_a_folder_may_not_hide_a_link_of_the_root(store):
    staged(store, "host/lib/x")
    with pytest.raises(SysimageError, match="/lib is a link to usr/lib in the root"):
        publish(store, declare())


def test_a_node_can_tell_which_image_and_class_it_runs(store):
    digest = publish(store, declare())
    mark = json.loads((store.image(digest) / "classes/guest" / MARK).read_text())
    assert mark == {"image": digest, "class": "guest", "root": root_digest(declare())}


def test_a_service_without_a_unit_is_named():
    with pytest.raises(SysimageError, match=r"lost\.service is to be enabled, but"):
        unit_links("lost.service", [])


# -- versions


def test_a_new_image_is_switched_to_and_the_old_one_stays(store):
    old = publish(store, declare())
    staged(store, "guest/opt/new")
    new = publish(store, declare())
    assert store.current() == new != old
    assert store.image(old).is_dir()
    assert (store.image(new) / "root").resolve() == store.root(root_digest(declare())).resolve()


def test_the_manifest_says_how_each_class_boots(store):
    manifest = json.loads((store.image(publish(store, declare())) / "manifest.json").read_text())
    assert manifest["classes"]["guest"] == {"init": "/usr/lib/init", "kernel_arguments": "quiet"}
    assert manifest["kernel"] == f"roots/{root_digest(declare())}/boot/vmlinuz"


def test_an_interrupted_build_is_neither_current_nor_in_the_way(store, monkeypatch):
    before = publish(store, declare())
    staged(store, "guest/opt/new")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            publish(store, declare())
    assert store.current() == before
    assert not store.image(image_digest(declare(), store.staging)).exists()
    new = publish(store, declare())
    assert store.current() == new
    assert not list(store.path.glob("*/.building-*"))


def test_two_builds_at_once_do_not_meet(store):
    other = Store(store.path)
    with store.locked(), pytest.raises(SysimageError, match="another program is building"), other.locked(0):
        pass


def test_a_build_that_outlives_its_caller_keeps_the_store_locked(store):
    with store.locked() as lock:
        build = subprocess.Popen(["sleep", "60"], pass_fds=[lock])
    with pytest.raises(SysimageError, match="another program is building"), store.locked(0):
        pass
    build.kill()
    build.wait()
    with store.locked(0):
        pass


def test_pruning_keeps_the_current_image_and_those_in_use(store):
    first = publish(store, declare())
    staged(store, "guest/opt/x", "2")
    second = publish(store, declare())
    staged(store, "guest/opt/x", "3")
    third = publish(store, declare())
    images, roots = store.unused([second])
    assert images == [first]
    assert roots == []
    store.remove(images, roots)
    assert not store.image(first).exists()
    assert store.image(second).exists()
    assert store.image(third).exists()


def test_a_root_goes_with_its_last_image(store):
    old = publish(store, declare())
    changed = declare(lambda d: d["root"].update(serial=2))
    root = store.root(root_digest(changed))
    (root / "usr/lib/systemd/system").mkdir(parents=True)
    (root / "usr/lib/systemd/system/ssh.service").write_text(SSH)
    publish(store, changed)
    assert store.unused([]) == ([old], [root_digest(declare())])
    assert store.unused([old]) == ([], [])
