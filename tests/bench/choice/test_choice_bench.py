"""The command: what is asked, what is asked again, what is scored and said."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor

from tests.bench.choice.tables import picture, question, write_tsv
from uae.bench.api import Task
from uae.bench.ask.api import Question, Reply
from uae.bench.ask.build import AskerOptions
from uae.bench.choice.benchmark import ChoiceBench
from uae.bench.choice.judge import Unread, judge_answers
from uae.bench.choice.report import TaskMean
from uae.bench.choice.table import ChoiceTable
from uae.bench.choice.task import prompt_of
from uae.bench.result import Share
from uae.bench.run import run_benchmark
from uae.models.load import load_model
from uae.world.choice import write_world_tsv
from uae.world.questions import make_questions, perception
from uae.world.scene import first_scenes


@dataclass
class Parrot:
    """Answers A to all, and notes what it was asked about which pictures."""

    text: str = "A"
    asked: list[tuple[str, Tensor]] = field(default_factory=list)

    family = "parrot"
    origin = ()

    def caption(self, *arguments: Any, **options: Any) -> Any:
        raise AssertionError("nothing is captioned")

    def answer(
        self, images: Sequence[Tensor], questions: Sequence[str], *, max_new_tokens: int = 16
    ) -> list[str]:
        self.asked += zip(questions, images, strict=True)
        return [self.text] * len(questions)


@dataclass(frozen=True)
class ScriptedAsker:
    """Says what a function says of a question."""

    say: Callable[[Question], str | None]
    model: str
    asked: list[Question] = field(default_factory=list)

    @property
    def settings(self) -> dict[str, Any]:
        return {"model": self.model}

    def ask(
        self, questions: Sequence[Question], max_new_tokens: int
    ) -> Iterator[tuple[int, Reply]]:
        self.asked.extend(questions)
        for place, each in enumerate(questions):
            yield place, Reply(self.say(each), "timed out")


@dataclass(frozen=True)
class Scripted(AskerOptions):
    """The options of such an asker."""

    asker: Any = None

    def build(self) -> Any:
        return self.asker


def scripted(say: Callable[[Question], str | None]) -> tuple[Scripted, list[Question]]:
    """The options, and what is asked."""
    asker = ScriptedAsker(say, "scripted")
    return Scripted("scripted", asker=asker), asker.asked


def run(benchmark: ChoiceBench, model: Any = None) -> dict[str, Any]:
    result = run_benchmark(benchmark, lambda source: model, lambda task, answers: None)
    Console(file=StringIO()).print(benchmark.table(result))
    return json.loads(benchmark.out.read_text())


def bench(folder: Path, rows: list[dict[str, Any]], name: str = "t", **options: Any) -> ChoiceBench:
    path = write_tsv(folder / f"{name}.tsv", rows)
    return ChoiceBench(data=str(path), model="parrot", out=folder / "result.json", **options)


# --- what is asked -------------------------------------------------------------------------------


def test_the_prompt_is_vlmevalkits(tmp_path: Path):
    rows = [question(1, hint="look", D="up"), question(2, A=None, B=None, answer="3.5")]
    first, second = ChoiceTable(write_tsv(tmp_path / "t.tsv", rows), has_open_questions=True).rows()
    assert prompt_of(first, "options") == (
        "Hint: look\nQuestion: question 1?\nOptions:\nA. left\nB. right\nD. up\n"
        "Please select the correct answer from the options above. \n"
    )
    assert prompt_of(first, "question") == "question 1?"
    assert prompt_of(second, "options") == "Question: question 2?\n"


def test_what_changed_is_asked_again_and_nothing_else(tmp_path: Path):
    rows = [question(i, image=picture(i)) for i in range(4)]
    rows.append(question(4, image="0"))
    parrot = Parrot()
    assert run(bench(tmp_path, rows, batch_size=8), parrot)["overall"]["right"] == 5
    by_question = [image for _, image in parrot.asked]
    assert by_question[0] is by_question[4]  # one tensor, encoded once
    assert torch.equal(by_question[2][:, 0, 0], torch.tensor([2, 2, 253]) / 255)

    again = Parrot()
    run(bench(tmp_path, rows, batch_size=8), again)
    assert again.asked == []
    rows[1] = question(1, image=picture(99))
    rows[3] = question(3, image=picture(3), B="down")
    rows[0] = question(0, image=picture(0), answer="B")  # the right answer is not asked
    changed = run(bench(tmp_path, rows, batch_size=8), again)
    assert [text.splitlines()[0] for text, _ in again.asked] == [
        "Question: question 1?",
        "Question: question 3?",
    ]
    assert changed["hits"] == {"0": 0, "1": 1, "2": 1, "3": 1, "4": 1}


def test_a_stopped_run_keeps_what_was_answered(tmp_path: Path):
    rows = [question(i, image=picture(i)) for i in range(4)]

    class Stopped(Parrot):
        def answer(self, images: Any, questions: Any, *, max_new_tokens: int = 16) -> list[str]:
            if self.asked:
                raise KeyboardInterrupt
            return super().answer(images, questions, max_new_tokens=max_new_tokens)

    with pytest.raises(KeyboardInterrupt):
        run(bench(tmp_path, rows, batch_size=2), Stopped())
    rest = Parrot()
    assert run(bench(tmp_path, rows, batch_size=2), rest)["overall"]["total"] == 4
    assert len(rest.asked) == 2
    with pytest.raises(ValueError, match="max_new_tokens: was 64, now 8"):
        run(bench(tmp_path, rows, max_new_tokens=8), rest)


def test_questions_that_the_model_cannot_be_asked_are_named(tmp_path: Path, capsys: Any):
    rows = [
        question(1),
        question(2, image=str([picture(), picture(1)])),
        question(3, image="b" * 99),
        question(4, image=picture()[:40] + "A" * 60),
        question(5, answer="E"),
    ]
    result = run(bench(tmp_path, rows), Parrot())
    assert result["partial"] and result["hits"] == {"1": 1}
    said = [line.partition("t.tsv: ")[2] for line in result["left_out"]]
    assert said[0].startswith("row 5 (index 5): the answer 'E' is no option")
    assert said[1].startswith("row 2 (index 2): expected a question about one image, which parrot")
    assert said[2].startswith("row 3 (index 3): broken base64")
    assert said[3].startswith("row 4 (index 4): its image: expected an image, this is none")
    assert result["notes"] == ["3 questions have no answer and are not counted"]
    assert "left out" in capsys.readouterr().err


def test_an_answerer_sees_several_images_and_is_asked_once(tmp_path: Path):
    rows = [question(1), question(2, image=str([picture(1), picture(2)])), question(3)]
    answerer, asked = scripted(lambda each: "B" if "question 2" in each.text else None)
    options: dict[str, Any] = {"answerer": answerer}
    with pytest.raises(ValueError, match="either --predictions FILE or --answerer, got both"):
        bench(tmp_path, rows, predictions=tmp_path / "p.tsv", **options).check()
    result = run(bench(tmp_path, rows, **options))
    assert [len(each.images) for each in asked] == [1, 2, 1]
    assert result["hits"] == {"2": 0}
    assert [line.rpartition(": ")[2] for line in result["left_out"]] == ["timed out"] * 2
    run(bench(tmp_path, rows, **options))
    assert len(asked) == 5  # what got no reply is asked again


# --- what is scored ------------------------------------------------------------------------------


def predicted(folder: Path, texts: dict[Any, str]) -> Path:
    rows = [{"index": index, "prediction": text} for index, text in texts.items()]
    return write_tsv(folder / "predictions.tsv", rows)


def test_circular_by_hand(tmp_path: Path):
    def rotations(index: int) -> list[dict[str, Any]]:
        turned = question(index + 10**6, A="right", B="left", answer="B")
        return [question(index), turned]

    rows = [row for index in (1, 2, 3, 4) for row in rotations(index)]
    texts = {1: "A", 1000001: "left", 2: "A", 1000002: "A", 3: "A", 1000004: "B", 77: "A"}
    options = {"predictions": predicted(tmp_path, texts)}
    circular = run(bench(tmp_path, rows, "MMBench_x", **options))
    assert circular["evaluation"] == "circular" and circular["partial"]
    assert circular["hits"] == {"1": 1, "2": 0, "3": 1}
    assert [note.split()[:3] for note in circular["notes"]] == [
        ["2", "questions", "have"],  # no answer
        ["1", "predictions", "belong"],  # to no question
        ["1", "questions", "have"],  # 3, whose rotation has no answer
        ["1", "questions", "are"],  # 4, whose base has none
    ]
    plain = run(bench(tmp_path, rows, "MMBench_x", evaluation="plain", **options))
    assert plain["overall"]["right"] == 5 and plain["overall"]["total"] == 6
    ways = {way: share["right"] for way, share in plain["ways_of_reading"].items()}
    assert {way: n for way, n in ways.items() if n} == {"letter": 5, "option text": 1}
    odd = bench(tmp_path, [question("a")], "MMBench_y", predictions=predicted(tmp_path, {"a": "A"}))
    with pytest.raises(ValueError, match="whole numbers as indexes, or a column g_index, got 'a'"):
        odd.check()


def test_mmt_sub_tasks_and_groups(tmp_path: Path):
    def row(index: int, category: str, l2: str, split: str) -> dict[str, Any]:
        return question(index, category=category, split=split) | {"l2-category": l2}

    rows = [
        row(0, "find", "localization", "val"),
        row(1, "find", "localization", "val"),
        row(2, "point", "localization", "test"),
        row(3, "read", "ocr", "val"),
    ]
    texts = dict.fromkeys(range(4), "A") | {1: "B", 3: "left or right, or else"}
    options: dict[str, Any] = {"predictions": predicted(tmp_path, texts)}
    result = run(bench(tmp_path, rows, "MMT-Bench_VAL", group=("fine=point,ocr",), **options))
    everything = result["splits"]["ALL"]
    assert everything["l2_categories"]["Loc"]["percent"] == 75  # of 50 and 100
    assert everything["l2_categories"]["Loc"]["tasks"] == ["find", "point"]
    assert result["splits"]["val"]["l2_categories"]["Loc"]["percent"] is None  # no row of "point"
    assert {name: share["percent"] for name, share in everything["categories"].items()} == {
        "find": 50,
        "point": 100,
        "read": 0,
    }
    assert everything["overall"]["percent"] == result["overall"]["percent"] == 50
    assert result["groups"]["fine"]["pooled"]["percent"] == 50
    assert result["groups"]["fine"]["mean"]["percent"] == 50
    (note,) = result["notes"]
    assert note.startswith("level-2 categories of MMT-Bench without rows: visual_recognition, cou")
    for group, message in (("x=", "NAME=CATEGORY"), ("x=red", "has no category 'red'.*'read'")):
        with pytest.raises(ValueError, match=message):
            bench(tmp_path, rows, "MMT-Bench_VAL", group=(group,), **options).check()


def test_the_interval_of_a_mean_of_sub_tasks():
    mean = TaskMean({"one": Share(5, 10), "two": Share(20, 20)})
    z2 = 1.959963984540054**2
    p, q = (5 + z2 / 2) / (10 + z2), (20 + z2 / 2) / (20 + z2)
    half = math.sqrt(z2 * (p * (1 - p) / (10 + z2) + q * (1 - q) / (20 + z2))) / 2
    low, high = mean.interval or (0, 0)
    assert mean.percent == 75
    assert low == pytest.approx(100 * ((p + q) / 2 - half))
    assert high == pytest.approx(100 * ((p + q) / 2 + half))


def test_answers_without_any_known_index_are_an_error(tmp_path: Path):
    benchmark = bench(tmp_path, [question(1)], predictions=predicted(tmp_path, {5: "A"}))
    with pytest.raises(ValueError, match="an answer to at least one of 1 questions, there is none"):
        run(benchmark)


def test_without_images_only_predictions_can_be_scored(tmp_path: Path):
    row = {name: cell for name, cell in question(1).items() if name != "image"}
    with pytest.raises(ValueError, match="expected a column image or image_path"):
        bench(tmp_path, [row]).check()
    result = run(bench(tmp_path, [row], predictions=predicted(tmp_path, {1: "A"})))
    assert result["hits"] == {"1": 1}


# --- the judge -----------------------------------------------------------------------------------


def test_a_judge_reads_what_the_rules_cannot(tmp_path: Path):
    rows = [question(1), question(2), question(3)]
    texts = {1: "on the port side", 2: "starboard", 3: "A"}
    judge, asked = scripted(lambda each: "A" if "port side" in each.text else "hm")
    options: dict[str, Any] = {"predictions": predicted(tmp_path, texts), "judge": judge}
    result = run(bench(tmp_path, rows, **options))
    assert result["hits"] == {"1": 1, "2": 0, "3": 1}
    ways = {way: share["right"] for way, share in result["ways_of_reading"].items()}
    assert (ways["judge"], ways["unread"], ways["letter"]) == (1, 1, 1)
    assert [each.attempt for each in asked] == [0, 0, 1, 2]  # three times, then it is wrong
    run(bench(tmp_path, rows, **options))
    assert len(asked) == 4  # nothing twice


def test_no_verdict_of_a_judge_is_guessed(tmp_path: Path):
    unread = [Unread("which side?", {"A": "left", "B": "right"}, "port", "A")]
    for reply, letter in (("Z", "Z"), ("la izquierda", None), ("A or B", None), (None, None)):
        asker = ScriptedAsker(lambda each, said=reply: said, "scripted")
        (reading,) = judge_answers(asker, unread, tmp_path / f"{reply}.jsonl")
        assert reading == (letter, "unread" if letter is None else "judge")


# --- the world -----------------------------------------------------------------------------------


def test_the_worlds_options_leave_one_reading(tmp_path: Path):
    write_world_tsv(tmp_path / "world.tsv", 40)
    table = ChoiceTable(tmp_path / "world.tsv")
    questions = [q for _, q in make_questions(first_scenes("test", 40), 200)]
    assert len(table.indexes) == len(questions) and table.problems == []
    for row, q in zip(table.rows(), questions, strict=True):
        right = row.choices[row.answer]
        others = [text for text in row.choices.values() if text != right]
        assert (row.question, right, row.category) == (q.text, q.answer, q.kind)
        assert len(others) == len(set(others)) and not any(text in right for text in others)
        kinds = {"yes": 2, "no": 2, "small": 3, "medium": 3, "large": 3}
        is_word = q.text == "what is the word ?"
        assert len(row.choices) == (4 if is_word else kinds.get(right, 4))


@pytest.mark.slow
@pytest.mark.parametrize("model", ["tiny", "tiny-ar"])
def test_the_worlds_questions_score_as_exact_answers_do(tmp_path: Path, model: str):
    num_scenes = 24
    loaded = load_model(model)
    benchmark = ChoiceBench(model=model, num_scenes=num_scenes, out=tmp_path / "result.json")
    result = run(benchmark, loaded)
    exact = perception(loaded, first_scenes("test", num_scenes))
    assert result["overall"]["right"] == exact["all"].right
    assert result["overall"]["total"] == exact["all"].total > 100
    scores = result["splits"]["test"]
    for kind, share in scores["categories"].items():
        assert (share["right"], share["total"]) == (exact[kind].right, exact[kind].total), kind
    small = scores["l2_categories"]["small"]
    assert (small["right"], small["total"]) == (exact["small"].right, exact["small"].total)


def test_it_is_a_task(tmp_path: Path):
    assert isinstance(bench(tmp_path, [question(1)]).task(), Task)
