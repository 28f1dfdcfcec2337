"""``uae tiny build``: the shipped models from nothing, in order. Each part resumes where it was stopped."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro

from uae.models.loading import ASSETS
from uae.stages.fit import Task, fit
from uae.stages.tiny import backbones
from uae.stages.tiny.captioner import CaptionerTask
from uae.stages.tiny.decoder import DecoderTask
from uae.stages.tiny.vae import VaeTask
from uae.stages.tiny.vision import VisionTask
from uae.utils.quiet import quiet_libraries
from uae.utils.suggest import did_you_mean

PARTS: dict[str, tuple[Callable[[Path], Task], str]] = {  # task of the working folder, and the asset it makes
    "vae": (lambda work: VaeTask(), ""),
    "vision": (lambda work: VisionTask(), ""),
    "captioner": (lambda work: CaptionerTask(work / "vision/export"), ""),
    "decoder": (lambda work: DecoderTask(work / "vae/export", work / "captioner/export"), "umm1"),
    "clip": (lambda work: backbones.clip_task(), "clip"),
    "longclip": (lambda work: backbones.longclip_task(work / "clip/export"), "longclip"),
    "dinov2": (lambda work: backbones.dinov2_task(), "dinov2"),
    "dinov3": (lambda work: backbones.dinov3_task(), "dinov3"),
}


@dataclass(frozen=True)
class Arguments:
    """Train the tiny models from nothing: VAE, vision tower, captioner, decoder, and four similarity backbones."""

    work: Path = Path("runs/tiny")
    """Folder for training state; keep it to resume."""
    only: tuple[str, ...] = ()
    """Parts to build (vae vision captioner decoder clip longclip dinov2 dinov3); by default all, in this order."""
    assets: Path = ASSETS
    """Where finished models go."""
    threads: int = 1
    """Threads within operators; these models are too small to gain from more."""


def main(arguments: list[str]) -> None:
    """``uae tiny build [--only PART …] [--work DIR]``"""
    if not arguments or arguments[0] != "build":
        raise ValueError("expected: uae tiny build [--only PART …] [--work DIR]; uae tiny build --help explains")
    quiet_libraries()
    args = tyro.cli(Arguments, args=arguments[1:], prog="uae tiny build")
    for part in args.only:
        if part not in PARTS:
            raise ValueError(f"unknown part {part!r}: expected {', '.join(PARTS)}{did_you_mean(part, PARTS)}")
    torch.set_num_threads(args.threads)
    for name in args.only or PARTS:
        build(name, args)


def build(name: str, args: Arguments) -> None:
    """Train one part to its end and put its export among the assets."""
    make, asset = PARTS[name]
    fit(make(args.work), args.work / name)
    if asset:
        shutil.copytree(args.work / name / "export", args.assets / asset, dirs_exist_ok=True)
