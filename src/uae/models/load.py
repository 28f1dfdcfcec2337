"""Models by name: the shipped tiny ones, a folder that uae wrote, the paper's released folder, or
stock checkpoints.

Stock checkpoints are one Janus-Pro, or an encoder and a decoder, by hub id or folder.

One rule for every command, and for every way in which a model is given:

**dtype**  Each part is computed with in the dtype that it is stored in. But all of a model is fp32
           if it is small, or if its weights learn fully (``load_to_train`` at rank 0), as bf16
           loses small updates. What learns beside weights that rest, LoRA and projector, is made
           fp32 by the stage, stored so, and hence loaded so.
**device** A large model goes to the GPU if there is one.

Who asks for a dtype, as ``uae export`` does, has all weights in it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from uae.models.base import UnifiedModel
from uae.models.origin import (
    ENCODER,
    SHIPPED,
    WEIGHT_PATTERNS,
    WHOLE,
    Origin,
    adapters_in,
    find_base,
)
from uae.utils.device import default_device
from uae.utils.hub import fetch
from uae.utils.importing import import_named
from uae.utils.quiet import quiet
from uae.utils.suggest import did_you_mean
from uae.utils.weights import AGAIN, CONFIG, DESCRIPTION, ModelFileError, read_json

SMALL_BYTES = 400_000_000  # of weights
# what folders say that were written before
FORMER_FAMILIES = {"llm_diffusion": "umm1", "autoregressive": "umm2"}
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(@[\w./-]+)?")


@quiet()
def load_model(source: str, dtype: torch.dtype | None = None) -> UnifiedModel:
    """``tiny``, ``tiny-ar``, a folder with ``uae.json`` or the paper's parts, or, by hub id or
    folder, a Janus-Pro or ``ENCODER+DECODER``; of a hub id a revision may be named,
    ``REPOSITORY@REVISION``.

    dtype: of all weights; by default as the rule says. What the model offers, with shapes and
    ranges, is said by ``models/base.py``.

    Raises:
        ValueError: when there is no such model; the message says what is known.

    >>> import uae
    >>> model = uae.load_model("tiny")
    >>> model.family, (model.decoding.height, model.decoding.width)
    ('umm1', (48, 48))
    """
    model = _load(source, dtype)
    return model.to(device_for(sum(p.numel() for p in model.parameters())))


def load_to_train(source: str, lora_rank: int) -> UnifiedModel:
    """As ``load_model``, for a stage: fp32 where weights learn fully (``lora_rank`` 0); those that
    only carry adapters stay as they are stored."""
    return load_model(source, None if lora_rank else torch.float32)


@quiet()
def load_base(source: str, dtype: torch.dtype | None = None) -> UnifiedModel | None:
    """What a model of ours was trained from; None if its folder names no base."""
    folder = SHIPPED.get(source, Path(source).expanduser())
    described = _described(folder)
    return _base(folder, described, dtype) if described.get("base") else None


def device_for(num_parameters: int) -> str:
    """Large models are of no use on a CPU where there is a GPU; the tiny one is as fast."""
    return default_device() if num_parameters > 100_000_000 else "cpu"


def _load(source: str, dtype: torch.dtype | None) -> Any:
    from uae.models import paper_layout

    folder = SHIPPED.get(source, Path(source).expanduser())
    if (pair := split_pair(source)) is not None:
        return _join(*pair, dtype=dtype)
    described = _described(folder)
    if missing := set(described.get("adapters", ())) - set(adapters_in(folder)):
        raise ModelFileError(
            f"{folder}: expected the adapters that learnt, {', '.join(sorted(missing))} is gone; "
            f"{AGAIN}"
        )
    if described.get("weights", WHOLE) != WHOLE:
        return _on_its_base(source, folder, described, dtype)
    if paper_layout.is_paper_layout(folder):
        return _from(source, folder, paper_layout.load_paper_layout, dtype)
    if described:
        return _from(source, folder, _family(described["family"]).from_pretrained, dtype)
    kind, problem = _model_type(source)
    if kind == "janus":
        return _from(source, fetch(source, "model"), _family("umm2").from_pretrained, dtype)
    if kind == "multi_modality":
        problem = "that is Janus-Pro's original layout: take deepseek-community/Janus-Pro-1B or -7B"
    raise ValueError(
        f"expected a model ({', '.join(SHIPPED)}), a folder with uae.json, a Janus-Pro "
        "checkpoint, or ENCODER+DECODER such as "
        "Qwen/Qwen2.5-VL-3B-Instruct+stabilityai/stable-diffusion-3.5-large; got "
        f"{source!r}{did_you_mean(source, SHIPPED)}{f' ({problem})' if problem else ''}"
    )


def split_pair(source: str) -> tuple[str, str] | None:
    """The two sides of ENCODER+DECODER, each a folder or a hub id, where names of folders may hold
    a plus, too.

    None of any other source; a folder by the whole name comes first.
    """
    if "+" not in source or Path(source).expanduser().exists():
        return None
    parts = source.split("+")
    pairs = [("+".join(parts[:i]), "+".join(parts[i:])) for i in range(1, len(parts))]
    fitting = [pair for pair in pairs if all(_may_be_checkpoint(side) for side in pair)]
    if len(fitting or pairs) == 1:
        # if it does not fit, whoever loads a side says what is wrong with it
        return (fitting or pairs)[0]
    readings = " or ".join(" and ".join(map(repr, pair)) for pair in fitting or pairs)
    raise ValueError(
        f"expected ENCODER+DECODER with one reading as two folders or hub ids, got {source!r}, "
        f"which {'may be' if fitting else 'is not'} {readings}; rename one, or check the paths"
    )


def _may_be_checkpoint(side: str) -> bool:
    return Path(side).expanduser().is_dir() or HUB_ID.fullmatch(side) is not None


def _described(folder: Path) -> dict[str, Any]:
    """``uae.json``, if there is one."""
    file = folder / DESCRIPTION
    if not file.exists():
        return {}
    described = read_json(file)
    if not isinstance(described.get("family"), str):
        raise ModelFileError(
            f"{file}: expected the model's `family`, got {described.get('family')!r}; {AGAIN}"
        )
    return described


def _from(source: str, folder: Path, load: Callable[..., Any], dtype: torch.dtype | None) -> Any:
    """One checkpoint's model, which remembers where it is from."""
    model = load(folder, dtype or _dtype_for(folder))
    model.origin = (Origin(source, folder),)
    return model


