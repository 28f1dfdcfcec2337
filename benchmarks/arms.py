"""Arms of a comparison, one folder an arm and seed, as one table."""

from __future__ import annotations

import json
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import mean, stdev
from typing import Any

MEASURED = "measured.json"
"""In an arm's folder: its numbers by name."""


def folder_of(root: Path, arm: str, seed: int) -> Path:
    return root / f"{arm}-seed{seed}"


def table(root: Path, arms: Iterable[str], columns: Mapping[str, str]) -> str:
    """Markdown, a row an arm that has been measured: the mean over its seeds, with their standard
    deviation where there are some. columns: the numbers to show, by name, and their titles."""
    rows: list[list[str]] = []
    for arm in arms:
        files = sorted(root.glob(f"{arm}-seed*/{MEASURED}"))
        measured = [json.loads(file.read_text()) for file in files]
        if not measured:
            continue
        numbers = [shown(each[name] for each in measured if name in each) for name in columns]
        rows.append([arm.replace("_", " "), str(len(measured)), *numbers])
    header = ["arm", "seeds", *columns.values()]
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def parsers(doc: str | None, arms: Iterable[str]) -> tuple[ArgumentParser, Any, ArgumentParser]:
    """Of the command line ``run ROOT ARM … --seed N | table ROOT``: the parser, its commands, and
    that of ``run``."""
    parser = ArgumentParser(description=doc, formatter_class=RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    running = commands.add_parser("run", help="train and measure arms")
    running.add_argument("root", type=Path)
    running.add_argument("arms", nargs="+", choices=list(arms))
    running.add_argument("--seed", type=int, default=0)
    commands.add_parser("table", help="what is there").add_argument("root", type=Path)
    return parser, commands, running


def shown(values: Iterable[float]) -> str:
    """Mean and spread; a dash where an older file has no such number."""
    numbers = list(values)
    if not numbers:
        return "–"
    spread = f" ± {stdev(numbers):.1f}" if len(numbers) > 1 else ""
    return f"{mean(numbers):.1f}{spread}"
