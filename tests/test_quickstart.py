"""The main job from the shipped weights, cut to two steps: everything it promises to leave
behind."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from tests.rl.tiny_run import build_model
from uae import cli
from uae.report.run_page import Frame
from uae.stages.unified_grpo import UnifiedGRPO
from uae.utils.metrics import read_metrics
from uae.world.imitation import imitate, imitation_loss
from uae.world.measure import WorldSettings, measure_ceiling, measure_model
from uae.world.prompts import make_prompts
from uae.world.quickstart import (
    FAMILIES,
    FORMER_NAMES,
    QuickstartSettings,
    quickstart,
    train_with_frames,
)
from uae.world.recipes import QUICK, RECIPES
from uae.world.scene import scene_at

BACKBONES = {"clip", "longclip", "dinov2", "dinov3"}
HEADLINE = {
    "unified_score",
    *BACKBONES,
    "rescaled_score",
    "unified_score_if_true",
    "geneval",
    "perception",
    "perception_small",
    "caption_tokens",
    "caption_precision",
    "caption_recall",
    "caption_complete",
    "small_recall",
    "reconstruction_objects_exact",
}


@pytest.fixture
def few_scenes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer scenes, prompts and questions than a quickstart measures."""
    few = WorldSettings(num_scenes=40, prompts_per_tag=3, num_questions=100, num_bootstrap=200)
    for function in (measure_model, measure_ceiling):
        name = f"uae.world.quickstart.{function.__name__}"
        monkeypatch.setattr(name, partial(function, settings=few))


@pytest.mark.slow
@pytest.mark.usefixtures("few_scenes")
@pytest.mark.parametrize("family", FAMILIES)
def test_it_measures_trains_measures_and_reports(family: str, tmp_path: Path):
    quickstart(QuickstartSettings(tmp_path, family, num_steps=2), "uae quickstart --num-steps 2")
    results = json.loads((tmp_path / "results.json").read_text())
    assert {"seconds", "seed", "command", "versions"} <= set(results)
    assert results["family"] == family  # as the command line calls it
    for column in ("before", "after", "delta", "ceiling"):
        assert set(results[column]) == HEADLINE
        assert all(isinstance(value, float) for value in results[column].values())
    for name in HEADLINE:
        assert results["delta"][name] == pytest.approx(
            results["after"][name] - results["before"][name]
        )
    assert sum(results["gain"].values()) == pytest.approx(results["delta"]["unified_score"])
    assert results["before"]["unified_score"] < results["ceiling"]["unified_score"] <= 100
    assert results["before"]["unified_score"] == pytest.approx(
        sum(results["before"][b] for b in BACKBONES) / 4
    )
    page = (tmp_path / "report.html").read_text()
    assert (
        page.count("data:image/png;base64,") > 30
        and 'src="http' not in page
        and "<link" not in page
    )
    assert "What the round trip" in page and page.count("reconstruction at step 2") == 1
    assert page.count("painted at step 2") == (5 if family == "umm2" else 0)  # it learns prompts
    assert len((tmp_path / "run/metrics.jsonl").read_text().splitlines()) == 2
    assert (tmp_path / "model/uae.json").is_file()


@pytest.mark.slow
@pytest.mark.usefixtures("few_scenes")
def test_painting_alone_shows_prompts_as_they_are_learnt(capsys, monkeypatch, tmp_path: Path):
    monkeypatch.setattr("uae.world.quickstart.FRAME_EVERY", 1)
    cli.run(["quickstart", "--half", "images", "--num-steps", "2", "--out", str(tmp_path)])
    shown = capsys.readouterr().out
    assert "GenEval-style, by kind" in shown and "color attr" in shown
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["config"]["prompts"] == "world"
    by_tag = results["details"]["after"]["geneval"]
    assert results["after"]["geneval"] == pytest.approx(
        sum(share["percent"] for share in by_tag.values()) / 6
    )
    assert results["before"]["perception"] == results["after"]["perception"]  # it is as it was
    page = (tmp_path / "report.html").read_text()
    prompts = {prompt.text for prompt in make_prompts(1)}  # two tags may have the same
    assert len(prompts) == 5 and all(page.count(f"<h3>{text}</h3>") == 1 for text in prompts)
    assert all(page.count(f"painted at step {step}") == 5 for step in (0, 1, 2))
    assert "GenEval-style before" in page and "What a prompt asks for, painted" in page
    assert len(read_metrics(tmp_path / "run/metrics.jsonl")) == 2


