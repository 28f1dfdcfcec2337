"""Unified-Bench by hand: cosines, strict overall, intervals, shuffled pairs, official keys,
folders."""

import errno
import json
import math
import os
import sqlite3
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from torch import Tensor, nn

from uae.bench.run import run_benchmark
from uae.bench.unified import BACKBONES, ScoreSettings, UnifiedResult, measure, score_pairs
from uae.bench.unified.benchmark import UnifiedBench
from uae.bench.unified.pairing import LazyImages, pair_folders
from uae.bench.unified.score import bootstrap_intervals
from uae.bench.unified.table import PUBLISHED, unified_table
from uae.similarity.backbones import Backbone
from uae.similarity.checkpoints import BackboneError, Provenance
from uae.similarity.preprocess import Preprocess
from uae.utils.failures import failure_of


class MeanColour(nn.Module):
    """In the place of a real model: the feature is the mean colour, whichever way it is asked
    for."""

    def __init__(self, power: float = 1.0) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.power = power

    def forward(self, pixel_values: Tensor) -> SimpleNamespace:
        return SimpleNamespace(last_hidden_state=self.feature(pixel_values)[:, None])

    def get_image_features(self, pixel_values: Tensor) -> SimpleNamespace:
        return SimpleNamespace(pooler_output=self.feature(pixel_values))

    def feature(self, pixel_values: Tensor) -> Tensor:
        return self.scale * pixel_values.mean(dim=(2, 3)) ** self.power


def fake_backbone(name: str, power: float = 1.0, source: str = "folder") -> Backbone:
    preprocess = Preprocess(8, 8, "exact", "bilinear", False, (0.0,) * 3, (1.0,) * 3)
    return Backbone(
        name, MeanColour(power), preprocess, Provenance(name, source, "sha256:0", "float32", {})
    )


@pytest.fixture
def four() -> dict[str, Backbone]:
    return {name: fake_backbone(name) for name in BACKBONES}


RED, GREEN, BLUE, YELLOW = (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0), (1.0, 1.0, 0.0)


def flat(*colors: tuple[float, ...]) -> Tensor:
    return torch.tensor(colors)[:, :, None, None].expand(-1, 3, 8, 8)


def test_scores_by_hand(four):
    result = score_pairs(
        flat(RED, GREEN, BLUE), flat(RED, YELLOW, GREEN), four, settings=ScoreSettings(batch_size=2)
    )
    cosines = [1.0, 0.5**0.5, 0.0]
    score = result.scores["dinov2"]
    assert list(score.similarities.values()) == pytest.approx(cosines)
    assert score.score == pytest.approx(100 * sum(cosines) / 3)
    # mismatched: red-yellow, red-green, green-red, green-green, blue-red, blue-yellow
    shuffled = 100 * (0.5**0.5 + 0 + 0 + 1 + 0 + 0) / 6
    assert score.shuffled == pytest.approx(shuffled)
    assert score.rescaled == pytest.approx(100 * (score.score - shuffled) / (100 - shuffled))
    assert result.unified_score == pytest.approx(score.score)
    assert result.rescaled_score == pytest.approx(score.rescaled)
    assert result.status == "complete"


def test_overall_is_the_plain_mean_of_four():
    backbones = {
        name: fake_backbone(name, power)
        for name, power in zip(BACKBONES, (1.0, 2.0, 3.0, 4.0), strict=True)
    }
    generator = torch.Generator().manual_seed(0)
    sources, reconstructions = (torch.rand(5, 3, 8, 8, generator=generator) ** 4 for _ in range(2))
    result = score_pairs(sources, reconstructions, backbones)
    scores = [result.scores[name].score for name in BACKBONES]
    assert len({round(score, 3) for score in scores}) == 4
    assert result.unified_score == pytest.approx(sum(scores) / 4)
    assert result.overall_interval.low < result.unified_score < result.overall_interval.high


def test_batches_and_mixed_sizes_do_not_change_scores(four):
    images = [torch.rand(3, h, w) for h, w in [(8, 8), (9, 12), (8, 8), (30, 8), (5, 5)]]
    others = [image.flip(0) for image in images]
    one, all_ = (score_pairs(images, others, four, settings=ScoreSettings(size)) for size in (1, 5))
    assert list(one.scores["clip"].similarities.values()) == pytest.approx(
        list(all_.scores["clip"].similarities.values())
    )
    assert one.scores["clip"].shuffled == pytest.approx(all_.scores["clip"].shuffled)


