"""Where in a YAML file the setting is that an error speaks of."""

from __future__ import annotations

import re

import yaml

_QUOTED = re.compile(r"'([^']*)'")


def line_of(text: str, message: str) -> int | None:
    """The line of the setting at fault, counted from 1; None if the message names none that is in the file.

    ``message`` begins with the way to the setting as from_dict gives it (``Settings.rules.threshold:``,
    ``Settings.modes[1]:``), or has names on that way in quotes, the outermost first, or both. ``text`` is valid YAML.
    """
    node = yaml.compose(text, Loader=yaml.SafeLoader)
    line, rest = None, message[re.match(r"\w*", message).end() :]  # type: ignore[union-attr]  # it matches nothing too
    while (step := _step(node, rest)) is not None:
        line, node, length = step
        rest = rest[length:]
    for name in _QUOTED.findall(rest):
        found = _descendant(node, name)
        if found is not None:
            line, node = found
    return line


def _step(node: yaml.Node | None, rest: str) -> tuple[int, yaml.Node, int] | None:
    """(line, what is there, length of the step's name) of the first step of a way."""
    for key, line, value in _children(node):
        name = f".{key}" if isinstance(key, str) else f"[{key}]"
        if rest.startswith(name) and rest[len(name) : len(name) + 1] in (".", "[", ":"):
            return line, value, len(name)
    return None


def _descendant(node: yaml.Node | None, name: str) -> tuple[int, yaml.Node] | None:
    """(line, what is there) of the nearest setting of this name; of a list's entry if that is its ``name``."""
    level = _children(node)
    while level:
        for key, line, value in level:
            if key == name:
                return line, value
        for key, line, value in level:
            if isinstance(key, int) and any(
                inner == "name" and isinstance(its, yaml.ScalarNode) and its.value == name
                for inner, _, its in _children(value)
            ):
                return line, value
        level = [child for _, _, value in level for child in _children(value)]
    return None


def _children(node: yaml.Node | None) -> list[tuple[str | int, int, yaml.Node]]:
    """(name or place, line, what is there) of what a node holds."""
    if isinstance(node, yaml.MappingNode):
        return [(str(key.value), key.start_mark.line + 1, value) for key, value in node.value]
    if isinstance(node, yaml.SequenceNode):
        return [(place, value.start_mark.line + 1, value) for place, value in enumerate(node.value)]
    return []
