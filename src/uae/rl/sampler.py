"""What samples the captions of a run, by its name in ``TrainConfig.caption_sampler``."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

from uae.config import VLLMSettings
from uae.data.vllm_server import check_server
from uae.models.base import Served, UnifiedModel
from uae.rl.config import TrainConfig
from uae.utils.importing import require_library


def check_sampler(model: UnifiedModel, config: TrainConfig) -> None:
    """A ValueError where this model's captions cannot be sampled so."""
    if config.caption_sampler == "builtin":
        return
    if not isinstance(model.encoder, Served):
        raise ValueError(
            "caption-sampler: expected builtin for a model whose captions vLLM does not sample, "
            f"that is any but Qwen2.5-VL, got {config.caption_sampler} and "
            f"{type(model).__name__} ({model.family})"
        )


def check_vllm(settings: VLLMSettings) -> None:
    """A ValueError where there is no engine; before a model is loaded."""
    if settings.server:
        check_server(settings.server)
    else:
        require_library("vllm", "vllm")


def sampler_of(model: UnifiedModel, config: TrainConfig) -> AbstractContextManager[None]:
    """A context in which captions are sampled as the settings say, by all processes together.

    Raises:
        ValueError: as ``check_sampler``.
    """
    check_sampler(model, config)
    if config.caption_sampler == "builtin":
        return nullcontext()
    assert isinstance(model.encoder, Served), "checked"
    return model.encoder.sampled_by_vllm(config.vllm)
