"""``uae bench all``: two models side by side on understanding, generation and unification."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console
from rich.table import Table
from rich.text import Text

from uae.bench.api import Answers, Benchmark, Task
from uae.bench.choice.benchmark import ChoiceBench
from uae.bench.compare.suite import (
    Comparison,
    Part,
    choice_measures,
    geneval_measures,
    rows_of,
    unified_measures,
)
from uae.bench.geneval import detector
from uae.bench.geneval.benchmark import GenEvalBench
from uae.bench.geneval.judge import CLIP
from uae.bench.run import run_benchmark
from uae.bench.unified import BACKBONES
from uae.bench.unified.benchmark import UnifiedBench
from uae.commands.show import is_tiny, load_for_photos
from uae.report.compare_page import ComparedTrip, write_comparison
from uae.types import RoundTrip
from uae.utils.device import default_device
from uae.utils.files import appear, atomic_write_json, atomic_write_text
from uae.utils.importing import import_named
from uae.utils.outputs import check_out_folder
from uae.utils.processes import is_main, of_main
from uae.utils.quiet import quiet_libraries

WORLD, TINY = "world", "tiny"
WRITE_PICTURES = "uae.world.data:write_pictures"  # it is there for the tiny models alone
NUM_SHOWN = 6  # round trips that gained most, and as many that lost most
Extremes = tuple[list[ComparedTrip], list[ComparedTrip]]


@dataclass(frozen=True)
class CompareModels:
    """Measure two models on the same things and say what differs by more than chance: Unified-Bench
    on --images, GenEval on --prompts, multiple choice on --questions. For two tiny models all
    three are the embedded world's by default."""

    before: str
    """Who is compared with: `tiny`, `tiny-ar`, `tiny-early`, a folder that uae wrote, Janus-Pro, or
    ENCODER+DECODER by hub id or folder."""
    after: str
    """The other one."""
    images: str | None = None
    """Folder of images that both caption and reconstruct; or `world`."""
    prompts: str | None = None
    """GenEval's evaluation_metadata.jsonl; or `world`."""
    questions: str | None = None
    """A multiple-choice TSV of VLMEvalKit's kind; or `world`."""
    backbones: dict[str, str] = field(default_factory=dict)
    """Checkpoints by backbone name, as of `uae bench unified`; by default the published ones, of
    the world's images its own."""
    detector: str | None = None
    """As of `uae bench geneval`; of the world's prompts its own."""
    clip: str = CLIP
    """As of `uae bench geneval`."""
    num_images: int = 100
    """Of the world's images."""
    prompts_per_tag: int = 30
    """Of the world's prompts."""
    seed: int = 0
    """Of the noise or the draws that painting starts from, and of the bootstrap."""
    out: Path = Path("comparison")
    """Folder for the results of both, comparison.json, comparison.md and report.html; the same
    command goes on where it was stopped."""
    device: str = field(default_factory=default_device)
    """Where backbones and the detector run; a GPU if there is one."""

    def given(self) -> CompareModels:
        """With the world's suites where none is named and the models are tiny.

        Raises:
            ValueError: where nothing is asked for, or a model is compared with itself.
        """
        if self.before == self.after:
            raise ValueError(f"expected two models, got {self.before} twice")
        if self.images or self.prompts or self.questions:
            return self
        if is_tiny(self.before) or is_tiny(self.after):
            return replace(self, images=WORLD, prompts=WORLD, questions=WORLD)
        raise ValueError(
            "expected what to measure on: give --images DIR, --prompts FILE or --questions FILE"
        )

    def parts(self) -> list[Part]:
        """Those that are asked for."""
        parts = [
            (self.images, Part("unification", self._unified, unified_measures)),
            (self.prompts, Part("generation", self._geneval, geneval_measures)),
            (self.questions, Part("understanding", self._choice, choice_measures)),
        ]
        return [part for given, part in parts if given]

    def _unified(self, model: str, folder: Path) -> Benchmark:
        images, backbones = Path(self.images or ""), self.backbones
        if self.images == WORLD:
            images = self.out / "world_images"
            backbones = dict.fromkeys(BACKBONES, TINY) | backbones
            if not of_main(images.exists()):
                write = import_named(WRITE_PICTURES, "writer of pictures")
                appear(images, lambda folder: write(folder, self.num_images))
        return UnifiedBench(
            images=images,
            model=model,
            seed=self.seed,
            backbones=backbones,
            cache=self.out / "uae_embeddings.sqlite",
            out=folder / "unified.json",
            device=self.device,
        )

    def _geneval(self, model: str, folder: Path) -> Benchmark:
        default = WORLD if self.prompts == WORLD else detector.PUBLISHED
        return GenEvalBench(
            prompts=self.prompts,
            model=model,
            seed=self.seed,
            prompts_per_tag=self.prompts_per_tag,
            detector=self.detector or default,
            clip=self.clip,
            out=folder / "geneval.json",
            device=self.device,
        )

    def _choice(self, model: str, folder: Path) -> Benchmark:
        return ChoiceBench(
            data=self.questions or "",
            model=model,
            num_scenes=self.num_images,
            out=folder / "choice.json",
        )


