"""Answering and scoring: item by item, resumed, refused where it would be another run."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.text import Text

from tests.rl.tiny_run import build_model
from uae.bench.api import BENCHMARKS, Answers, Benchmark, Result, Task, find_benchmark
from uae.bench.generate import PromptImages
from uae.bench.provenance import provenance
from uae.bench.reconstruct import ReconstructImages
from uae.bench.result import Share, versions
from uae.bench.run import answer_items, run_benchmark
from uae.commands.group import ALL, GROUPS
from uae.images.read import read_image
from uae.models.origin import SHIPPED, checksum
from uae.types import Reconstructions
from uae.utils.outputs import check_out_file


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

    journal = None

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

    def prepare(self) -> None:
        pass

    def line(self, item: int) -> None:
        pass

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


def test_a_damaged_record_is_named(tmp_path: Path):
    answer_items(Doubling(tmp_path), named())
    (tmp_path / "settings.json").write_text("{")
    with pytest.raises(ValueError, match=r"settings\.json: expected the settings .* no JSON"):
        answer_items(Doubling(tmp_path), named())


def test_what_is_left_out_has_its_reason_and_none_at_all_is_an_error(tmp_path: Path):
    answers = answer_items(Doubling(tmp_path, [12, 13, 14]), named())
    assert answers.in_order() == [12, 14]
    assert answers.left_out == {13: "unlucky"}
    shown = []
    with pytest.raises(ValueError, match="none of 1 can: unlucky"):
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
    benchmark: Any = find_benchmark(name)
    required = [f for f in fields(benchmark) if f.default is f.default_factory is MISSING]
    given = {f.name: "a" if f.type == "str" else Path("a") for f in required}
    assert isinstance(benchmark(**given), Benchmark)
    assert GROUPS["bench"][name] == BENCHMARKS[name].about
    assert GROUPS["bench"].keys() == {*BENCHMARKS, ALL}


def test_an_unknown_benchmark_names_the_nearest():
    with pytest.raises(ValueError, match=r"'unfied': expected unified.*did you mean 'unified'"):
        find_benchmark("unfied")


def test_the_benchmark_of_the_docs(monkeypatch, tmp_path: Path):
    page = (Path(__file__).parents[2] / "docs/add_a_benchmark.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    names = {
        "dataclass": dataclass,
        "Path": Path,
        "torch": torch,
        "PromptImages": PromptImages,
        "Share": Share,
        "versions": versions,
        "read_image": read_image,
        "check_out_file": check_out_file,
        "__name__": __name__,
    }
    exec(code, names)
    (tmp_path / "prompts.txt").write_text("a red circle\nred, too\n")
    colors = torch.eye(3)[[0, 0, 0, 2]].reshape(2, 2, 3, 1, 1).expand(-1, -1, -1, 4, 4)

    def generate(texts: list[str], settings: Any, **draws: int) -> Reconstructions:
        return Reconstructions(colors[draws["step"]], draws["group_size"])

    model = build_model()
    monkeypatch.setattr(model, "generate", generate)
    benchmark = names["Red"](
        tmp_path / "prompts.txt", images=tmp_path / "red", out=tmp_path / "red.json"
    )
    assert isinstance(benchmark, Benchmark)
    result = run_benchmark(benchmark, lambda source: model, lambda *shown: None)
    assert benchmark.table(result) == "75.0 % of the pictures are red"
    written = json.loads((tmp_path / "red.json").read_text())
    assert (written["right"], written["total"]) == (3, 4)
    assert written["settings"]["prompts"] == ["a red circle", "red, too"]


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
