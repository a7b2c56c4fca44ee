"""What the site guide tells administrators to set, run and look at is there, and its commands do what it says."""

import os
import re
import sqlite3
import subprocess
from pathlib import Path

import pytest
import typer
import yaml

from failavoid.cli.main import app

PROJECT = Path(__file__).parents[2]
GUIDE = (PROJECT / "docs/site-guide.md").read_text()
BLOCKS = re.findall(r"^```\w*\n(.*?)^```", GUIDE, re.MULTILINE | re.DOTALL)
DATABASES = ("controller/journal.sqlite", "resource_manager/state.db", "monitor/monitor.db")


def documented():
    """All variables of roles, and what they hold."""
    found = set()

    def walk(options):
        for name, option in options.items():
            found.add(name)
            walk(option.get("options", {}))

    for specs in PROJECT.glob("roles/*/meta/argument_specs.yml"):
        for entry in yaml.safe_load(specs.read_text())["argument_specs"].values():
            walk(entry.get("options", {}))
    return found


def test_it_names_only_variables_that_roles_or_playbooks_read():
    roles = "|".join(path.name for path in (PROJECT / "roles").iterdir())
    named = set(re.findall(rf"(?<![\w/.{{-])((?:{roles}|failavoid|site|remove|migrate)_[a-z_0-9]+)(?![\w.(/])", GUIDE))
    assert len(named) > 30
    read = "".join(path.read_text() for top in ("playbooks", "roles") for path in PROJECT.glob(f"{top}/**/*.yml"))
    read += "".join(path.read_text() for path in PROJECT.glob("roles/*/templates/*.j2"))
    assert {name for name in named - documented() if not re.search(rf"\b{name}\b", read)} == set()


def test_what_it_names_of_the_project_is_there():
    named = re.findall(r"(?<![\w/.])((?:playbooks|roles|inventories|docs)/[\w./-]+\w)", GUIDE)
    assert len(named) > 10
    assert [name for name in named if "SITE" not in name and not (PROJECT / name).exists()] == []


def test_the_commands_that_it_names_are_commands():
    known = set(typer.main.get_command(app).commands)
    named = set(re.findall(r"`failavoid ([a-z-]+)", GUIDE))
    named |= {word for block in BLOCKS for word in re.findall(r"^failavoid ([a-z-]+)", block, re.MULTILINE)}
    assert len(named) > 10
    assert named <= known


def test_playbooks_are_run_with_tags_of_roles():
    tags = {tag for words in re.findall(r"--tags ([\w,]+)", GUIDE) for tag in words.split(",")}
    assert tags
    assert tags <= {path.name for path in (PROJECT / "roles").iterdir()}


def test_a_host_that_was_booted_is_prepared_by_all_of_the_site_and_not_by_some_roles():
    """Some would leave it without its bridge, and the resource manager with what the host was before."""
    (upgrade,) = [block for block in BLOCKS if "systemctl reboot" in block]
    (prepare,) = [line for line in upgrade.splitlines() if "site.yml" in line]
    assert "--tags" not in prepare
    assert "--limit 'head01:node07'" in prepare


@pytest.fixture
def head(tmp_path):
    """A head's folders below one of this test, with databases in use; runs a block of the guide there."""
    connections = []
    for name in DATABASES:
        (tmp_path / "var/lib/failavoid" / name).parent.mkdir(parents=True)
        connection = sqlite3.connect(tmp_path / "var/lib/failavoid" / name, isolation_level=None)
        connection.executescript("PRAGMA journal_mode=WAL; CREATE TABLE t (x); INSERT INTO t VALUES ('before')")
        connections.append(connection)
    (tmp_path / "etc/failavoid").mkdir(parents=True)
    (tmp_path / "etc/failavoid/secret").write_text("secret")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/systemctl").write_text('#!/bin/sh\necho "$*" >>"$ROOT/systemctl"\n')
    (tmp_path / "bin/systemctl").chmod(0o755)

    def run(block, **variables):
        text = re.sub(r"(?<![\w.])/(?=var/)", f"{tmp_path}/", block).replace("tar -C /", f"tar -C {tmp_path}")
        text = text.replace("-o failavoid -g failavoid ", "")
        env = {**os.environ, "PATH": f"{tmp_path}/bin:{os.environ['PATH']}", "ROOT": str(tmp_path), **variables}
        subprocess.run(["sh", "-eu", "-c", text], env=env, check=True)

    yield tmp_path, connections, run
    for connection in connections:
        connection.close()


def test_a_backup_while_services_run_can_be_restored(head):
    root, connections, run = head
    (back_up,) = (block for block in BLOCKS if ".backup" in block)
    (restore,) = (block for block in BLOCKS if "systemctl stop failavoid-" in block)
    run(back_up)
    (day,) = (root / "var/backups/failavoid").iterdir()
    assert day.stat().st_mode & 0o077 == 0
    held = subprocess.run(["tar", "-tzf", day / "etc-failavoid.tar.gz"], capture_output=True, text=True, check=True)
    assert "etc/failavoid/secret" in held.stdout.split()
    for connection in connections:
        connection.execute("UPDATE t SET x = 'after'")  # in the log beside the database, which is not to be applied
    run(restore, day=str(day))
    for name in DATABASES:
        with sqlite3.connect(root / "var/lib/failavoid" / name) as restored:
            assert restored.execute("SELECT x FROM t").fetchall() == [("before",)], name
    units = {"failavoid-controller", "failavoid-resource-manager", "failavoid-monitor"}
    stopped, started = (line.split() for line in (root / "systemctl").read_text().splitlines())
    assert (stopped[0], set(stopped[1:])) == ("stop", units)
    assert (started[0], set(started[1:])) == ("start", units)


def test_all_pages_say_the_same_of_how_often_certificates_are_looked_at():
    often = [
        re.findall(r"run it once a (\w+)", (PROJECT / "docs" / page).read_text())
        for page in ("site-guide.md", "architecture.md")
    ]
    assert often == [["month"], ["month"]]
