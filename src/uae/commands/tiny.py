"""``uae tiny build``: the shipped models from nothing, in order; each part resumes where it was
stopped. ``uae tiny measure``: what they can do before any reinforcement learning."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro

from uae.commands.group import choose
from uae.config import DecodeSettings
from uae.models.load import load_model
from uae.models.origin import ASSETS
from uae.stages.fit import Task, fit, in_processes
from uae.utils.files import atomic_write_json
from uae.utils.outputs import check_out_file
from uae.utils.quiet import plain_warnings, quiet_libraries
from uae.utils.suggest import did_you_mean
from uae.world.build import backbones
from uae.world.build.binding import BindingTask
from uae.world.build.captioner import CaptionerTask
from uae.world.build.decoder import DecoderTask, JointTask
from uae.world.build.janus import JanusTask
from uae.world.build.vae import VaeTask
from uae.world.build.vision import JanusVisionTask, VisionTask
from uae.world.build.vq import VqDecoderTask, VqTask
from uae.world.shipped import measure_cold_start


@dataclass(frozen=True)
class Part:
    """One training: its task, made from the exports of other parts; the asset it ends as; how many
    processes."""

    make: Callable[..., Task]
    inputs: tuple[str, ...] = ()
    asset: str = ""
    processes: int = 1


PARTS = {
    "vae": Part(VaeTask),
    "vision": Part(VisionTask),
    "captioner": Part(CaptionerTask, ("vision",)),
    "joint": Part(JointTask, ("vae", "captioner"), processes=2),
    "binding": Part(BindingTask, ("joint",), processes=2),
    "decoder": Part(DecoderTask, ("vae", "binding"), asset="umm1", processes=2),
    "vq": Part(VqTask, processes=2),
    "janus_vision": Part(JanusVisionTask, ("vq", "binding"), processes=2),
    "janus": Part(JanusTask, ("janus_vision", "binding"), processes=2),
    "vq_decoder": Part(VqDecoderTask, ("janus",), asset="umm2", processes=2),
    "clip": Part(backbones.clip_task, asset="clip"),
    "longclip": Part(backbones.longclip_task, ("clip",), asset="longclip"),
    "dinov2": Part(backbones.dinov2_task, asset="dinov2"),
    "dinov3": Part(backbones.dinov3_task, asset="dinov3"),
}


@dataclass(frozen=True)
class Arguments:
    """Train the tiny models from nothing: UMM-1's parts, UMM-2's, and four similarity backbones."""

    work: Path = Path("runs/tiny")
    """Folder for training state; keep it to resume."""
    only: tuple[str, ...] = ()
    """Parts to build (vae vision captioner joint binding decoder vq janus_vision janus vq_decoder
    clip longclip dinov2 dinov3); by default all."""
    assets: Path = ASSETS
    """Where finished models go."""
    threads: int = 1
    """Threads within operators of each process; these models are too small to gain from more."""


@dataclass(frozen=True)
class MeasureArguments:
    """Measure a tiny model on held-out scenes: VAE or VQ model, decoder from true captions,
    captioner, backbones."""

    model: str = "tiny"
    """`tiny`, or a folder that uae wrote."""
    out: Path = Path("cold_start.json")
    """Result file."""


DECODINGS = {  # by family: for UMM-1 the quickstart's reward, and its evaluation
    "llm_diffusion": {f"{num_steps} steps": DecodeSettings(num_steps) for num_steps in (10, 20)},
    "autoregressive": {
        "sampled": DecodeSettings(),
        "sampled, guidance 2": DecodeSettings(guidance_scale=2.0),
        "greedy": DecodeSettings(temperature=0.0),
    },
}


def main(arguments: list[str]) -> None:
    """``uae tiny build [--only PART …] [--work DIR]`` or ``uae tiny measure [--out FILE]``"""
    command = choose("tiny", arguments)
    quiet_libraries()
    if command == "build":
        build(tyro.cli(Arguments, args=arguments[1:], prog="uae tiny build"))
    else:
        measure(tyro.cli(MeasureArguments, args=arguments[1:], prog="uae tiny measure"))


def measure(args: MeasureArguments) -> None:
    """Measure, and write the numbers."""
    check_out_file(args.out)
    model: Any = load_model(args.model)
    results = measure_cold_start(
        model, DECODINGS.get(model.family, {"as it paints": model.decoding})
    )
    atomic_write_json(args.out, results)
    print(
        f"codec round trip: {results['codec']['objects_exact']['percent']:.1f} % of objects exact"
    )
    for decoding, cases in results["decoder"].items():
        shares = "   ".join(
            f"{name} {case['objects_exact']['percent']:.1f}" for name, case in cases.items()
        )
        print(f"decoder, {decoding}, % of objects exact:   {shares}")
    print(f"questions: {results['questions']['all']['percent']:.1f} % right   numbers: {args.out}")


def build(args: Arguments) -> None:
    """Train each part to its end and put what is shipped among the assets."""
    for part in args.only:
        if part not in PARTS:
            raise ValueError(
                f"unknown part {part!r}: expected {', '.join(PARTS)}{did_you_mean(part, PARTS)}"
            )
    for name in args.only or PARTS:
        part = PARTS[name]
        in_processes(part.processes, train_part, name, args.work, args.threads)
        if part.asset:
            shutil.copytree(
                args.work / name / "export", args.assets / part.asset, dirs_exist_ok=True
            )


def train_part(name: str, work: Path, threads: int) -> None:
    """Train one part to its end, in ``work / name``."""
    torch.set_num_threads(threads)
    quiet_libraries()
    part = PARTS[name]
    with plain_warnings():  # in a process of its own, where the command's do not reach
        fit(part.make(*(work / source / "export" for source in part.inputs)), work / name)
