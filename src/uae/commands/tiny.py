"""``uae tiny build``: the shipped models from nothing, in order. Each part resumes where it was stopped."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro

from uae.models.loading import ASSETS
from uae.stages.fit import Task, fit, in_processes
from uae.stages.tiny import backbones
from uae.stages.tiny.captioner import CaptionerTask
from uae.stages.tiny.decoder import DecoderTask, JointTask
from uae.stages.tiny.vae import VaeTask
from uae.stages.tiny.vision import VisionTask
from uae.utils.quiet import quiet_libraries
from uae.utils.suggest import did_you_mean


@dataclass(frozen=True)
class Part:
    """One training: its task, made from the exports of other parts; the asset it ends as; how many processes."""

    make: Callable[..., Task]
    inputs: tuple[str, ...] = ()
    asset: str = ""
    processes: int = 1


PARTS = {
    "vae": Part(VaeTask),
    "vision": Part(VisionTask),
    "captioner": Part(CaptionerTask, ("vision",)),
    "joint": Part(JointTask, ("vae", "captioner"), processes=2),
    "decoder": Part(DecoderTask, ("vae", "joint"), asset="umm1", processes=2),
    "clip": Part(backbones.clip_task, asset="clip"),
    "longclip": Part(backbones.longclip_task, ("clip",), asset="longclip"),
    "dinov2": Part(backbones.dinov2_task, asset="dinov2"),
    "dinov3": Part(backbones.dinov3_task, asset="dinov3"),
}


@dataclass(frozen=True)
class Arguments:
    """Train the tiny models from nothing: VAE, vision tower, captioner, decoder, and four similarity backbones."""

    work: Path = Path("runs/tiny")
    """Folder for training state; keep it to resume."""
    only: tuple[str, ...] = ()
    """Parts to build (vae vision captioner joint decoder clip longclip dinov2 dinov3); all by default, in order."""
    assets: Path = ASSETS
    """Where finished models go."""
    threads: int = 1
    """Threads within operators of each process; these models are too small to gain from more."""


def main(arguments: list[str]) -> None:
    """``uae tiny build [--only PART …] [--work DIR]``"""
    if not arguments or arguments[0] != "build":
        raise ValueError("expected: uae tiny build [--only PART …] [--work DIR]; uae tiny build --help explains")
    quiet_libraries()
    args = tyro.cli(Arguments, args=arguments[1:], prog="uae tiny build")
    for part in args.only:
        if part not in PARTS:
            raise ValueError(f"unknown part {part!r}: expected {', '.join(PARTS)}{did_you_mean(part, PARTS)}")
    for name in args.only or PARTS:
        part = PARTS[name]
        in_processes(part.processes, train_part, name, args.work, args.threads)
        if part.asset:
            shutil.copytree(args.work / name / "export", args.assets / part.asset, dirs_exist_ok=True)


def train_part(name: str, work: Path, threads: int) -> None:
    """Train one part to its end, in ``work / name``."""
    torch.set_num_threads(threads)
    part = PARTS[name]
    fit(part.make(*(work / source / "export" for source in part.inputs)), work / name)
