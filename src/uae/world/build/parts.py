"""The shipped models from nothing: their parts in order, each resumed where it was stopped."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from uae.stages.fit import Fittable, fit
from uae.utils.assets import ASSETS
from uae.utils.processes import in_processes
from uae.utils.quiet import plain_warnings, quiet_libraries
from uae.utils.suggest import did_you_mean
from uae.world.build import backbones
from uae.world.build.binding import BindingTask
from uae.world.build.captioner import CaptionerTask
from uae.world.build.decoder import DecoderTask, JointTask
from uae.world.build.janus import JanusOnTask, JanusTask
from uae.world.build.vae import VaeTask
from uae.world.build.vision import JanusVisionTask, VisionTask
from uae.world.build.vq import VqDecoderTask, VqTask


@dataclass(frozen=True)
class Part:
    """One training."""

    make_task: Callable[..., Fittable]
    """From the exported folders of ``inputs``."""
    inputs: tuple[str, ...] = ()
    """Other parts."""
    asset: str = ""
    """What the export is shipped as; nothing where empty."""
    num_processes: int = 1


PARTS = {
    "vae": Part(VaeTask),
    "vision": Part(VisionTask),
    "captioner": Part(CaptionerTask, ("vision",)),
    "joint": Part(JointTask, ("vae", "captioner"), num_processes=2),
    "binding": Part(BindingTask, ("joint",), num_processes=2),
    "decoder": Part(DecoderTask, ("vae", "binding"), asset="umm1", num_processes=2),
    "vq": Part(VqTask, num_processes=2),
    "janus_vision": Part(JanusVisionTask, ("vq", "binding"), num_processes=2),
    "janus": Part(JanusTask, ("janus_vision", "binding"), num_processes=2),
    "janus_on": Part(JanusOnTask, ("janus",), num_processes=2),
    "vq_decoder": Part(VqDecoderTask, ("janus_on",), asset="umm2", num_processes=2),
    "clip": Part(backbones.clip_task, asset="clip"),
    "longclip": Part(backbones.longclip_task, ("clip",), asset="longclip"),
    "dinov2": Part(backbones.dinov2_task, asset="dinov2"),
    "dinov3": Part(backbones.dinov3_task, asset="dinov3"),
}


@dataclass(frozen=True)
class BuildSettings:
    """Train the tiny models from nothing: UMM-1's parts, UMM-2's, and four similarity backbones."""

    work: Path = Path("runs/tiny")
    """Folder for training state; keep it to resume."""
    only: tuple[str, ...] = ()
    """Parts to build (vae vision captioner joint binding decoder vq janus_vision janus janus_on
    vq_decoder clip longclip dinov2 dinov3); by default all."""
    assets: Path = ASSETS
    """Where finished models go."""
    threads: int = 1
    """Threads within operators of each process; these models are too small to gain from more."""


def build(settings: BuildSettings) -> None:
    """Train each part to its end and put what is shipped among the assets."""
    for part in settings.only:
        if part not in PARTS:
            raise ValueError(
                f"unknown part {part!r}: expected {', '.join(PARTS)}{did_you_mean(part, PARTS)}"
            )
    for name in settings.only or PARTS:
        part = PARTS[name]
        in_processes(part.num_processes, train_part, name, settings.work, settings.threads)
        if part.asset:
            export = settings.work / name / "export"
            shutil.copytree(export, settings.assets / part.asset, dirs_exist_ok=True)


def train_part(name: str, work: Path, threads: int) -> None:
    """Train one part to its end, in ``work / name``."""
    torch.set_num_threads(threads)
    quiet_libraries()
    part = PARTS[name]
    inputs = [work / source / "export" for source in part.inputs]
    with plain_warnings():  # in a process of its own, where the command's do not reach
        fit(part.make_task(*inputs), work / name)