# --- strictness ----------------------------------------------------------------------------------


def text_of(result) -> str:
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(unified_table(result))
    return console.export_text()


def test_a_missing_backbone_makes_the_result_partial(four):
    del four["dinov3"]
    result = score_pairs(flat(RED, GREEN), flat(RED, GREEN), four)
    assert result.partial
    assert result.unified_score is None
    assert result.rescaled_score is None
    assert result.overall_interval is None
    assert result.status == "partial (3/4: missing dinov3 - not asked for)"
    assert "partial (3/4: missing dinov3 - not asked for)" in text_of(result)
    report = result.to_json()
    assert report["summary"]["overall_average"] is None
    assert report["uae"]["unified_score"] is None
    assert report["uae"]["partial"] is True


def test_a_failing_backbone_makes_the_result_partial(four):
    four["clip"].model.scale.data.fill_(torch.nan)

    def out_of_memory(images):
        raise RuntimeError("out of memory")

    four["dinov2"].embed_pixels = out_of_memory
    result = score_pairs(flat(RED, GREEN), flat(RED, GREEN), four)
    assert set(result.scores) == {"longclip", "dinov3"}
    assert result.failures["clip"] == "ValueError: the embedding of 0 is not finite"
    assert result.failures["dinov2"] == "RuntimeError: out of memory"
    assert result.unified_score is None
    assert "2/4" in result.status


def test_all_backbones_failing_is_an_error(four):
    for backbone in four.values():
        backbone.model.scale.data.fill_(torch.nan)
    with pytest.raises(ValueError, match="no backbone could score"):
        score_pairs(flat(RED), flat(RED), four)


def test_bad_arguments_are_named(four):
    with pytest.raises(ValueError, match="got 2, 1 and 2"):
        score_pairs(flat(RED, GREEN), flat(RED), four)
    with pytest.raises(ValueError, match="at least one pair"):
        score_pairs([], [], four)
    with pytest.raises(ValueError, match="got siglip"):
        score_pairs(flat(RED), flat(RED), {"siglip": four["clip"]})


def test_one_pair_has_nothing_to_shuffle(four):
    result = score_pairs(flat(RED), flat(YELLOW), four)
    assert result.unified_score == pytest.approx(100 * 0.5**0.5)
    assert result.scores["clip"].shuffled is None
    assert result.rescaled_score is None


# --- intervals -----------------------------------------------------------------------------------


def test_bootstrap_by_hand():
    """Two images of 0 and 1: a resample's mean is 0 or 1 a quarter of the time each, so 95 % spans
    all of it."""
    cosines = torch.tensor([[0.0, 0.3], [1.0, 0.3]], dtype=torch.float64)
    first, constant, overall = bootstrap_intervals(cosines, 500, seed=0)
    assert (first.low, first.high) == (0.0, 100.0)
    assert (constant.low, constant.high) == pytest.approx((30.0, 30.0))
    assert (overall.low, overall.high) == pytest.approx((15.0, 65.0))


