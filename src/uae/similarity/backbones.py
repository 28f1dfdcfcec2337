"""Frozen image embedders ``f`` behind ``R(x, x̂) = cos(f(x), f(x̂))``: CLIP, LongCLIP, DINOv2,
DINOv3.

Built from ``transformers``' own classes and each checkpoint's own preprocessing, and differentiable
in the pixels, so reward, semantic reconstruction loss and Unified-Bench share one code path (paper:
arXiv 2509.09666).

| name     | published checkpoint                     | feature                      |
|----------|------------------------------------------|------------------------------|
| clip     | openai/clip-vit-large-patch14            | projected image embedding    |
| longclip | BeichenZhang/LongCLIP-L (longclip-L.pt)  | projected image embedding    |
| dinov2   | facebook/dinov2-large                    | CLS of ``last_hidden_state`` |
| dinov3   | facebook/dinov3-vitl16-pretrain-lvd1689m | CLS of ``last_hidden_state`` |
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from uae.similarity.checkpoints import (
    ARCHITECTURES,
    BackboneError,
    Provenance,
    fetch_backbone,
    library_versions,
    weights_identity,
)
from uae.similarity.longclip import load_longclip
from uae.similarity.preprocess import CLIP_PREPROCESS, Preprocess, read_preprocess
from uae.utils.progress import phase
from uae.utils.quiet import quiet
from uae.utils.user_text import MARK, UserText
from uae.utils.weights import ModelFileError, check_finite, load_pretrained, load_tokenizer


class Backbone(nn.Module):
    """A frozen embedder; ``embed`` maps images in [0, 1] of any size to unit vectors."""

    def __init__(
        self,
        name: str,
        model: nn.Module,
        preprocess: Preprocess,
        provenance: Provenance,
        tokenizer: Any = None,
    ) -> None:
        super().__init__()
        self.name = name
        self.model: Any = model.requires_grad_(False)
        self.preprocess = preprocess
        self.provenance = provenance
        self.tokenizer = tokenizer
        self.eval()

    def train(self, mode: bool = True) -> Backbone:
        """Stays in evaluation mode, also inside a model that trains."""
        return super().train(False)

    def embed(self, images: Tensor | Sequence[Tensor]) -> Float[Tensor, "B D"]:
        """L2-normalised fp32 embeddings of ``[B 3 h w]``, or of a list of ``[3 h w]`` of mixed
        sizes."""
        weight = next(self.model.parameters())
        if isinstance(images, Tensor):
            images = images.to(weight.device)
        else:
            images = [image.to(weight.device) for image in images]
        return self.embed_pixels(self.preprocess.batch(images))

    def embed_pixels(self, pixels: Float[Tensor, "B 3 crop crop"]) -> Float[Tensor, "B D"]:
        """The same of images that are preprocessed already."""
        weight = next(self.model.parameters())
        pixels = pixels.to(weight.device, weight.dtype)
        if ARCHITECTURES[self.name].model_type == "clip":
            features = self.model.get_image_features(pixel_values=pixels).pooler_output
        else:
            features = self.model(pixel_values=pixels).last_hidden_state[:, 0]
        return nn.functional.normalize(features.float(), dim=-1)

    def embed_text(self, texts: list[str]) -> Float[Tensor, "B D"]:
        """L2-normalised text embeddings (CLIP, LongCLIP); text past the last position is cut, as
        CLIP does."""
        if self.tokenizer is None:
            raise BackboneError(
                f"backbone {self.name}: expected a text side with a tokenizer, "
                f"{self.provenance.source} has none; put CLIP's tokenizer files beside it"
            )
        positions = self.model.config.text_config.max_position_embeddings
        tokens = self._tokenize(texts, positions).to(next(self.model.parameters()).device)
        features = self.model.get_text_features(
            input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]
        ).pooler_output
        return nn.functional.normalize(features.float(), dim=-1)

    def _tokenize(self, texts: list[str], positions: int) -> Any:
        """Texts between beginning and end; names of control tokens in them are text, see
        ``user_text``."""
        user_text = UserText(self.tokenizer)
        texts = [user_text.hide(text) for text in texts]
        if not any(MARK in text for text in texts):
            return self.tokenizer(
                texts, padding=True, truncation=True, max_length=positions, return_tensors="pt"
            )
        begin, end = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        rows = [[begin, *user_text.encode(text)[: positions - 2], end] for text in texts]
        return self.tokenizer.pad({"input_ids": rows}, return_tensors="pt")


@quiet()
def load_backbone(
    name: str,
    source: str | Path | None = None,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
) -> Backbone:
    """The backbone ``name`` from a hub id, folder, LongCLIP ``.pt`` or "tiny"; by default the
    published checkpoint."""
    path = fetch_backbone(name, source)
    with phase(f"loading {name}"):
        model: Any = load_file(name, path) if path.is_file() else load_folder(name, path, dtype)
    preprocess = read_preprocess(path) if path.is_dir() else CLIP_PREPROCESS
    provenance = Provenance(
        name=name,
        source=str(source or ARCHITECTURES[name].published),
        weights=weights_identity(path),
        dtype=str(dtype).removeprefix("torch."),
        versions=library_versions(),
    )
    tokenizer = tokenizer_beside(name, path)
    return Backbone(name, model.to(device, dtype), preprocess, provenance, tokenizer)


def load_file(name: str, file: Path) -> nn.Module:
    """LongCLIP's ``.pt``, whole and finite."""
    model = load_longclip(file)
    with naming_backbone(name):
        check_finite(model.state_dict(), file)
    return model


