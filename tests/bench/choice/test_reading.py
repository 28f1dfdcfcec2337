"""How an answer is read: hand-made cases, and what VLMEvalKit's code answered."""

from __future__ import annotations

import gzip
import json
from typing import Any

import pytest

from tests.bench.oracles import SHARED
from uae.bench.choice.reading import WAYS, read_answer, read_letter, read_text

FOUR = {"A": "red", "B": "light blue", "C": "a dog", "D": "none of the others"}


def oracle_rows() -> list[dict[str, Any]]:
    path = SHARED / "oracles/choice_reading.jsonl.gz"
    if not path.exists():
        pytest.skip(f"needs {path.name}, published with the task and not part of the project")
    return [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]


def test_as_the_official_reader():
    readers = {
        "can_infer": read_answer,
        "can_infer_option": read_letter,
        "can_infer_text": read_text,
    }
    for row in oracle_rows():
        answer, choices = str(row["input"]["answer"]), row["input"]["choices"]
        for name, reader in readers.items():
            reading = reader(answer, choices)
            assert (reading.letter or False) == row["official"][name], (row["id"], name)
            assert reading.way in WAYS and (reading.way == "unread") == (reading.letter is None)


@pytest.mark.parametrize(
    ("answer", "letter", "way"),
    [
        ("B", "B", "letter"),
        ("(B).", "B", "letter"),
        ("B one two three", "B", "letter"),
        ("B one two three four", None, "unread"),  # the letter is the fifth from the end
        ("A or B", None, "unread"),
        ("b", None, "unread"),  # small letters are no options
        ("the answer is b", "B", "answer is"),
        ("The answer is: a long story of many words that ends in C and D", None, "unread"),
        ("the answer is a dog", "A", "answer is"),  # words need not end
        ("Answer is **D**, not A", "D", "answer is"),
        ("Light Blue", "B", "option text"),
        ("reddish", "A", "option text"),
        ("a red dog, and a dog", None, "unread"),  # two options
        ("Z", "Z", "none of them"),
        ("Z or B", "B", "letter"),
        ("Cannot determine the answer. B", "Z", "refusal"),
        ("Failed to obtain answer via API. B", None, "unread"),
        ("Failed to obtain answer via API. red", "A", "option text"),
        ("", None, "unread"),
    ],
)
def test_ways(answer: str, letter: str | None, way: str):
    assert read_answer(answer, FOUR) == (letter, way)


def test_options_together_limit_the_length_of_an_answer():
    choices = {"A": "10", "B": "20"}  # four characters, so at most eight
    assert read_answer("it is 10", choices).letter == "A"
    assert read_answer("it is  10", choices).letter is None


def test_numbers_and_other_values_are_read_as_python_prints_them():
    assert read_answer(12, {"A": 12, "B": 13}) == ("A", "option text")
    assert read_answer(None, {"A": "none", "B": "all"}) == ("A", "option text")
