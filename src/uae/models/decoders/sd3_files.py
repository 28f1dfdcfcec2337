"""A decoder's files: where they come from, what is missing, and the small ones beside the models.

Two layouts load alike: what ``SD3Decoder.save_pretrained`` writes, and diffusers' layout, in which
``stabilityai/stable-diffusion-3.5-large`` (and -medium) comes. The latter has no projector, and in
the place of ``pooled.safetensors`` the two CLIP text encoders, which are read once to embed the
empty prompt. T5 is never read.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor

from uae.utils.hub import fetch
from uae.utils.weights import (
    CONFIG,
    DIFFUSION_STEM,
    SCHEDULER_CONFIG,
    STEM,
    TOKENIZER_CONFIG,
    ModelFileError,
    load_pretrained,
    load_tokenizer,
    read_json,
    read_tensors,
    variants_of,
    weight_files,
)

POOLED_FILE, CONFIG_FILE = "pooled.safetensors", "decoder.json"
CLIP_ENCODERS = (("tokenizer", "text_encoder"), ("tokenizer_2", "text_encoder_2"))
_OWN_FILES = (POOLED_FILE, CONFIG_FILE)
_MODELS = ("transformer", "vae", "projector", "text_encoder", "text_encoder_2")


def fetch_decoder(source: Path | str, *, needs_projector: bool) -> Path:
    """The checkpoint's folder on this machine, complete; downloaded if ``source`` is a hub id.

    Raises:
        ValueError: naming all that is missing, or why it can't be had; no weights are read.
    """
    weights = [f"{name}/{pattern}" for name in _MODELS for pattern in ("*.json", "*.safetensors")]
    folder = fetch(
        str(source),
        "decoder",
        [*weights, "scheduler/*", "tokenizer/*", "tokenizer_2/*", *_OWN_FILES],
    )
    missing = missing_parts(folder, needs_projector=needs_projector)
    if missing:
        raise ValueError(
            f"decoder {source}: expected a Stable Diffusion 3 checkpoint in diffusers' layout, "
            f"missing {'; '.join(missing)}"
        )
    return folder


def missing_parts(folder: Path, *, needs_projector: bool) -> list[str]:
    """Each part that is not there in full, in words."""
    missing = [m for part in ("transformer", "vae") for m in missing_files(folder / part)]
    if not (folder / "scheduler" / SCHEDULER_CONFIG).is_file():
        missing.append(f"scheduler/{SCHEDULER_CONFIG}")
    if (folder / "projector").is_dir():
        missing += missing_files(folder / "projector")
    elif needs_projector:
        missing.append(
            "projector/ (a stock checkpoint has none: give llm_width to start a new one)"
        )
    if not (folder / POOLED_FILE).exists():
        clip = [m for _, encoder in CLIP_ENCODERS for m in missing_files(folder / encoder)]
        needed = (f"{name}/{TOKENIZER_CONFIG}" for name, _ in CLIP_ENCODERS)
        clip += [file for file in needed if not (folder / file).is_file()]
        if clip:
            missing.append(f"{POOLED_FILE}, or in its place {', '.join(clip)}")
    return missing


def missing_files(folder: Path) -> list[str]:
    """Configuration and weight files of one model that are not there, shards named by its index
    included."""
    stem = STEM if folder.name.startswith("text_encoder") else DIFFUSION_STEM
    needed = [folder / CONFIG, *weight_files(folder, stem)]
    return [
        f"{folder.name}/{file.name}{variants_of(file)}" for file in needed if not file.is_file()
    ]


# --- the pooled embedding ------------------------------------------------------------------------


def save_pooled(folder: Path, pooled: Float[Tensor, " pooled_dim"]) -> None:
    save_file({"pooled": pooled.contiguous()}, folder / POOLED_FILE)


def load_pooled(folder: Path) -> Float[Tensor, " pooled_dim"]:
    """The saved one, or the empty prompt's, embedded by the checkpoint's own CLIP text encoders."""
    file = folder / POOLED_FILE
    if not file.exists():
        return embed_empty_prompt(folder)
    pooled = read_tensors(file).get("pooled")
    if pooled is None or pooled.ndim != 1:
        raise ModelFileError(
            f"{file}: expected one vector named pooled, as SD3Decoder.save_pretrained writes it"
        )
    return pooled


@torch.no_grad()
def embed_empty_prompt(folder: Path) -> Float[Tensor, " pooled_dim"]:
    """CLIP-L's and CLIP-bigG's projected embedding of "", one after the other, as
    ``StableDiffusion3Pipeline`` has it.

    Both texts are padded to the first tokenizer's length.
    """
    from transformers import CLIPTextModelWithProjection, CLIPTokenizer

    tokenizers = [load_tokenizer(CLIPTokenizer, folder / name) for name, _ in CLIP_ENCODERS]
    length = tokenizers[0].model_max_length
    pooled = []
    for tokenizer, (_, name) in zip(tokenizers, CLIP_ENCODERS, strict=True):
        encoder = load_pretrained(CLIPTextModelWithProjection, folder / name, torch.float32)
        tokens = tokenizer(
            "", padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        )
        pooled.append(encoder(tokens.input_ids).text_embeds[0])
    return torch.cat(pooled)


# --- the text length -----------------------------------------------------------------------------


def save_text_length(folder: Path, text_length: int | None) -> None:
    (folder / CONFIG_FILE).write_text(json.dumps({"text_length": text_length}, indent=2) + "\n")


def load_text_length(folder: Path) -> int | None:
    """None (no padding) for checkpoints that don't say, as stock SD3."""
    file = folder / CONFIG_FILE
    if not file.exists():
        return None
    length = read_json(file).get("text_length", "nothing")
    if length is not None and not (isinstance(length, int) and length > 0):
        raise ModelFileError(
            f"{file}: expected text_length, a number of tokens or null, got {length!r}"
        )
    return length
