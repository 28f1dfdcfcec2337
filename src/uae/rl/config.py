"""The settings of one run."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal, get_args

from uae.config import CaptionSettings, DecodeSettings, VLLMSettings
from uae.diffusion.forward import AWM, NFT
from uae.rl.losses import Objective
from uae.utils.optim import Schedule
from uae.utils.ranges import ABOVE_0, AT_LEAST_0, AT_LEAST_1, BELOW_1, check_ranges, refuse_if

DecoderUpdate = Literal["policy_gradient", "nft", "awm"]

COUNTS = (
    "num_steps",
    "images_per_step",
    "pairs_per_step",
    "questions_per_step",
    "texts_per_step",
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
WEIGHTS = (
    "caption_weight",
    "image_weight",
    "image_kl_coef",
    "pull_coef",
    "matching_coef",
    "anchor_coef",
    "text_anchor_coef",
    "warmup_steps",
    "weight_decay",
)
RANGES = {
    **dict.fromkeys(COUNTS, AT_LEAST_1),
    **dict.fromkeys(WEIGHTS, AT_LEAST_0),
    **dict.fromkeys(("learning_rate", "decoder_learning_rate", "max_grad_norm"), ABOVE_0),
    **dict.fromkeys(("ema_decay", "old_decay_rate", "old_decay_max"), BELOW_1),
}


@dataclass(frozen=True)
class TrainConfig:
    """One run: the encoder learns, and the decoder with it where its actions have probabilities."""

    num_steps: int = 80
    """Rollouts, and as many optimiser updates times ``num_updates``."""
    images_per_step: int = 8
    """P; where prompts are given, as many of these."""
    group_size: int = 8
    """G captions per image, compared with each other."""
    reconstructions_per_caption: int = 1
    """K, of a prompt's pictures too; a caption's reward is their mean."""
    captioning: CaptionSettings = field(default_factory=CaptionSettings)
    """How captions are sampled."""
    caption_sampler: Literal["builtin", "vllm"] = "builtin"
    """What samples captions: the model's own class, or `vllm`, which gets the weights before each
    rollout (Qwen2.5-VL; `pip install 'unified-autoencoder[vllm]'`)."""
    vllm: VLLMSettings = field(default_factory=VLLMSettings)
    """Of that engine."""
    shard: Literal["nothing", "learning", "all"] = "nothing"
    """What several processes keep a part each of, block by block (FSDP2), and gather for each phase
    of a step: the half that learns, with its moments; or also the one that is frozen."""
    instructions: tuple[str, ...] = ()
    """If given, cycled one per step in place of `captioning.instruction`: painting is then learnt
    from captions of any length."""
    decoding: DecodeSettings = field(default_factory=DecodeSettings)
    """How they are painted for the reward."""
    window_interval: int | None = None
    """Steps after which the window of random steps moves on by its size, from where it is set to
    the last of the steps that can be random, and again (MixGRPO); by default it stays."""
    objective: Objective = field(default_factory=Objective)
    """What is maximised by log-probabilities; `nft` and `awm` have settings of their own."""
    caption_weight: float = 1.0
    """Of the caption tokens' loss; 0 trains the painting half alone."""
    image_weight: float = 1.0
    """Of painting's loss; 0 trains the captioning half alone."""
    image_kl_coef: float | None = None
    """β of image tokens or random steps; by default the objective's."""
    decoder_update: DecoderUpdate = "policy_gradient"
    """How a diffusion decoder learns: by the probabilities of random steps (Flow-GRPO), or, from
    pictures of the `ode`, on the forward process: DiffusionNFT or advantage-weighted matching."""
    nft: NFT = field(default_factory=NFT)
    """Of DiffusionNFT; it paints with the old weights."""
    awm: AWM = field(default_factory=AWM)
    """Of advantage-weighted matching."""
    pull_coef: float = 0.0
    """Of the squared distance of the velocity to that of the old weights, in each random step of
    `policy_gradient`; 0.1 lets the learning rate rise."""
    matching_coef: float = 0.0
    """Of the loss of pretraining on pictures with exhaustive captions, beside what painting learns
    from its own: flow matching, or the cross-entropy of image tokens (UMM-2). What was learnt
    before is then not forgotten. 0 shows it none."""
    pairs_per_step: int = 32
    """Such pairs."""
    anchor_coef: float = 0.0
    """Of the KL of the model's answers to questions about images to those it gave before training,
    beside what captioning learns from rewards, so that it goes on answering. 1 holds them; 0 asks
    none, and none are asked where nothing that answers learns."""
    questions_per_step: int = 16
    """Such questions."""
    text_anchor_coef: float = 0.0
    """Of the squared distance of what texts tell a diffusion decoder from what they told it before
    training, as a share of their square, where the language model that learns to caption encodes
    them too; so that prompts are painted as before. 0 holds none."""
    texts_per_step: int = 16
    """Such texts."""
    old_decay_rate: float = 0.001
    """The old weights are a fast average of a diffusion decoder's, kept where they are used: after
    rollout i, from 1, its decay is i times this rate."""
    old_decay_max: float | None = None
    """The most that decay is; by default as published, 0.5 for `nft` and 0.3 else."""
    learning_rate: float = 1e-6
    """Of AdamW, after warm-up."""
    lr_scheduler_type: Literal["constant", "linear"] = "constant"
    """What follows warm-up: the same rate, or one that falls to 0 at the last step."""
    decoder_learning_rate: float | None = None
    """The same of painting; by default `learning_rate`. Where the weights that paint also caption
    (UMM-2), image tokens then have moments of AdamW of their own."""
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
    compile_decoder: bool = False
    """Run a diffusion decoder by compiled code (`torch.compile`): on a CPU a pass takes half to two
    thirds of the time, and the first step of a run minutes more. Last bits differ."""
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

    @property
    def uses_old_weights(self) -> bool:
        """Whether a fast average of the decoder's weights is kept."""
        return self.learns_forward or self.pull_coef > 0

    @property
    def largest_old_decay(self) -> float:
        """As it is set, or published."""
        published = 0.5 if self.decoder_update == "nft" else 0.3
        return published if self.old_decay_max is None else self.old_decay_max

    def decoding_at(self, step: int) -> DecodeSettings:
        """How captions are painted in this step."""
        if self.learns_forward:
            return replace(self.decoding, keeps_latents=True)
        if self.window_interval is None:
            return self.decoding
        assert self.decoding.window_size is not None
        first, last = self.decoding.window_start, self.decoding.num_random_steps
        starts = range(first, last, self.decoding.window_size)
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
        self._check_decoder_update()
        learns_captions = self.caption_weight > 0
        refuse_if(
            (
                not learns_captions and self.image_weight == 0,
                "caption-weight and image-weight: nothing is learnt where both are 0; raise one",
            ),
            (
                self.compile_decoder and self.shard != "nothing",
                f"compile-decoder: expected shard nothing beside it, got {self.shard}",
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

    @property
    def learns_forward(self) -> bool:
        """Whether the decoder learns on the forward process, from pictures of the ode."""
        return self.decoder_update != "policy_gradient"

    def _check_decoder_update(self) -> None:
        """What is given of painting can be meant together."""
        choices = get_args(DecoderUpdate)
        refuse_if(
            (
                self.decoder_update not in choices,
                f"decoder-update: expected one of {', '.join(choices)}, got {self.decoder_update}",
            ),
            (
                (self.uses_old_weights or self.matching_coef > 0) and self.image_weight == 0,
                (
                    "image-weight: expected above 0 where decoder-update, pull-coef or "
                    "matching-coef is given, got 0"
                ),
            ),
            (
                self.decoder_learning_rate is not None and self.image_weight == 0,
                "decoder-learning-rate: expected none where image-weight is 0, as nothing paints",
            ),
        )
        if self.learns_forward:
            self._check_forward_process()
        if self.decoding.sampler == "ode":
            self._check_without_random_steps()

    def _check_forward_process(self) -> None:
        """Of `nft` and `awm`."""
        name, decoding = self.decoder_update, self.decoding
        refuse_if(
            (
                decoding.sampler != "ode",
                (
                    f"decoding.sampler: expected ode with decoder-update {name}, which needs no "
                    f"random steps, got {decoding.sampler}"
                ),
            ),
            (
                name == "nft" and (self.nft.num_times or 1) > decoding.num_steps,
                (
                    f"nft.num-times: expected at most decoding.num-steps, {decoding.num_steps}, "
                    f"got {self.nft.num_times}"
                ),
            ),
            (
                decoding.guidance_scale != 1,
                (
                    f"decoding.guidance-scale: expected 1 with decoder-update {name}, which learns "
                    f"the plain velocity, got {decoding.guidance_scale}"
                ),
            ),
            (
                self.pull_coef > 0 or self.image_kl_coef is not None,
                (
                    "pull-coef and image-kl-coef are of policy_gradient; with decoder-update "
                    f"{name} set {name}.reference-coef"
                    + (" and awm.pull-coef" if name == "awm" else "")
                ),
            ),
        )

    def _check_without_random_steps(self) -> None:
        """Of pictures of the ode."""
        refuse_if(
            (
                self.decoding.shared_noise,
                (
                    "decoding.shared-noise: expected decoding.sampler sde or cps, whose pictures "
                    "then differ by what was drawn, got ode"
                ),
            ),
            (
                self.pull_coef > 0,
                (
                    "pull-coef: expected decoding.sampler sde or cps, whose random steps are "
                    "pulled, got ode"
                ),
            ),
        )
