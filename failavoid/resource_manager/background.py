"""Work that takes a while, in a thread of its own."""

from __future__ import annotations

import logging
import threading
from typing import Any

log = logging.getLogger(__name__)


def start(name: str, act: Any, *words: Any) -> None:
    """Do something in a thread of its own; errors are logged."""

    def guarded() -> None:
        try:
            act(*words)
        except Exception:
            log.exception("%s: an error of the resource manager itself", name)

    threading.Thread(target=guarded, name=name, daemon=True).start()
