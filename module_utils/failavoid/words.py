"""Words for people."""

from __future__ import annotations


def plural(number: int, word: str) -> str:
    """A number with its word: 1 guest, 2 guests, no guests."""
    return f"{number or 'no'} {word}{'' if number == 1 else 's'}"
