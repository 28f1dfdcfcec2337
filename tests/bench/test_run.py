"""Answering and scoring: item by item, resumed, refused where it would be another run."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.text import Text

from uae.bench.api import BENCHMARKS, Answers, Benchmark, Result, Task, find_benchmark
from uae.bench.generate import PromptImages
from uae.bench.provenance import provenance
from uae.bench.reconstruct import ReconstructImages
from uae.bench.run import answer_items, run_benchmark
from uae.commands.group import GROUPS
from uae.models.origin import SHIPPED, checksum


@dataclass
class Doubling:
    """A task that needs no weights: its model doubles numbers, but for 13."""

    out: Path
    numbers: Sequence[int] = range(5)
    factor: int = 2
    batch_size: int = 2
    asked: list[list[int]] = field(default_factory=list)
    fails_at: int | None = None

    model = "doubler"
    progress = ("doubling", "batches")

    @property
    def record(self) -> Path:
        return self.out / "settings.json"

    def items(self) -> Sequence[int]:
        return list(self.numbers)

    def settings(self, model: Any, items: Sequence[int]) -> dict[str, Any]:
        return {"model": model.name, "factor": self.factor}

    def outputs(self, item: int) -> list[Path]:
        return [Path(f"{item}.json")]

    def is_answered(self, item: int) -> bool:
        return (self.out / f"{item}.json").exists()

    def answer(self, model: Any, items: Sequence[int]) -> Iterator[tuple[int, str | None]]:
        self.asked.append(list(items))
        for item in items:
            if item == self.fails_at:
                raise KeyboardInterrupt
            if item == 13:
                yield item, "unlucky"
                continue
            (self.out / f"{item}.json").write_text(json.dumps(self.factor * item))
            yield item, None

    def round_trips(self, answers: Answers[int]) -> dict:
        return {}


@dataclass
class DoublingBench:
    """Right where the answer is even."""

    folder: Path
    out: Path
    numbers: Sequence[int] = range(5)

    def check(self) -> None:
        pass

    def task(self) -> Doubling:
        return Doubling(self.folder, self.numbers)

    def score(self, answers: Answers[int] | None) -> SimpleNamespace:
        files = [self.folder / f"{item}.json" for item in answers.in_order()]
        right = sum(json.loads(file.read_text()) % 2 == 0 for file in files)
        result = {"right": right, "left_out": answers.left_out, "settings": answers.settings}
        return SimpleNamespace(partial=False, to_json=lambda: result)

    def table(self, result: Any) -> Text:
        return Text("")


def named(name: str = "doubler") -> Callable[[str], Any]:
    return lambda source: SimpleNamespace(name=name)


def test_a_stopped_task_goes_on_item_by_item(tmp_path: Path):
    shown = []
    task = Doubling(tmp_path, fails_at=3)
    with pytest.raises(KeyboardInterrupt):
        answer_items(task, named(), lambda task, answers: shown.append(answers.in_order()))
    assert shown == [[0, 1, 2]]
    (tmp_path / "1.json").unlink()
    again = Doubling(tmp_path)
    answers = answer_items(again, named())
    assert again.asked == [[1], [3], [4]]
    assert answers.in_order() == [0, 1, 2, 3, 4]
    assert [json.loads((tmp_path / f"{i}.json").read_text()) for i in range(5)] == [0, 2, 4, 6, 8]


def test_another_model_or_setting_in_the_folder_is_refused_by_name(tmp_path: Path):
    answer_items(Doubling(tmp_path), named())
    with pytest.raises(ValueError, match="factor: was 2, now 3"):
        answer_items(Doubling(tmp_path, factor=3), named())
    with pytest.raises(ValueError, match="model: was 'doubler', now 'tripler'"):
        answer_items(Doubling(tmp_path), named("tripler"))


def test_what_is_left_out_has_its_reason_and_none_at_all_is_an_error(tmp_path: Path):
    answers = answer_items(Doubling(tmp_path, [12, 13, 14]), named())
    assert answers.in_order() == [12, 14]
    assert answers.left_out == {13: "unlucky"}
    shown = []
    with pytest.raises(ValueError, match="none of 1 could be read"):
        answer_items(Doubling(tmp_path, [13]), named(), lambda *each: shown.append(each))
    assert shown == []


def test_a_benchmark_scores_the_files_and_writes_its_result(tmp_path: Path):
    benchmark = DoublingBench(tmp_path / "answers", tmp_path / "result.json", [1, 13, 2])
    (tmp_path / "answers").mkdir()
    run_benchmark(benchmark, named(), lambda task, answers: None)
    assert json.loads((tmp_path / "result.json").read_text()) == {
        "right": 2,
        "left_out": {"13": "unlucky"},
        "settings": {"model": "doubler", "factor": 2},
    }


# --- protocol and registry -----------------------------------------------------------------------


def test_tasks_and_benchmarks_are_of_the_protocol(tmp_path: Path):
    for task in (
        Doubling(tmp_path),
        PromptImages(tmp_path),
        ReconstructImages((".",)),
        ReconstructImages((".",), keeps_record=True),
    ):
        assert isinstance(task, Task)
    assert isinstance(DoublingBench(tmp_path, tmp_path), Benchmark)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_each_benchmark_that_is_listed_is_there(name: str):
    assert isinstance(find_benchmark(name)(), Benchmark)
    assert GROUPS["bench"][name] == BENCHMARKS[name].about
    assert GROUPS["bench"].keys() == BENCHMARKS.keys()


def test_an_unknown_benchmark_names_the_nearest():
    with pytest.raises(ValueError, match=r"'unfied': expected unified.*did you mean 'unified'"):
        find_benchmark("unfied")


# --- provenance ----------------------------------------------------------------------------------


def test_a_model_is_known_by_its_weights(tmp_path: Path):
    model = SimpleNamespace(family="mine")
    (tmp_path / "model.safetensors").write_bytes(b"one")
    before = provenance(str(tmp_path), model)
    assert before == {
        "source": str(tmp_path),
        "family": "mine",
        "weights": [checksum(tmp_path)],
    }
    (tmp_path / "model.safetensors").write_bytes(b"two")
    assert provenance(str(tmp_path), model)["weights"] != before["weights"]
    assert provenance("tiny", model)["weights"] == [checksum(SHIPPED["tiny"])]


def test_results_are_of_the_protocol():
    assert isinstance(SimpleNamespace(partial=False, to_json=dict), Result)
