"""What Unified-GRPO is told: its settings as a stage and as a run alone, and what follows from them
without a model."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from uae.config import RewardWeights, TextEncoder, check_reward_weights
from uae.models.footprint import StepShape
from uae.rl.config import TrainConfig
from uae.rl.rollout import check_prompts
from uae.utils.ranges import AT_LEAST_0, AT_MOST_1, check_ranges, refuse_if

Half = Literal["both", "captions", "images"]
WORLD = "world"
"""In the place of a file: what the embedded world has."""


@dataclass(frozen=True)
class UnifiedGRPOSettings:
    """What is trained on what, for which reward."""

    data: tuple[str, ...] = ()
    """Image files or folders; the tiny models' recipes learn from scenes where there are none."""
    prompts: str | None = None
    """Texts that painting learns from in place of captions: a file of prompts as `uae generate`
    takes it, or `world` for those of the embedded world's scenes. Where captions learn too, images
    are captioned as ever, and each caption is painted once, for its reward."""
    anchor_texts: str | None = None
    """Texts for `train.text-anchor-coef`, a file of prompts or `world`, half of whose are
    exhaustive captions; by default the world's, in the tiny models' recipes."""
    exhaustive_share: float = 0.0
    """Share of exhaustive captions among the prompts of the world, so that it is not forgotten how
    to paint long ones."""
    rewards: RewardWeights = field(
        default_factory=lambda: {"clip": 1.0, "longclip": 0.0, "dinov2": 0.0, "dinov3": 0.0}
    )
    """Weights of rewards by name: backbones (clip, longclip, dinov2, dinov3), image_text,
    clip_score, caption_likelihood, ssim, objects, judge, caption_objects, ocr, or a function of
    your own as MODULE:FUNCTION. Weight 0 is only logged: a held-out backbone."""
    prompt_rewards: RewardWeights = field(default_factory=dict)
    """Those of pictures of prompts, where images are captioned too; by default `rewards`."""
    backbones: str | None = "tiny"
    """`tiny` for the world's own backbones, None for the published checkpoints."""
    reward_device: str | None = None
    """Where backbones judge, such as `cuda:1`; by default where the model is. Changes no result."""
    lora_rank: int = 0
    """Rank of LoRA on all linear layers of the language model (alpha is twice the rank); 0 trains
    it fully."""
    text_encoder: TextEncoder | None = None
    """Who encodes captions for a diffusion decoder: the `policy`, which learns (the paper), or the
    frozen `reference`, which is saved with the model; None leaves it as the model says."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """The run itself."""

    def __post_init__(self) -> None:
        check_ranges(self, {"lora_rank": AT_LEAST_0, "exhaustive_share": AT_MOST_1})
        check_reward_weights(self.rewards)
        if self.prompt_rewards:
            check_reward_weights(self.prompt_rewards)
        if self.prompts is not None:
            check_prompts(self.train, with_images=self.is_joint)
        refuse_if(
            (
                self.prompts is not None and bool(self.data) and not self.is_joint,
                (
                    "data and prompts: expected one of them, images to caption or texts to paint, "
                    "or train.caption-weight above 0 to learn both"
                ),
            ),
            (
                bool(self.prompt_rewards) and not self.is_joint,
                (
                    "prompt-rewards: expected none where prompts do not come with images to "
                    "caption; give --rewards"
                ),
            ),
            (
                self.anchor_texts is not None and self.train.text_anchor_coef == 0,
                (
                    f"anchor-texts: expected none without train.text-anchor-coef, got "
                    f"{self.anchor_texts}"
                ),
            ),
            (
                self.prompts != WORLD and self.exhaustive_share > 0,
                (
                    "exhaustive-share: expected 0 without prompts of the world, got "
                    f"{self.exhaustive_share}; give --prompts {WORLD}"
                ),
            ),
        )

    @property
    def is_joint(self) -> bool:
        """Whether captions are learnt from images, and painting from prompts."""
        return self.prompts is not None and self.train.caption_weight > 0

    @property
    def captions_images(self) -> bool:
        """Whether images are captioned at all."""
        return self.prompts is None or self.is_joint

    @property
    def rewards_of_prompts(self) -> RewardWeights:
        return self.prompt_rewards or self.rewards


@dataclass(frozen=True)
class RunConfig(UnifiedGRPOSettings):
    """A run of this stage alone: what is trained on what, for which reward."""

    model: str = "tiny"
    """`tiny`, `tiny-ar`, `tiny-early`, a folder that uae wrote, Janus-Pro, or ENCODER+DECODER
    by hub id or folder."""
    self_contained: bool = False
    """Save the base's weights beside a LoRA run's adapters, where else the folder names its
    base."""
    run_dir: Path = Path("runs/train")
    """Where the run lives; an unfinished run there is resumed."""
    dry_run: bool = False
    """Only print what a step would take on one GPU; nothing is loaded. For Qwen2.5-VL-3B +
    SD3.5."""

    @classmethod
    def of(cls, settings: UnifiedGRPOSettings, model: str) -> RunConfig:
        """A run of a stage with these settings, from this model."""
        return cls(**_fields(settings), model=model)

    def stage_settings(self) -> UnifiedGRPOSettings:
        """Those of the stage, without the run's own."""
        return UnifiedGRPOSettings(**_fields(self))


