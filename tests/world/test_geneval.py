"""The world's prompts and detector through GenEval's benchmark: the verdicts of its own
measurement."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from tests.world.perfect import Perfect, recolored
from uae.bench.geneval.benchmark import GenEvalBench
from uae.bench.geneval.result import GenEvalResult
from uae.bench.run import run_benchmark
from uae.models.load import load_model
from uae.types import Reconstructions
from uae.world.geneval import WorldJudge
from uae.world.measure import geneval
from uae.world.prompts import (
    geneval_rows,
    judge,
    make_prompts,
    mean_over_tags,
    metadata_of,
    prompt_of_metadata,
    shares_by_tag,
)


class Several(Perfect):
    """Paints each picture of a prompt alike."""

    origin = ()

    def generate(self, texts, settings, *, group_size=1, seed=0, step=0):
        images = super().generate(texts, settings).images
        return Reconstructions(images.repeat_interleave(group_size, 0), group_size)


def run(benchmark: GenEvalBench, model: Any) -> GenEvalResult:
    result = run_benchmark(benchmark, lambda source: model, lambda task, answers: None)
    assert isinstance(result, GenEvalResult)
    return result


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "world_rows.jsonl").read_text().splitlines()]


def world(folder: Path, **options: Any) -> GenEvalBench:
    return GenEvalBench(
        **{"prompts": "world", "detector": "world", "out": folder / "world.json"} | options
    )


def test_prompts_survive_their_metadata():
    """Judged by what the metadata say, every painted scene gets the same verdict and reason."""
    prompts = make_prompts(8)
    verdicts = geneval(Perfect(draw=recolored), prompts)
    assert 0 < sum(verdict.correct for verdict in verdicts) < len(verdicts)
    for verdict in verdicts:
        again = prompt_of_metadata(json.loads(json.dumps(metadata_of(verdict.prompt))))
        assert again.required == verdict.prompt.required
        ruling = judge(again, verdict.detection)
        assert (ruling.correct, ruling.reason) == (verdict.correct, verdict.reason)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tiny", "tiny-ar"])
def test_the_benchmark_gives_the_measurements_verdicts(tmp_path: Path, name: str):
    model = load_model(name)
    prompts = make_prompts(8)
    verdicts = geneval(model, prompts)
    result = run(world(tmp_path, model=name, prompts_per_tag=8), model)
    expected, rows = geneval_rows(verdicts), rows_of(tmp_path)
    for column in ("tag", "prompt", "correct", "reason", "metadata"):
        assert [row[column] for row in rows] == [row[column] for row in expected]
    assert result.summary.overall == pytest.approx(mean_over_tags(shares_by_tag(verdicts)))


def test_painting_goes_on_and_what_is_judged_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    model = Several(draw=recolored)
    first = run(world(tmp_path, prompts_per_tag=2), model)
    assert (
        first.summary.tags["colors"].percent == 0 and first.summary.tags["counting"].percent == 100
    )
    assert first.summary.images.total == 12 and not first.partial
    gone = tmp_path / "world_images/00003/samples/00000.png"
    content = gone.read_bytes()
    gone.unlink()
    monkeypatch.setattr(WorldJudge, "judge", lambda *arguments: pytest.fail("judged again"))
    again = run(world(tmp_path, prompts_per_tag=2), model)
    assert gone.read_bytes() == content
    assert again.to_json() == first.to_json()


def test_pictures_made_elsewhere(tmp_path: Path):
    model = Several()
    run(world(tmp_path, prompts_per_tag=2), model)
    images = tmp_path / "world_images"
    Image.new("RGB", (50, 48)).save(images / "00001/samples/00000.png")
    (images / "00002/metadata.jsonl").write_text('{"tag": "colors", "include": [], "prompt": "x"}')
    (images / "00003/metadata.jsonl").write_text('{"tag": "size", "include": [], "prompt": "x"}')
    result = run(world(tmp_path, prompts=None, images=images), SimpleNamespace())
    assert result.unscored == {
        "00001/samples/00000.png": "expected 48x48 pixels of the embedded world, got 50x48"
    }
    (line,) = result.missing
    assert line.startswith("00003/metadata.jsonl: expected metadata of a prompt of the embedded")
    assert result.summary.images.total == 10 and result.summary.images.right == 9


def test_several_pictures_of_a_prompt(tmp_path: Path):
    result = run(world(tmp_path, prompts_per_tag=1, images_per_prompt=2), Several())
    assert [Path(row["filename"]).name for row in rows_of(tmp_path)] == [
        "00000.png",
        "00001.png",
    ] * 6
    assert result.summary.images.right == 12 and result.summary.prompts.total == 6
    assert result.remarks[0] == "00000/samples/00001.png: the same image as 00000/samples/00000.png"
