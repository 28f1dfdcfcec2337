"""A training run on disk: opened or resumed, logged, checkpointed, probed. The loop itself is ``rl/train.py``.

A run's folder: ``config.json``, ``metrics.jsonl``, ``checkpoints/``, ``probe.json``. Data and draws are functions of
the step number, so the weights that are trained, the optimiser and the step are all there is to save.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from uae.models.base import UnifiedModel
from uae.rewards.base import WeightedSum
from uae.rl.config import TrainConfig
from uae.types import Policy
from uae.utils.checkpoint import (
    atomic_write_json,
    capture_rng,
    check_same_config,
    json_ready,
    load_latest,
    restore_rng,
    save_checkpoint,
)
from uae.utils.device import autocast
from uae.utils.metrics import MetricsLogger

MAY_CHANGE = (
    "train.num_steps",
    "train.save_every",
    "train.micro_batch",
    "train.decoding.micro_batch",
    "train.tensorboard",
)


@runtime_checkable
class ImageSource(Protocol):
    """Training images; a step's batch is a function of the step alone."""

    def batch(self, step: int, num_images: int) -> list[Tensor]:
        """``num_images`` images ``[3, h, w]`` in [0, 1]."""
        ...

    def probe(self, num_images: int) -> list[Tensor]:
        """Images that no batch holds, always the same."""
        ...


class Run:
    """Optimiser, step number and log of one run."""

    def __init__(self, folder: Path, model: UnifiedModel, config: TrainConfig, settings: dict[str, Any]) -> None:
        self.folder, self.config, self.settings = folder, config, settings
        spoken, painted = trainable_parameters(model)
        self.parameters = spoken | painted
        rate = config.learning_rate if config.decoder_learning_rate is None else config.decoder_learning_rate
        groups = [{"params": list(spoken.values())}, {"params": list(painted.values()), "lr": rate}]
        self.optimizer = torch.optim.AdamW(
            [group for group in groups if group["params"]],
            lr=config.learning_rate,
            weight_decay=config.weight_decay,
            betas=(0.9, 0.999),
        )
        self.average = {name: p.detach().clone() for name, p in self.parameters.items()} if config.ema_decay else {}
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: learning_rate_factor(step, config)
        )
        self.step = 0
        self.logger: MetricsLogger

    @classmethod
    def open(cls, folder: Path, model: UnifiedModel, config: TrainConfig, recorded: dict[str, Any]) -> Run:
        """A new run, or the one in ``folder`` as its last checkpoint left it.

        Raises:
            ValueError: when the folder holds a run with other settings, naming each; or only damaged checkpoints.
        """
        run = cls(folder, model, config, json_ready({"train": asdict(config), **recorded}))
        checkpoint = load_latest(folder / "checkpoints")
        if checkpoint is None:
            atomic_write_json(folder / "config.json", run.settings)
        else:
            check_same_config(checkpoint.state["settings"], run.settings, MAY_CHANGE)
            run._restore(checkpoint.weights, checkpoint.state)
        run.logger = MetricsLogger(folder, last_step=run.step - 1, use_tensorboard=config.tensorboard)
        return run

    def finish_step(self, step: int, metrics: dict[str, float]) -> None:
        """Log the step; checkpoint where one is due."""
        self.schedule.step()
        self.step = step + 1
        if self.step % self.config.ema_every == 0:
            for name, value in self.average.items():
                value.lerp_(self.parameters[name].detach(), 1 - self.config.ema_decay)
        self.logger.log(step, metrics)
        if self.step % self.config.save_every == 0 or self.step == self.config.num_steps:
            self.save()

    @contextmanager
    def kept_on_failure(self) -> Iterator[None]:
        """A failing reward or gradient stops the run, and the steps before it are saved first."""
        try:
            yield
        except Exception:
            is_between_updates = self.config.num_updates == 1  # a single update is the last thing a step does
            if is_between_updates and self.step % self.config.save_every:
                self.save()
            raise

    def save(self) -> None:
        """Write a checkpoint, atomically; the log is on disk first."""
        self.logger.sync()
        weights = {"policy": {name: p.detach() for name, p in self.parameters.items()}}
        if self.average:
            weights["average"] = self.average
        state = {
            "settings": self.settings,
            "optimizer": self.optimizer.state_dict(),
            "schedule": {"last_epoch": self.schedule.last_epoch},
            "rng": capture_rng(),
        }
        save_checkpoint(self.folder / "checkpoints", self.step, weights, state)

    def close(self) -> None:
        """End here, saving what the last regular checkpoint lacks; the model is left with the average, if there is
        one."""
        if self.step % self.config.save_every and self.step != self.config.num_steps:
            self.save()
        self.logger.close()
        self._assign(self.average)

    def _restore(self, weights: dict[str, dict[str, Tensor]], state: dict[str, Any]) -> None:
        self._assign(weights["policy"])
        for name, value in self.average.items():
            value.copy_(weights["average"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = self.schedule.last_epoch = state["schedule"]["last_epoch"]
        restore_rng(state["rng"])

    @torch.no_grad()
    def _assign(self, weights: dict[str, Tensor]) -> None:
        for name, value in weights.items():
            self.parameters[name].copy_(value)


def learning_rate_factor(step: int, config: TrainConfig) -> float:
    """Linear warm-up, then what ``lr_scheduler_type`` says, as a share of the learning rate."""
    warmup = min(1.0, (step + 1) / max(1, config.warmup_steps))
    return warmup * max(0.0, 1 - step / config.num_steps) if config.lr_scheduler_type == "linear" else warmup


def trainable_parameters(model: UnifiedModel) -> tuple[dict[str, nn.Parameter], dict[str, nn.Parameter]]:
    """What the optimiser may change: the encoder's, and of the decoder's those that are not the encoder's too.

    Raises:
        ValueError: when there is nothing.
    """
    spoken = model.encoder.named_trainable_parameters()
    shared = {id(p) for p in spoken.values()}
    painting = model.decoder.named_trainable_parameters() if isinstance(model.decoder, Policy) else {}
    painted = {f"decoder.{name}": p for name, p in painting.items() if id(p) not in shared}
    if not spoken and not painted:
        raise ValueError(
            "expected something to learn, but every weight is frozen: set caption_weight above 0, or image_weight "
            "and a sampler other than ode"
        )
    return spoken, painted


class Probe:
    """Drift: the reward that *fixed* captions earn as training goes on.

    In UMM-1 the language model that learns is also the decoder's text encoder, so their reconstructions change even
    though neither captions nor decoder do. The captions are the model's own at the start, kept in ``probe.json``.
    """

    def __init__(
        self,
        folder: Path,
        model: UnifiedModel,
        reward: WeightedSum,
        images: ImageSource,
        config: TrainConfig,
        num_images: int = 16,
    ) -> None:
        self.model, self.reward, self.config = model, reward, config
        self.images = images.probe(num_images)
        path = folder / "probe.json"
        if not path.exists():
            captions = model.caption(self.images, config.captioning, seed=config.seed)
            atomic_write_json(path, captions.texts)
        self.texts: Sequence[str] = json.loads(path.read_text())

    @torch.no_grad()
    def measure(self) -> dict[str, float]:
        """``reward/fixed_captions``: their mean reward now."""
        decoding = replace(self.config.decoding, sampler="ode")
        with autocast(self.model.encoder.device, self.config.use_bf16):
            painted = self.model.generate(self.texts, decoding, seed=self.config.seed).images
        values = self.reward(self.images, list(self.texts), painted)
        return {"reward/fixed_captions": values.mean().item()}
