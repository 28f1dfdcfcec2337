"""What samples the captions of a run, by its name in ``TrainConfig.sampler``."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

from uae.models.base import Served, UnifiedModel
from uae.rl.config import TrainConfig
from uae.utils.importing import require_library


def check_sampler(model: UnifiedModel, config: TrainConfig) -> None:
    """A ValueError where this model's captions cannot be sampled so, or not on this machine."""
    if config.sampler == "builtin":
        return
    if not isinstance(model.encoder, Served):
        raise ValueError(
            "sampler: expected builtin for a model whose captions vLLM does not sample, that is "
            f"any but Qwen2.5-VL, got {config.sampler} and {type(model).__name__} ({model.family})"
        )
    require_library("vllm", "vllm")


def caption_sampler(model: UnifiedModel, config: TrainConfig) -> AbstractContextManager[None]:
    """A context in which captions are sampled as the settings say."""
    if config.sampler == "builtin":
        return nullcontext()
    assert isinstance(model.encoder, Served), "check_sampler"
    return model.encoder.sampled_by_vllm(config.vllm)