def test_bootstrap_agrees_with_the_normal_interval():
    values = (
        torch.randn(400, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 0.1
        + 0.8
    )
    interval = bootstrap_intervals(values, 4000, seed=1)[0]
    half = 1.96 * 100 * values.std().item() / math.sqrt(400)
    mean = 100 * values.mean().item()
    assert interval.low == pytest.approx(mean - half, abs=0.1)
    assert interval.high == pytest.approx(mean + half, abs=0.1)
    assert bootstrap_intervals(values, 100, seed=1) == bootstrap_intervals(values, 100, seed=1)
    assert bootstrap_intervals(values, 100, seed=1) != bootstrap_intervals(values, 100, seed=2)


# --- JSON and table ------------------------------------------------------------------------------


def test_official_keys(four):
    result = score_pairs(flat(RED, GREEN), flat(RED, YELLOW), four, names=["0.jpg", "1.jpg"])
    report = json.loads(json.dumps(result.to_json()))
    assert set(report) == {
        "model_types",
        "similarities_by_model",
        "statistics_by_model",
        "summary",
        "uae",
    }
    assert report["model_types"] == ["clip", "longclip", "dinov2", "dinov3"]
    assert report["similarities_by_model"]["clip"] == pytest.approx(
        {"0.jpg": 1.0, "1.jpg": 0.5**0.5}
    )
    mean = (1 + 0.5**0.5) / 2
    assert report["statistics_by_model"]["dinov3"] == pytest.approx(
        {
            "total_images": 2,
            "valid_pairs": 2,
            "average_similarity": mean,
            "min_similarity": 0.5**0.5,
            "max_similarity": 1.0,
        }
    )
    summary = report["summary"]
    assert set(summary) == {
        "models_used",
        "average_scores_by_model",
        "overall_average",
        "best_model",
        "worst_model",
    }
    assert summary["overall_average"] == pytest.approx(mean)
    assert report["uae"]["unified_score"] == pytest.approx(100 * mean)
    assert report["uae"]["backbones"]["clip"]["provenance"]["weights"] == "sha256:0"
    assert report["uae"]["settings"]["seed"] == 0


def test_best_and_worst():
    backbones = {
        name: fake_backbone(name, power)
        for name, power in zip(BACKBONES, (2.0, 4.0, 1.0, 3.0), strict=True)
    }
    summary = score_pairs(flat((1.0, 0.5, 0.2)), flat((0.6, 0.5, 0.7)), backbones).to_json()[
        "summary"
    ]
    assert (summary["best_model"], summary["worst_model"]) == ("dinov2", "longclip")


@pytest.mark.parametrize("row", PUBLISHED.values(), ids=PUBLISHED.keys())
def test_published_overall_is_the_plain_mean(row):
    assert (row.clip + row.longclip + row.dinov2 + row.dinov3) / 4 == pytest.approx(
        row.overall, abs=0.011
    )


def test_table_prints_published_rows_beside_comparable_scores_only(four):
    result = score_pairs(flat(RED, GREEN), flat(RED, YELLOW), four)
    text = text_of(result)
    assert "published" in text
    assert "BAGEL" in text
    assert "86.09" in text
    for value in (result.unified_score, result.overall_interval.low, result.overall_interval.high):
        assert f"{value:.2f}" in text
    tiny = {name: fake_backbone(name, source="tiny") for name in BACKBONES}
    text = text_of(score_pairs(flat(RED, GREEN), flat(RED, YELLOW), tiny))
    assert "BAGEL" not in text
    assert "not comparable" in text


def test_results_stand_beside_each_other(folders, loaded_fakes, tmp_path):
    """Ours and the official scorer's, whose overall hides that a backbone is missing."""
    sources, recons = folders
    run_folders(sources, recons, tmp_path / "first.json")
    official = {
        "summary": {
            "average_scores_by_model": {"clip": 0.9, "longclip": 0.8, "dinov2": 0.7},
            "overall_average": 0.8,
        }
    }
    (tmp_path / "other_model.json").write_text(json.dumps(official))
    beside = (tmp_path / "first.json", tmp_path / "other_model.json")
    benchmark = UnifiedBench(
        source=sources, recon=recons, out=tmp_path / "second.json", device="cpu", beside=beside
    )
    result = run_benchmark(benchmark, lambda name: None, lambda task, answers: None)
    lines = (tmp_path / "second.md").read_text().splitlines()
    overall = f"{result.unified_score:.2f}"
    assert lines[0] == "| model | CLIP | LongCLIP | DINOv2 | DINOv3 | Overall |"
    assert lines[2].startswith("| GPT-4o-Image | 90.42 |")
    assert lines[-3] == f"| first | {' | '.join([overall] * 5)} |"
    assert lines[-2].endswith("other\\_model | 90.00 | 80.00 | 70.00 | - | - |")
    assert lines[-1] == f"| recons | {' | '.join([overall] * 5)} |"
    rows = [json.loads(line) for line in (tmp_path / "second.jsonl").read_text().splitlines()]
    assert [row["image"] for row in rows] == ["0.jpg", "1.jpg", "2.jpg"]
    assert [row["unified"] for row in rows] == pytest.approx([1.0, 0.5**0.5, 1.0], abs=1e-2)
    console = Console(width=120)
    with console.capture() as captured:
        console.print(benchmark.table(result))
    assert "other_model " in captured.get()

    (tmp_path / "none.json").write_text("{}")
    with pytest.raises(ValueError, match=r"none\.json: expected a result of Unified-Bench"):
        run_folders(sources, recons, tmp_path / "out.json", beside=(tmp_path / "none.json",))


# --- folders -------------------------------------------------------------------------------------


def save(file, color=(255, 0, 0)):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), color).save(file)


