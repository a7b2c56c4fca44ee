"""The resource manager's process: ``failavoid-resource-manager --settings /etc/failavoid/resource_manager.yml``."""

from __future__ import annotations

import argparse
import sqlite3
import sys
import threading

from failavoid import services
from failavoid.resource_manager.api import make_api
from failavoid.resource_manager.manager import make_manager
from failavoid.resource_manager.settings import Settings
from failavoid.shared.tokens import read_secret


def main() -> None:
    """Run until SIGTERM; a setting or a file that can't be used ends it with one sentence."""
    parser = argparse.ArgumentParser(description="Failavoid's resource manager")
    parser.add_argument("--settings", default="/etc/failavoid/resource_manager.yml")
    parser.add_argument("--check", action="store_true", help="read the settings, say what is wrong, and end")
    arguments = parser.parse_args()
    services.set_up_logging()
    try:
        settings = services.load_settings(Settings, arguments.settings)
        if arguments.check:
            return
        manager = make_manager(settings, read_secret(settings.secret))
    except (services.SettingsError, ValueError) as error:
        sys.exit(f"failavoid-resource-manager: {error}")
    except (OSError, sqlite3.Error) as error:
        sys.exit(f"failavoid-resource-manager: {error}; see secret and state in {arguments.settings}")
    stop = threading.Event()
    for name, work in (
        ("watch", manager.watch.follow),
        ("tidy", manager.tidy),
        ("warm pools", manager.warm_pools.keep),
    ):
        threading.Thread(target=work, args=(stop,), daemon=True, name=name).start()
    manager.recover()
    services.run(make_api(manager), settings.listen, settings.port, settings.tls, stop.set)


if __name__ == "__main__":
    main()
