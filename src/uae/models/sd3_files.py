"""A decoder's files: where they come from, what is missing, and the small ones beside the models.

Two layouts load alike: what ``SD3Decoder.save_pretrained`` writes, and diffusers' layout, in which
``stabilityai/stable-diffusion-3.5-large`` (and -medium) comes. The latter has no projector, and in the place of
``pooled.safetensors`` the two CLIP text encoders, which are read once to embed the empty prompt. T5 is never read.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor

POOLED_FILE, CONFIG_FILE = "pooled.safetensors", "decoder.json"
CLIP_ENCODERS = (("tokenizer", "text_encoder"), ("tokenizer_2", "text_encoder_2"))
_MODELS = ("transformer", "vae", "projector", "text_encoder", "text_encoder_2")


def fetch_decoder(source: Path | str, *, needs_projector: bool) -> Path:
    """The checkpoint's folder on this machine, complete; downloaded if ``source`` is a hub id.

    Raises:
        ValueError: naming all that is missing, or why it can't be had; no weights are read.
    """
    folder = Path(source).expanduser()
    if not folder.is_dir():
        folder = _download(str(source))
    missing = missing_parts(folder, needs_projector=needs_projector)
    if missing:
        raise ValueError(f"decoder {source}: expected a Stable Diffusion 3 checkpoint in diffusers' layout, "
                         f"missing {'; '.join(missing)}")  # fmt: skip
    return folder


def missing_parts(folder: Path, *, needs_projector: bool) -> list[str]:
    """Each part that is not there in full, in words."""
    missing = [m for part in ("transformer", "vae") for m in missing_files(folder / part)]
    if not (folder / "scheduler" / "scheduler_config.json").is_file():
        missing.append("scheduler/scheduler_config.json")
    if (folder / "projector").is_dir():
        missing += missing_files(folder / "projector")
    elif needs_projector:
        missing.append("projector/ (a stock checkpoint has none: give llm_width to start a new one)")
    if not (folder / POOLED_FILE).is_file():
        clip = [m for _, encoder in CLIP_ENCODERS for m in missing_files(folder / encoder)]
        clip += [f"{name}/" for name, _ in CLIP_ENCODERS if not (folder / name).is_dir()]
        if clip:
            missing.append(f"{POOLED_FILE}, or in its place {', '.join(clip)}")
    return missing


def missing_files(folder: Path) -> list[str]:
    """Configuration and weight files of one model that are not there, shards named by its index included."""
    missing = [] if (folder / "config.json").is_file() else [f"{folder.name}/config.json"]
    stem = "model" if folder.name.startswith("text_encoder") else "diffusion_pytorch_model"
    index = folder / f"{stem}.safetensors.index.json"
    if index.is_file():
        shards = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    else:
        shards = [f"{stem}.safetensors"]
    return missing + [f"{folder.name}/{shard}" for shard in shards if not (folder / shard).is_file()]


def _download(repo: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError

    weights = [f"{name}/{pattern}" for name in _MODELS for pattern in ("*.json", "*.safetensors")]
    files = [*weights, "scheduler/*", "tokenizer/*", "tokenizer_2/*", POOLED_FILE, CONFIG_FILE]
    try:
        return Path(snapshot_download(repo, allow_patterns=files, ignore_patterns="*.fp16*"))
    except GatedRepoError as error:
        raise ValueError(f"decoder {repo} is gated and this account has no access; accept its terms at "
                         f"https://huggingface.co/{repo}, then `hf auth login` or set HF_TOKEN") from error  # fmt: skip
    except (HFValidationError, RepositoryNotFoundError) as error:
        raise ValueError(f"decoder {repo}: expected a folder or a hub id, but there is neither; check the name, "
                         "or run `hf auth login` if it is private") from error  # fmt: skip
    except Exception as error:  # of several libraries; every one means that the weights can't be had
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"decoder {repo} is neither a folder here nor in the local cache, and the hub can't be "
                         f"reached ({reason}); check the connection or give a folder") from error  # fmt: skip


# --- the pooled embedding -------------------------------------------------------------------------------------------


def save_pooled(folder: Path, pooled: Float[Tensor, " pooled_dim"]) -> None:
    save_file({"pooled": pooled.contiguous()}, folder / POOLED_FILE)


def load_pooled(folder: Path) -> Float[Tensor, " pooled_dim"]:
    """The saved one, or the empty prompt's, embedded by the checkpoint's own CLIP text encoders."""
    if (folder / POOLED_FILE).is_file():
        return load_file(folder / POOLED_FILE)["pooled"]
    return embed_empty_prompt(folder)


@torch.no_grad()
def embed_empty_prompt(folder: Path) -> Float[Tensor, " pooled_dim"]:
    """CLIP-L's and CLIP-bigG's projected embedding of "", one after the other, as ``StableDiffusion3Pipeline`` has it.

    Both texts are padded to the first tokenizer's length.
    """
    from transformers import CLIPTextModelWithProjection, CLIPTokenizer

    tokenizers = [CLIPTokenizer.from_pretrained(folder / name) for name, _ in CLIP_ENCODERS]
    length = tokenizers[0].model_max_length
    pooled = []
    for tokenizer, (_, name) in zip(tokenizers, CLIP_ENCODERS, strict=True):
        encoder = CLIPTextModelWithProjection.from_pretrained(folder / name, dtype=torch.float32)
        tokens = tokenizer("", padding="max_length", max_length=length, truncation=True, return_tensors="pt")
        pooled.append(encoder(tokens.input_ids).text_embeds[0])
    return torch.cat(pooled)


# --- the text length ------------------------------------------------------------------------------------------------


def save_text_length(folder: Path, text_length: int | None) -> None:
    (folder / CONFIG_FILE).write_text(json.dumps({"text_length": text_length}, indent=2) + "\n")


def load_text_length(folder: Path) -> int | None:
    """None (no padding) for checkpoints that don't say, as stock SD3."""
    file = folder / CONFIG_FILE
    return json.loads(file.read_text())["text_length"] if file.is_file() else None
