"""Tables of questions: what is read, what is left out and said, and what is never held."""

from __future__ import annotations

import base64
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest

from tests.bench.choice.tables import picture, question, write_tsv
from uae.bench.choice.pictures import QuestionImages
from uae.bench.choice.predictions import read_predictions
from uae.bench.choice.table import ChoiceTable


def test_a_row_as_it_is_written(tmp_path: Path):
    text = 'which\tone is "it"?\nsay'
    rows = [question(7, hint="look", question=text, C=None, D="none", g_index=3)]
    rows[0]["l2-category"] = "space"
    table = ChoiceTable(write_tsv(tmp_path / "t.tsv", rows))
    (row,) = table.rows()
    assert row == table.row(7)
    assert (row.number, row.index, row.question, row.hint) == (1, 7, text, "look")
    assert row.choices == {"A": "left", "B": "right", "D": "none"}
    assert (row.answer, row.split, row.category) == ("A", "dev", "places")
    assert (row.l2_category, row.group, row.image) == ("space", 3, picture())
    assert table.problems == []


def test_each_bad_row_has_a_line_and_the_rest_goes_on(tmp_path: Path):
    bad = [
        question(0),
        question(0, question="twice"),
        question(2, answer="C"),
        question(3, question=" "),
        question(4, image=None),
        question("", question="whose?"),
        question(6, answer=None),
        question(7),
    ]
    path = write_tsv(tmp_path / "t.tsv", bad)
    with open(path, "ab") as file:
        file.write(b"8\tonly three\tcells\r\n9\t\xff\xfe\r\n")
    write_tsv(tmp_path / "last.tsv", [question(10)])
    path.write_bytes(path.read_bytes() + (tmp_path / "last.tsv").read_bytes().split(b"\n", 1)[1])
    table = ChoiceTable(path)
    assert table.indexes == [0, 7, 10] == [row.index for row in table.rows()]
    said = [line.removeprefix(f"{path}: ") for line in table.problems]
    assert said == [
        "row 2: the index 0 is that of row 1 already",
        "row 3 (index 2): the answer 'C' is no option (there is A, B)",
        "row 4 (index 3): expected a question, the cell is empty",
        "row 5 (index 4): expected an image, the cell is empty",
        "row 6: expected an index, the cell is empty",
        "row 7 (index 6): expected the right answer, the cell is empty (tests without answers are "
        "scored by their publishers)",
        "row 9: expected 8 cells, got 3",
        "row 10: 'utf-8' codec can't decode byte 0xff in position 2: invalid start byte",
    ]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.tsv", "index\tquestion\n1\t?\n", r"columns index, question, answer; answer is missing"),
        ("t.tsv", "index\tquestion\tanswer\n1\t?\tA\n", r"columns of options, A, B …; there is"),
        ("t.tsv", "", r"names of columns in the first line: it is empty"),
        ("t.xlsx", "PK", r"expected a \.tsv or \.csv file; save it as one"),
        ("t.tsv", "index\tquestion\tanswer\tA\n1\t?\tB\tx\n", r"no question can be used: .*row 1"),
    ],
)
def test_what_is_no_table_of_questions(tmp_path: Path, name: str, content: str, message: str):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        ChoiceTable(tmp_path / name)


def test_no_such_file(tmp_path: Path):
    with pytest.raises(ValueError, match=r"none\.tsv: expected a file to read, it cannot be: No"):
        ChoiceTable(tmp_path / "none.tsv")


def test_csv_byte_order_mark_and_names_of_columns_in_capitals(tmp_path: Path):
    path = tmp_path / "t.csv"
    path.write_bytes(b"\xef\xbb\xbfIndex,Question,Answer,A,B\n3.0,why?,B,x,y\n")
    assert [(row.index, row.answer) for row in ChoiceTable(path).rows()] == [(3, "B")]


def test_none_is_a_text_unless_the_official_defects_are_asked_for(tmp_path: Path):
    rows = [question(1, B="None", C="N/A", D="12"), question(2, D=None), question(3, D="7")]
    path = write_tsv(tmp_path / "t.tsv", rows)
    first = next(ChoiceTable(path).rows())
    assert first.choices == {"A": "left", "B": "None", "C": "N/A", "D": "12"}
    first = next(ChoiceTable(path, official_defects=True).rows())
    assert first.choices == {"A": "left", "D": "12.0"}


def test_open_questions_of_mmmu(tmp_path: Path):
    rows = [question(1, A=None, B=None, answer="3.5"), question(2, A=None, B=None, answer="D")]
    path = write_tsv(tmp_path / "t.tsv", rows)
    table = ChoiceTable(path, has_open_questions=True)
    assert [(row.choices, row.answer, row.is_open) for row in table.rows()] == [
        ({"A": "3.5", "B": "Other Answers"}, "A", True),
        ({"A": "D", "B": "Other Answers"}, "A", True),
    ]
    officially = ChoiceTable(path, has_open_questions=True, official_defects=True)
    assert [row.answer for row in officially.rows()] == ["A", "D"]  # no option is called D
    with pytest.raises(ValueError, match="is no option"):
        ChoiceTable(path)


