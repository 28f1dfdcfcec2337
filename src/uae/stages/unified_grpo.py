"""Unified-GRPO as a stage: its settings, what is checked before any work, and the run.

Which half learns is a matter of weights: *generation for understanding* is RL of the encoder under
a frozen decoder, *understanding for generation* that of the decoder (arXiv 2509.09666).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from uae.config import DecodeSettings, RewardWeights, TextEncoder, check_reward_weights
from uae.data.folders import list_images
from uae.data.questions import GenericQuestions
from uae.data.training import FilePrompts, FolderImages, check_same_files
from uae.models.base import UnifiedModel
from uae.models.footprint import StepShape
from uae.models.load import load_to_train
from uae.rewards.base import WeightedSum
from uae.rewards.build import (
    backbones_of,
    build_reward,
    check_rewards,
    check_rewards_of_prompts,
)
from uae.rl.auxiliary import Auxiliary
from uae.rl.config import TrainConfig
from uae.rl.rollout import JointSource, check_prompts
from uae.rl.train import train
from uae.similarity.backbones import Backbone, load_backbone
from uae.stages.base import Assignment, UserData
from uae.types import ImageSource, PairSource, Policy, PromptSource, QuestionSource
from uae.utils.files import appear
from uae.utils.metrics import check_tensorboard
from uae.utils.ranges import AT_LEAST_0, AT_MOST_1, check_ranges, refuse_if

Half = Literal["both", "captions", "images"]
Endless = Callable[[int], ImageSource]
"""Images without files, by the seed of their order."""
WORLD = "world"
ANCHORED_EXHAUSTIVE_SHARE = 0.5


@dataclass(frozen=True)
class World:
    """What the embedded world hands in, each by its seed."""

    images: Endless
    """What is learnt from where the settings name no files."""
    prompts: Callable[[int, float], PromptSource]
    """What is painted where the settings ask for prompts of the world, by the share of exhaustive
    captions too."""
    pairs: Callable[[int], PairSource]
    """Pictures with exhaustive captions, for `matching_coef`."""
    questions: Callable[[int], QuestionSource]
    """About its images, for `anchor_coef`."""


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
    clip_score, caption_likelihood, ssim, objects, judge, described, ocr, or a function of your
    own as MODULE:FUNCTION. Weight 0 is only logged: a held-out backbone."""
    prompt_rewards: RewardWeights = field(default_factory=dict)
    """Those of pictures of prompts, where images are captioned too; by default `rewards`."""
    backbones: str | None = "tiny"
    """`tiny` for the world's own backbones, None for the published checkpoints."""
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


class Rewards(NamedTuple):
    """What is learnt for."""

    of_images: WeightedSum
    """Captions of images and their reconstructions, or pictures of prompts alone."""
    of_prompts: WeightedSum | None
    """Pictures of prompts, where images are captioned too and prompts have rewards of their own."""


