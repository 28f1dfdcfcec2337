"""Models by name: the shipped tiny ones, a folder that uae wrote, the paper's released folder, or stock checkpoints.

Stock checkpoints are one Janus-Pro, or an encoder and a decoder, by hub id or folder. Large models go to the GPU if
there is one.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from uae.models.base import UnifiedModel
from uae.utils.suggest import did_you_mean

ASSETS = Path(__file__).parent.parent / "assets"
SHIPPED = {"tiny": ASSETS / "umm1", "tiny-ar": ASSETS / "umm2"}


def load_model(source: str, dtype: torch.dtype = torch.float32) -> UnifiedModel:
    """``tiny``, ``tiny-ar``, a folder with ``uae.json`` or the paper's parts, or, by hub id or folder, a Janus-Pro or
    ``ENCODER+DECODER``.

    Raises:
        ValueError: when there is no such model; the message says what is known.
    """
    model = _load(source, dtype)
    return model.to(device_for(sum(p.numel() for p in model.parameters())))


def device_for(num_parameters: int) -> str:
    """Large models are of no use on a CPU where there is a GPU; the tiny one is as fast."""
    return "cuda" if num_parameters > 100_000_000 and torch.cuda.is_available() else "cpu"


def _load(source: str, dtype: torch.dtype) -> Any:
    if "+" in source:
        return _join(*source.split("+", 1), dtype=dtype)
    folder = SHIPPED.get(source, Path(source))
    if _paper_layout().is_paper_layout(folder):
        return _paper_layout().load_paper_layout(folder, dtype)
    if not (folder / "uae.json").is_file():
        if _model_type(source) == "janus":
            return _family("autoregressive").from_pretrained(source, dtype)
        known = ", ".join(SHIPPED)
        raise ValueError(
            f"expected a model ({known}), a folder with uae.json, a Janus-Pro checkpoint, or ENCODER+DECODER such as "
            f"Qwen/Qwen2.5-VL-3B-Instruct+stabilityai/stable-diffusion-3.5-large; got {source!r}"
            f"{did_you_mean(source, SHIPPED)}"
        )
    family = json.loads((folder / "uae.json").read_text())["family"]
    return _family(family).from_pretrained(folder, dtype)


def _family(name: str) -> Any:
    families: dict[str, Callable[[], Any]] = {"llm_diffusion": _llm_diffusion, "autoregressive": _janus}
    if name not in families:
        raise ValueError(f"unknown model family {name!r}: expected one of {', '.join(families)}")
    return families[name]()


def _llm_diffusion() -> Any:
    from uae.models.llm_diffusion import LLMDiffusion

    return LLMDiffusion


def _janus() -> Any:
    from uae.models.janus import Janus

    return Janus


def _model_type(source: str) -> str | None:
    """What a stock checkpoint's configuration says it is; None where there is none to be read."""
    from transformers import PreTrainedConfig

    try:
        return PreTrainedConfig.get_config_dict(source)[0].get("model_type")
    except OSError:
        return None


def _paper_layout() -> Any:
    from uae.models import paper_layout

    return paper_layout


def _join(encoder: str, decoder: str, dtype: torch.dtype) -> Any:
    """Stock checkpoints put together; their projector starts untrained unless the decoder brings one."""
    from uae.models.llm_diffusion import LLMDiffusion
    from uae.models.qwen_vl import QwenVL
    from uae.models.sd3 import SD3Decoder

    qwen = QwenVL.from_pretrained(encoder, dtype)
    width = qwen.model.config.text_config.hidden_size
    return LLMDiffusion(qwen, SD3Decoder.from_pretrained(decoder, llm_width=width, dtype=dtype).eval())
