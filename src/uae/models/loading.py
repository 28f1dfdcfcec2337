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
from uae.utils.device import default_device
from uae.utils.importing import import_named
from uae.utils.suggest import did_you_mean

ASSETS = Path(__file__).parent.parent / "assets"
SHIPPED = {"tiny": ASSETS / "umm1", "tiny-ar": ASSETS / "umm2"}
SMALL_BYTES = 400_000_000  # of weights


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
    return default_device() if num_parameters > 100_000_000 else "cpu"


def published_dtype(source: str) -> torch.dtype:
    """bf16 for real models, as they are published; fp32 for the tiny ones, whose numbers are in fp32."""
    folder = SHIPPED.get(source, Path(source))
    is_small = folder.is_dir() and sum(file.stat().st_size for file in folder.rglob("*.safetensors")) < SMALL_BYTES
    return torch.float32 if is_small else torch.bfloat16


def _load(source: str, dtype: torch.dtype) -> Any:
    folder = SHIPPED.get(source, Path(source))
    if "+" in source and not folder.exists():
        return _join(*source.split("+", 1), dtype=dtype)
    if _paper_layout().is_paper_layout(folder):
        return _paper_layout().load_paper_layout(folder, dtype)
    if (folder / "uae.json").is_file():
        return _family(json.loads((folder / "uae.json").read_text())["family"]).from_pretrained(folder, dtype)
    kind, problem = _model_type(source)
    if kind == "janus":
        return _family("autoregressive").from_pretrained(source, dtype)
    if kind == "multi_modality":
        problem = "that is Janus-Pro's original layout: take deepseek-community/Janus-Pro-1B or -7B"
    raise ValueError(
        f"expected a model ({', '.join(SHIPPED)}), a folder with uae.json, a Janus-Pro checkpoint, or ENCODER+DECODER "
        "such as Qwen/Qwen2.5-VL-3B-Instruct+stabilityai/stable-diffusion-3.5-large; got "
        f"{source!r}{did_you_mean(source, SHIPPED)}{f' ({problem})' if problem else ''}"
    )


def _family(name: str) -> Any:
    """The class of a family, ours or a user's by MODULE:CLASS; a folder brings no code of its own."""
    families: dict[str, Callable[[], Any]] = {"llm_diffusion": _llm_diffusion, "autoregressive": _janus}
    if ":" in name:
        return import_named(name, "model family")
    if name not in families:
        raise ValueError(f"unknown model family {name!r}: expected one of {', '.join(families)}, or MODULE:CLASS")
    return families[name]()


def _llm_diffusion() -> Any:
    from uae.models.llm_diffusion import LLMDiffusion

    return LLMDiffusion


def _janus() -> Any:
    from uae.models.janus import Janus

    return Janus


def _model_type(source: str) -> tuple[str | None, str]:
    """What a stock checkpoint's configuration says it is, or None and why there is none to be read."""
    from transformers import PreTrainedConfig

    try:
        return PreTrainedConfig.get_config_dict(source)[0].get("model_type"), ""
    except OSError as error:
        return None, str(error).partition("\n")[0]


def _paper_layout() -> Any:
    from uae.models import paper_layout

    return paper_layout


def _join(encoder: str, decoder: str, dtype: torch.dtype) -> Any:
    """Stock checkpoints put together; their projector starts untrained unless the decoder brings one."""
    from uae.models import sd3_files
    from uae.models.llm_diffusion import LLMDiffusion
    from uae.models.qwen_vl import QwenVL
    from uae.models.sd3 import SD3Decoder

    sd3_files.fetch_decoder(decoder, needs_projector=False)  # gated, so before the other is loaded
    qwen = QwenVL.from_pretrained(encoder, dtype)
    width = qwen.model.config.text_config.hidden_size
    return LLMDiffusion(qwen, SD3Decoder.from_pretrained(decoder, llm_width=width, dtype=dtype).eval())
