"""What two models are asked, and the values of each item that differences are taken of.

    unification     Unified-Bench on images
    generation      GenEval's prompts
    understanding   multiple-choice questions

Each is a benchmark of its own, run for either model in a folder of its own, so that a comparison
that is stopped goes on where it was.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from uae.bench.api import Benchmark
from uae.bench.compare.paired import Paired, compare
from uae.bench.result import versions
from uae.bench.unified.table import TITLES

Values = Mapping[str, float]
"""In [0, 1], by item."""


@dataclass(frozen=True)
class Measure:
    """Items of one number."""

    name: str
    values: Values
    group_of: Callable[[str], str] = lambda item: item
    """What an item is drawn together with."""


@dataclass(frozen=True)
class Part:
    """One benchmark of a comparison."""

    title: str
    make: Callable[[str, Path], Benchmark]
    """From the model's name and the folder that the result lies in."""
    measures: Callable[[Benchmark, Any], list[Measure]]
    """Of a result."""


@dataclass(frozen=True)
class Row:
    """A measure of both models."""

    part: str
    measure: str
    paired: Paired

    def shown(self) -> dict[str, Any]:
        """As tables show it."""
        paired = self.paired
        return {
            "group": self.part,
            "measure": self.measure,
            "before": f"{paired.before:.2f}",
            "after": f"{paired.after:.2f}",
            "delta": f"{paired.delta:+.2f}",
            "interval": f"{paired.low:+.2f} to {paired.high:+.2f}",
            "p": f"{paired.p:.3f}" if paired.p >= 1e-3 else "< 0.001",
            "items": str(paired.num_items),
            "is_significant": paired.is_significant,
        }


@dataclass(frozen=True)
class Comparison:
    """Two models on the same items."""

    before: str
    after: str
    rows: Sequence[Row]
    notes: Sequence[str]
    """What a reader must know beside the numbers."""
    results: Mapping[str, Mapping[str, str]]
    """By part, the result file of each model."""

    def to_json(self) -> dict[str, Any]:
        return {
            "before": self.before,
            "after": self.after,
            "measures": [
                {"part": row.part, "measure": row.measure, **row.paired.to_json()}
                for row in self.rows
            ],
            "notes": list(self.notes),
            "results": {part: dict(files) for part, files in self.results.items()},
            "versions": versions(),
        }

    def to_markdown(self) -> str:
        header = ["", "measure", "before", "after", "delta", "95 %", "p", "items"]
        keys = ("group", "measure", "before", "after", "delta", "interval", "p", "items")
        lines = [header, ["---", "---", *["---:"] * 6]]
        lines += [[row.shown()[key] for key in keys] for row in self.rows]
        return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def rows_of(part: Part, before: list[Measure], after: list[Measure], seed: int) -> list[Row]:
    """Of the measures that both have an item of."""
    later = {measure.name: measure for measure in after}
    rows = []
    for measure in before:
        if measure.name not in later:
            continue
        paired = compare(
            measure.values, later[measure.name].values, group_of=measure.group_of, seed=seed
        )
        if paired is not None:
            rows.append(Row(part.title, measure.name, paired))
    return rows


# --- measures of results -------------------------------------------------------------------------


def unified_measures(benchmark: Any, result: Any) -> list[Measure]:
    """The Unified-Score and each backbone, by image."""
    titles = {"unified": "Unified-Score", **TITLES}
    names = [] if result.partial else ["unified"]
    rows = result.rows()
    return [
        Measure(titles[name], {row["image"]: row[name] for row in rows})
        for name in (*names, *result.scores)
    ]


def geneval_measures(benchmark: Any, result: Any) -> list[Measure]:
    """Right pictures, of all and by tag; a prompt's pictures are drawn together."""
    file = benchmark.out.with_name(f"{benchmark.out.stem}_rows.jsonl")
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    names = {Path(row["filename"]).parts[-3:]: row for row in rows}
    right = {"/".join(parts): float(row["correct"]) for parts, row in names.items()}
    tags = {"/".join(parts): row["tag"] for parts, row in names.items()}
    measures = [Measure("GenEval: pictures right", right, _prompt_of)]
    for tag in dict.fromkeys(tags.values()):
        values = {name: value for name, value in right.items() if tags[name] == tag}
        measures.append(Measure(f"GenEval: {tag.replace('_', ' ')}", values, _prompt_of))
    return measures


def _prompt_of(name: str) -> str:
    """Of ``…/00000/samples/0000.png``."""
    return name.split("/")[0]


def choice_measures(benchmark: Any, result: Any) -> list[Measure]:
    """Questions answered right, of all and by category; those of one image are drawn together."""
    right = {str(index): float(is_right) for index, is_right in result.hits.items()}
    category: dict[str, str] = {}
    image: dict[str, str] = {}
    for row in benchmark.table_of_questions.rows():
        category[str(row.index)] = row.category
        # a short cell names the row that has the image
        content = row.image_path or hashlib.sha256(row.image.encode()).hexdigest()
        image[str(row.index)] = row.image if row.image in image else content
    image = {index: image.get(key, key) for index, key in image.items()}
    names = dict.fromkeys(category[index] for index in right)
    of_all = Measure("questions right", right, image.__getitem__)
    return [
        of_all,
        *(
            Measure(
                f"questions: {name}",
                {index: value for index, value in right.items() if category[index] == name},
                image.__getitem__,
            )
            for name in names
            if name
        ),
    ]