@pytest.mark.slow
@pytest.mark.usefixtures("few_scenes")
def test_seeing_starts_from_the_model_that_sees_less(capsys, monkeypatch, tmp_path: Path):
    seeing = QUICK["umm1"]["seeing"]
    few = replace(seeing, train=replace(seeing.train, images_per_step=2, group_size=2))
    monkeypatch.setitem(QUICK["umm1"], "seeing", few)
    cli.run(["quickstart", "--half", "seeing", "--num-steps", "2", "--out", str(tmp_path)])
    shown = capsys.readouterr().out
    assert "by saying more" in shown and "by being right" in shown
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["config"]["model"] == "tiny-early"
    assert "full detail" in results["config"]["train"]["captioning"]["instruction"]
    before, ceiling = (results[column]["unified_score"] for column in ("before", "ceiling"))
    assert before > 0.8 * ceiling  # it says all from the start, and not all of it is right
    assert results["before"]["caption_complete"] < 90
    page = (tmp_path / "report.html").read_text()
    assert "complete objects before" in page and "by being right" in page


def test_seeing_is_of_one_family_and_has_a_folder_of_its_own(tmp_path: Path):
    assert QuickstartSettings(half="seeing").folder == Path("quickstart-seeing")
    assert QuickstartSettings(tmp_path, half="seeing").folder == tmp_path
    with pytest.raises(ValueError, match="family: expected umm1 with half seeing, got umm2"):
        QuickstartSettings(half="seeing", family="umm2")
    with pytest.raises(ValueError, match="control: expected none with half seeing, got prompted"):
        QuickstartSettings(half="seeing", control="prompted")
    (tmp_path / "results.json").write_text('{"config": {"model": "tiny"}}')
    with pytest.raises(ValueError, match="of tiny-early, it holds one of the model tiny;"):
        quickstart(QuickstartSettings(tmp_path, half="seeing"), "uae quickstart")


def test_a_resumed_run_shows_no_step_that_it_has_passed(monkeypatch, tmp_path: Path):
    """The model of then is gone: the next picture is of the next step that is looked at."""
    config = replace(QuickstartSettings(half="images").run(), lora_rank=1)
    config = replace(config, train=replace(config.train, num_steps=70))
    (tmp_path / "metrics.jsonl").write_text("".join(f'{{"step": {i}}}\n' for i in range(45)))
    learnt = []
    monkeypatch.setattr(UnifiedGRPO, "learn", lambda *given: learnt.append(given[-1]))
    monkeypatch.setattr(UnifiedGRPO, "rewards", lambda *given: None)
    monkeypatch.setattr("uae.world.quickstart.prepare_policy", lambda *given: None)
    picture = torch.zeros(3, 2, 2)
    looked = "uae.world.quickstart.look"
    monkeypatch.setattr(looked, lambda model, config, step: [Frame(step, "a ring", picture)])

    def steps(folder: Path) -> list[int]:
        return [
            frame.step for frames in train_with_frames(None, {}, config, folder) for frame in frames
        ]

    assert steps(tmp_path) == [0, 60, 70] and learnt == [60, 70]
    assert steps(tmp_path / "new") == [0, 20, 40, 60, 70]