@pytest.fixture
def folders(tmp_path):
    sources, recons = tmp_path / "sources", tmp_path / "recons"
    for i in range(3):
        save(sources / f"{i}.jpg")
    save(recons / "recon_0.png")
    save(recons / "1.png", (255, 255, 0))
    save(recons / "2.webp")
    return sources, recons


def test_pairs_by_stem_or_prefix(folders):
    sources, recons = folders
    save(sources / "10.jpg")
    save(sources / "more" / "0.jpg")
    save(recons / "more" / "recon_0.png")
    save(recons / "stray.png")
    pairs = pair_folders(sources, recons)
    assert pairs.names == ["0.jpg", "1.jpg", "2.jpg", "more/0.jpg"]
    assert [str(f.relative_to(recons)) for f in pairs.reconstructions] == [
        "recon_0.png",
        "1.png",
        "2.webp",
        "more/recon_0.png",
    ]
    assert pairs.unmatched_sources == {"10.jpg": "no reconstruction"}
    assert pairs.unmatched_reconstructions == ["stray.png"]


def test_ambiguous_folders_are_refused(folders, tmp_path):
    sources, recons = folders
    with pytest.raises(ValueError, match="two folders"):
        pair_folders(sources, sources)
    save(tmp_path / "other" / "x.png")
    with pytest.raises(ValueError, match="no pairs"):
        pair_folders(sources, tmp_path / "other")
    save(recons / "0.png")
    with pytest.raises(
        ValueError, match=r"both 0\.png and recon_0\.png could be the reconstruction of 0\.jpg"
    ):
        pair_folders(sources, recons)
    save(sources / "0.png")
    with pytest.raises(
        ValueError,
        match=r"both 0\.png and recon_0\.png could be the reconstruction of 0\.\w+; remove",
    ):
        pair_folders(sources, recons)
    (recons / "0.png").unlink()
    with pytest.raises(
        ValueError,
        match=r"recon_0\.png could be the reconstruction of 0\.\w+ and of 0\.\w+; call it",
    ):
        pair_folders(sources, recons)


@pytest.fixture
def loaded_fakes(monkeypatch):
    """Backbones by name without checkpoints; returns the names loaded so far."""
    loaded = []

    def load(name, source, device):
        loaded.append(name)
        return fake_backbone(name)

    monkeypatch.setattr("uae.bench.unified.score.load_backbone", load)
    monkeypatch.setattr("uae.bench.unified.score.check_backbone_source", lambda name, source: None)
    return loaded


def run_folders(sources: Path, recons: Path, out: Path, **settings) -> UnifiedResult:
    """``uae bench unified --source DIR --recon DIR``, without a model."""
    benchmark = UnifiedBench(source=sources, recon=recons, out=out, device="cpu", **settings)
    result = run_benchmark(benchmark, lambda name: None, lambda task, answers: None)
    assert isinstance(result, UnifiedResult)
    return result


def test_run_folders_reports_every_file(folders, loaded_fakes, tmp_path):
    sources, recons = folders
    save(sources / "3.jpg")
    save(sources / "4.jpg")
    (recons / "3.png").write_text("not an image")
    save(recons / "stray.png")
    out = tmp_path / "deep" / "result.json"
    result = run_folders(sources, recons, out)
    assert loaded_fakes == list(BACKBONES)
    assert (result.total_images, result.valid_pairs) == (5, 3)
    assert set(result.unscored) == {"3.jpg", "4.jpg"}
    assert "3.png" in result.unscored["3.jpg"]
    assert result.unscored["4.jpg"] == "no reconstruction"
    assert result.extra_reconstructions == ["stray.png"]
    assert result.unified_score == pytest.approx(100 * (2 + 0.5**0.5) / 3, abs=0.1)
    report = json.loads(out.read_text())
    assert report["statistics_by_model"]["clip"]["total_images"] == 5
    assert report["statistics_by_model"]["clip"]["valid_pairs"] == 3
    assert report["uae"]["unscored"].keys() == {"3.jpg", "4.jpg"}
    text = text_of(result)
    assert "3 of 5 images scored" in text
    assert "4.jpg: no reconstruction" in text


