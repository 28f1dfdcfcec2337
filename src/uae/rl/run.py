"""A run of reinforcement learning: what learns of a model, what is recorded, and how far the model
drifts. The loop is ``rl/train.py``; what all runs have in common is ``utils/run.py``.

    RUN/config.json  RUN/metrics.jsonl  RUN/checkpoints/  RUN/probe.json

A step is whole or it was not: whatever fails in it, its updates are taken back, and the steps
before it are saved.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from uae.models.base import UnifiedModel
from uae.rewards.base import WeightedSum
from uae.rl.config import TrainConfig
from uae.rl.learning import Learning, shards_of, trainable_parameters
from uae.rl.rollout import JointSource, images_and_prompts
from uae.types import ImageSource, PromptSource
from uae.utils.checkpoint import Checkpoint, capture_rng, defaults_of, restore_rng
from uae.utils.device import autocast
from uae.utils.files import atomic_write_json, json_ready
from uae.utils.optim import Average, assign
from uae.utils.processes import is_main, of_main
from uae.utils.run import Run
from uae.utils.sharding import WHOLE, Shards


class PolicyRun(Run):
    """A model's policies in training."""

    may_change = (
        "train.num_steps",
        "train.save_every",
        "train.keep_checkpoints",
        "train.micro_batch",
        "train.decoding.micro_batch",
        "train.shard",
        "train.tensorboard",
        "train.vllm.cache_gb",
        "train.vllm.folder",
        "train.vllm.max_length",
        "train.vllm.server",
    )
    takes_back = True

    def __init__(
        self, folder: Path, model: UnifiedModel, config: TrainConfig, recorded: dict[str, Any]
    ) -> None:
        """recorded: what must be the same on resume, beside ``config``."""
        shards = shards_of(model, config)
        with shards.whole():
            encoder, decoder = trainable_parameters(model)
            self.learning = Learning.of(model, config, shards)
        parameters = {name: shards.own(p) for name, p in (encoder | decoder).items()}
        self.old = self.learning.old
        super().__init__(
            folder,
            parameters,
            self.learning.optimizer,
            config.schedule,
            Average(parameters if config.ema_decay else {}, config.ema_decay),
            others=list(self.old.values.values()),
            shards=shards,
        )
        self.config = config
        self.settings = json_ready({"train": asdict(config), **recorded})
        self.defaults = {"train": defaults_of(config)}
        self.save_every, self.keep_checkpoints = config.save_every, config.keep_checkpoints
        self.use_tensorboard = config.tensorboard

    def resume(self) -> None:
        super().resume()
        if self.step == 0 and is_main():
            atomic_write_json(self.folder / "config.json", self.settings)

    def contents(self) -> tuple[dict[str, Mapping[str, Tensor]], dict[str, Any]]:
        weights: dict[str, Mapping[str, Tensor]] = {
            "policy": {name: p.detach() for name, p in self.parameters.items()}
        }
        if self.average.values:
            weights["average"] = self.average.values
        if self.old.values:
            weights["old"] = self.old.values
        state = {
            "settings": self.settings,
            "optimizer": self.optimizer.state_dict(),
            "rng": capture_rng(),
        }
        return weights, state

    def restore(self, checkpoint: Checkpoint) -> None:
        if checkpoint.step > self.config.num_steps:
            raise ValueError(
                f"--train.num-steps: expected at least {checkpoint.step}, as the run in "
                f"{self.folder} has done so many, got {self.config.num_steps}"
            )
        assign(self.parameters, checkpoint.weights["policy"])
        self.average.restore(checkpoint.weights.get("average", {}))
        self.old.restore(checkpoint.weights.get("old", {}))
        self.optimizer.load_state_dict(checkpoint.state["optimizer"])
        restore_rng(checkpoint.state["rng"])

    def finish_step(self, metrics: Mapping[str, float] | None = None) -> None:
        super().finish_step(metrics)
        if self.step % self.config.ema_every == 0:
            self.average.update(self.step // self.config.ema_every - 1)
        self.old.update(self.step)

    def close(self) -> None:
        """End here; the model is left with the average, if there is one, and whole."""
        super().close()
        assign(self.parameters, self.averaged())
        self.shards.end()

    def averaged(self) -> dict[str, Tensor]:
        """The average with the last weights in it, which are its next update where the last step
        brought none; empty before its first update: the weights themselves are then what the run
        has learnt."""
        num_updates, num_since = divmod(self.step, self.config.ema_every)
        if not num_updates or not num_since:
            return self.average.values if num_updates else {}
        return self.average.updated(num_updates)


class Probe:
    """Drift: the reward that *fixed* captions earn as training goes on.

    In UMM-1 the language model that learns is also the decoder's text encoder, so their
    reconstructions change even though neither captions nor decoder do. The captions are the model's
    own at the start, kept in ``probe.json``; where prompts are learnt from, prompts.
    """

    def __init__(
        self,
        folder: Path,
        model: UnifiedModel,
        reward: WeightedSum,
        source: ImageSource | PromptSource | JointSource,
        config: TrainConfig,
        shards: Shards = WHOLE,
        num_images: int = 16,
    ) -> None:
        self.model, self.reward, self.config, self.shards = model, reward, config, shards
        self.images, self.prompts = images_and_prompts(source.probe(num_images))
        with shards.whole():
            self.texts: Sequence[str] = of_main(self._texts(folder / "probe.json"))

    def _texts(self, path: Path) -> list[str]:
        """As they were at the start; the main process keeps them."""
        if not is_main():
            return []
        if not path.exists():
            texts = [prompt.text for prompt in self.prompts]
            if not texts:
                captioning = self.config.captioning
                texts = self.model.caption(self.images, captioning, seed=self.config.seed).texts
            atomic_write_json(path, texts)
        return json.loads(path.read_text())

    @torch.no_grad()
    def measure(self) -> dict[str, float]:
        """``reward/fixed_captions``: their mean reward now; the main process knows it for all."""
        decoding = replace(self.config.decoding, sampler="ode")
        with self.shards.whole():
            if not is_main():
                return {}
            with autocast(self.model.encoder.device, self.config.use_bf16):
                images = self.model.generate(self.texts, decoding, seed=self.config.seed).images
            rewards = self.reward(self.images, list(self.texts), images, self.prompts)
        return {"reward/fixed_captions": rewards.mean().item()}