def test_a_half_learns_from_as_many_images():
    for family in FAMILIES:
        whole = QuickstartSettings(family=family).run().train
        for half in ("both", "captions", "images"):
            settings = QuickstartSettings(family=family, half=half).run()
            run = settings.train
            assert (run.caption_weight > 0, run.image_weight > 0) == (
                half != "images",
                half != "captions",
            )
            pictures_of_each = 1 if settings.is_joint else run.reconstructions_per_caption
            num_pictures = run.images_per_step * run.group_size * pictures_of_each
            assert num_pictures == whole.images_per_step * whole.group_size
            assert run.reconstructions_per_caption > 1 or half != "images"
            assert family == "umm2" or run.decoding_at(0).has_rollout == (half != "captions")


def test_the_control_learns_by_imitation():
    model, settings = build_model(), RECIPES["tiny"].stage.settings.train
    config = replace(settings, num_steps=12, images_per_step=4, group_size=2, learning_rate=3e-3)
    held_out = [scene_at("validation", i) for i in range(8)]
    with torch.no_grad():
        before = imitation_loss(model.encoder, held_out, config.captioning.instruction).item()
    vision = [p.clone() for p in model.encoder.model.model.visual.parameters()]
    imitate(model.encoder, config)
    with torch.no_grad():
        after = imitation_loss(model.encoder, held_out, config.captioning.instruction).item()
    assert after < before - 0.5
    assert all(
        torch.equal(a, b)
        for a, b in zip(vision, model.encoder.model.model.visual.parameters(), strict=True)
    )


def test_families_are_called_as_before_too(monkeypatch, tmp_path: Path):
    settings = []
    monkeypatch.setattr("uae.commands.quickstart.quickstart", lambda s, command: settings.append(s))
    for name in (*FAMILIES, *FORMER_NAMES):
        with pytest.raises(SystemExit):  # nothing was measured, so there is nothing to show
            cli.run(["quickstart", "--family", name])
    assert [each.family for each in settings] == ["umm1", "umm2", "umm1", "umm2"]
    assert [str(each.folder) for each in settings] == ["quickstart", "quickstart-umm2"] * 2


def test_another_familys_quickstart_is_not_replaced(tmp_path: Path):
    (tmp_path / "run").mkdir()
    kept = tmp_path / "run" / "config.json"
    kept.write_text('{"model": "tiny-ar"}')
    with pytest.raises(ValueError, match="quickstart of umm1, it holds one of the model tiny-ar"):
        quickstart(QuickstartSettings(tmp_path), "uae quickstart")
    assert kept.exists()


def test_a_finished_control_of_another_family_is_not_replaced(tmp_path: Path):
    (tmp_path / "results.json").write_text('{"config": {"model": "tiny-ar"}}')
    with pytest.raises(ValueError, match="it holds one of the model tiny-ar"):
        quickstart(QuickstartSettings(tmp_path), "uae quickstart")


def test_a_run_from_when_families_shared_a_folder_is_resumed_there(monkeypatch, tmp_path: Path):
    monkeypatch.chdir(tmp_path)
    settings = QuickstartSettings(family="umm2", resume=True)
    assert settings.folder == Path("quickstart-umm2")
    (tmp_path / "quickstart" / "run").mkdir(parents=True)
    (tmp_path / "quickstart" / "run" / "config.json").write_text('{"model": "tiny-ar"}')
    assert settings.folder == Path("quickstart")
    assert QuickstartSettings(family="umm2").folder == Path("quickstart-umm2")  # begun anew


def test_two_quickstarts_in_one_folder_are_refused(tmp_path: Path):
    script = (
        "import sys; from pathlib import Path; from uae.utils.lock import locked\n"
        "with locked(Path(sys.argv[1])): print('locked', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert other.stdout and other.stdout.readline() == "locked\n"
    with pytest.raises(ValueError, match=f"in use by process {other.pid}.*another folder"):
        quickstart(QuickstartSettings(tmp_path), "uae quickstart")
    other.communicate()
