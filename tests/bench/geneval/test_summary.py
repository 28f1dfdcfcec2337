"""GenEval's numbers from result rows."""

from __future__ import annotations

import pytest

from tests.bench.oracles import oracle
from uae.bench.geneval.summary import summarise


def test_summaries_are_the_official_ones():
    tables = oracle("geneval_summary.json.gz")["tables"]
    for table in tables:
        summary = summarise(table["input"]["results"])
        full, printed = table["official"]["full_precision"], table["official"]["printed_numbers"]
        scores = [share.right / share.total for share in summary.tags.values()]
        assert scores == pytest.approx(full["task_scores"], abs=1e-12)
        assert list(summary.tags) == [tag["tag"] for tag in printed["tags"]]
        assert summary.overall == pytest.approx(100 * full["overall"], abs=1e-9)
        assert summary.images.percent == pytest.approx(100 * full["images"], abs=1e-9)
        assert summary.prompts.percent == pytest.approx(100 * full["prompts"], abs=1e-9)
        assert summary.images.total == printed["total_images"]
        assert summary.prompts.total == printed["total_prompts"]
    assert len(tables) == 4


def row(tag: str, metadata: str, correct: bool) -> dict:
    return {"tag": tag, "metadata": metadata, "correct": correct}


def test_a_summary_by_hand():
    rows = [row("a", "p", True), row("a", "p", False), row("a", "q", False), row("b", "r", True)]
    summary = summarise(rows)
    assert summary.overall == pytest.approx((100 / 3 + 100) / 2)
    assert (summary.prompts.right, summary.prompts.total) == (2, 3)
    assert summarise([]).overall is None and summarise([]).overall_interval is None


def test_the_interval_draws_whole_prompts():
    """Four equal images of a prompt say no more than one of them."""
    once = [row("a", f"{i}", i % 2 == 0) for i in range(40)]
    fourfold = [each for each in once for _ in range(4)]
    one, four = summarise(once).overall_interval, summarise(fourfold).overall_interval
    assert one == four and one is not None
    assert 30 < one.low < 40 and 60 < one.high < 70
    sure = summarise([row("a", f"{i}", True) for i in range(5)]).overall_interval
    assert sure is not None and sure.low == pytest.approx(100) == sure.high
