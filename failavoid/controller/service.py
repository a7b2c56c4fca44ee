"""The controller's process: ``failavoid-controller --settings /etc/failavoid/controller.yml``."""

from __future__ import annotations

import argparse
import os
import sqlite3
import sys
import threading
from pathlib import Path

from failavoid.controller.api import build_app
from failavoid.controller.clock import Clock
from failavoid.controller.connections import keep_connections
from failavoid.controller.controller import Controller
from failavoid.controller.journal import Journal
from failavoid.controller.libvirt_view import answers, facts, look, progress
from failavoid.controller.manager import Cluster, ResourceManager
from failavoid.controller.notices import NoticeBoard
from failavoid.controller.planning import Planner
from failavoid.controller.playbooks import Playbooks
from failavoid.controller.settings import Settings
from failavoid.controller.surroundings import Surroundings
from failavoid.controller.verification import Verifier
from failavoid.services import Changes, SettingsError, load_settings, run, set_up_logging
from failavoid.shared.tokens import mint, read_secret


def playbook_logs(settings: Settings) -> Path:
    """Return the folder of the playbooks' logs, where their SSH connections are too."""
    return Path(settings.state_dir) / "playbooks"


def make_controller(settings: Settings, secret: bytes) -> Controller:
    """Put the controller's parts together. Raises OSError or sqlite3.Error if the folder can't be used."""
    limits, state = settings.limits, Path(settings.state_dir)
    changed, news = threading.Condition(), Changes()
    clock = Clock(changed)
    journal = Journal(state / "journal.sqlite")
    manager = ResourceManager(
        settings.resource_manager, mint(secret, "service", "controller"), authority=settings.tls.authority
    )
    cluster = Cluster(manager, changed, news)
    playbooks = Playbooks(
        Path(settings.inventory),
        playbook_logs(settings),
        settings.url.rstrip("/"),
        limits.gather_timeout_s + limits.migration_timeout_s,
        limits.migration_s_per_gib,
    )
    board = NoticeBoard(journal, changed, news, clock)
    around = Surroundings(
        journal=journal,
        board=board,
        manager=manager,
        cluster=cluster,
        migrate=playbooks.migrate,
        abort=playbooks.abort,
        verifier=Verifier(cluster, board, look, answers, changed, clock, limits),
        planner=Planner(facts, settings.policy),
        limits=limits,
        policy=settings.policy,
        changed=changed,
        news=news,
        clock=clock,
        give_up=lambda: os._exit(1),
    )
    return Controller(around, settings.mode, progress)


def main() -> None:
    """Run until SIGTERM; a setting, folder or port that can't be used ends it with one sentence."""
    parser = argparse.ArgumentParser(description="Failavoid's controller")
    parser.add_argument("--settings", default="/etc/failavoid/controller.yml")
    parser.add_argument("--check", action="store_true", help="read the settings, say what is wrong, and end")
    arguments = parser.parse_args()
    set_up_logging()
    try:
        settings = load_settings(Settings, arguments.settings)
        if arguments.check:
            return
        secret = read_secret(settings.secret)
        controller = make_controller(settings, secret)
    except (SettingsError, ValueError) as error:
        sys.exit(f"failavoid-controller: {error}")
    except (OSError, sqlite3.Error) as error:
        sys.exit(f"failavoid-controller: {error}; see secret and state_dir in {arguments.settings}")
    stop = threading.Event()
    threading.Thread(target=controller.around.cluster.follow, args=(stop,), daemon=True, name="membership").start()
    connections = (Path(settings.inventory), playbook_logs(settings), stop)
    threading.Thread(target=keep_connections, args=connections, daemon=True, name="connections").start()
    controller.resume()
    run(build_app(controller, secret), settings.listen, settings.port, settings.tls, stop.set)


if __name__ == "__main__":
    main()
