"""A training run on disk: opened or resumed, logged, checkpointed, probed. The loop itself is
``rl/train.py``.

A run's folder: ``config.json``, ``metrics.jsonl``, ``checkpoints/``, ``probe.json``. Data and draws
are functions of the step number, so the weights that are trained, the optimiser and the step are
all there is to save.

A step is whole or it was not: whatever fails in it, its updates are taken back, and the steps
before it are saved.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from uae.models.base import UnifiedModel
from uae.rewards.base import WeightedSum
from uae.rl.config import TrainConfig
from uae.rl.snapshot import Snapshot
from uae.types import ImageSource, Policy
from uae.utils.checkpoint import (
    Checkpoint,
    capture_rng,
    check_same_config,
    load_latest,
    restore_rng,
    save_checkpoint,
)
from uae.utils.device import autocast
from uae.utils.files import atomic_write_json, json_ready
from uae.utils.metrics import MetricsLogger

MAY_CHANGE = (
    "train.num_steps",
    "train.save_every",
    "train.micro_batch",
    "train.decoding.micro_batch",
    "train.tensorboard",
)


class Run:
    """Optimiser, step number and log of one run."""

    def __init__(
        self, folder: Path, model: UnifiedModel, config: TrainConfig, settings: dict[str, Any]
    ) -> None:
        self.folder, self.config, self.settings = folder, config, settings
        spoken, painted = trainable_parameters(model)
        self.parameters = spoken | painted
        rate = (
            config.learning_rate
            if config.decoder_learning_rate is None
            else config.decoder_learning_rate
        )
        groups = [(list(spoken.values()), config.learning_rate), (list(painted.values()), rate)]
        self.rates = [rate for parameters, rate in groups if parameters]
        self.optimizer = torch.optim.AdamW(
            [{"params": parameters, "lr": rate} for parameters, rate in groups if parameters],
            weight_decay=config.weight_decay,
            betas=(0.9, 0.999),
        )
        self.optimizer.zero_grad(set_to_none=True)  # of a step that failed in this process
        self.average = (
            {name: p.detach().clone() for name, p in self.parameters.items()}
            if config.ema_decay
            else {}
        )
        self.step = self._saved_step = 0
        self._before = Snapshot([*self.parameters.values(), *self.average.values()], self.optimizer)
        self._is_between_steps = True
        self.logger: MetricsLogger

    @classmethod
    def open(
        cls, folder: Path, model: UnifiedModel, config: TrainConfig, recorded: dict[str, Any]
    ) -> Run:
        """A new run, or the one in ``folder`` as its last checkpoint left it.

        Raises:
            ValueError: when the folder holds a run with other settings, naming each; or only
                damaged checkpoints.
        """
        run = cls(folder, model, config, json_ready({"train": asdict(config), **recorded}))
        checkpoint = load_latest(folder / "checkpoints")
        if checkpoint is None:
            atomic_write_json(folder / "config.json", run.settings)
        else:
            check_same_config(checkpoint.state["settings"], run.settings, MAY_CHANGE)
            if checkpoint.step > config.num_steps:
                raise ValueError(
                    f"--train.num-steps: expected at least {checkpoint.step}, as the run in "
                    f"{folder} has done so many, got {config.num_steps}"
                )
            run._restore(checkpoint)
        run.logger = MetricsLogger(
            folder, last_step=run.step - 1, use_tensorboard=config.tensorboard
        )
        return run

    @contextmanager
    def whole_step(self) -> Iterator[None]:
        """What is done in this context is done wholly, or taken back: weights, optimiser, average
        and generators are then those of the step's beginning, bit for bit."""
        self._set_learning_rates()
        self._before.take()
        step, self._is_between_steps = self.step, False
        try:
            yield
        except BaseException:
            self._before.put_back()
            self.step, self._is_between_steps = step, True
            raise
        self._is_between_steps = True

    def finish_step(self, metrics: dict[str, float]) -> None:
        """Log the step and count it; the last thing that is done in it."""
        self.logger.log(self.step, metrics)
        self.step += 1
        if self.average and self.step % self.config.ema_every == 0:
            decay = self._average_decay(self.step // self.config.ema_every - 1)
            for name, value in self.average.items():
                value.lerp_(self.parameters[name].detach(), 1 - decay)

    def save_if_due(self) -> None:
        """A checkpoint every so many steps, and of the last."""
        if self.step % self.config.save_every == 0 or self.step == self.config.num_steps:
            self.save()

    @contextmanager
    def kept_on_failure(self) -> Iterator[None]:
        """Whatever ends the run, Ctrl-C too, the steps that are finished are saved first."""
        try:
            yield
        except BaseException:
            if self._is_between_steps and self.step > self._saved_step:
                try:
                    self.save()
                except (
                    Exception
                ) as error:  # the disk's, say; what ended the run is the one to raise
                    warnings.warn(
                        f"the steps after {self._saved_step} were not saved: {error}", stacklevel=2
                    )
            with suppress(OSError):
                self.logger.close()
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
            "rng": capture_rng(),
        }
        save_checkpoint(self.folder / "checkpoints", self.step, weights, state)
        self._saved_step = self.step

    def close(self) -> None:
        """End here, saving what the last regular checkpoint lacks; the model is left with the
        average, if there is one."""
        if self.step > self._saved_step:
            self.save()
        self.logger.close()
        self._assign(self.averaged())

    def averaged(self) -> dict[str, Tensor]:
        """The average with the last weights in it, which are its next update where the last step
        brought none; empty before its first update: the weights themselves are then what the run
        has learnt."""
        num_updates, num_since = divmod(self.step, self.config.ema_every)
        if not num_updates or not num_since:
            return self.average if num_updates else {}
        share = 1 - self._average_decay(num_updates)
        return {
            name: value.lerp(self.parameters[name].detach(), share)
            for name, value in self.average.items()
        }

    def _average_decay(self, index: int) -> float:
        """Of an update of the average, by its number from 0: what was before the run is soon
        forgotten."""
        return min(self.config.ema_decay, (1 + index) / (10 + index))

    def _set_learning_rates(self) -> None:
        """From the settings and the step alone, so that a run may be made longer."""
        factor = learning_rate_factor(self.step, self.config)
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * factor

    def _restore(self, checkpoint: Checkpoint) -> None:
        self._assign(checkpoint.weights["policy"])
        for name, value in self.average.items():
            value.copy_(checkpoint.weights["average"][name])
        self.optimizer.load_state_dict(checkpoint.state["optimizer"])
        self.step = self._saved_step = checkpoint.step
        restore_rng(checkpoint.state["rng"])

    @torch.no_grad()
    def _assign(self, weights: dict[str, Tensor]) -> None:
        for name, value in weights.items():
            self.parameters[name].copy_(value)


