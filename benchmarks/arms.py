"""Arms of a comparison, one folder an arm and seed, as one table."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import mean, stdev

MEASURED = "measured.json"
"""In an arm's folder: its numbers by name."""


def folder_of(root: Path, arm: str, seed: int) -> Path:
    return root / f"{arm}-seed{seed}"


def table(root: Path, arms: Iterable[str], columns: Mapping[str, str] | None = None) -> str:
    """Markdown, a row an arm that has been measured: the mean over its seeds, with their standard
    deviation where there are some. columns: names of the numbers to show, and how they are called;
    by default all."""
    rows: list[list[str]] = []
    for arm in arms:
        files = sorted(root.glob(f"{arm}-seed*/{MEASURED}"))
        measured = [json.loads(file.read_text()) for file in files]
        if not measured:
            continue
        columns = columns or {name: name for name in measured[0]}
        numbers = [shown(each[name] for each in measured) for name in columns]
        rows.append([arm.replace("_", " "), str(len(measured)), *numbers])
    header = ["arm", "seeds", *(columns or {}).values()]
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def shown(values: Iterable[float]) -> str:
    numbers = list(values)
    spread = f" ± {stdev(numbers):.1f}" if len(numbers) > 1 else ""
    return f"{mean(numbers):.1f}{spread}"
