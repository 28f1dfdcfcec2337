"""The report: numbers where they belong, nothing from outside, captions escaped, curves drawn to
scale."""

import base64
import io
import math
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from uae.images.write import png_address
from uae.report.charts import HEIGHT, LEFT, RIGHT, WIDTH, make_chart, nice_ticks, running_mean
from uae.report.run_page import (
    MEASURES,
    Frame,
    RunReport,
    learning_curves,
    render_report,
    results_table,
    table_rows,
    write_report,
)
from uae.types import RoundTrip

EVIL = "<script>alert('x')</script> & a red circle"


class Page(HTMLParser):
    """Tags, attributes and balance of a page."""

    VOID = frozenset({"meta", "img", "line", "polyline", "br", "link"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.open: list[str] = []
        self.text: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)

    def count(self, name: str) -> int:
        return sum(tag == name for tag, _ in self.tags)


def share(right: int, total: int) -> dict:
    return {
        "percent": 100 * right / total,
        "low": 10.0,
        "high": 90.0,
        "right": right,
        "total": total,
    }


def results() -> dict:
    before = {key: 50.0 + i for i, key in enumerate(MEASURES)}
    after = {key: value + 7.25 for key, value in before.items()} | {"caption_precision": None}
    details = {
        "geneval": {"two_object": share(3, 4)},
        "objects": {"by_size": {"small": share(1, 8)}},
    }
    return {
        "before": before,
        "after": after,
        "details": {"before": details, "after": details},
        "delta": dict.fromkeys(before, 7.25) | {"geneval": -1.5, "caption_precision": None},
        "ceiling": dict.fromkeys(before, 99.0),
        "family": "umm1",
        "seconds": 421.5,
        "seed": 3,
        "command": "uae quickstart --out 'a & b'",
        "versions": {"torch": "2.13.0"},
        "config": {"train": {"num_steps": 80}},
    }


def metrics(num_steps: int = 40) -> list[dict]:
    return [
        {
            "step": i,
            "reward/total": 0.5 + i / 100,
            "reward/clip": 0.6,
            "reward/group_std": 0.1,
            "rl/entropy": 2.0,
            "rl/kl": None if i == 0 else i / 1000,
            "rl/grad_norm": 1.0,
            "caption/tokens": 10 + i,
            "time/rollout": 2.0,
        }
        for i in range(num_steps)
    ]


def full_page() -> str:
    image = torch.rand(3, 48, 48)
    before = [RoundTrip(image, EVIL, image), RoundTrip(image, "", image)]
    after = [RoundTrip(image, "a blue square", image)] * 2
    strip = [Frame(step, f"at {step}", image) for step in (0, 20, 40, 80)]
    report = RunReport(
        results(),
        metrics(),
        before=before,
        after=after,
        strip=strip,
        strip_source=image,
        reward_backbones=["clip"],
    )
    return render_report(report)


def test_the_page_is_whole_and_needs_nothing_else():
    text = full_page()
    page = Page(text)
    assert page.open == []
    assert page.count("script") == page.count("link") == page.count("iframe") == 0
    sources = [attrs["src"] for _, attrs in page.tags if "src" in attrs]
    assert len(sources) == 2 * 3 + 5 and all(
        s.startswith("data:image/png;base64,") for s in sources
    )
    assert "http:" not in text and "https:" not in text and "url(" not in text
    assert page.count("svg") == 6  # reward, length, entropy, KL, gradient, spread
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert ids == ["numbers", "strip", "curves", "pictures", "details", "caveat", "facts"]


def test_what_a_model_says_is_text():
    text = full_page()
    assert "&lt;script&gt;" in text and "<script" not in text
    said = " ".join(Page(text).text)
    assert EVIL in said and "(empty caption)" in said and "uae quickstart --out 'a & b'" in said


def test_prompts_stand_beside_each_other_as_they_are_learnt():
    image = torch.rand(3, 48, 48)
    prompts = [[Frame(step, text, image) for step in (0, 20)] for text in (EVIL, "a red ring")]
    text = render_report(RunReport(results(), prompts=prompts, lead="geneval"))
    page = Page(text)
    assert page.open == [] and page.count("img") == 4 and "<script" not in text
    said = " ".join(" ".join(page.text).split())
    assert f"{EVIL} step 0 step 20 a red ring step 0 step 20" in said
    assert "GenEval-style before" in said and "Unified-Score before" not in said


def test_numbers_of_the_page():
    said = " ".join(" ".join(Page(full_page()).text).split())
    assert "50.00 57.25 +7.25 99.00" in said  # Unified-Score
    assert "mentions that are true, % 62.00 – – 99.00" in said  # nothing was mentioned
    assert "two object 75.0 (10 to 90) 75.0 (10 to 90)" in said
    assert "settings: train.num_steps 80" in said and "version: torch 2.13.0" in said


def test_an_empty_run_still_makes_a_page():
    page = Page(render_report(RunReport({})))
    assert page.open == [] and page.count("svg") == page.count("img") == 0


def test_pairs_must_match():
    image = torch.zeros(3, 48, 48)
    with pytest.raises(ValueError, match="1 and 0"):
        RunReport(results(), before=[RoundTrip(image, "", image)])


def test_the_file_is_written(tmp_path):
    write_report(tmp_path / "report.html", RunReport(results(), metrics()))
    assert (tmp_path / "report.html").read_text(encoding="utf-8").startswith("<!doctype html>")


def test_pictures_survive():
    image = torch.arange(3 * 48 * 48).reshape(3, 48, 48) % 256 / 255.0
    data = base64.b64decode(png_address(image).partition(",")[2])
    shown = np.asarray(Image.open(io.BytesIO(data)))
    assert np.array_equal(shown, (image * 255).round().permute(1, 2, 0).numpy())


def test_table_for_the_terminal():
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(results_table(results(), ["clip"]))
    lines = console.export_text().splitlines()
    of = lambda name: next(line for line in lines if name in line)  # noqa: E731
    assert [cell.strip() for cell in of("Unified-Score").split("│")[2:6]] == [
        "50.00",
        "57.25",
        "+7.25",
        "99.00",
    ]
    assert "CLIP (reward)" in of("CLIP (") and "-1.50" in of("GenEval") and "–" in of("precision")
    assert len([line for line in lines if "│" in line]) == len(MEASURES)


def test_the_gain_says_what_it_is_made_of():
    gain = {"gain": {"detail": 8.125, "correctness": -0.875}}
    rows = {row.key: row for row in table_rows(results() | gain)}
    assert rows["detail"].values == ["", "", "+8.12", ""]
    assert rows["correctness"].values == ["", "", "-0.88", ""]
    assert list(rows)[:3] == ["unified_score", "detail", "correctness"]
    none = {"gain": {"detail": None, "correctness": None}}
    assert len(table_rows(results() | none)) == len(table_rows(results())) == len(MEASURES)


def test_curves_are_to_scale():
    chart = make_chart("t", {"a": [(0, 1.0), (10, 3.0)], "b": [(0, math.nan)]})
    assert chart is not None and [line.name for line in chart.lines] == ["a"]
    (x0, y0), (x1, y1) = [tuple(map(float, p.split(","))) for p in chart.lines[0].raw.split()]
    assert x0 == LEFT and x1 == WIDTH - RIGHT and y1 < y0 <= HEIGHT
    assert {label: y for y, label in chart.y_ticks}["1"] == y0 and {
        label: y for y, label in chart.y_ticks
    }["3"] == y1
    assert make_chart("t", {"a": []}) is None and make_chart("t", {"a": [(0, 5.0)]}) is not None


def test_ticks_are_round_and_cover():
    assert nice_ticks(0, 80) == [0, 20, 40, 60, 80]
    assert nice_ticks(0.61, 0.79) == pytest.approx([0.6, 0.65, 0.7, 0.75, 0.8])
    ticks = nice_ticks(5, 5)
    assert ticks[0] < 5 < ticks[-1]


def test_running_mean_by_hand():
    assert running_mean([(0, 1.0), (1, 2.0), (2, 6.0)], window=3) == [(0, 1.5), (1, 3.0), (2, 4.0)]


def test_rewards_of_images_and_of_prompts_have_a_chart_each():
    names = ("reward/total", "reward/group_std", "prompts/reward/judge", "prompts/reward/tied_frac")
    metrics = [{"step": step, **dict.fromkeys(names, float(step))} for step in range(3)]
    charts = {chart.title: chart for chart in learning_curves(metrics)}
    assert [line.name for line in charts["Reward"].lines] == ["total"]
    assert [line.name for line in charts["Reward of prompts"].lines] == ["judge"]