def learning_rate_factor(step: int, config: TrainConfig) -> float:
    """Linear warm-up, then what ``lr_scheduler_type`` says, as a share of the learning rate."""
    warmup = min(1.0, (step + 1) / max(1, config.warmup_steps))
    return (
        warmup * max(0.0, 1 - step / config.num_steps)
        if config.lr_scheduler_type == "linear"
        else warmup
    )


def trainable_parameters(
    model: UnifiedModel,
) -> tuple[dict[str, nn.Parameter], dict[str, nn.Parameter]]:
    """What the optimiser may change: the encoder's, and of the decoder's those that are not the
    encoder's too.

    Raises:
        ValueError: when there is nothing.
    """
    spoken = model.encoder.named_trainable_parameters()
    shared = {id(p) for p in spoken.values()}
    painting = (
        model.decoder.named_trainable_parameters() if isinstance(model.decoder, Policy) else {}
    )
    painted = {f"decoder.{name}": p for name, p in painting.items() if id(p) not in shared}
    if not spoken and not painted:
        raise ValueError(
            "expected something to learn, but every weight is frozen: set caption_weight above "
            "0, or image_weight and a sampler other than ode"
        )
    return spoken, painted


class Probe:
    """Drift: the reward that *fixed* captions earn as training goes on.

    In UMM-1 the language model that learns is also the decoder's text encoder, so their
    reconstructions change even though neither captions nor decoder do. The captions are the model's
    own at the start, kept in ``probe.json``.
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
