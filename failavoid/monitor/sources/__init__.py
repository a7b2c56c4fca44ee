"""Where samples come from. A source is a plug-in: an entry point of the group `failavoid.sources`.

Its object is called with (options, context) and returns a `Source`; ``options`` are what the site's settings say
for it, and a ValueError says which of them is wrong. If it has a function ``check``, that is called with the options
when settings are read, and says so before anything is opened.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any, Protocol

from failavoid.monitor.store import Store

GROUP = "failavoid.sources"


class Source(Protocol):
    """Brings samples to the store, in threads of its own."""

    def start(self) -> None:
        """Begin."""

    def stop(self) -> None:
        """End, and give back what was opened."""


@dataclass(frozen=True)
class Context:
    """What a source is given by the monitor."""

    listen: str
    port: int
    secret: bytes
    store: Store
    is_guest: Callable[[str, str], bool]  # (name, UUID): whether the site has this very guest now


def open_source(kind: str, options: dict[str, Any], context: Context) -> Source:
    """Make the source that a plug-in of this name offers. Raises ValueError."""
    source: Source = _load(kind)(options, context)
    return source


def check_source(kind: str, options: dict[str, Any]) -> None:
    """Refuse a source that is not installed, and options that its plug-in will not take. Raises ValueError."""
    check = getattr(_load(kind), "check", None)
    if check:
        check(options)


def _load(kind: str) -> Any:
    found = {point.name: point for point in entry_points(group=GROUP)}
    if kind not in found:
        raise ValueError(f"setting 'kind' of a source is {kind!r}; installed are {', '.join(sorted(found))}")
    return found[kind].load()


def take_options(kind: str, options: dict[str, Any], **known: Any) -> dict[str, Any]:
    """The options with defaults for what is not given. Raises ValueError for one that is unknown or of another type."""
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise ValueError(f"source {kind}: unknown option {unknown[0]!r}; known are {', '.join(known) or 'none'}")
    taken = {**known, **options}
    for name, value in taken.items():
        wanted = type(known[name])
        if not isinstance(value, (int, float) if wanted is float else wanted):
            raise ValueError(f"source {kind}: option {name!r} is {value!r}; {wanted.__name__} is needed")
    return taken
