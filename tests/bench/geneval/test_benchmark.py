"""``uae bench geneval`` from prompts or a folder to numbers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from tests.bench.geneval.checkpoints import save_clip, save_detector
from tests.world.perfect import Perfect
from uae.bench.api import Benchmark
from uae.bench.geneval.benchmark import GenEvalBench
from uae.bench.geneval.folders import Sample
from uae.bench.geneval.judge import Judge, Judged, ObjectJudge
from uae.bench.geneval.result import GenEvalResult
from uae.bench.geneval.score import score_samples
from uae.bench.run import run_benchmark
from uae.types import Reconstructions


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("checkpoints")
    return {
        "detector": str(save_detector(folder / "detector")),
        "clip": str(save_clip(folder / "clip")),
        "device": "cpu",
    }


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures are looked at in small, for speed."""
    sides = {"shortest_edge": 64, "longest_edge": 96}
    monkeypatch.setattr("uae.bench.geneval.detector.SIDES", sides)


def about(name: str, tag: str = "single_object", **clause: Any) -> dict[str, Any]:
    return {
        "tag": tag,
        "include": [{"class": name, "count": 1, **clause}],
        "prompt": f"a photo of a {name}",
    }


def noise(seed: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((80, 60), Image.Resampling.NEAREST)


def lay(root: Path, prompts: Sequence[dict], per_prompt: int = 2) -> Path:
    for place, metadata in enumerate(prompts):
        samples = root / f"{place:05}/samples"
        samples.mkdir(parents=True)
        (samples.parent / "metadata.jsonl").write_text(json.dumps(metadata) + "\n")
        for k in range(per_prompt):
            noise(per_prompt * place + k).save(samples / f"{k:04}.png")
    return root


def run(benchmark: GenEvalBench) -> GenEvalResult:
    def never(*arguments: Any) -> Any:
        pytest.fail("no model is needed")

    result = run_benchmark(benchmark, never, never)
    assert isinstance(result, GenEvalResult)
    return result


# --- whole ---------------------------------------------------------------------------------------


def test_images_made_elsewhere_are_judged_by_the_rules(tmp_path: Path, checkpoints: dict):
    """What the detector sees by chance is asked for: then it is right."""
    root = lay(tmp_path / "images", [about("dog"), about("cat")])
    judge = ObjectJudge(**checkpoints)
    picture = Image.open(root / "00001/samples/0000.png")
    (seen,) = judge.judge([picture], [about("dog")])
    assert isinstance(seen, Judged) and seen.details
    name = next(iter(seen.details))
    (colored,) = judge.judge([picture], [about(name, color="mauve")])
    assert isinstance(colored, Judged) and not colored.correct
    color = colored.reason.split(" and 1 ")[1]
    asked = about(name, "colors", color=color)
    (root / "00001/metadata.jsonl").write_text(json.dumps(asked))
    benchmark = GenEvalBench(
        images=root, out=tmp_path / "geneval.json", batch_size=3, **checkpoints
    )
    assert isinstance(benchmark, Benchmark)
    result = run(benchmark)
    rows = [json.loads(line) for line in (tmp_path / "geneval_rows.jsonl").read_text().splitlines()]
    assert len(rows) == 4 and rows[2] == {
        "filename": str(root / "00001/samples/0000.png"),
        "tag": "colors",
        "prompt": asked["prompt"],
        "correct": True,
        "reason": "",
        "metadata": json.dumps(asked),
        "details": rows[2]["details"],
    }
    np.testing.assert_allclose(json.loads(rows[2]["details"])[name], seen.details[name], rtol=1e-5)
    assert result.summary.tags["colors"].right >= 1 and not result.partial
    written = json.loads((tmp_path / "geneval.json").read_text())
    assert written["overall"] == result.summary.overall and written["images"]["total"] == 4
    weights = written["settings"]["judge"]["detector"]["weights"]
    assert weights.startswith("sha256:") and written["versions"]["transformers"]
    assert any("agreement with it is unknown" in line for line in written["deviations"])
    console = Console(width=120)
    with console.capture() as printed:
        console.print(benchmark.table(result))
    assert "overall (mean of tags)" in printed.get()


# --- bad images ----------------------------------------------------------------------------------


class Bright:
    """A judge that needs no weights: right where a picture's first pixel is bright."""

    deviations = ()

    def __init__(self, name: str = "bright", stops_at: int | None = None) -> None:
        self.name, self.stops_at = name, stops_at
        self.num_judged = 0

    def check(self) -> None:
        pass

    def check_metadata(self, metadata: Any, place: str) -> None:
        pass

    def settings(self) -> dict[str, Any]:
        return {"name": self.name}

    def judge(self, pictures: Sequence[Image.Image], metadata: Sequence[Any]) -> list[Judged | str]:
        if self.num_judged == self.stops_at:
            raise KeyboardInterrupt
        self.num_judged += len(pictures)
        firsts: list[Any] = [picture.getpixel((0, 0)) for picture in pictures]
        return [
            "too wide" if picture.width > 8 else Judged(sum(first) > 300, "", {"dog": [[0.5]]})
            for picture, first in zip(pictures, firsts, strict=True)
        ]


def samples_in(folder: Path, levels: Sequence[int]) -> list[Sample]:
    samples = []
    for i, level in enumerate(levels):
        file = folder / f"{i:04}.png"
        Image.new("RGB", (8, 8), (level,) * 3).save(file)
        samples.append(Sample(file, file.name, about("dog")))
    return samples


def test_corrupt_missing_and_repeated_images_cost_no_other_score(tmp_path: Path):
    samples = samples_in(tmp_path, [0, 200, 210, 200, 10])
    samples[2].file.write_bytes(b"\x89PNG")
    samples[4].file.unlink()
    wide = tmp_path / "0005.png"
    Image.new("RGB", (9, 9)).save(wide)
    samples.append(Sample(wide, wide.name, about("dog")))
    scores = score_samples(samples, Bright(), tmp_path / "scored.jsonl", 2)
    assert [Path(row["filename"]).name for row in scores.rows] == [
        "0000.png",
        "0001.png",
        "0003.png",
    ]
    assert [row["correct"] for row in scores.rows] == [False, True, True]
    assert list(scores.unscored) == ["0002.png", "0004.png", "0005.png"]
    assert scores.unscored["0002.png"].startswith("expected an image, 0002.png cannot be read")
    assert scores.unscored["0004.png"].startswith("cannot be read: ")
    assert scores.unscored["0005.png"] == "too wide"
    assert scores.same_content == ["0003.png: the same image as 0001.png"]


@pytest.mark.parametrize("torn", [False, True])
def test_what_is_scored_is_not_scored_again(tmp_path: Path, torn: bool):
    samples = samples_in(tmp_path, range(0, 250, 25))
    journal = tmp_path / "scored.jsonl"
    with pytest.raises(KeyboardInterrupt):
        score_samples(samples, Bright(stops_at=4), journal, 2)
    assert len(journal.read_text().splitlines()) == 4
    if torn:  # killed as it wrote
        journal.write_text(journal.read_text() + '{"image": "ab')
    later = Bright()
    scores = score_samples(samples, later, journal, 2)
    assert later.num_judged == 6
    assert [row["correct"] for row in scores.rows] == [False] * 5 + [True] * 5
    again = Bright()
    assert score_samples(samples[::-1], again, journal, 3).rows == scores.rows[::-1]
    assert again.num_judged == 0


def test_another_image_prompt_or_judge_is_judged_anew(tmp_path: Path):
    samples = samples_in(tmp_path, [0, 100, 200])
    journal = tmp_path / "scored.jsonl"
    score_samples(samples, Bright(), journal, 8)
    Image.new("RGB", (8, 8), (255,) * 3).save(samples[0].file)
    samples[1] = replace(samples[1], metadata=about("cat"))
    judge: Judge = Bright()
    scores = score_samples(samples, judge, journal, 8)
    assert judge.num_judged == 2 and [row["correct"] for row in scores.rows] == [True, False, True]
    other = Bright("another")
    score_samples(samples, other, journal, 8)
    assert other.num_judged == 3


def test_a_damaged_journal_is_named(tmp_path: Path):
    journal = tmp_path / "scored.jsonl"
    journal.write_text('{"image": 3}\n')
    with pytest.raises(ValueError, match="line 1 is damaged"):
        score_samples(samples_in(tmp_path, [0]), Bright(), journal, 8)


# --- refused before any work ---------------------------------------------------------------------


def test_settings_that_cannot_be_are_refused(tmp_path: Path, checkpoints: dict):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(json.dumps(about("dog")) + '\n{"prompt": "no tag"}\n')
    out = tmp_path / "geneval.json"
    cases = {
        "expected --prompts FILE, or --images DIR": {},
        "expected --detector world": {"prompts": "world"},
        "expected a folder of images, found none": {"images": tmp_path / "nowhere"},
        "prompt 2: expected GenEval's metadata with a tag": {"prompts": str(prompts)},
        "--batch-size must be at least 1": {"images": tmp_path, "batch_size": 0},
        "--images-per-prompt must be at least 1": {"images": tmp_path, "images_per_prompt": 0},
        "detector no/such is neither": {"images": tmp_path, "detector": "no/such"},
        "backbone clip: expected a folder": {"images": tmp_path, "clip": "nowhere"},
        "expected a file to write": {"images": tmp_path, "out": tmp_path},
    }
    for message, options in cases.items():
        with pytest.raises(ValueError, match=message) as error:
            run(GenEvalBench(**{"out": out, **checkpoints, **options}))
        assert "\n" not in str(error.value)
    assert not out.exists()


def test_prompts_of_the_file_that_were_not_painted_are_missing(tmp_path: Path, checkpoints: dict):
    root = lay(tmp_path / "images", [about("cat"), about("dog")])
    prompts = tmp_path / "prompts.jsonl"
    rows = [about("dog"), about("cow"), about("cat")]
    prompts.write_text("\n".join(map(json.dumps, rows)))
    (root / "00000/samples/0001.png").write_bytes(b"")
    result = run(
        GenEvalBench(
            prompts=str(prompts), images=root, out=tmp_path / "geneval.json", **checkpoints
        )
    )
    assert result.missing == ["no image of 'a photo of a cow'"]
    assert list(result.unscored) == ["00000/samples/0001.png"]
    assert result.partial and result.summary.images.total == 3


# --- painted first -------------------------------------------------------------------------------


class Noise(Perfect):
    """Paints noise, as many pictures as it is asked for."""

    origin = ()

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []

    def generate(self, texts, settings, *, group_size=1, seed=0, step=0):
        self.asked += texts
        generator = torch.Generator().manual_seed(step)
        return Reconstructions(torch.rand(group_size, 3, 48, 48, generator=generator), group_size)


def test_prompts_are_painted_then_judged(tmp_path: Path, checkpoints: dict):
    prompts = tmp_path / "prompts.jsonl"
    rows = [about("dog"), about("red cow", "colors")]
    prompts.write_text("\n".join(map(json.dumps, rows)))
    benchmark = GenEvalBench(
        prompts=str(prompts), images_per_prompt=2, out=tmp_path / "geneval.json", **checkpoints
    )
    model = Noise()
    first = run_benchmark(benchmark, lambda source: model, lambda task, answers: None)
    assert isinstance(first, GenEvalResult)
    assert model.asked == ["a photo of a dog", "a photo of a red cow"]
    assert {tag: share.total for tag, share in first.summary.tags.items()} == {
        "single_object": 2,
        "colors": 2,
    }
    assert not first.partial and first.model is not None and first.model["seed"] == 0
    older = tmp_path / "geneval_images/00000/samples/00002.png"  # of a run with more of them
    noise(9).save(older)
    again = run_benchmark(replace(benchmark), lambda source: model, lambda task, answers: None)
    assert again.to_json() == first.to_json() and len(model.asked) == 2
