"""The settings of one run."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from uae.config import CaptionSettings, DecodeSettings
from uae.rl.losses import Objective
from uae.utils.optim import Schedule
from uae.utils.ranges import ABOVE_0, AT_LEAST_0, AT_LEAST_1, BELOW_1, check_ranges, refuse_if

COUNTS = (
    "num_steps",
    "images_per_step",
    "group_size",
    "reconstructions_per_caption",
    "ema_every",
    "num_updates",
    "micro_batch",
    "save_every",
    "keep_checkpoints",
    "probe_every",
    "window_interval",
)
WEIGHTS = ("caption_weight", "image_weight", "image_kl_coef", "warmup_steps", "weight_decay")
RANGES = {
    **dict.fromkeys(COUNTS, AT_LEAST_1),
    **dict.fromkeys(WEIGHTS, AT_LEAST_0),
    **dict.fromkeys(("learning_rate", "decoder_learning_rate", "max_grad_norm"), ABOVE_0),
    "ema_decay": BELOW_1,
}


@dataclass(frozen=True)
class TrainConfig:
    """One run: the encoder learns, and the decoder with it where its actions have probabilities."""

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
    instructions: tuple[str, ...] = ()
    """If given, cycled one per step in place of `captioning.instruction`: painting is then learnt
    from captions of any length."""
    decoding: DecodeSettings = field(default_factory=DecodeSettings)
    """How they are painted for the reward."""
    window_interval: int | None = None
    """Steps after which the window of random steps moves on by its size, from the first of the
    steps that can be random to the last, and again (MixGRPO); by default it stays."""
    objective: Objective = field(default_factory=Objective)
    """What is maximised."""
    caption_weight: float = 1.0
    """Of the caption tokens' loss; 0 trains the painting half alone."""
    image_weight: float = 1.0
    """Of the image tokens' loss, in an autoregressive model; 0 trains the captioning half alone."""
    image_kl_coef: float | None = None
    """β of the image tokens; by default the objective's."""
    learning_rate: float = 1e-6
    """Of AdamW, after warm-up."""
    lr_scheduler_type: Literal["constant", "linear"] = "constant"
    """What follows warm-up: the same rate, or one that falls to 0 at the last step."""
    decoder_learning_rate: float | None = None
    """The same of weights that only paint (a diffusion decoder's); by default `learning_rate`."""
    ema_decay: float = 0.0
    """Of an average of the weights over the updates, which is what a run leaves; its first updates,
    n from 0, have a decay of at most (1 + n) / (10 + n). 0 keeps none."""
    ema_every: int = 8
    """Steps between updates of that average; the last step brings one too, and a shorter run leaves
    its weights."""
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
    keep_checkpoints: int = 2
    """How many of the last checkpoints stay; the older ones are removed."""
    probe_every: int = 10
    """Steps between measurements of drift: the reward of fixed captions under the text encoder as
    it is."""
    tensorboard: bool = False
    """Also write the metrics for TensorBoard, to ``tensorboard/`` in the run's folder."""

    @property
    def schedule(self) -> Schedule:
        """The learning rate of each step."""
        return Schedule(self.num_steps, self.warmup_steps, self.lr_scheduler_type)

    def decoding_at(self, step: int) -> DecodeSettings:
        """How captions are painted in this step."""
        if self.window_interval is None:
            return self.decoding
        assert self.decoding.window_size is not None
        starts = range(0, self.decoding.num_random_steps, self.decoding.window_size)
        start = starts[step // self.window_interval % len(starts)]
        return replace(self.decoding, window_start=start)

    def captioning_at(self, step: int) -> CaptionSettings:
        """How captions are sampled in this step."""
        if not self.instructions:
            return self.captioning
        return replace(
            self.captioning, instruction=self.instructions[step % len(self.instructions)]
        )

    def __post_init__(self) -> None:
        check_ranges(self, RANGES)
        learns_captions = self.caption_weight > 0
        refuse_if(
            (
                not learns_captions and self.image_weight == 0,
                "caption-weight and image-weight: nothing is learnt where both are 0; raise one",
            ),
            (
                self.group_size == self.reconstructions_per_caption == 1,
                (
                    "group-size and reconstructions-per-caption: nothing is compared where both "
                    "are 1; raise one"
                ),
            ),
            (
                self.window_interval is not None and not self.decoding.has_window,
                (
                    "window-interval: expected decoding.sampler sde or cps and a "
                    f"decoding.window-size to move, got {self.decoding.sampler} and "
                    f"{self.decoding.window_size}"
                ),
            ),
            (
                learns_captions and self.group_size == 1,
                (
                    "group-size: a single caption of an image has no other to be compared with; "
                    "expected at least 2, or caption-weight 0 to learn painting alone"
                ),
            ),
            (
                learns_captions and self.captioning.temperature == 0,
                (
                    "captioning.temperature: at 0 the captions of an image are all the same, so "
                    "none is better; expected above 0, or caption-weight 0 to learn painting "
                    "alone"
                ),
            ),
            (
                self.warmup_steps > self.num_steps,
                (
                    f"warmup-steps: expected at most num-steps, {self.num_steps}, got "
                    f"{self.warmup_steps}"
                ),
            ),
            (
                not all(text.strip() for text in self.instructions),
                f"instructions: expected words in each, got {self.instructions}",
            ),
        )