def _on_its_base(
    source: str, folder: Path, described: dict[str, Any], dtype: torch.dtype | None
) -> Any:
    """Adapters, and what little else learnt beside them, on the model that they were trained on; or
    an encoder in the place of its base's, which is then a model of its own."""
    model = _base(folder, described, dtype)
    dtype = dtype or _dtype_for(*(base.folder for base in model.origin))
    if described["weights"] == ENCODER:
        model.take_encoder(folder, dtype)
        model.origin = (Origin(source, folder),)
    else:
        model.put_on(folder, dtype)
    return model


def _base(folder: Path, described: dict[str, Any], dtype: torch.dtype | None) -> Any:
    sources = find_base(described, folder)
    return _load(sources[0], dtype) if len(sources) == 1 else _join(*sources, dtype=dtype)


def _dtype_for(*folders: Path) -> torch.dtype | None:
    """fp32 for a small model; None, as each part is stored, for a real one."""
    files = {file for folder in folders for kind in WEIGHT_PATTERNS for file in folder.rglob(kind)}
    num_bytes = sum(file.stat().st_size for file in files)
    return torch.float32 if num_bytes < SMALL_BYTES else None


def _family(name: str) -> Any:
    """The class of a family, ours or a user's by MODULE:CLASS; a folder brings no code of its
    own."""
    from uae.models.janus import Janus
    from uae.models.llm_diffusion import LLMDiffusion

    if ":" in name:
        return import_named(name, "model family")
    families: dict[str, Any] = {each.family: each for each in (LLMDiffusion, Janus)}
    name = FORMER_FAMILIES.get(name, name)
    if name not in families:
        raise ValueError(
            f"unknown model family {name!r}: expected one of {', '.join(families)}, or MODULE:CLASS"
        )
    return families[name]


def _model_type(source: str) -> tuple[str | None, str]:
    """What a stock checkpoint's configuration says it is, or None and why there is none to be
    read."""
    from transformers import PreTrainedConfig

    folder, (repository, _, revision) = Path(source).expanduser(), source.partition("@")
    if folder.is_dir():
        kind = read_json(folder / CONFIG).get("model_type") if (folder / CONFIG).exists() else None
        return (
            kind,
            f"its {CONFIG} is of {kind}" if kind else f"it has no {CONFIG} that says a model_type",
        )
    try:
        return PreTrainedConfig.get_config_dict(repository, revision=revision or None)[0].get(
            "model_type"
        ), ""
    except (OSError, ValueError) as error:
        return None, str(error).partition("\n")[0]


def _join(encoder: str, decoder: str, dtype: torch.dtype | None) -> Any:
    """Stock checkpoints put together; their projector starts untrained unless the decoder brings
    one."""
    from uae.models.decoders import sd3_files
    from uae.models.decoders.sd3 import SD3Decoder
    from uae.models.encoders.qwen_vl import QwenVL
    from uae.models.llm_diffusion import LLMDiffusion

    # gated, so before the other is loaded
    decoder_folder = sd3_files.fetch_decoder(decoder, needs_projector=False)
    encoder_folder = fetch(encoder, "encoder")
    dtype = dtype or _dtype_for(encoder_folder, decoder_folder)
    qwen = QwenVL.from_pretrained(encoder_folder, dtype)
    sd3 = SD3Decoder.from_pretrained(decoder_folder, llm_width=qwen.state_width, dtype=dtype)
    model = LLMDiffusion(qwen, sd3.eval())
    model.origin = Origin(encoder, encoder_folder), Origin(decoder, decoder_folder)
    return model