def test_run_folders_names_unusable_backbones_before_work(
    folders, loaded_fakes, monkeypatch, tmp_path
):
    def check(name, source):
        if name == "dinov3":
            raise BackboneError("backbone dinov3: gated")

    monkeypatch.setattr("uae.bench.unified.score.check_backbone_source", check)
    sources, recons = folders
    with pytest.raises(BackboneError, match="gated"):
        run_folders(sources, recons, tmp_path / "out.json")
    assert loaded_fakes == []
    assert not (tmp_path / "out.json").exists()

    result = run_folders(sources, recons, tmp_path / "out.json", allow_partial=True)
    assert result.status == "partial (3/4: missing dinov3 - backbone dinov3: gated)"
    assert json.loads((tmp_path / "out.json").read_text())["uae"]["unified_score"] is None
    with pytest.raises(ValueError, match="did you mean 'clip'"):
        run_folders(sources, recons, tmp_path / "out.json", backbones={"clp": "tiny"})


def test_run_folders_on_unreadable_or_missing_folders(folders, loaded_fakes, tmp_path):
    sources, recons = folders
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty: expected images"):
        run_folders(sources, tmp_path / "empty", tmp_path / "out.json")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        run_folders(tmp_path / "nowhere", recons, tmp_path / "out.json")
    for file in recons.iterdir():
        file.write_bytes(b"")
    with pytest.raises(ValueError, match="no pair could be read, all 3 failed"):
        run_folders(sources, recons, tmp_path / "out.json")


def test_images_are_read_one_batch_ahead(folders, four):
    """Never more than one batch is asked for before the one before it is scored."""
    sources, recons = folders
    pairs = pair_folders(sources, recons)
    events = []

    class Watched(LazyImages):
        def __getitem__(self, index: int) -> Tensor:
            events.append(index)
            return super().__getitem__(index)

    embed = four["clip"].embed_pixels
    four["clip"].embed_pixels = lambda pixels: events.append("embed") or embed(pixels)
    score_pairs(
        Watched(pairs.sources),
        LazyImages(pairs.reconstructions),
        {"clip": four["clip"]},
        settings=ScoreSettings(batch_size=1),
    )
    assert [event for event in events if event != "embed"] == [0, 1, 2]
    assert events.count("embed") == 3
    assert 2 not in events[: events.index("embed")]  # it is read while the second is scored


