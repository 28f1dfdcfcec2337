"""Latents and text states of frozen models, kept on disk: what a second pass over the data need not
compute again.

One safetensors file per sample, ``FOLDER/ab/abcd….safetensors``, named by a digest of the sample
and of the models' weights, written under another name and renamed. At 512x512 for Qwen2.5-VL-3B and
SD3.5 and 300 words, about 2 MB.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from uae.utils.files import disk_error


class Encoded(NamedTuple):
    """What a decoder is trained on, on the CPU."""

    latents: Float[Tensor, "c h w"]
    """Of the image, scaled."""
    states: Float[Tensor, "L D"]
    """Of the text, without padding."""


class LatentCache:
    """Encoded samples by their digests. fingerprint: of all that decides how they are encoded."""

    def __init__(self, folder: Path | str, fingerprint: str) -> None:
        self.folder, self.fingerprint = Path(folder), fingerprint

    def load(self, digest: str) -> Encoded | None:
        """None if it was never saved, or is damaged."""
        try:
            return Encoded(**load_file(self._file(digest)))
        except (FileNotFoundError, SafetensorError):
            return None

    def save(self, digest: str, encoded: Encoded) -> None:
        """Write the file completely or not at all."""
        file = self._file(digest)
        unfinished = file.with_suffix(f".{os.getpid()}.tmp")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            save_file(
                {name: tensor.contiguous() for name, tensor in encoded._asdict().items()},
                unfinished,
            )
            os.replace(unfinished, file)
        except (OSError, SafetensorError) as error:
            unfinished.unlink(missing_ok=True)
            raise disk_error("a sample's latents", self.folder, error) from error

    def _file(self, digest: str) -> Path:
        name = hashlib.blake2b(f"{digest} {self.fingerprint}".encode(), digest_size=20).hexdigest()
        return self.folder / name[:2] / f"{name}.safetensors"


def fingerprint(tensors: Mapping[str, Tensor], *settings: str) -> str:
    """A digest of weights, bit for bit, and of settings."""
    digest = hashlib.blake2b(repr(settings).encode(), digest_size=20)
    for name, tensor in tensors.items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
