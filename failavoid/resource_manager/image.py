"""The system image that guests boot."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path


class ImageError(Exception):
    """There is no image to boot; the message says where it was looked for, and the way out."""


@dataclass(frozen=True)
class Image:
    """The current system image: digests, and how a guest of it is booted."""

    digest: str
    root: str
    init: str
    arguments: str


def current_image(store: Path) -> Image:
    """Read what the image store's current manifest says. Raises ImageError."""
    try:
        manifest = json.loads((store / "current" / "manifest.json").read_text())
        guest = manifest["classes"]["guest"]
        return Image(manifest["digest"], manifest["root"], guest["init"], guest.get("kernel_arguments", ""))
    except (OSError, ValueError, KeyError) as error:
        raise ImageError(f"{store}/current has no usable system image ({error}): run playbooks/sysimage.yml") from error
