"""Generate once, score apart: a model answers a task's items into files, and a benchmark is scored
from these.

A task that keeps a record goes on where it was stopped: what is answered is not answered again, and
other settings or another model in the same folder are refused by name.

Several processes share the batches. The batches are the same for any number of them, and an answer
does not depend on other items, so that the files are the same too. Records, journals, results and
pages are written by the main process; all of them go through the same steps.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from uae.bench.api import Answers, Benchmark, Result, Task
from uae.data.folders import note_outputs
from uae.utils.checkpoint import check_same_config
from uae.utils.files import atomic_write_json, json_ready
from uae.utils.json_lines import JsonLines
from uae.utils.processes import is_main, of_main, wait
from uae.utils.progress import track
from uae.utils.shares import in_order

MAY_CHANGE = ("decoding.micro_batch",)
LATER = ("weights",)
Item = TypeVar("Item")
Load = Callable[[str], Any]  # a model that can do what the task asks of it
Show = Callable[[Task[Any], Answers[Any]], None]


class Answered(NamedTuple):
    """What came of an item, as processes tell each other."""

    place: int
    """Among all items."""
    problem: str | None
    """Why it is left out."""
    line: dict[str, Any] | None
    """What the journal keeps of it."""


def run_benchmark(benchmark: Benchmark, load: Load, show: Show) -> Result:
    """Answer what is not answered yet, score, and write the result file.

    load: gives the model of a name. show: called with the answers so far when answering ends,
    however it does; by the main process.
    """
    benchmark.check()
    task = benchmark.task()
    answers = None if task is None else answer_items(task, load, show)
    result = benchmark.score(answers)
    if is_main():
        atomic_write_json(benchmark.out, result.to_json())
    wait()
    return result


def answer_items(task: Task[Item], load: Load, show: Show | None = None) -> Answers[Item]:
    """The model's answers to all items of a task. What is finished stays, whatever comes then.

    Raises:
        ValueError: when none of the items can be answered, or the folder was begun otherwise.
    """
    items = task.items()
    model = load(task.model)
    settings = task.settings(model, items)
    wait()  # all have seen the folder as it was
    if is_main():
        begin_folder(task, settings, items)
    wait()
    if task.record is not None:
        check_record(task.record, settings)
    answers = Answers(items, settings, set(), {})
    try:
        answer_open(task, model, answers)
    finally:
        if show is not None and answers.finished and is_main():
            show(task, answers)
    if not answers.finished:
        reasons = "; ".join(list(answers.left_out.values())[:3])
        raise ValueError(
            f"expected at least one item that can be answered, none of {len(items)} can: {reasons}"
        )
    return answers


def begin_folder(task: Task[Item], settings: dict[str, Any], items: Sequence[Item]) -> None:
    """Write the settings down unless they are there, and what the folder will hold."""
    if task.record is not None:
        if not task.record.exists():
            atomic_write_json(task.record, settings)
        check_record(task.record, settings)
    note_outputs(task.out, [path for item in items for path in task.outputs(item)])


def answer_open(task: Task[Item], model: Any, answers: Answers[Item]) -> None:
    """Add to the answers, batch by batch."""
    batches = open_batches(task, answers)
    places = {item: place for place, item in enumerate(answers.items)}
    if batches:
        task.prepare()

    def work(batch: list[Item]) -> Iterator[Answered]:
        for item, problem in task.answer(model, batch):
            line = task.line(item) if problem is None else None
            yield Answered(places[item], problem, line)

    with opened_journal(task) as journal:
        for place, problem, line in in_order(batches, work, task.progress):
            item = answers.items[place]
            if problem is not None:
                answers.left_out[item] = problem
                continue
            if journal is not None and line is not None:
                journal.append(line)
            answers.finished.add(item)


def open_batches(task: Task[Item], answers: Answers[Item]) -> list[list[Item]]:
    """What is not answered yet; a batch is made of the same items wherever a task was stopped."""
    items = answers.items
    looked_at = track(range(len(items)), "looking at what is there") if is_main() else ()
    found = of_main([place for place in looked_at if task.is_answered(items[place])])
    answers.finished.update(items[place] for place in found)
    starts = range(0, len(items), task.batch_size)
    batches = [items[start : start + task.batch_size] for start in starts]
    left = [[item for item in batch if item not in answers.finished] for batch in batches]
    return [batch for batch in left if batch]


@contextmanager
def opened_journal(task: Task[Any]) -> Iterator[JsonLines | None]:
    """The task's, if it keeps one; the main process's alone."""
    if task.journal is None or not is_main():
        yield None
        return
    with closing(JsonLines(task.journal)) as journal:
        yield journal


def check_record(path: Path, settings: dict[str, Any]) -> None:
    """Hold the settings against those that the folder was begun with."""
    try:
        recorded = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(
            f"{path}: expected the settings that its folder was begun with, got no JSON; give "
            "another folder"
        ) from error
    settings = json_ready(settings)
    # folders of before did not say which weights a name stood for
    defaults = {name: settings[name] for name in LATER if name in settings}
    check_same_config(recorded, settings, MAY_CHANGE, defaults)
