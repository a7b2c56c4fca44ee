"""What installing on the head leaves there: versions of the services, and users' tokens."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from failavoid.shared.tokens import Identity, verify

PROJECT = Path(__file__).parents[2]
SCRIPT = PROJECT / "roles/service_common/files/install.sh"
SECRET = "s" * 64
# without their owners, whom this machine does not know
INSTALL = """#!/bin/sh
for word; do case $word in /*) mkdir -p "$word" ;; esac; done
"""


class Head:
    """A head's folders below one of this test, with versions that were unpacked already."""

    def __init__(self, root):
        self.root = root
        self.versions = root / "opt/failavoid"
        self.tokens = root / "etc/failavoid/tokens"
        for folder in ("bin", "opt/failavoid", "usr/local/bin", "etc/failavoid/ssh"):
            (root / folder).mkdir(parents=True)
        (root / "etc/failavoid/ssh/id_ed25519").write_text("key")
        (root / "etc/failavoid/secret").write_text(SECRET)
        for name, text in (("install", INSTALL), ("chown", "#!/bin/sh\n")):
            (root / "bin" / name).write_text(text)
            (root / "bin" / name).chmod(0o755)

    def install(self, digest, *users, readers=""):
        """Install a version; returns what the script says."""
        venv = self.versions / f"venv-{digest}"
        (venv / "bin").mkdir(parents=True, exist_ok=True)
        (venv / ".complete").touch()
        if not (venv / "bin/python").is_symlink():
            (venv / "bin/python").symlink_to(sys.executable)
        text = re.sub(r"(?<![\w.])/(?=(etc|opt|var/lib|usr/local)/)", f"{self.root}/", SCRIPT.read_text())
        done = subprocess.run(
            ["/bin/sh", "-c", text, SCRIPT.name, digest, "3.11", *users],
            env={
                "PATH": f"{self.root}/bin:{os.environ['PATH']}",
                "PYTHONPATH": str(PROJECT),
                "FAILAVOID_READERS": readers,
            },
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout.splitlines()

    def installed(self):
        return {path.name.removeprefix("venv-") for path in self.versions.glob("venv-*")}


@pytest.fixture
def head(tmp_path):
    return Head(tmp_path)


def test_the_version_before_stays_until_the_next_run_and_the_run_after_that_changes_nothing(head):
    head.install("aaaa")
    assert "changed: switched" in head.install("bbbb")
    assert head.installed() == {"aaaa", "bbbb"}
    assert head.install("bbbb") == []
    assert head.installed() == {"bbbb"}


def test_a_version_stays_while_something_runs_from_it(head):
    """A service that no run has come to restart, or a playbook that moves guests."""
    head.install("aaaa")
    running = subprocess.Popen([head.versions / "venv-aaaa/bin/python", "-c", "input()"], stdin=subprocess.PIPE)
    try:
        for digest in ("bbbb", "cccc", "cccc"):
            head.install(digest)
        assert head.installed() == {"aaaa", "cccc"}
    finally:
        running.communicate(b"\n")
    head.install("cccc")
    assert head.installed() == {"cccc"}


def test_users_have_a_token_by_their_list_and_the_administrator_has_one_always(head):
    said = head.install("aaaa", "ada", "bob", readers="bob watch")
    assert {line for line in said if "token" in line} == {
        f"changed: token of {who}" for who in ["admin", "ada", "bob", "watch"]
    }
    found = {path.name: verify(SECRET.encode(), path.read_text().strip()) for path in head.tokens.iterdir()}
    assert found == {
        "root": Identity("operator", "admin"),
        "ada": Identity("user", "ada"),
        "bob": Identity("user", "bob"),
        "watch": Identity("reader", "watch"),
    }
    assert head.install("aaaa", "ada", "bob", readers="bob watch") == []


def test_who_is_taken_out_of_the_lists_has_no_token_any_more(head):
    head.install("aaaa", "ada", "bob", readers="watch")
    assert head.install("aaaa", "bob") == ["changed: token of ada removed", "changed: token of watch removed"]
    assert {path.name for path in head.tokens.iterdir()} == {"bob", "root"}
    assert head.install("aaaa", "bob") == []
