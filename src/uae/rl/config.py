"""The settings of one run."""

from __future__ import annotations

from dataclasses import dataclass, field

from uae.config import CaptionSettings, DecodeSettings
from uae.rl.losses import Objective


@dataclass(frozen=True)
class TrainConfig:
    """One run of *generation for understanding*: the encoder learns, the decoder is frozen."""

    num_steps: int = 80
    """Rollouts, and as many optimiser updates times ``num_updates``."""
    images_per_step: int = 8
    """P."""
    group_size: int = 8
    """G captions per image, compared with each other."""
    reconstructions_per_caption: int = 1
    """K; a caption's reward is their mean."""
    captioning: CaptionSettings = field(default_factory=CaptionSettings)
    """How captions are sampled."""
    decoding: DecodeSettings = field(default_factory=DecodeSettings)
    """How they are painted for the reward."""
    objective: Objective = field(default_factory=Objective)
    """What is maximised."""
    learning_rate: float = 1e-6
    """Of AdamW, after warm-up; constant."""
    warmup_steps: int = 0
    """Steps of linear warm-up."""
    weight_decay: float = 0.0
    """Of AdamW."""
    max_grad_norm: float = 1.0
    """Gradients are clipped to this norm."""
    num_updates: int = 1
    """Optimiser updates per rollout; beyond the first the ratio leaves 1 and clipping acts."""
    micro_batch: int = 64
    """Captions scored at a time; lower it when memory runs out, results stay the same."""
    use_bf16: bool = True
    """Compute in bf16 where that is safe (autocast); weights and optimiser stay as they are."""
    seed: int = 0
    """Of data order and draws."""
    save_every: int = 10
    """Steps between checkpoints."""
    probe_every: int = 10
    """Steps between measurements of drift: the reward of fixed captions under the text encoder as it is."""
    tensorboard: bool = False
    """Also write the metrics for TensorBoard, to ``tensorboard/`` in the run's folder."""
