"""What a benchmark is, and which there are. A new one is one file and one line of ``BENCHMARKS``.

    Task        what a model is asked, and the files in which it answers
    Benchmark   a task, and how its answers are scored: a frozen dataclass whose fields are the
                options of ``uae bench NAME``, whose docstrings are its help

A benchmark that paints prompts takes the task in ``bench/generate.py``; one that goes from image to
caption to image that in ``bench/reconstruct.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, Protocol, TypeVar, runtime_checkable

from uae.utils.importing import import_named
from uae.utils.suggest import did_you_mean

if TYPE_CHECKING:  # commands list benchmarks without loading torch
    from rich.console import RenderableType

    from uae.models.base import UnifiedModel
    from uae.types import RoundTrip

Item = TypeVar("Item")


class Entry(NamedTuple):
    """A benchmark as it is listed."""

    about: str
    path: str
    """MODULE:CLASS, imported when it is chosen."""


BENCHMARKS = {
    "unified": Entry(
        "Unified-Bench: images, captions, reconstructions and how alike they are",
        "uae.bench.unified.benchmark:UnifiedBench",
    ),
    "choice": Entry(
        "multiple choice on TSVs of VLMEvalKit: MMBench, MMMU, MMT-Bench and the like",
        "uae.bench.choice.benchmark:ChoiceBench",
    ),
    "dpg": Entry(
        "DPG-Bench: long prompts, and questions about their pictures that depend on one another",
        "uae.bench.dpg.benchmark:DpgBench",
    ),
    "geneval": Entry(
        "GenEval: objects, numbers, colours and positions of a prompt, by a detector and CLIP",
        "uae.bench.geneval.benchmark:GenEvalBench",
    ),
    "geneval2": Entry(
        "GenEval 2: how surely a model sees each atom of a prompt in its picture (Soft-TIFA)",
        "uae.bench.geneval2.benchmark:GenEval2",
    ),
    "genevalpp": Entry(
        "GenEval++: pictures judged by a model that goes through a list",
        "uae.bench.genevalpp.benchmark:GenEvalPlusPlus",
    ),
    "unicycle": Entry(
        "UniCycle: texts, pictures of them, and what is left of the texts in their captions",
        "uae.bench.unicycle.benchmark:UniCycle",
    ),
    "judge": Entry(
        "pairwise judging: whose captions or reconstructions are better, by any judges",
        "uae.bench.judge.benchmark:JudgeBench",
    ),
}


def find_benchmark(name: str) -> Callable[..., Benchmark]:
    """The class of a benchmark.

    Raises:
        ValueError: for an unknown name.
    """
    if name not in BENCHMARKS:
        raise ValueError(
            f"unknown benchmark {name!r}: expected "
            f"{', '.join(BENCHMARKS)}{did_you_mean(name, BENCHMARKS)}"
        )
    return import_named(BENCHMARKS[name].path, "benchmark")


@dataclass(frozen=True)
class Answers(Generic[Item]):
    """What a model made of a task so far."""

    items: Sequence[Item]
    """All that is asked, in order."""
    settings: Mapping[str, Any]
    """What the answers depend on, the model included."""
    finished: set[Item]
    """Items whose answers are written."""
    left_out: dict[Item, str]
    """Items that cannot be answered, with the reason."""

    def in_order(self) -> list[Item]:
        """The finished ones."""
        return [item for item in self.items if item in self.finished]


@runtime_checkable
class Task(Protocol[Item]):
    """What a model is asked, and the files in which it answers. Items are hashable."""

    @property
    def model(self) -> str:
        """The model's name, folder or hub id."""
        ...

    @property
    def out(self) -> Path:
        """The folder that answers are written to."""
        ...

    @property
    def record(self) -> Path | None:
        """The file that holds the settings of the answers in the folder, so that a task goes on as
        it was begun; None for one that begins anew each time."""
        ...

    @property
    def journal(self) -> Path | None:
        """The file of lines, one of each item that was answered, if the task keeps one. The main
        process writes it."""
        ...

    @property
    def batch_size(self) -> int:
        """Items at a time."""
        ...

    @property
    def progress(self) -> tuple[str, str]:
        """What is shown meanwhile: what is done, and what the batches are called."""
        ...

    def items(self) -> Sequence[Item]:
        """All that is asked, in order; what is passed over is told. No model is loaded yet, so what
        can be known to be wrong is raised here."""
        ...

    def settings(self, model: UnifiedModel, items: Sequence[Item]) -> dict[str, Any]:
        """What the answers depend on, the model included.

        Raises:
            ValueError: where the model cannot answer so.
        """
        ...

    def outputs(self, item: Item) -> list[Path]:
        """Files, or folders of them, that the answer is written to, inside the folder."""
        ...

    def is_answered(self, item: Item) -> bool:
        """Its answer is there, whole, and of the item as it is now. The main process is asked."""
        ...

    def prepare(self) -> None:
        """What all items need before the first of them is answered; all processes do it
        together."""
        ...

    def answer(
        self, model: UnifiedModel, items: Sequence[Item]
    ) -> Iterator[tuple[Item, str | None]]:
        """Answer some items: each when its files are written, or with the reason why it is left
        out. An answer does not depend on the other items. Of several processes each answers its
        share."""
        ...

    def line(self, item: Item) -> dict[str, Any] | None:
        """What the journal keeps of an item that was just answered; None without one."""
        ...

    def round_trips(self, answers: Answers[Item]) -> dict[str, RoundTrip]:
        """What there is to look at, by name."""
        ...


@runtime_checkable
class Result(Protocol):
    """What a benchmark measured."""

    @property
    def partial(self) -> bool:
        """Something that belongs to it is missing."""
        ...

    def to_json(self) -> dict[str, Any]:
        """Ready to be written, with settings, versions and the model's identity."""
        ...


@runtime_checkable
class Benchmark(Protocol):
    """A benchmark with its settings."""

    @property
    def out(self) -> Path:
        """The result file."""
        ...

    def check(self) -> None:
        """A ValueError for what can be known to be wrong before any work."""
        ...

    def task(self) -> Task[Any] | None:
        """What a model is asked; None where answers that were made elsewhere are scored."""
        ...

    def score(self, answers: Answers[Any] | None) -> Any:
        """The ``Result``, read from the files of the answers. All processes score, and share the
        work where it takes long; the main process writes."""
        ...

    def table(self, result: Any) -> RenderableType:
        """The result, to print."""
        ...