@pytest.mark.parametrize(("free", "times_read"), [(10**9, 1), (1, 4)])
def test_as_many_backbones_as_memory_holds_read_a_file_once(
    free, times_read, folders, loaded_fakes, monkeypatch, tmp_path
):
    sources, recons = folders
    monkeypatch.setattr("uae.bench.unified.score.free_memory", lambda device: free)
    read, decode = [], measure.read_image_bytes
    noting = lambda content, file: read.append(file) or decode(content, file)  # noqa: E731
    monkeypatch.setattr(measure, "read_image_bytes", noting)
    result = run_folders(sources, recons, tmp_path / "out.json")
    assert len(read) == 6 * times_read
    assert result.unified_score == pytest.approx(100 * (2 + 0.5**0.5) / 3, abs=0.1)


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images go through a backbone, call by call, from now on."""
    embedded: list[int] = []
    embed = Backbone.embed_pixels

    def counting(self: Backbone, pixels: Tensor) -> Tensor:
        embedded.append(len(pixels))
        return embed(self, pixels)

    monkeypatch.setattr(Backbone, "embed_pixels", counting)
    return embedded


def test_what_was_scored_is_read_from_the_cache(folders, loaded_fakes, monkeypatch, tmp_path):
    sources, recons = folders
    embedded = counted(monkeypatch)
    first = run_folders(sources, recons, tmp_path / "a.json")
    assert embedded == [6] * 4 and (tmp_path / "uae_embeddings.sqlite").exists()

    again = run_folders(sources, recons, tmp_path / "b.json")
    assert embedded == [6] * 4
    assert again.scores == first.scores and again.overall_interval == first.overall_interval

    save(recons / "recon_0.png", (0, 0, 255))
    changed = run_folders(sources, recons, tmp_path / "c.json")
    assert embedded == [6] * 4 + [1] * 4
    assert changed.scores["clip"].similarities["0.jpg"] == pytest.approx(0.0, abs=0.02)

    run_folders(sources, recons, tmp_path / "d.json", cache=tmp_path / "other.sqlite")
    assert embedded == [6] * 4 + [1] * 4 + [6] * 4


def test_a_cache_that_cannot_be_read_costs_time_alone(folders, loaded_fakes, capsys, tmp_path):
    sources, recons = folders
    expected = run_folders(sources, recons, tmp_path / "a.json")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "uae_embeddings.sqlite").write_text("not a database " * 100)
    result = run_folders(sources, recons, tmp_path / "b" / "b.json")
    assert result.scores == expected.scores
    told = capsys.readouterr().err
    assert told.count("expected a file that keeps embeddings, got file is not a database") == 1


def test_a_full_disk_costs_no_score(folders, loaded_fakes, monkeypatch, tmp_path):
    """The result cannot be written: one line, no half of a file, and nothing is embedded again."""
    sources, recons = folders
    embedded = counted(monkeypatch)
    out = tmp_path / "out.json"
    expected = run_folders(sources, recons, out)
    written = {file: file.read_bytes() for file in tmp_path.glob("out.*")}
    save(recons / "recon_0.png", (0, 0, 255))

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("uae.utils.files.os.fsync", full)
        with pytest.raises(OSError, match=r"could not write out\.jsonl .*No space left") as raised:
            run_folders(sources, recons, out)
    failure = failure_of(raised.value, "bench")
    assert failure.code == 2 and "Free some space" in failure.message.splitlines()[0]
    assert {file: file.read_bytes() for file in tmp_path.glob("out.*")} == written
    assert len(written) == 3 and not list(tmp_path.glob(".out*"))
    assert embedded == [6] * 4 + [1] * 4
    result = run_folders(sources, recons, out)
    assert embedded == [6] * 4 + [1] * 4 and out.read_bytes() != written[out]
    assert result.scores["clip"].similarities["0.jpg"] == pytest.approx(0.0, abs=0.02)
    others = [r.scores["clip"].similarities["2.jpg"] for r in (expected, result)]
    assert others[0] == others[1]


def test_a_full_disk_under_the_cache_costs_time_alone(
    folders, loaded_fakes, monkeypatch, capsys, tmp_path
):
    """SQLite itself says so: its file may not grow."""
    sources, recons = folders
    expected = run_folders(sources, recons, tmp_path / "a.json", cache=tmp_path / "a.sqlite")
    connect = sqlite3.connect

    def full(*arguments, **options):
        database = connect(*arguments, **options)
        database.execute("PRAGMA max_page_count = 1")
        return database

    monkeypatch.setattr("uae.similarity.cache.sqlite3.connect", full)
    result = run_folders(sources, recons, tmp_path / "b.json", cache=tmp_path / "b.sqlite")
    assert result.scores == expected.scores
    assert capsys.readouterr().err.count("got database or disk is full; the work goes on") == 1


def test_values_survive_a_real_file(folders, loaded_fakes, tmp_path):
    """PNG files score as the tensors they were saved from."""
    sources, recons = folders
    pixels = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)
    for folder, image in zip((sources, recons), pixels, strict=True):
        for file in folder.iterdir():
            file.unlink()
        Image.fromarray(image).save(folder / "a.png")
    result = run_folders(sources, recons, tmp_path / "out.json")
    tensors = torch.tensor(pixels).permute(0, 3, 1, 2) / 255
    expected = score_pairs(
        tensors[:1], tensors[1:], {name: fake_backbone(name) for name in BACKBONES}
    )
    assert result.unified_score == pytest.approx(expected.unified_score, abs=1e-6)
