"""Prompts in place of images, as the command line and pipelines have them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.rl.tiny_run import build_model
from uae import cli
from uae.config import DecodeSettings
from uae.rl.config import TrainConfig
from uae.stages.base import UserData
from uae.stages.grpo_settings import UnifiedGRPOSettings, record
from uae.stages.recipes import RECIPES
from uae.stages.unified_grpo import UnifiedGRPO, prepare_policy
from uae.utils.metrics import read_metrics
from uae.world.data import ScenePrompts
from uae.world.recipes import RECIPES as WORLD_RECIPES

ALONE = TrainConfig(caption_weight=0.0, group_size=1, reconstructions_per_caption=2)
VALUES = {
    "caption-weight": 0,
    "group-size": 1,
    "reconstructions-per-caption": 2,
    "images-per-step": 2,
    "decoding.sampler": "sde",
    "decoding.num-steps": 2,
    "decoding.window-size": 1,
}
OPTIONS = [word for name, value in VALUES.items() for word in (f"--train.{name}", str(value))]


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """Exit code, and what was shown."""
    try:
        cli.run(["train", *arguments])
        code = 0
    except SystemExit as error:
        code = int(error.code or 0)
    return code, " ".join("".join(capsys.readouterr()).replace("│", " ").split())


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    file = tmp_path / "prompts.txt"
    file.write_text("a red circle\ntwo shapes on white\n")
    return file


def test_a_run_on_a_file_of_prompts(capsys, prompts: Path, tmp_path: Path):
    folder = tmp_path / "run"
    options = ["tiny", "--prompts", str(prompts), "--rewards", "caption_likelihood", "1", *OPTIONS]
    options += ["--run-dir", str(folder)]
    code, shown = run(capsys, *options, "--train.num-steps", "1")
    assert code == 0 and "trained model" in shown
    assert json.loads((folder / "probe.json").read_text()) == prompts.read_text().splitlines()
    prompts.write_text("a red square\n")
    code, shown = run(capsys, *options, "--train.num-steps", "2")
    assert code == 2 and "the prompts are not those" in shown
    prompts.write_text("a red circle\ntwo shapes on white\n")
    code, shown = run(capsys, *options, "--train.num-steps", "2")
    assert code == 0
    rows = read_metrics(folder / "metrics.jsonl")
    assert [row["step"] for row in rows] == [0, 1]
    assert all("reward/caption_likelihood" in row for row in rows)
    recorded = json.loads((folder / "config.json").read_text())
    assert recorded["prompts"] == str(prompts) and recorded["exhaustive_share"] == 0


REFUSED = {  # what follows `uae train`, and what is said
    "all rewards need a source": (["tiny", "--prompts", "FILE", *OPTIONS], "error: rewards clip,"),
    "the judge does not know them": (
        ["tiny", "--prompts", "FILE", "--rewards", "judge", "1", *OPTIONS],
        "error: reward judge: expected prompts of the embedded world",
    ),
    "no such file": (
        ["tiny", "--prompts", "other.txt", "--rewards", "judge", "1", *OPTIONS],
        "error: prompts: expected a file of prompts or world, there is no other.txt",
    ),
    "an empty file": (
        ["tiny", "--prompts", "EMPTY", "--rewards", "caption_likelihood", "1", *OPTIONS],
        "expected prompts, the file holds none",
    ),
    "captions learn": (
        ["tiny", "--prompts", "world", "--rewards", "judge", "1"],
        "train.reconstructions-per-caption: expected at least 2 where prompts are painted",
    ),
    "captions are counted": (
        ["tiny", "--prompts", "world", "--rewards", "judge", "1", "--train.caption-weight", "0"],
        "train.group-size: expected 1 where prompts are painted",
    ),
    "images too": (
        ["tiny", "--prompts", "world", "--data", ".", "--rewards", "judge", "1", *OPTIONS],
        "data and prompts: expected one of them",
    ),
    "a share of nothing": (
        ["tiny", "--exhaustive-share", "0.5"],
        "exhaustive-share: expected 0 without prompts of the world, got 0.5",
    ),
    "too large a share": (
        ["tiny", "--prompts", "world", "--exhaustive-share", "1.5", *OPTIONS],
        "exhaustive-share: expected at least 0 and at most 1, got 1.5",
    ),
    "another world": (
        ["decoder", "--prompts", "world", "--rewards", "caption_likelihood", "1"],
        "error: prompts: expected a file, got world, whose prompts are for the tiny models",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_can_not_be_meant_is_refused_before_any_work(case, capsys, prompts, tmp_path: Path):
    options, message = REFUSED[case]
    (tmp_path / "empty.txt").touch()
    files = {"FILE": str(prompts), "EMPTY": str(tmp_path / "empty.txt")}
    options = [files.get(option, option) for option in options]
    code, shown = run(capsys, *options, "--run-dir", str(tmp_path / "run"))
    assert code == 2 and message in shown and not (tmp_path / "run").exists()


def stage(recipe: str) -> UnifiedGRPO:
    (stage,) = (RECIPES | WORLD_RECIPES)[recipe].stages.values()
    assert isinstance(stage, UnifiedGRPO)
    return stage


def test_the_images_of_a_pipeline_are_for_its_other_stages():
    settings = UnifiedGRPOSettings(prompts="world", rewards={"judge": 1.0}, train=ALONE)
    user = UserData(Path("run"), images=("photos",), seed=7)
    given = replace(stage("decoder-tiny"), settings=settings).given(user)
    given.check()
    assert given.settings.data == () and given.settings.train.seed == 7
    assert stage("joint-tiny").given(user).settings.data == ("photos",)
    assert given.sources.images is None
    source = given.sources.prompts()
    assert isinstance(source, ScenePrompts) and source.batch(1, 2) == ScenePrompts(7).batch(1, 2)


def test_runs_of_images_are_recorded_as_before():
    names = {"model", "data", "rewards", "backbones", "lora_rank", "text_encoder"}
    assert record(UnifiedGRPOSettings(), "tiny").keys() == names
    settings = UnifiedGRPOSettings(prompts="world", exhaustive_share=0.5, train=ALONE)
    assert record(settings, "tiny").keys() == names | {"prompts", "exhaustive_share"}


def test_captions_of_images_and_pictures_of_prompts_are_learnt_in_one_step(capsys, tmp_path: Path):
    options = "tiny --prompts world --rewards clip 1 --prompt-rewards judge 1 clip_score 0"
    options += " --lora-rank 2 --train.num-steps 1 --train.images-per-step 1 --train.group-size 2"
    options += " --train.reconstructions-per-caption 2 --train.captioning.max-new-tokens 4"
    sampler = ["--train.decoding.num-steps", "2", "--train.decoding.sampler"]
    code, shown = run(capsys, *options.split(), *sampler, "sde", "--run-dir", str(tmp_path / "run"))
    assert code == 0, shown
    (metrics,) = read_metrics(tmp_path / "run/metrics.jsonl")
    assert {"reward/clip", "prompts/reward/judge", "prompts/reward/clip_score"} <= metrics.keys()
    assert {"rl/loss", "rl_image/loss"} <= metrics.keys()
    recorded = json.loads((tmp_path / "run/config.json").read_text())
    assert recorded["prompt_rewards"] == {"judge": 1.0, "clip_score": 0.0}
    code, shown = run(capsys, *options.split(), *sampler, "ode", "--run-dir", str(tmp_path / "ode"))
    assert code == 2 and "decoding.sampler: expected sde or cps where prompts are painted" in shown
    images = ["--prompt-rewards", "clip", "1", *sampler, "sde", "--run-dir", str(tmp_path / "no")]
    code, shown = run(capsys, *options.split(), *images)
    assert code == 2 and "error: rewards clip: expected rewards of prompt and picture" in shown


def test_a_model_that_learnt_to_paint_paints_with_the_guidance_of_that():
    model = build_model()
    model.decoding = replace(model.decoding, guidance_scale=3.0)
    prepare_policy(model, UnifiedGRPOSettings())
    assert model.decoding.guidance_scale == 3.0
    awm = replace(ALONE, decoding=DecodeSettings(), decoder_update="awm")
    prepare_policy(model, UnifiedGRPOSettings(train=awm))
    assert model.decoding.guidance_scale == 1.0