# --- images --------------------------------------------------------------------------------------


def test_images_of_cells_of_other_rows_and_of_files(tmp_path: Path):
    one, two = picture(1), picture(2)
    rows = [
        question(1, image=one),
        question(1000001, image="1"),
        question(3, image=str([one, two])),
        question(4, image=f"data:image/png;base64,{two}"),
        question(5, image=two, question=" "),  # left out, but others may have its image
        question(6, image="5"),
    ]
    table = ChoiceTable(write_tsv(tmp_path / "t.tsv", rows))
    images = QuestionImages(table)
    decoded = {level: base64.b64decode(picture(level)) for level in (1, 2)}
    expected = {1: [1], 1000001: [1], 3: [1, 2], 4: [2], 6: [2]}
    for index, levels in expected.items():
        files = images.files(table.row(index))
        assert files == [decoded[level] for level in levels], index
    assert images.digest(table.row(1)) == images.digest(table.row(1000001))
    assert images.digest(table.row(1)) != images.digest(table.row(3))

    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures/a.png").write_bytes(decoded[1])
    rows = [{**question(1), "image_path": "a.png"}, {**question(2), "image_path": "['a.png']"}]
    rows += [{**question(3), "image_path": "b.png"}]
    rows = [{name: cell for name, cell in row.items() if name != "image"} for row in rows]
    table = ChoiceTable(write_tsv(tmp_path / "paths.tsv", rows))
    images = QuestionImages(table, tmp_path / "pictures")
    assert images.files(table.row(1)) == images.files(table.row(2)) == [decoded[1]]
    with pytest.raises(ValueError, match=r"paths\.tsv: row 3 \(index 3\): .*b\.png.*nothing there"):
        images.files(table.row(3))


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("x" * 70, r"row 1 \(index 1\): broken base64 of an image"),
        (picture()[:-3] + "!!!", "broken base64"),
        ("99", "expected an image in base64 or the index of the row that has it, got '99'"),
        ("2", "its image is that of row index 2, which has none"),
        (f"[{picture()}]", "expected a list of texts"),
    ],
)
def test_images_that_cannot_be_had(tmp_path: Path, cell: str, message: str):
    rows = [question(1, image=cell), question(2, image="1")]
    table = ChoiceTable(write_tsv(tmp_path / "t.tsv", rows))
    with pytest.raises(ValueError, match=message):
        QuestionImages(table).files(table.row(1))


# --- size ----------------------------------------------------------------------------------------


def test_images_are_not_held(tmp_path: Path):
    big = base64.b64encode(bytes(60_000)).decode()
    path = write_tsv(tmp_path / "t.tsv", (question(i, image=big) for i in range(500)))
    assert path.stat().st_size > 40e6
    tracemalloc.start()
    table = ChoiceTable(path)
    num_rows = sum(1 for _ in table.rows())
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert num_rows == 500
    assert peak < 3e6


READ = """
import sys, time
from pathlib import Path
from uae.bench.choice.table import ChoiceTable
start = time.process_time()
table = ChoiceTable(Path(sys.argv[1]))
assert len(table.indexes) == 100_000
assert sum(row.answer == "A" for row in table.rows()) == 100_000
assert table.row(99_999).question == "question 99999?"
print(time.process_time() - start)
"""


@pytest.mark.slow
def test_a_hundred_thousand_rows_take_seconds(tmp_path: Path):
    """In a process of its own, as these tests check types at run time."""
    path, image = tmp_path / "t.tsv", picture()
    with open(path, "w") as file:
        file.write("index\timage\tquestion\tA\tB\tanswer\tcategory\n")
        for i in range(100_000):
            file.write(f"{i}\t{image}\tquestion {i}?\tleft\tright\tA\tplaces\n")
    command = [sys.executable, "-c", READ, str(path)]
    spent = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert float(spent) < 6  # 2 on one core


# --- predictions ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("p.tsv", "index\tquestion\tprediction\n1\t?\tA\n2.0\t?\t\n1\t?\tB\n3\t?\n"),
        ("p.csv", 'Index,Prediction\n1,A\n"2",\n1,B\n3\n'),
        (
            "p.jsonl",
            '{"index": 1, "prediction": "A"}\n{"index": "2", "prediction": null}\n'
            '{"index": 1, "prediction": "B"}\n{"index": 3}\n',
        ),
    ],
)
def test_predictions_made_elsewhere(tmp_path: Path, name: str, content: str):
    path = tmp_path / name
    path.write_text(content)
    found = read_predictions(path)
    assert found.texts == {1: "A", 2: ""}
    second, third = found.problems
    assert second == f"{path}: row 3: a second prediction for index 1; the first one counts"
    assert third.startswith(f"{path}: row 4: expected ")


def test_predictions_of_another_kind(tmp_path: Path):
    with pytest.raises(ValueError, match=r"p\.xlsx: expected predictions as \.tsv, \.csv or"):
        read_predictions(tmp_path / "p.xlsx")
    (tmp_path / "p.tsv").write_text("index\tanswer\n1\tA\n")
    with pytest.raises(ValueError, match="prediction is missing"):
        read_predictions(tmp_path / "p.tsv")