def load_folder(name: str, folder: Path, dtype: torch.dtype) -> nn.Module:
    """``from_pretrained``, but a checkpoint that leaves any weight to chance is an error."""
    from transformers import CLIPModel, Dinov2Model, DINOv3ViTModel

    model_class = {"clip": CLIPModel, "dinov2": Dinov2Model, "dinov3_vit": DINOv3ViTModel}[
        ARCHITECTURES[name].model_type
    ]
    with naming_backbone(name):
        return load_pretrained(model_class, folder, dtype)


@contextmanager
def naming_backbone(name: str) -> Iterator[None]:
    """What is wrong with a file is wrong with the backbone that is read from it."""
    try:
        yield
    except ModelFileError as error:
        raise BackboneError(f"backbone {name}: {error}") from error


def tokenizer_beside(name: str, path: Path) -> Any:
    """The tokenizer beside the weights, or None."""
    folder = path if path.is_dir() else path.parent
    if ARCHITECTURES[name].model_type != "clip" or not any(
        (folder / file).is_file() for file in ("tokenizer.json", "vocab.json")
    ):
        return None
    from transformers import AutoTokenizer

    with naming_backbone(name):
        return load_tokenizer(AutoTokenizer, folder)


class EmbeddingCache:
    """Embeddings of images seen before (sources), by content and backbone; in memory and, with a
    folder, on disk."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder
        self.memory: dict[str, Tensor] = {}

    @torch.no_grad()
    def embed(self, backbone: Backbone, images: Tensor | Sequence[Tensor]) -> Float[Tensor, "B D"]:
        """``backbone.embed(images)`` on the CPU, without gradient; only images not seen before are
        computed."""
        keys = [embedding_key(backbone, image) for image in images]
        new = {key: i for i, key in enumerate(keys) if not self.recalls(key)}
        if new:
            embeddings = backbone.embed([images[i] for i in new.values()])
            for key, embedding in zip(new, embeddings, strict=True):
                self.store(key, embedding.cpu())
        return torch.stack([self.memory[key] for key in keys])

    def recalls(self, key: str) -> bool:
        """Whether it is in memory, read from the disk if need be."""
        if key in self.memory:
            return True
        file = self.folder / f"{key}.npy" if self.folder else None
        if file is None or not file.is_file():
            return False
        try:
            self.memory[key] = torch.from_numpy(np.load(file, allow_pickle=False))
        except (ValueError, EOFError):  # a damaged file is computed again
            return False
        return True

    def store(self, key: str, embedding: Tensor) -> None:
        self.memory[key] = embedding
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            draft = self.folder / f"{key}.{os.getpid()}.part"
            with draft.open("wb") as stream:
                np.save(stream, embedding.numpy())
            os.replace(draft, self.folder / f"{key}.npy")


def embedding_key(backbone: Backbone, image: Tensor) -> str:
    """A hash of the image's values, shape and type, and of the backbone's weights."""
    pixels = image.detach().float().cpu().contiguous().numpy()
    digest = hashlib.blake2b(backbone.provenance.fingerprint.encode(), digest_size=20)
    digest.update(f"{image.dtype}{tuple(image.shape)}".encode())
    digest.update(pixels.tobytes())
    return digest.hexdigest()
