"""What measurements have in common: medians of samples, where they were taken, the file in build/bench."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parents[2]
FOLDER = PROJECT / "build" / "bench"

Samples = dict[str, list[float]]


def add(samples: Samples, figures: dict[str, float]) -> None:
    """Take one round's figures to those of the rounds before."""
    for name, value in figures.items():
        samples.setdefault(name, []).append(round(value, 3))


def medians(samples: Mapping[str, Any]) -> dict[str, Any]:
    """The median of each figure, also of those that are grouped."""
    return {
        name: medians(values) if isinstance(values, Mapping) else round(statistics.median(values), 3)
        for name, values in samples.items()
    }


def each(formula: Callable[[float, float], float], wholes: list[float], parts: list[float]) -> list[float]:
    """Compare two figures round by round: what disturbs one of a round disturbs the other."""
    return [round(formula(whole, part), 3) for whole, part in zip(wholes, parts, strict=True)]


def surroundings(domain_type: str) -> dict[str, Any]:
    """What the figures depend on."""
    command = ["git", "-C", str(PROJECT), "rev-parse", "HEAD"]
    commit = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    return {"git_commit": commit or "unknown", "domain_type": domain_type, "cores": os.cpu_count() or 1}


def document(domain_type: str, samples: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """The surroundings, the median of each figure, and all samples."""
    return {**surroundings(domain_type), **medians(samples), **more, "samples": samples}


def write(name: str, result: dict[str, Any] | list[dict[str, Any]], folder: Path = FOLDER) -> Path:
    """Write build/bench/NAME.json, at once or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    path, draft = folder / f"{name}.json", folder / f".{name}.json"
    draft.write_text(json.dumps(result, indent=1) + "\n")
    draft.replace(path)
    return path


def show(result: dict[str, Any], path: Path) -> None:
    """Print what was measured, without the samples, and where it is."""
    print(json.dumps({name: value for name, value in result.items() if name != "samples"}, indent=1))
    print(path)
