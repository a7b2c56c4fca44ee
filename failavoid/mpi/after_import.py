"""Act on a module as soon as the program has imported it."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys
import types
from collections.abc import Callable, Sequence


class _AfterImport:
    """A finder (sys.meta_path) that calls ``action`` with the module ``name`` right after its first import."""

    def __init__(self, name: str, action: Callable[[types.ModuleType], None]) -> None:
        self._name = name
        self._action = action

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != self._name:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is None or spec.loader is None:
            return spec
        load = spec.loader.exec_module

        def load_and_act(module: types.ModuleType) -> None:
            load(module)
            self._action(module)

        spec.loader.exec_module = load_and_act  # type: ignore[method-assign]
        return spec


def after_import(name: str, action: Callable[[types.ModuleType], None]) -> None:
    """Call ``action`` with the module ``name`` when it is imported, or now if it has been."""
    if name in sys.modules:
        action(sys.modules[name])
    else:
        sys.meta_path.insert(0, _AfterImport(name, action))
