"""Settings that cannot be meant are refused where they are made, in one line, by the option's
name."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from uae.cli import run
from uae.config import CaptionOptions, CaptionSettings, DecodeOptions, DecodeSettings
from uae.diffusion.forward import NFT
from uae.rl.config import TrainConfig
from uae.rl.losses import Objective
from uae.stages.cold_start import ColdStartConfig
from uae.stages.fit import FitSettings
from uae.stages.grpo_settings import RunConfig, learning
from uae.stages.long_captions import LongCaptionConfig
from uae.stages.recipes import RECIPES
from uae.world import recipes as world
from uae.world.quickstart import QuickstartSettings

DATA = {"data": ("captions",)}
FIT = {"num_steps": 1, "batch_size": 1, "learning_rate": 1.0}
GREEDY = CaptionSettings(temperature=0.0)
WRONG = [
    (CaptionSettings, {"temperature": -0.1}, "temperature: expected at least 0, got -0.1"),
    (CaptionSettings, {"temperature": math.nan}, "temperature: expected at least 0, got nan"),
    (CaptionSettings, {"max_new_tokens": 0}, "max-new-tokens: expected at least 1, got 0"),
    (CaptionOptions, {"max_new_tokens": -5}, "max-new-tokens: expected at least 1, got -5"),
    (CaptionOptions, {"temperature": -1.0}, "temperature: expected at least 0, got -1.0"),
    (DecodeSettings, {"num_steps": 0}, "num-steps: expected at least 1, got 0"),
    (DecodeSettings, {"guidance_scale": -1.0}, "guidance-scale: expected at least 0, got -1.0"),
    (DecodeSettings, {"guidance_scale": math.inf}, "guidance-scale: expected at least 0, got inf"),
    (
        DecodeSettings,
        {"height": 0, "width": -48},
        "height: .*got 0; width: expected at least 1, got -48",
    ),
    (DecodeSettings, {"micro_batch": 0}, "micro-batch: expected at least 1, got 0"),
    (
        DecodeSettings,
        {"sampler": "sde", "noise_level": 0.0},
        "noise-level: expected above 0 and finite, got 0.0",
    ),
    (
        DecodeSettings,
        {"sampler": "cps", "noise_level": 1.5},
        "noise-level: expected at most 1 for cps, got 1.5",
    ),
    (DecodeSettings, {"window_size": 0}, "window-size: expected at least 1, got 0"),
    (DecodeSettings, {"window_start": -1}, "window-start: expected at least 0, got -1"),
    (
        DecodeSettings,
        {"sampler": "sde", "window_start": 10},
        "window-start: expected below 10.*got 10",
    ),
    (
        DecodeSettings,
        {"sampler": "cps", "window_start": 9},
        "window-start: expected below 9.*got 9",
    ),
    (DecodeSettings, {"sampler": "cps", "num_steps": 1}, "window-start: expected below 0.*got 0"),
    (DecodeOptions, {"num_steps": 0}, "num-steps: expected at least 1, got 0"),
    (DecodeOptions, {"micro_batch": -1}, "micro-batch: expected at least 1, got -1"),
    (Objective, {"clip_eps_low": 0.0}, "clip-eps-low: expected above 0 and finite, got 0.0"),
    (Objective, {"clip_eps_high": math.nan}, "clip-eps-high: expected above 0"),
    (Objective, {"kl_coef": -1e-3}, "kl-coef: expected at least 0, got -0.001"),
    (Objective, {"advantage_clamp": 0.0}, "advantage-clamp: expected above 0"),
    *[
        (TrainConfig, {name: value}, f"{name.replace('_', '-')}: expected at least 1, got {value}")
        for value in (0, -3)
        for name in (
            "num_steps",
            "images_per_step",
            "group_size",
            "reconstructions_per_caption",
            "ema_every",
            "num_updates",
            "micro_batch",
            "save_every",
            "probe_every",
        )
    ],
    (TrainConfig, {"learning_rate": 0.0}, "^learning-rate: expected above 0"),
    (
        TrainConfig,
        {"learning_rate": math.inf},
        "^learning-rate: expected above 0 and finite, got inf",
    ),
    (TrainConfig, {"decoder_learning_rate": -1.0}, "decoder-learning-rate: expected above 0"),
    (TrainConfig, {"max_grad_norm": 0.0}, "max-grad-norm: expected above 0"),
    (TrainConfig, {"weight_decay": -0.1}, "weight-decay: expected at least 0"),
    (TrainConfig, {"image_kl_coef": -1.0}, "image-kl-coef: expected at least 0"),
    (TrainConfig, {"caption_weight": -1.0}, "caption-weight: expected at least 0"),
    (TrainConfig, {"ema_decay": 1.0}, "ema-decay: expected at least 0 and below 1, got 1.0"),
    (TrainConfig, {"ema_decay": -0.1}, "ema-decay: expected at least 0 and below 1"),
    (
        TrainConfig,
        {"caption_weight": 0.0, "image_weight": 0.0},
        "caption-weight and image-weight: nothing is learnt",
    ),
    (
        TrainConfig,
        {"group_size": 1},
        "group-size and reconstructions-per-caption: nothing is compared",
    ),
    (
        TrainConfig,
        {"group_size": 1, "reconstructions_per_caption": 4},
        "group-size: .*caption-weight 0",
    ),
    (TrainConfig, {"captioning": GREEDY}, "captioning.temperature: at 0.*all the same"),
    (
        TrainConfig,
        {"num_steps": 3, "warmup_steps": 4},
        "warmup-steps: expected at most num-steps, 3, got 4",
    ),
    (
        TrainConfig,
        {"decoding": DecodeSettings(shared_noise=True)},
        "decoding.shared-noise: expected decoding.sampler sde or cps.*got ode",
    ),
    (
        TrainConfig,
        {"decoder_update": "nft", "nft": NFT(num_times=11)},
        "nft.num-times: expected at most decoding.num-steps, 10, got 11",
    ),
    (
        TrainConfig,
        {"image_weight": 0.0, "decoder_learning_rate": 1e-4},
        "decoder-learning-rate: expected none where image-weight is 0",
    ),
    (
        QuickstartSettings,
        {"half": "images", "control": "prompted"},
        "control: expected none with half images, got prompted",
    ),
    (RunConfig, {"prompt_rewards": {"judge": 1.0}}, "prompt-rewards: expected none where"),
    (TrainConfig, {"instructions": ("say much", " ")}, "instructions: expected words in each"),
    (RunConfig, {"lora_rank": -1}, "lora-rank: expected at least 0, got -1"),
    (RunConfig, {"rewards": {}}, "rewards: expected one of a weight other than 0"),
    (
        RunConfig,
        {"rewards": {"clip": 0.0, "dinov2": 0.0}},
        "rewards: expected one of a weight other than 0",
    ),
    (RunConfig, {"rewards": {"clip": math.nan}}, "rewards: expected finite weights, got clip nan"),
    (ColdStartConfig, {"num_steps": 0}, "num-steps: expected at least 1"),
    (ColdStartConfig, {"images_per_step": 0}, "images-per-step: expected at least 1"),
    (ColdStartConfig, {"learning_rate": -1e-5}, "learning-rate: expected above 0"),
    (ColdStartConfig, {"rewards": {"clip": 0.0}}, "rewards: expected one of a weight other than 0"),
    (
        ColdStartConfig,
        {"decoding": DecodeSettings(sampler="sde")},
        "decoding.sampler: cold start learns",
    ),
    (LongCaptionConfig, {**DATA, "batch_size": 0}, "batch-size: expected at least 1"),
    (LongCaptionConfig, {**DATA, "pool_size": 0}, "pool-size: expected at least 1"),
    (LongCaptionConfig, {**DATA, "num_held_out": 0}, "num-held-out: expected at least 1"),
    (
        LongCaptionConfig,
        {**DATA, "caption_dropout": 1.0},
        "caption-dropout: expected at least 0 and below 1, got 1.0",
    ),
    (LongCaptionConfig, {**DATA, "guidance_scale": -2.0}, "guidance-scale: expected at least 0"),
    (FitSettings, {**FIT, "ema_decay": 1.0}, "ema-decay: expected at least 0 and below 1"),
    (FitSettings, {**FIT, "num_steps": 0}, "num-steps: expected at least 1"),
]


@pytest.mark.parametrize(
    ("kind", "values", "message"), WRONG, ids=lambda part: None if callable(part) else str(part)
)
def test_what_cannot_be_meant_is_refused(kind, values, message):
    with pytest.raises(ValueError, match=message) as raised:
        kind(**values)
    assert "\n" not in str(raised.value)


def test_a_quickstart_of_no_steps_is_not_one_of_all():
    with pytest.raises(ValueError, match="num-steps: expected at least 1, got 0"):
        QuickstartSettings(num_steps=0).run()
    assert QuickstartSettings().run().train.num_steps == 80


def test_what_looks_odd_and_can_be_meant_is_taken():
    TrainConfig(
        group_size=1, reconstructions_per_caption=2, caption_weight=0.0, captioning=GREEDY
    )  # the decoder alone
    TrainConfig(num_steps=3, warmup_steps=3, ema_decay=0.0, decoder_learning_rate=None)
    Objective(clip_eps_low=1e9, clip_eps_high=1e9, kl_coef=0.0)
    DecodeSettings(noise_level=0.0, window_start=50)  # the ode draws none
    DecodeSettings(3, sampler="sde", window_start=2, window_size=9)
    RunConfig(rewards={"clip": 1.0, "ocr": -0.5, "dinov2": 0.0})  # a penalty
    CaptionOptions()
    DecodeOptions()


@pytest.mark.parametrize("half", ["both", "captions", "images"])
@pytest.mark.parametrize("name", ["tiny", "tiny-ar"])
def test_every_half_of_a_tiny_preset_can_be_meant(name: str, half):
    settings = learning(world.RECIPES[name].stage.settings.train, half)
    assert (
        settings.caption_weight * (half == "images")
        == settings.image_weight * (half == "captions")
        == 0
    )


def test_every_recipe_can_be_meant():
    for recipe in (RECIPES | world.RECIPES).values():
        for stage in recipe.stages.values():
            assert replace(stage.settings) == stage.settings


@pytest.mark.parametrize(
    ("arguments", "option", "message"),
    [
        (
            ["tiny", "--train.group-size", "1"],
            "train",
            "group-size and reconstructions-per-caption",
        ),
        (
            ["tiny", "--train.objective.kl-coef", "-1"],
            "train.objective",
            "kl-coef: expected at least 0, got -1.0",
        ),
        (
            ["tiny", "--train.captioning.max-new-tokens", "0"],
            "train.captioning",
            "max-new-tokens: expected at least 1",
        ),
        (
            ["v3-tiny", "--long-captions.batch-size", "0"],
            "long-captions",
            "batch-size: expected at least 1, got 0",
        ),
    ],
)
def test_on_the_command_line(arguments, option, message, capsys: pytest.CaptureFixture):
    """The option's folder and its name, before any work."""
    with pytest.raises(SystemExit) as stopped:
        run(["train", *arguments])
    shown = " ".join("".join(capsys.readouterr()).replace("│", " ").split())
    assert stopped.value.code == 2
    assert f"Error parsing {option}:" in shown and message in shown
