"""Unified-GRPO: images are captioned, captions painted, and the likeness of the painting rewards
the captions.

    rollout → reward → advantage → loss → step

Source: arXiv 2509.09666, §4.

Everything drawn in a step is keyed by ``(seed, step)``, and so is its data: weights, optimiser and
step number are the whole state of a run (``rl/run.py``). P images, G captions per image, K
reconstructions per caption. Several processes share the P, groups whole, and change their equal
weights by one gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import torch
from einops import rearrange
from torch import Tensor

from uae.models.base import UnifiedModel, check_settings
from uae.rewards.base import WeightedSum
from uae.rl.auxiliary import Auxiliary
from uae.rl.config import TrainConfig
from uae.rl.diagnostics import (
    held_out_alarms,
    of_all_processes,
    reward_metrics,
    rollout_metrics,
    time_metrics,
)
from uae.rl.learning import Learning
from uae.rl.losses import combine_metrics
from uae.rl.rollout import OF_PROMPTS, JointSource, check_shares, roll_out, sub_batches
from uae.rl.run import PolicyRun, Probe
from uae.rl.sampler import sampler_of
from uae.rl.segments import trained_segments
from uae.rl.updates import Update, check_update, decoder_code, update_of
from uae.types import Batch, ImageSource, PromptSource
from uae.utils.device import attention_to_train, autocast
from uae.utils.metrics import PhaseTimer, TrainProgress
from uae.utils.processes import gather
from uae.utils.progress import track

NO_AUXILIARY = Auxiliary()
LIVE = {"reward": "reward/total", "tokens": "caption/tokens"}
"""Metrics that are shown as the run goes on, where they are measured."""


def train(
    model: UnifiedModel,
    reward: WeightedSum,
    source: ImageSource | PromptSource | JointSource,
    config: TrainConfig,
    run_dir: Path,
    recorded: dict,
    until: int | None = None,
    prompt_reward: WeightedSum | None = None,
    auxiliary: Auxiliary = NO_AUXILIARY,
) -> None:
    """Train in ``run_dir`` from its last checkpoint, or the start, to step ``until`` (default: to
    the end).

    recorded: whatever else must be the same on resume (model and reward names, data).
    prompt_reward: of pictures of prompts; by default ``reward`` is. auxiliary: losses beside what
    is learnt from rewards.
    """
    check_settings(model, config.captioning, config.decoding)
    check_update(model, config)
    sampler = sampler_of(model, config)
    check_shares(config)
    auxiliary.check(model, config)
    until = min(until or config.num_steps, config.num_steps)
    rewards = {"images": reward, "prompts": prompt_reward or reward}
    opened = PolicyRun(run_dir, model, config, recorded).opened()
    with decoder_code(model, config), opened as run:
        probe = Probe(run_dir, model, reward, source, config, run.shards)
        judged = {"": reward}
        if isinstance(source, JointSource):
            judged[OF_PROMPTS] = rewards["prompts"]
        alarms = held_out_alarms(judged, run_dir / "metrics.jsonl")
        with sampler, TrainProgress("Unified-GRPO", config.num_steps, run.step) as progress:
            for step in range(run.step, until):
                with run.whole_step():
                    batch = source.batch(step, config.images_per_step)
                    metrics = train_step(
                        model, rewards, batch, config, run.learning, step, auxiliary
                    )
                    if step % config.probe_every == 0 or step + 1 == config.num_steps:
                        metrics |= probe.measure()
                    run.finish_step(metrics)
                run.save_if_due()
                for alarm in alarms:
                    alarm.observe(metrics)
                live = {name: metrics[key] for name, key in LIVE.items() if key in metrics}
                progress.update(step + 1, **live)


def train_step(
    model: UnifiedModel,
    rewards: Mapping[str, WeightedSum],
    batch: Batch,
    config: TrainConfig,
    learning: Learning,
    step: int,
    auxiliary: Auxiliary = NO_AUXILIARY,
) -> dict[str, float]:
    """One rollout and what is learnt from it and beside it; the metrics of the step. ``rewards``:
    of captions of ``images`` and of ``prompts``, whichever the batch has."""
    timer, device = PhaseTimer(), model.encoder.device
    segments, sampled, observed = [], [], {}
    for sub_batch in sub_batches(batch, config):
        settings = sub_batch.config
        weights = learning.rollout_weights(settings)
        with learning.shards.whole():
            with timer("rollout"), autocast(device, config.use_bf16), weights:
                captions, reconstructions = roll_out(model, sub_batch, step)
            with timer("reward"), torch.no_grad():
                reward, texts = rewards[sub_batch.kind], sub_batch.texts(captions)
                values = reward(sub_batch.images, texts, reconstructions.images, sub_batch.prompts)
                values, breakdown = of_all_processes(values, reward.breakdown)
            G, K = settings.group_size, settings.reconstructions_per_caption
            rewards_PGK = rearrange(values, "(p g k) -> p g k", g=G, k=K)
        segments += trained_segments(
            model, captions, reconstructions, rewards_PGK, settings, sub_batch.places
        )
        signs = reward_metrics(rewards_PGK, breakdown)
        signs |= rollout_metrics(captions, reconstructions)
        observed |= {sub_batch.prefix + name: value for name, value in signs.items()}
        sampled.append((captions, reconstructions))
    updates = [update_of(segment, config, learning.old, step) for segment in segments]
    with timer("update"), attention_to_train(device):
        beside = partial(auxiliary.backward, model, config, learning, step)
        metrics = update(updates, config, learning, beside)
    return metrics | observed | time_metrics(sampled, timer.pop())


def update(
    updates: Sequence[Update],
    config: TrainConfig,
    learning: Learning,
    beside: Callable[[], dict[str, float]] = dict,
) -> dict[str, float]:
    """``num_updates`` steps of the optimiser on one rollout, each over all its segments and
    micro-batches, and by the gradient that ``beside`` adds."""
    history: list[dict[str, float]] = []
    with learning.shards.whole_for_updates() if config.num_updates > 1 else nullcontext():
        old = [_score(each, config) if config.num_updates > 1 else None for each in updates]
    for _ in range(config.num_updates):
        metrics: dict[str, float] = {}
        with learning.shards.whole_for_updates():
            for each, old_log_probs in zip(updates, old, strict=True):
                with learning.painting_gradients() if each.segment.is_painting else nullcontext():
                    metrics |= _backward(each, old_log_probs, config)
            metrics |= beside()
        metrics["rl/lr"] = learning.optimizer.param_groups[0]["lr"]
        metrics["rl/grad_norm"] = learning.update(config.max_grad_norm)
        history.append(metrics)
    return {name: sum(metrics[name] for metrics in history) / len(history) for name in history[0]}


def _backward(
    update: Update, old_log_probs: Tensor | None, config: TrainConfig
) -> dict[str, float]:
    """Add the gradient of one segment's loss, part by part; its metrics."""
    collected, segment = [], update.segment
    # The context is entered anew for each update, as it keeps its casts of the weights.
    with autocast(segment.policy.device, config.use_bf16):
        for rows in track(_micro_batches(update, config), "updating", "micro-batches"):
            before = None if old_log_probs is None else old_log_probs[rows]
            for loss, metrics in update.losses(rows, before):
                (segment.weight * loss).backward()
                collected.append(metrics)
    of_all = combine_metrics(gather(combine_metrics(collected)))
    return {f"{segment.name}/{name}": value for name, value in of_all.items()}


@torch.no_grad()
def _score(update: Update, config: TrainConfig) -> Tensor:
    """Log-probs before the first update, on exactly the micro-batches that are trained on."""
    with autocast(update.segment.policy.device, config.use_bf16):
        batches = track(_micro_batches(update, config), "scoring", "micro-batches")
        return torch.cat([update.score(rows) for rows in batches])


def _micro_batches(update: Update, config: TrainConfig) -> Sequence[Tensor]:
    """The numbers of the sequences that are evaluated together."""
    return torch.arange(len(update.segment.rollout)).split(config.micro_batch)
