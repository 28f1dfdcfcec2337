"""Prompt files of every kind that benchmarks and people bring, and what is refused, in one line."""

import json

import pytest

from uae.data.prompts import read_prompts

QUOTE, GERMAN = 'a sign that says "stop"', "ein grüner Würfel 🟩"
PROMPTS = ["a red circle", QUOTE, "two cats, one dog", GERMAN]
ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"]


def prompts(path) -> list[str]:
    return [row["prompt"] for row in read_prompts(path)]


def encoded(text: str, encoding: str) -> bytes:
    mark = "\ufeff" if encoding in ("utf-16-le", "utf-16-be") else ""
    return (mark + text).encode(encoding)


def table(delimiter: str) -> str:
    quoted = [f'"{prompt.replace(chr(34), chr(34) * 2)}"' for prompt in PROMPTS]
    return "\r\n".join(
        [delimiter.join(("Prompt", "Category")), *(delimiter.join((q, "Any")) for q in quoted), ""]
    )


FILES = {
    "a.txt": "\r\n".join(["", *PROMPTS, ""]),
    "a.csv": table(","),
    "a.TSV": table("\t"),
    "a.json": json.dumps(PROMPTS),
    "b.json": json.dumps([{"prompt": prompt, "tag": "x"} for prompt in PROMPTS]),
    "a.jsonl": "\n".join(json.dumps({"prompt": prompt, "tag": "x"}) for prompt in PROMPTS),
    "b.jsonl": "\n\n".join(json.dumps(prompt, ensure_ascii=False) for prompt in PROMPTS),
}


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("name", FILES)
def test_prompts_are_read_as_they_are_written(tmp_path, name, encoding):
    (tmp_path / name).write_bytes(encoded(FILES[name], encoding))
    assert prompts(tmp_path / name) == PROMPTS


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_lines_end_as_on_any_system_and_nowhere_else(tmp_path, newline):
    written = ["prompt", "text, written {by hand} on [a wall]", "a\u2028b", "a\u00a0b", "tab\there"]
    (tmp_path / "a.txt").write_bytes(newline.join(written).encode())
    assert prompts(tmp_path / "a.txt") == written


def test_what_else_a_row_says_stays_beside_its_prompt(tmp_path):
    row = {"tag": "counting", "include": [{"class": "cow", "count": 2}], "prompt": "two cows"}
    (tmp_path / "geneval.jsonl").write_text(json.dumps(row))
    assert read_prompts(tmp_path / "geneval.jsonl") == [row]
    (tmp_path / "parti.tsv").write_text("Prompt\tCategory\tNote\na red circle\tAbstract\t\n")
    assert read_prompts(tmp_path / "parti.tsv") == [
        {"prompt": "a red circle", "Category": "Abstract", "Note": ""}
    ]


def test_a_table_may_hold_newlines_commas_and_quotes(tmp_path):
    (tmp_path / "a.csv").write_text('item_id,text,keywords\n1,"one,\ntwo ""three""",k\n2,four,\n')
    assert prompts(tmp_path / "a.csv") == ['one,\ntwo "three"', "four"]


def test_a_table_of_tabs_without_quoting_keeps_its_quotes(tmp_path):
    (tmp_path / "a.tsv").write_text(
        'Prompt\tCategory\n"stop" on a sign\tAny\na 5" screw\tAny\n"open\tAny\n'
    )
    assert prompts(tmp_path / "a.tsv") == ['"stop" on a sign', 'a 5" screw', '"open']


@pytest.mark.parametrize(
    ("header", "expected"),
    [("text,prompt", "2"), ("caption,text", "2"), (" PROMPT ,x", "1"), ("id,Caption", "2")],
)
def test_the_column_of_prompts(tmp_path, header, expected):
    (tmp_path / "a.csv").write_text(f"{header}\n1,2\n")
    assert prompts(tmp_path / "a.csv") == [expected]


REFUSED = {
    "no column": (
        "a.csv",
        b"id,question\n1,why\n",
        r"a\.csv, line 1: .*column of prompts.*got id, question",
    ),
    "cells": (
        "a.csv",
        b"prompt,tag\na,b,c\n",
        r"line 2: expected 2 cells, as in the header, got 3",
    ),
    "quotes": ("a.csv", b'prompt,tag\n"a" b,c\n', r"line 2: expected a table"),
    "open quote": ("a.csv", b'prompt,tag\n"a,c\n', r"line 2: expected a table"),
    "header alone": ("a.tsv", b"Prompt\tCategory\n", "holds none"),
    "empty cell": ("a.csv", b"prompt,tag\n,b\n", "line 2: the prompt is empty"),
    "latin-1": (
        "a.txt",
        "grün".encode("latin-1"),
        r"expected text in UTF-8.*at 2; save it as UTF-8",
    ),
    "no mark": ("a.txt", "a red circle".encode("utf-16-le"), "got null characters"),
    "binary": ("a.txt", b"\x89PNG\r\n\x1a\n\0\0", "expected text in UTF-8"),
    "control": ("a.txt", b"a\nb\x1b[31m", r"line 2: .*control character '\\x1b'"),
    "half an emoji": (
        "a.jsonl",
        b'{"prompt": "\\ud83d"}',
        r"line 1: .*control character '\\ud83d'",
    ),
    "number": (
        "a.jsonl",
        b'{"prompt": "a"}\n{"prompt": 5}',
        r'line 2: expected a string .*got \{"prompt": 5\}',
    ),
    "other key": ("a.json", b'[{"prompt": "a"}, {"text": "b"}]', r"item 2: expected a string"),
    "null": ("a.jsonl", b'{"prompt": null}', r"line 1: expected a string"),
    "blank": ("a.jsonl", b'{"prompt": "  "}', "line 1: the prompt is empty"),
    "no JSON": (
        "a.jsonl",
        b'{"prompt": "a"}\nred circle',
        "line 2: expected JSON, got 'red circle'",
    ),
    "deep": ("a.json", b"[" * 100_000, r"a\.json: expected JSON"),
    "no list": ("a.json", b'{"prompt": "a"}', "expected a list of prompts"),
    "empty list": ("a.json", b"[]", "holds none"),
    "nothing": ("a.txt", b"\xef\xbb\xbf\r\n", "holds none"),
    "nothing, JSON": ("a.json", b"", "holds none"),
    "other format": ("a.yaml", b"- a red circle", r"expected prompts in a \.txt.*got \.yaml"),
    "a table as .txt": (
        "a.txt",
        b"Prompt\tCategory\na red circle\tAny\n",
        r"line 1: .*header of a table; rename",
    ),
    "JSON as .txt": (
        "a.txt",
        b'{"prompt": "a red circle"}\n',
        r"line 1: .*got JSON; rename the file to \.jsonl",
    ),
    "parquet": ("a.parquet", b"PAR1", r"got \.parquet"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_prompt_file_is_refused_in_one_line(tmp_path, case):
    name, content, message = REFUSED[case]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as raised:
        read_prompts(tmp_path / name)
    assert "\n" not in str(raised.value)
    assert str(tmp_path / name) in str(raised.value)


def test_a_folder_is_no_prompt_file(tmp_path):
    with pytest.raises(ValueError, match="expected a file of prompts, got a folder"):
        read_prompts(tmp_path)
