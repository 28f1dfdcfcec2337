"""Unified-GRPO: images are captioned, captions painted, and the likeness of the painting rewards
the captions.

    rollout → reward → advantage → loss → step

Source: arXiv 2509.09666, §4.

Everything drawn in a step is keyed by ``(seed, step)``, and so is its data: weights, optimiser and
step number are the whole state of a run (``rl/run.py``). P images, G captions per image, K
reconstructions per caption.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from einops import rearrange
from torch import Tensor

from uae.models.base import UnifiedModel, check_settings
from uae.rewards.base import WeightedSum
from uae.rl.config import TrainConfig
from uae.rl.diagnostics import (
    HeldOutAlarm,
    caption_metrics,
    image_signs,
    reward_metrics,
    time_metrics,
)
from uae.rl.losses import combine_metrics, grpo_loss
from uae.rl.rollout import images_and_prompts, roll_out
from uae.rl.run import PolicyRun, Probe
from uae.rl.segments import Segment, trained_segments
from uae.types import Batch, ImageSource, PromptSource
from uae.utils.device import attention_to_train, autocast
from uae.utils.metrics import PhaseTimer, TrainProgress, read_metrics
from uae.utils.optim import clipped_update
from uae.utils.progress import track

LIVE = {"reward": "reward/total", "tokens": "caption/tokens"}
"""Metrics that are shown as the run goes on, where they are measured."""


def train(
    model: UnifiedModel,
    reward: WeightedSum,
    source: ImageSource | PromptSource,
    config: TrainConfig,
    run_dir: Path,
    recorded: dict,
    until: int | None = None,
) -> None:
    """Train in ``run_dir`` from its last checkpoint, or the start, to step ``until`` (default: to
    the end).

    recorded: whatever else must be the same on resume (model and reward names, data).
    """
    check_settings(model, config.captioning, config.decoding)
    until = min(until or config.num_steps, config.num_steps)
    with PolicyRun(run_dir, model, config, recorded).opened() as run:
        probe = Probe(run_dir, model, reward, source, config)
        alarm = HeldOutAlarm(reward.held_out, read_metrics(run_dir / "metrics.jsonl"))
        with TrainProgress("Unified-GRPO", config.num_steps, run.step) as progress:
            for step in range(run.step, until):
                with run.whole_step():
                    batch = source.batch(step, config.images_per_step)
                    metrics = train_step(model, reward, batch, config, run.optimizer, step)
                    if step % config.probe_every == 0 or step + 1 == config.num_steps:
                        metrics |= probe.measure()
                    run.finish_step(metrics)
                run.save_if_due()
                alarm.observe(metrics)
                live = {name: metrics[key] for name, key in LIVE.items() if key in metrics}
                progress.update(step + 1, **live)


def train_step(
    model: UnifiedModel,
    reward: WeightedSum,
    batch: Batch,
    config: TrainConfig,
    optimizer: torch.optim.Optimizer,
    step: int,
) -> dict[str, float]:
    """One rollout and what is learnt from it; the metrics of the step."""
    timer, device = PhaseTimer(), model.encoder.device
    with timer("rollout"), autocast(device, config.use_bf16):
        captions, reconstructions = roll_out(model, batch, config, step)
    with timer("reward"), torch.no_grad():
        images, prompts = images_and_prompts(batch)
        texts = captions.texts if captions else [prompt.text for prompt in prompts]
        rewards = reward(images, texts, reconstructions.images, prompts)
        rewards_PGK = rearrange(rewards, "(p g k) -> p g k", p=len(batch), g=config.group_size)
    segments = trained_segments(model, captions, reconstructions, rewards_PGK, config)
    with timer("update"), attention_to_train(device):
        metrics = update(segments, config, optimizer)
    metrics |= reward_metrics(rewards_PGK, reward.breakdown)
    metrics |= caption_metrics(captions) if captions else {}
    metrics |= image_signs(reconstructions.images) | reconstructions.metrics
    return metrics | time_metrics(captions, reconstructions, timer.pop())


def update(
    segments: Sequence[Segment], config: TrainConfig, optimizer: torch.optim.Optimizer
) -> dict[str, float]:
    """``num_updates`` steps of the optimiser on one rollout, each over all its segments and
    micro-batches."""
    updates = []
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    old = [_score(segment, config) if config.num_updates > 1 else None for segment in segments]
    for _ in range(config.num_updates):
        metrics: dict[str, float] = {}
        for segment, old_log_probs_BT in zip(segments, old, strict=True):
            metrics |= _backward(segment, old_log_probs_BT, config)
        metrics["rl/lr"] = optimizer.param_groups[0]["lr"]
        metrics["rl/grad_norm"] = clipped_update(
            optimizer,
            parameters,
            config.max_grad_norm,
            "Begin another run with a lower learning rate, or with use_bf16 off",
        )
        updates.append(metrics)
    return {name: sum(metrics[name] for metrics in updates) / len(updates) for name in updates[0]}


def _backward(
    segment: Segment, old_log_probs_BT: Tensor | None, config: TrainConfig
) -> dict[str, float]:
    """Add the gradient of one segment's loss, micro-batch by micro-batch; its metrics."""
    collected = []
    # The context is entered anew for each update, as it keeps its casts of the weights.
    with autocast(segment.policy.device, config.use_bf16):
        for rows in track(_micro_batches(segment, config), "updating", "micro-batches"):
            rollout = segment.rollout.select(rows)
            evaluation = segment.policy.evaluate(rollout, with_kl=segment.objective.kl_coef > 0)
            log_probs_BT = evaluation.log_probs.detach()
            loss, metrics = grpo_loss(
                evaluation,
                log_probs_BT if old_log_probs_BT is None else old_log_probs_BT[rows],
                segment.advantages_B[rows],
                rollout.mask,
                segment.objective,
                segment.counts,
                segment.lengths_B[rows],
            )
            (segment.weight * loss).backward()
            gap = (log_probs_BT - rollout.log_probs).abs()[rollout.mask].sum().item()
            collected.append(metrics | {"log_prob_gap": gap / max(segment.counts.num_actions, 1)})
    return {f"{segment.name}/{name}": v for name, v in combine_metrics(collected).items()}


@torch.no_grad()
def _score(segment: Segment, config: TrainConfig) -> Tensor:
    """Log-probs before the first update, on exactly the micro-batches that are trained on."""
    with autocast(segment.policy.device, config.use_bf16):
        return torch.cat(
            [
                segment.policy.evaluate(segment.rollout.select(rows), with_kl=False).log_probs
                for rows in track(_micro_batches(segment, config), "scoring", "micro-batches")
            ]
        )


def _micro_batches(segment: Segment, config: TrainConfig) -> Sequence[Tensor]:
    """The numbers of the sequences that are evaluated together."""
    return torch.arange(len(segment.rollout)).split(config.micro_batch)
