"""Colours of shares from 0 to 1, for light and dark paper.

Both scales grow steadily in contrast to their paper, from yellow-green to blue and the other way round, so that
colour-blind people and black-and-white printers can tell them apart. A shade is a CSS class, which sets the
custom properties ``--fill`` and ``--on`` (what can be read on it).
"""

from __future__ import annotations

SHADES = 40
_LIGHT = ("#f3f4e4", "#dcedbf", "#a8dab5", "#63bfc0", "#3496bf", "#2762a6", "#1c2f74")
_DARK = ("#2a2d45", "#32466f", "#2b6580", "#24868a", "#4fa873", "#a3c64c", "#f7e34a")


def shade(share: float) -> str:
    """The CSS class of a share of 0..1."""
    return f"s{round(min(max(share, 0.0), 1.0) * SHADES)}"


def css(dark: bool) -> str:
    """The rules of all classes for one kind of paper."""
    scale = _DARK if dark else _LIGHT
    rules = []
    for number in range(SHADES + 1):
        fill = _between(scale, number / SHADES)
        ink = "#10151f" if _luminance(fill) > 0.19 else "#ffffff"
        rules.append(f".s{number}{{--fill:{_hex(fill)};--on:{ink}}}")
    return "".join(rules)


def _between(scale: tuple[str, ...], share: float) -> tuple[int, int, int]:
    place = share * (len(scale) - 1)
    low = min(int(place), len(scale) - 2)
    a, b = _rgb(scale[low]), _rgb(scale[low + 1])
    part = place - low
    return (
        round(a[0] + (b[0] - a[0]) * part),
        round(a[1] + (b[1] - a[1]) * part),
        round(a[2] + (b[2] - a[2]) * part),
    )


def _rgb(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


def _hex(colour: tuple[int, int, int]) -> str:
    return "#" + "".join(f"{part:02x}" for part in colour)


def _luminance(colour: tuple[int, int, int]) -> float:
    """Relative luminance as the Web Content Accessibility Guidelines define it."""
    parts = [part / 255 for part in colour]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