@dataclass
class Sides:
    """What one run of the parts leaves for both models."""

    trips: dict[str, dict[str, RoundTrip]] = field(default_factory=dict)
    """By model, of Unified-Bench."""
    similarity: dict[str, dict[str, float]] = field(default_factory=dict)


def compare_models(settings: CompareModels) -> Comparison:
    """Run each part for both models, and write the comparison."""
    settings = settings.given()
    check_out_folder(settings.out)
    settings.out.mkdir(parents=True, exist_ok=True)
    names = (settings.before, settings.after)
    sides, rows, notes, files = Sides(), [], [], {}
    for part in settings.parts():
        measures = []
        for side, model in zip(("before", "after"), names, strict=True):
            benchmark = part.make(model, settings.out / side)

            def keep(task: Task[Any], answers: Answers[Any], model: str = model) -> None:
                if trips := task.round_trips(answers):
                    sides.trips[model] = trips

            print(f"{part.title}: {model}")
            result = run_benchmark(benchmark, load_for_photos, keep)
            if result.partial:
                notes.append(f"{part.title}, {model}: partial, see {benchmark.out}")
            files.setdefault(part.title, {})[model] = str(benchmark.out)
            measures.append(part.measures(benchmark, result))
            if part.measures is unified_measures:
                sides.similarity[model] = dict(measures[-1][0].values)
        rows += rows_of(part, measures[0], measures[1], settings.seed)
    comparison = Comparison(*names, rows, notes, files)
    if is_main():
        write_all(comparison, extremes(sides, names), settings.out)
    return comparison


def write_all(comparison: Comparison, shown: Extremes, out: Path) -> None:
    """Numbers, table and page."""
    atomic_write_json(out / "comparison.json", comparison.to_json())
    atomic_write_text(out / "comparison.md", comparison.to_markdown())
    names = (comparison.before, comparison.after)
    rows = [row.shown() for row in comparison.rows]
    write_comparison(out / "report.html", names, rows, *shown, comparison.notes)


def extremes(sides: Sides, names: tuple[str, str]) -> Extremes:
    """The images whose similarity rose most, and fell most, best and worst first."""
    if not all(name in sides.trips for name in names):
        return [], []
    before, after = (sides.similarity[name] for name in names)
    deltas: Mapping[str, float] = {
        name: 100 * (after[name] - before[name]) for name in before if name in after
    }
    first, second = (sides.trips[name] for name in names)
    trips = [
        ComparedTrip(name, first[name], second[name], delta)
        for name, delta in sorted(deltas.items(), key=lambda item: item[1])
        if name in first and name in second
    ]
    gained = [trip for trip in reversed(trips) if trip.delta > 0][:NUM_SHOWN]
    return gained, [trip for trip in trips if trip.delta < 0][:NUM_SHOWN]


def comparison_table(comparison: Comparison) -> Table:
    """To print with ``rich``; what differs by more than chance is bold."""
    table = Table(title=f"{comparison.before} and {comparison.after}")
    keys = ("measure", "before", "after", "delta", "interval", "p", "items")
    for key in keys:
        title = "95 %" if key == "interval" else key
        table.add_column(title, justify="left" if key == "measure" else "right")
    part = None
    for row in comparison.rows:
        if row.part != part:
            table.add_section()
            table.add_row(Text(row.part), style="dim")
            part = row.part
        shown = row.shown()
        style = "bold" if shown["is_significant"] else None
        table.add_row(
            *(Text(f"  {shown[k]}" if k == "measure" else shown[k]) for k in keys), style=style
        )
    return table


def main(arguments: list[str]) -> None:
    """``uae bench all --before A --after B …``"""
    quiet_libraries()
    settings = tyro.cli(CompareModels, args=arguments, prog="uae bench all")
    comparison = compare_models(settings)
    Console().print(comparison_table(comparison))
    for note in comparison.notes:
        print(note)
    print(f"report: {settings.out / 'report.html'}   numbers: {settings.out / 'comparison.json'}")
