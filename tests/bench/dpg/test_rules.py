"""DPG-Bench's rules: against the official scorer's answers, by hand, and on broken files."""

from __future__ import annotations

import csv
import random
from pathlib import Path

import pytest

from tests.bench.oracles import oracle
from uae.bench.dpg.questions import DpgItem, DpgQuestion, read_questions
from uae.bench.dpg.rules import (
    category_scores,
    crop_boxes,
    image_key,
    overall_score,
    score_crop,
    score_image,
)

HEADER = ("item_id", "text", "proposition_id", "dependency", "tuple", "question_natural_language")


def write_csv(path: Path, items: list[dict]) -> Path:
    with open(path, "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(HEADER)
        for item in items:
            for q in item["questions"]:
                cells = (q["proposition_id"], q["dependency"], q["tuple"], q["question"])
                table.writerow((item["item_id"], f"a picture of {item['item_id']}", *cells))
    return path


@pytest.mark.parametrize("kept", ["official", "official_if_first_row_kept"])
def test_the_official_scores(kept: str, tmp_path: Path):
    for run in oracle("dpg_scores.json.gz")["runs"]:
        given, expected = run["input"]["items"], run[kept]
        listed = [item for item in given if item.get("in_csv", True)]
        path = write_csv(tmp_path / f"{run['id']}.csv", listed)
        items = read_questions(path, loses_first_row=kept == "official")
        scores, failed = {}, []
        for row in given:
            try:
                item = items[image_key(row["file"])]
                texts = [q["question"] for q in row["questions"]]
                answers = [dict(zip(texts, crop, strict=True)) for crop in row["answers"]]
                crops = [[crop[q.text] for q in item.questions] for crop in answers]
                scores[row["file"]] = score_image(item, crops)
            except (KeyError, ValueError):
                failed.append(row["file"])
        assert sorted(failed) == expected["failed"]
        images = {name: image for name, image in expected["images"].items() if image}
        assert scores.keys() == images.keys()
        for name, score in scores.items():
            crops = [crop.score for crop in score.crops]
            assert crops == pytest.approx(images[name]["crops"], abs=1e-12)
            assert score.score == pytest.approx(images[name]["score"], abs=1e-12)
        assert overall_score(scores.values()) == pytest.approx(expected["overall"], abs=1e-9)
        for level in (1, 2):
            found = category_scores(scores.values(), level, last_crop_only=True)
            assert found == pytest.approx(expected[f"level{level}"], abs=1e-9)


def questions(*rows: tuple[int, tuple[int, ...]], category: str = "entity - whole"):
    return tuple(DpgQuestion(n, parents, category, f"q{n}?") for n, parents in rows)


def restated(rows, answers):
    """The rule again, in the simplest words: look at questions in order, a bad parent zeroes."""
    score = {n: 1 if a == "yes" else 0 for (n, _), a in zip(rows, answers, strict=True)}
    for n, parents in rows:
        for parent in parents:
            if score[parent] == 0:
                score[n] = 0
    return [score[n] for n, _ in rows]


def test_dependencies_by_hand_and_by_restatement():
    chain = questions((1, ()), (2, (1,)), (3, (2,)))
    assert score_crop(chain, ["no", "yes", "yes"]).counted == (0, 0, 0)
    assert score_crop(chain, ["no", "yes", "yes"]).answered == (0, 1, 1)
    # a parent later in the file is seen before it is zeroed
    forward = questions((1, (2,)), (2, (3,)), (3, ()))
    assert score_crop(forward, ["yes", "yes", "no"]).counted == (1, 0, 0)
    rng = random.Random(0)
    for _ in range(500):
        numbers = rng.sample(range(1, 9), rng.randint(1, 8))
        rows = [
            (n, tuple(rng.sample(numbers, rng.randint(0, min(3, len(numbers)))))) for n in numbers
        ]
        answers = [rng.choice(["yes", "yes", "no", "Yes", "yes.", ""]) for _ in numbers]
        assert list(score_crop(questions(*rows), answers).counted) == restated(rows, answers)


def test_only_the_exact_word_counts():
    (one,) = questions((1, ()))
    answers = ["yes", "Yes", " yes", "yes.", "YES", "no", "", "yeah"]
    assert [score_crop([one], [answer]).counted[0] for answer in answers] == [1] + [0] * 7


def test_an_image_is_the_mean_of_its_crops_and_categories_pool_questions():
    item = DpgItem("a", "p", (*questions((1, ())), *questions((2, ()), category="other - text")))
    one = score_image(item, [["yes", "no"], ["yes", "yes"]])
    two = score_image(item, [["no", "no"], ["no", "no"]])
    assert one.score == 0.75 and overall_score([one, two]) == 37.5
    assert category_scores([one, two], 2, False) == {"entity - whole": 50.0, "other - text": 25.0}
    assert category_scores([one, two], 1, True) == {"entity": 50.0, "other": 50.0}
    assert overall_score([]) is None


def test_what_cannot_be_scored_says_why():
    item = DpgItem("a", "p", questions((1, ()), (2, (7,))))
    with pytest.raises(ValueError, match="question 2 depends on question 7, which a lacks"):
        score_image(item, [["yes", "yes"]])
    item = DpgItem("a", "p", questions((1, ()), (2, (1,))))
    with pytest.raises(ValueError, match="1 questions about crop 2 have no answer"):
        score_image(item, [["yes", "yes"], [None, "yes"]])


def test_crops_are_the_cells_of_a_grid():
    assert crop_boxes(8, 6, 1) == [(0, 0, 8, 6)]
    assert crop_boxes(8, 6, 4) == [(0, 0, 4, 3), (4, 0, 8, 3), (0, 3, 4, 6), (4, 3, 8, 6)]
    assert crop_boxes(8, 6, 3, 5) == [(0, 0, 5, 5), (5, 0, 10, 5), (0, 5, 5, 10)]
    assert crop_boxes(8, 6, 1, 5) == [(0, 0, 5, 5)]
    assert image_key("whoops4.v2.png") == "whoops4"


# --- the file ------------------------------------------------------------------------------------


def test_items_are_runs_of_ids_and_repeated_numbers_keep_their_place(tmp_path: Path):
    q = [
        {"proposition_id": n, "dependency": d, "tuple": "global - (x)", "question": text}
        for n, d, text in ((10, "0", "old"), (1, "0 , 10", "one"), (10, "1,0", "new"))
    ]
    path = write_csv(tmp_path / "q.csv", [{"item_id": "a", "questions": q}])
    item = read_questions(path)["a"]
    assert [(each.number, each.text, each.parents) for each in item.questions] == [
        (10, "new", (1,)),
        (1, "one", (10,)),
    ]
    assert item.questions[0].category == "global -"
    assert item.questions[0].broad_category == "global"
    rows = [{"item_id": name, "questions": q[1:2]} for name in ("a", "b")]
    again = write_csv(tmp_path / "again.csv", [{"item_id": "a", "questions": q}, *rows[::-1]])
    assert len(read_questions(again)["a"].questions) == 1
    assert len(read_questions(path, loses_first_row=True)["a"].questions) == 2


def test_more_columns_and_a_byte_order_mark_do_not_matter(tmp_path: Path):
    text = (
        "\ufeffkeywords,item_id,text,proposition_id,dependency,category_broad,tuple,"
        'question_natural_language\nx,a,"p, q",1,0,entity,entity - whole (dog),"a dog, there?"\n'
    )
    (tmp_path / "q.csv").write_text(text, encoding="utf-8")
    (item,) = read_questions(tmp_path / "q.csv").values()
    assert (item.item_id, item.prompt, item.questions[0].text) == ("a", "p, q", "a dog, there?")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("item_id,text\na,b\n", r"columns of dpg_bench.csv, proposition_id, dependency.* missing"),
        (",".join(HEADER) + "\n", "the file holds none"),
        (
            ",".join(HEADER) + "\na,p,one,0,t,q\n",
            r"line 2: expected whole .* proposition_id.*'one'",
        ),
        (",".join(HEADER) + "\na,p,1,x,t,q\n", r"line 2: expected whole .* dependency, got 'x'"),
        (",".join(HEADER) + "\na,p,1,0,t,\n", r"line 2: expected a question_natural.*empty cell"),
        (",".join(HEADER) + "\na,p,1\n", r"line 2: expected a dependency, got an empty cell"),
    ],
)
def test_a_broken_file_is_one_clear_line(text: str, words: str, tmp_path: Path):
    (tmp_path / "q.csv").write_text(text)
    with pytest.raises(ValueError, match=words) as caught:
        read_questions(tmp_path / "q.csv")
    assert "\n" not in str(caught.value)


def test_a_folder_or_other_bytes_are_one_clear_line(tmp_path: Path):
    with pytest.raises(ValueError, match="got a folder"):
        read_questions(tmp_path)
    (tmp_path / "q.csv").write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(ValueError, match="expected text in UTF-8"):
        read_questions(tmp_path / "q.csv")