def _fields(settings: UnifiedGRPOSettings) -> dict[str, Any]:
    return {each.name: getattr(settings, each.name) for each in fields(UnifiedGRPOSettings)}


def record(settings: UnifiedGRPOSettings, source: str) -> dict[str, Any]:
    """What a run notes beside its ``TrainConfig``: it is resumed under the same alone."""
    values = asdict(settings)
    del values["train"], values["reward_device"]
    if settings.prompts is None:  # as runs that were begun before there were prompts
        del values["prompts"], values["exhaustive_share"]
    if settings.train.text_anchor_coef == 0:
        del values["anchor_texts"]
    if not settings.prompt_rewards:
        del values["prompt_rewards"]
    return {"model": source, **values}


def learning(train: TrainConfig, half: Half) -> TrainConfig:
    """The settings under which this half of the model learns, from as many images as before.

    Painting alone compares reconstructions of one caption. Painting by diffusion is learnt from two
    noisy steps, unless the decoder's update needs none.
    """
    if half != "captions" and train.decoder_update == "policy_gradient":
        train = replace(train, decoding=replace(train.decoding, sampler="sde", window_size=2))
    if half == "images":
        return replace(
            train,
            group_size=1,
            reconstructions_per_caption=train.group_size,
            caption_weight=0.0,
        )
    if half == "captions":
        return replace(train, image_weight=0.0, decoder_learning_rate=None)
    return train


def step_shape(model: str, settings: UnifiedGRPOSettings) -> StepShape:
    """What decides the memory of a step, from a run's settings."""
    decoders = [size for size in ("large", "medium") if f"stable-diffusion-3.5-{size}" in model]
    if len(decoders) != 1 or "Qwen2.5-VL-3B" not in model:
        raise ValueError(
            "--dry-run knows Qwen2.5-VL-3B-Instruct with stable-diffusion-3.5-large or "
            f"-medium, got {model}; try `uae train paper --dry-run`"
        )
    run = settings.train
    if run.decoding_at(0).has_rollout:
        raise ValueError(
            "--dry-run knows the memory of training the captioner alone: expected sampler "
            f"ode and decoder-update policy_gradient, got {run.decoding.sampler} and "
            f"{run.decoder_update}"
        )
    num_captions = run.images_per_step * run.group_size
    num_images = num_captions * run.reconstructions_per_caption
    return StepShape(
        decoder=decoders[0],
        lora_rank=settings.lora_rank,
        num_captions=num_captions,
        caption_tokens=run.captioning.max_new_tokens,
        image_height=run.decoding.height,
        image_width=run.decoding.width,
        score_batch=min(run.micro_batch, num_captions),
        decode_batch=min(run.decoding.micro_batch, num_images),
        guidance=run.decoding.guidance_scale != 1,
    )
