"""``uae quickstart``: the whole idea in one command. Measure the shipped model, post-train it with
Unified-GRPO on its own reconstructions, measure it again; table, ``results.json`` and
``report.html``."""

from __future__ import annotations

import platform
import shutil
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from rich.console import Console

from uae.config import CaptionSettings
from uae.models.base import UnifiedModel
from uae.models.load import load_model
from uae.presets import PRESETS, Half, RunConfig, learning
from uae.report.run_page import results_table, write_report
from uae.report.samples import Frame
from uae.rewards.build import backbones_of, build_reward, check_rewards
from uae.rl.train import train
from uae.similarity.backbones import Backbone, load_backbone
from uae.stages.unified_grpo import image_source, prepare_policy
from uae.utils.files import appear, atomic_write_json
from uae.utils.metrics import read_metrics
from uae.utils.outputs import check_out_folder
from uae.utils.quiet import quiet_libraries
from uae.world.imitation import imitate
from uae.world.language import INSTRUCTIONS
from uae.world.measure import WorldResult, delta, measure, measure_ceiling, split_gain
from uae.world.scene import render_batch, scene_at

FAMILIES = {"diffusion": "tiny", "ar": "tiny-ar"}  # presets
STRIP_SCENE = 7  # of the test split: three objects, one of them small
NUM_FRAMES = 4


@dataclass(frozen=True)
class Arguments:
    """Post-train the shipped tiny model with Unified-GRPO and compare it before and after."""

    out: Path = Path("quickstart")
    """Folder for results.json, report.html, the run and the trained model."""
    family: Literal["diffusion", "ar"] = "diffusion"
    """UMM-1, a vision-language model with a diffusion decoder, or UMM-2, one autoregressive
    model."""
    half: Half | None = None
    """What learns; by default what the preset says: captions in UMM-1, both in UMM-2."""
    seed: int = 0
    """Of the training data and all draws."""
    num_steps: int | None = None
    """Unified-GRPO steps; by default the preset's."""
    control: Literal["none", "prompted", "supervised"] = "none"
    """What stands in for Unified-GRPO: the cold start asked for detail, or taught as many
    exhaustive captions."""
    resume: bool = False
    """Continue the unfinished run in `out` instead of starting anew."""


def main(arguments: list[str]) -> None:
    """``uae quickstart [--family ar] [--out DIR] [--seed N]``"""
    quiet_libraries()
    args = tyro.cli(Arguments, args=arguments, prog="uae quickstart")
    results = quickstart(args, command=" ".join(["uae quickstart", *arguments]))
    Console().print(results_table(results, reward_backbones(preset(args))))
    print(
        f"report: {args.out / 'report.html'}   numbers: {args.out / 'results.json'}   model: "
        f"{args.out / 'model'}"
    )


def preset(args: Arguments) -> RunConfig:
    """The family's tiny preset with this seed, length and learning half."""
    config = PRESETS[FAMILIES[args.family]][1]
    num_steps = config.train.num_steps if args.num_steps is None else args.num_steps
    train = replace(config.train, seed=args.seed, num_steps=num_steps)
    return replace(config, train=train if args.half is None else learning(train, args.half))


def quickstart(args: Arguments, command: str) -> dict[str, Any]:
    """Measure, train, measure; the results as written to ``results.json``."""
    began, config, installed = time.monotonic(), preset(args), versions()
    check_out_folder(args.out)
    check_rewards(config.rewards, config.backbones)
    model: Any = load_model(config.model)
    backbones = {
        name: load_backbone(name, config.backbones) for name in backbones_of(config.rewards)
    }
    run_dir = args.out / "run"
    if not args.resume:
        shutil.rmtree(run_dir, ignore_errors=True)
    print(
        "measuring the model as shipped, and its ceiling: what its decoder makes of exhaustive "
        "true captions"
    )
    before = measure(model, backbones)
    ceiling = measure_ceiling(model, backbones)
    captioning = model.captioning
    if args.control == "none":
        frames = train_with_frames(model, backbones, config, run_dir)
    else:
        frames, captioning = [], run_control(model, config, args.control)
    print("measuring the trained model")
    after = measure(model, backbones, captioning=captioning)
    appear(args.out / "model", model.save_pretrained)
    results = {
        **compare(before, after, ceiling),
        "family": model.family,
        "seconds": time.monotonic() - began,
        "seed": args.seed,
        "command": command,
        "control": args.control,
        "versions": installed,
        "details": {"before": before.details, "after": after.details, "ceiling": ceiling.details},
        "config": asdict(config),
    }
    atomic_write_json(args.out / "results.json", results)
    write_report(
        args.out / "report.html",
        results,
        read_metrics(run_dir / "metrics.jsonl") if args.control == "none" else [],
        before=before.samples,
        after=after.samples,
        strip=frames,
        strip_source=strip_image(),
        reward_backbones=reward_backbones(config),
    )
    return results


def train_with_frames(
    model: Any, backbones: Mapping[str, Backbone], config: RunConfig, run_dir: Path
) -> list[Frame]:
    """Train, and look at one image at the start, after a quarter, half and all of the steps."""
    prepare_policy(model, config)
    reward = build_reward(
        config.rewards, backbones, model.encoder, config.train.captioning.instruction
    )
    images, last = (
        image_source(config.data, config.train.decoding, config.train.seed),
        config.train.num_steps,
    )
    frames = [frame(model, 0)]
    for until in sorted({max(1, last // 4), max(1, last // 2), last}):
        train(model, reward, images, config.train, run_dir, {"model": config.model}, until=until)
        frames.append(frame(model, until))
    return frames


def run_control(
    model: Any, config: RunConfig, control: Literal["prompted", "supervised"]
) -> CaptionSettings:
    """What is held against Unified-GRPO; how the model is to caption afterwards."""
    if control == "prompted":
        return replace(model.captioning, instruction=INSTRUCTIONS["detailed"])
    prepare_policy(model, config)
    imitate(model.encoder, config.train)
    return model.captioning


def frame(model: UnifiedModel, step: int) -> Frame:
    """The strip's image, captioned and painted by the model as it is."""
    captions = model.caption([strip_image()], model.captioning)
    painted = model.reconstruct(captions, model.decoding).images
    return Frame(step, captions.texts[0], painted[0])


def strip_image() -> torch.Tensor:
    return torch.from_numpy(render_batch([scene_at("test", STRIP_SCENE)]))[0]


def compare(before: WorldResult, after: WorldResult, ceiling: WorldResult) -> dict[str, Any]:
    """The headline numbers side by side."""
    return {
        "before": before.numbers,
        "after": after.numbers,
        "delta": delta(before.numbers, after.numbers),
        "ceiling": ceiling.numbers,
        "gain": split_gain(before.numbers, after.numbers),
    }


def reward_backbones(config: RunConfig) -> list[str]:
    """Backbones that were the reward, as against those held out."""
    return [name for name, weight in config.rewards.items() if weight]


def versions() -> dict[str, str]:
    """Of everything that could change a number."""
    names = ("unified-autoencoder", "torch", "transformers", "diffusers", "peft", "numpy")
    return {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        **{n: version(n) for n in names},
    }
