"""Generate once, score apart: a model answers a task's items into files, and a benchmark is scored
from these.

A task that keeps a record goes on where it was stopped: what is answered is not answered again, and
other settings or another model in the same folder are refused by name.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from uae.bench.api import Answers, Benchmark, Result, Task
from uae.data.folders import note_outputs
from uae.utils.checkpoint import check_same_config
from uae.utils.files import atomic_write_json, json_ready
from uae.utils.progress import track

MAY_CHANGE = ("decoding.micro_batch",)
LATER = ("weights",)
Item = TypeVar("Item")
Load = Callable[[str], Any]  # a model that can do what the task asks of it
Show = Callable[[Task[Any], Answers[Any]], None]


def run_benchmark(benchmark: Benchmark, load: Load, show: Show) -> Result:
    """Answer what is not answered yet, score, and write the result file.

    load: gives the model of a name. show: called with the answers so far when answering ends,
    however it does.
    """
    benchmark.check()
    task = benchmark.task()
    answers = None if task is None else answer_items(task, load, show)
    result = benchmark.score(answers)
    atomic_write_json(benchmark.out, result.to_json())
    return result


def answer_items(task: Task[Item], load: Load, show: Show | None = None) -> Answers[Item]:
    """The model's answers to all items of a task. What is finished stays, whatever comes then.

    Raises:
        ValueError: when none of the items can be answered, or the folder was begun otherwise.
    """
    items = task.items()
    model = load(task.model)
    settings = task.settings(model, items)
    if task.record is not None:
        check_record(task.record, settings)
    note_outputs(task.out, [path for item in items for path in task.outputs(item)])
    answers = Answers(items, settings, set(), {})
    try:
        answer_open(task, model, answers)
    finally:
        if show is not None and answers.finished:
            show(task, answers)
    if not answers.finished:
        reasons = "; ".join(list(answers.left_out.values())[:3])
        raise ValueError(
            f"expected at least one item that can be answered, none of {len(items)} can: {reasons}"
        )
    return answers


def answer_open(task: Task[Item], model: Any, answers: Answers[Item]) -> None:
    """Add to the answers, batch by batch; one is made of the same items wherever a task was
    stopped."""
    batches: list[Sequence[Item]] = [
        answers.items[start : start + task.batch_size]
        for start in range(0, len(answers.items), task.batch_size)
    ]
    for batch in track(batches, *task.progress):
        answers.finished.update(item for item in batch if task.is_answered(item))
        unanswered = [item for item in batch if item not in answers.finished]
        for item, problem in task.answer(model, unanswered):
            if problem is None:
                answers.finished.add(item)
            else:
                answers.left_out[item] = problem


def check_record(path: Path, settings: dict[str, Any]) -> None:
    """Write the settings down, or hold them against those that the folder was begun with."""
    if not path.exists():
        atomic_write_json(path, settings)
        return
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
