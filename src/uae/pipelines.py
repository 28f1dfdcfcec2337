"""The method's published versions as pipelines: each is a list of stages, which hand a model on
(arXiv 2509.09666).

| version | stages                                                                             |
|---------|------------------------------------------------------------------------------------|
| v1      | long captions → cold start → generation for understanding → … for generation       |
| v3      | long captions → generation for understanding → understanding for generation        |
| v5      | Unified-GRPO as post-training: the encoder of a UMM-1; both halves of a UMM-2       |

*Generation for understanding* is RL of the encoder under a frozen decoder, *understanding for
generation* that of the decoder. Each stage takes the settings of what runs it:
``LongCaptionConfig``, ``ColdStartConfig`` or ``RunConfig``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from uae import catalog
from uae.presets import PRESETS, Half, RunConfig, learning
from uae.rl.losses import Objective
from uae.stages.cold_start import ColdStartConfig
from uae.stages.long_captions import LongCaptionConfig
from uae.world.language import INSTRUCTIONS

StageSettings = LongCaptionConfig | ColdStartConfig | RunConfig


@dataclass(frozen=True)
class Pipeline:
    """Stages by name, in order, and the model that the first starts from."""

    description: str
    model: str
    """As ``load_model`` takes it."""
    stages: dict[str, StageSettings]
    in_world: bool = False
    """Of the embedded world: data is drawn from it, and each stage's model is measured in it."""


def _preset(name: str) -> RunConfig:
    return PRESETS[name][1]


def _from(settings: RunConfig, **train) -> RunConfig:
    return replace(settings, train=replace(settings.train, **train))


def _half(settings: RunConfig, half: Half) -> RunConfig:
    return replace(settings, train=learning(settings.train, half))


# --- real checkpoints ----------------------------------------------------------------------------

_ENCODER_RL = _preset("paper")
_DECODER_RL = replace(_preset("decoder"), model=_ENCODER_RL.model)
_LONG_CAPTIONS = LongCaptionConfig(
    data=(), num_steps=20_000, batch_size=8, learning_rate=1e-4, resolution=512, lora_rank=32
)  # the paper trains all of the MM-DiT, which in fp32 with AdamW takes several GPUs
_COLD_START = ColdStartConfig(
    num_steps=1_000,
    images_per_step=4,
    captioning=_ENCODER_RL.train.captioning,
    decoding=replace(_ENCODER_RL.train.decoding, num_steps=4, guidance_scale=1.0),
    lora_rank=32,
    backbones=None,
)

# --- the embedded world --------------------------------------------------------------------------

_TINY_LONG_CAPTIONS = LongCaptionConfig(
    data=(),
    num_steps=1500,
    batch_size=32,
    learning_rate=5e-4,
    resolution=48,
    num_held_out=128,
    guidance_scale=3.0,
)
_TINY_COLD_START = ColdStartConfig(num_steps=100, images_per_step=32, learning_rate=2e-5)
_TINY_ENCODER_RL = _preset("tiny")
_TINY_PAINTING = _half(_TINY_ENCODER_RL, "images")
_NOISY = _TINY_PAINTING.train.decoding
_TINY_DECODER_RL = _from(
    _TINY_PAINTING,
    num_steps=40,
    decoding=replace(_NOISY, guidance_scale=3.0),
    objective=Objective(kl_coef=0.0),
    learning_rate=1e-4,
)
_TINY_DECODER_ALONE = replace(
    _from(
        _TINY_DECODER_RL,
        num_steps=100,
        instructions=tuple(INSTRUCTIONS[length] for length in ("brief", "default", "detailed")),
        decoding=_NOISY,
        learning_rate=1.5e-3,
    ),
    rewards={"caption_likelihood": 1.0, "clip": 0.0, "dinov2": 0.0},
    lora_rank=16,
)
_TINY_JOINT = _from(
    _TINY_ENCODER_RL,
    images_per_step=4,
    group_size=4,
    reconstructions_per_caption=4,
    decoding=_NOISY,
    image_kl_coef=0.0,
    decoder_learning_rate=1e-4,
)

_TINY_AR = _preset("tiny-ar")

_UNDERSTANDING, _GENERATION = "generation_for_understanding", "understanding_for_generation"

PIPELINES = {
    "v1": Pipeline(
        catalog.PIPELINES["v1"],
        _ENCODER_RL.model,
        {
            "long_captions": _LONG_CAPTIONS,
            "cold_start": _COLD_START,
            _UNDERSTANDING: _ENCODER_RL,
            _GENERATION: _DECODER_RL,
        },
    ),
    "v3": Pipeline(
        catalog.PIPELINES["v3"],
        _ENCODER_RL.model,
        {"long_captions": _LONG_CAPTIONS, _UNDERSTANDING: _ENCODER_RL, _GENERATION: _DECODER_RL},
    ),
    "v5": Pipeline(
        catalog.PIPELINES["v5"],
        _ENCODER_RL.model,
        {"unified_grpo": _ENCODER_RL},
    ),
    "v5-ar": Pipeline(
        catalog.PIPELINES["v5-ar"], _preset("janus").model, {"unified_grpo": _preset("janus")}
    ),
    "v1-tiny": Pipeline(
        catalog.PIPELINES["v1-tiny"],
        "tiny",
        {
            "long_captions": _TINY_LONG_CAPTIONS,
            "cold_start": _TINY_COLD_START,
            _UNDERSTANDING: _TINY_ENCODER_RL,
            _GENERATION: _TINY_DECODER_RL,
        },
        in_world=True,
    ),
    "v3-tiny": Pipeline(
        catalog.PIPELINES["v3-tiny"],
        "tiny",
        {
            "long_captions": _TINY_LONG_CAPTIONS,
            _UNDERSTANDING: _TINY_ENCODER_RL,
            _GENERATION: _TINY_DECODER_RL,
        },
        in_world=True,
    ),
    "v5-tiny": Pipeline(
        catalog.PIPELINES["v5-tiny"], "tiny", {"unified_grpo": _TINY_ENCODER_RL}, in_world=True
    ),
    "decoder-tiny": Pipeline(
        catalog.PIPELINES["decoder-tiny"],
        "tiny",
        {_GENERATION: _TINY_DECODER_ALONE},
        in_world=True,
    ),
    "joint-tiny": Pipeline(
        catalog.PIPELINES["joint-tiny"],
        "tiny",
        {"joint": _TINY_JOINT},
        in_world=True,
    ),
    "v5-tiny-ar": Pipeline(
        catalog.PIPELINES["v5-tiny-ar"], "tiny-ar", {"unified_grpo": _TINY_AR}, in_world=True
    ),
    "v3-tiny-ar": Pipeline(
        catalog.PIPELINES["v3-tiny-ar"],
        "tiny-ar",
        {
            _UNDERSTANDING: _half(_TINY_AR, "captions"),
            _GENERATION: _from(_half(_TINY_AR, "images"), learning_rate=5e-5),
        },
        in_world=True,
    ),
}
