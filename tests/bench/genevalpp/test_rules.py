"""GenEval++'s rules: against the official scorer's answers, and by hand."""

from __future__ import annotations

import pytest

from tests.bench.oracles import oracle
from uae.bench.genevalpp.rules import (
    ABSENT,
    NUM_TRIES,
    Verdict,
    by_tag,
    checklist,
    judge_text,
    judge_verdict,
    overall_score,
    read_verdict,
    tag_accuracy,
)


def verdict_of(row: dict) -> Verdict:
    """As the judge answers call by call; its last reply is repeated, an error is no text."""
    tag, replies = row["metadata"]["tag"], row["replies"]
    if not row["image"]:
        return Verdict.missing(tag)
    texts = [text if isinstance(text, str) else None for text in replies]
    texts += [texts[-1]] * NUM_TRIES
    for calls in range(1, NUM_TRIES + 1):
        if verdict := judge_verdict(tag, texts[:calls]):
            return verdict
    raise AssertionError("asked for too long")


def test_the_official_tables():
    for table in oracle("genevalpp_summary.json.gz")["tables"]:
        rows, official = table["input"]["rows"], table["official"]
        verdicts = [verdict_of(row) for row in rows]
        for row, verdict, expected in zip(rows, verdicts, official["rows"], strict=True):
            assert (verdict.tag, verdict.correct) == (expected["tag"], expected["correct_field"])
            assert type(verdict.correct) is type(expected["correct_field"])
            assert verdict.is_right == expected["counted_right"]
            assert (verdict.num_calls, verdict.state) == (expected["calls"], expected["state"])
            assert checklist(row["metadata"]) == expected["checklist_lines"]
        tags = by_tag(verdicts)
        assert {t: tag_accuracy(rights) for t, rights in tags.items()} == official["tag_accuracy"]
        assert overall_score(tags) == official["overall_mean_of_tags"]
        share = sum(verdict.is_right for verdict in verdicts) / len(verdicts)
        assert round(share, 4) == official["accuracy_all_samples"]


def test_replies_by_hand():
    assert read_verdict('Sure: {"correct": 1, "reason": "{x}"} Done.') == 1
    assert read_verdict('{"reason": "none"}') == ABSENT
    assert read_verdict('```json\n{"correct": true}\n```') is True
    nothing = ("", None, "correct: 1", "{'correct': 1}", '{"correct": 1', "} {", "正确: 1")
    twice = '{"correct": 1} {"correct": 0}'
    for text in (*nothing, twice, '{"correct": 1,}', '{"a": ' * 10**5 + "}", "[1]"):
        with pytest.raises(ValueError, match=r"."):
            read_verdict(text)


@pytest.mark.parametrize(
    ("correct", "right"),
    [("1", True), ("true", True), ("1.0", True), ('"1"', False), ("0.5", False), ("[1]", False)],
)
def test_only_what_equals_one_is_right(correct: str, right: bool):
    assert judge_verdict("t", [f'{{"correct": {correct}}}']).is_right is right


def test_tags_are_rounded_before_the_mean():
    tags = {"a": [True, False, False], "b": [True, True, False]}
    assert [tag_accuracy(rights) for rights in tags.values()] == [0.3333, 0.6667]
    assert overall_score(tags | {"c": [True] * 7 + [False] * 2}) == round(
        (0.3333 + 0.6667 + 0.7778) / 3, 4
    )


def test_the_photograph_clause_is_a_setting():
    row = {"prompt": "two red cups", "include": [{"class": "cup", "count": 2, "color": "red"}]}
    strict, free = judge_text(row, True), judge_text(row, False)
    assert "photograph" in strict and "photograph" not in free
    for text in (strict, free):
        assert "Prompt: two red cups" in text
        assert "- red-colored 2 cups present in the image." in text
        assert text.endswith('{"correct": 1 or 0, "reason": "one short sentence"}')