@dataclass(frozen=True)
class UnifiedGRPO:
    """The stage."""

    settings: UnifiedGRPOSettings
    world: World | None = None
    """For the tiny models."""

    @property
    def endless(self) -> Endless | None:
        return self.world.images if self.world else None

    def given(self, user: UserData) -> UnifiedGRPO:
        settings = self.settings
        if settings.prompts is None or settings.is_joint:
            settings = replace(settings, data=user.images or settings.data)
        if user.seed is not None:
            settings = replace(settings, train=replace(settings.train, seed=user.seed))
        return replace(self, settings=settings)

    def check(self) -> None:
        settings = self.settings
        if settings.is_joint and not settings.data and self.world is None:
            raise ValueError(
                "expected images to caption beside the prompts: give --data FOLDER, or "
                "--train.caption-weight 0 to learn from prompts alone"
            )
        if settings.prompts is None or settings.is_joint:
            check_images(settings.data, self.endless)
        if settings.prompts is not None:
            self.prompt_source()
            check_rewards_of_prompts(settings.rewards_of_prompts, settings.prompts == WORLD)
        self.anchor_texts()
        for rewards in (settings.rewards, settings.prompt_rewards):
            check_rewards(rewards, settings.backbones)
        if settings.train.matching_coef > 0 and self.world is None:
            raise ValueError(
                "train.matching-coef: expected 0, as its pairs are the embedded world's, for the "
                f"tiny models, got {settings.train.matching_coef}"
            )
        if settings.train.tensorboard:
            check_tensorboard()

    def run(self, work: Assignment) -> None:
        settings = self.settings
        for source in (self.images(), self.prompt_source(), self.anchor_texts()):
            check_same_files(source, work.folder)
        model: Any = load_to_train(work.source, settings.lora_rank)
        model.is_self_contained = work.is_self_contained
        prepare_policy(model, settings)
        recorded = record(settings, work.recorded_source)
        self.learn(model, self.rewards(model), work.folder, recorded)
        appear(work.folder / "model", model.save_pretrained)

    def rewards(
        self, model: UnifiedModel, backbones: Mapping[str, Backbone] | None = None
    ) -> Rewards:
        """What is learnt for; ``backbones``: those that are loaded already."""
        settings = self.settings

        def loaded(weights: RewardWeights) -> WeightedSum:
            question = settings.train.captioning.instruction
            return load_reward(weights, settings.backbones, model, question, backbones)

        of_prompts = loaded(settings.prompt_rewards) if settings.prompt_rewards else None
        return Rewards(loaded(settings.rewards), of_prompts)

    def learn(
        self,
        model: UnifiedModel,
        rewards: Rewards,
        folder: Path,
        recorded: dict[str, Any],
        until: int | None = None,
    ) -> None:
        """Train a prepared model to step ``until`` of the run in ``folder``, by default to its
        end."""
        run, images, prompts = self.settings.train, self.images(), self.prompt_source()
        source: Any = JointSource(images, prompts) if images and prompts else images or prompts
        reward, of_prompts = rewards
        world_pairs = self.world.pairs(run.seed) if self.world else None
        beside = Auxiliary(world_pairs, self.questions(), self.anchor_texts())
        train(model, reward, source, run, folder, recorded, until, of_prompts, beside)

    def images(self) -> ImageSource | None:
        """What is captioned, if captions are learnt or painted."""
        settings = self.settings
        if settings.prompts is not None and not settings.is_joint:
            return None
        return image_source(
            settings.data, settings.train.decoding, settings.train.seed, self.endless
        )

    def questions(self) -> QuestionSource | None:
        """What is asked beside captioning: about the user's images whatever can be asked of any,
        about the world's what can be asked of them."""
        settings = self.settings
        if not settings.data and self.world:
            return self.world.questions(settings.train.seed)
        images = self.images()
        return GenericQuestions(images) if images else None

    def prompt_source(self) -> PromptSource | None:
        """What is painted, where that are not captions.

        Raises:
            ValueError: when there are no such prompts.
        """
        settings = self.settings
        if settings.prompts is None:
            return None
        return self._texts("prompts", settings.prompts, settings.exhaustive_share)

    def anchor_texts(self) -> PromptSource | None:
        """What goes on telling the decoder what it told, if that is asked for.

        Raises:
            ValueError: when there are no such texts.
        """
        settings = self.settings
        if settings.train.text_anchor_coef == 0:
            return None
        name = settings.anchor_texts or WORLD
        return self._texts("anchor-texts", name, ANCHORED_EXHAUSTIVE_SHARE)

    def _texts(self, option: str, name: str, exhaustive_share: float) -> PromptSource:
        """Of a file, or the world's."""
        seed = self.settings.train.seed
        if name != WORLD:
            if not Path(name).exists():
                raise ValueError(
                    f"{option}: expected a file of prompts or {WORLD}, there is no {name}"
                )
            return FilePrompts(Path(name), seed, option)
        if self.world is None:
            raise ValueError(
                f"{option}: expected a file, got {WORLD}, whose prompts are for the tiny models"
            )
        return self.world.prompts(seed, exhaustive_share)


def record(settings: UnifiedGRPOSettings, source: str) -> dict[str, Any]:
    """What a run notes beside its ``TrainConfig``: it is resumed under the same alone."""
    values = {name: value for name, value in asdict(settings).items() if name != "train"}
    if settings.prompts is None:  # as runs that were begun before there were prompts
        del values["prompts"], values["exhaustive_share"]
    if settings.train.text_anchor_coef == 0:
        del values["anchor_texts"]
    if not settings.prompt_rewards:
        del values["prompt_rewards"]
    return {"model": source, **values}


def prepare_policy(model: UnifiedModel, settings: UnifiedGRPOSettings) -> None:
    """Choose what learns, by the weights of the two halves: vision tower and codec never do. Where
    painting learns, the model paints with that guidance from now on."""
    if settings.text_encoder is not None:
        if not hasattr(model, "text_encoder"):
            raise ValueError(
                "--text-encoder: expected a model that paints by diffusion, got "
                f"{type(model).__name__}, whose captions need none; leave it out"
            )
        model.text_encoder = settings.text_encoder  # type: ignore[attr-defined]
    run = settings.train
    decoding = run.decoding_at(0) if run.image_weight else None
    model.begin_training(settings.lora_rank, captions=run.caption_weight > 0, decoding=decoding)
    painter = model.decoder if isinstance(model.decoder, Policy) else None
    if decoding is not None and painter and painter.named_trainable_parameters():
        model.decoding = replace(model.decoding, guidance_scale=decoding.guidance_scale)


def load_reward(
    weights: RewardWeights,
    source: str | None,
    model: UnifiedModel,
    instruction: str,
    loaded: Mapping[str, Backbone] | None = None,
) -> WeightedSum:
    """The rewards with the backbones that they need, where the model is.

    source: of the backbones that are not ``loaded``. instruction: what the model is asked where it
    judges itself.
    """
    device, loaded = model.encoder.device, loaded or {}
    backbones = {
        name: loaded.get(name) or load_backbone(name, source, device=device)
        for name in backbones_of(weights)
    }
    return build_reward(weights, backbones, model.encoder, instruction)


def check_images(data: tuple[str, ...], endless: Endless | None) -> None:
    """There is something to learn from."""
    if data:
        list_images(data)
    elif endless is None:
        raise ValueError(
            "expected images to learn from: give --data FOLDER (the world's scenes are for the "
            "tiny models)"
        )


def image_source(
    data: tuple[str, ...], decoding: DecodeSettings, seed: int, endless: Endless | None = None
) -> ImageSource:
    """The user's files at the size that is painted, or images without files."""
    if not data:
        assert endless is not None, "check_images"
        return endless(seed)
    return FolderImages(data, (decoding.height, decoding.width), seed)


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
