"""Reward for text in the picture: what an OCR engine reads in the source, it reads in the
reconstruction.

    R(x, x̂) = 1 − d(a, b) / max(|a|, |b|)

with the Levenshtein distance ``d`` of the letters read, case and spaces aside.

1 where neither picture has text, 0 where one alone has. Where a prompt was painted there is no
source: ``a`` is then what the prompt has in quotes. The paper's reward favours global semantics
and cost it 6.2 points of OCR (arXiv 2509.09666); Flow-GRPO (arXiv 2505.05470) rewards words asked
for by the same measure. The engine is RapidOCR (PP-OCR on ONNX Runtime), whose package carries its
weights: ``pip install unified-autoencoder[ocr]``.
"""

from __future__ import annotations

import hashlib
import importlib.util
import re
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from uae.images.write import to_bytes
from uae.rewards.base import Images

# pixels; smaller pictures are enlarged by a whole factor, as letters of a few pixels are not found
MIN_SIDE = 384
QUOTED = re.compile(r"[\"“]([^\"”]*)[\"”]")


def ocr(
    sources: Images, captions: list[str], reconstructions: Float[Tensor, "B 3 H W"]
) -> Float[Tensor, " B"]:
    """How alike the texts in source, or prompt, and reconstruction are."""
    texts = [_read_once(image) for image in sources] or [_quoted_letters(c) for c in captions]
    per_text = len(reconstructions) // len(texts)
    likenesses = [
        text_likeness(texts[i // per_text], read_letters(image))
        for i, image in enumerate(reconstructions.detach())
    ]
    return torch.tensor(likenesses, device=reconstructions.device)


_texts: dict[bytes, str] = {}  # by a digest of the source: each comes again in every pass


def _read_once(image: Float[Tensor, "3 h w"]) -> str:
    pixels = image.float().cpu().contiguous().numpy()
    digest = hashlib.blake2b(
        pixels.tobytes(), digest_size=16, salt=str(image.shape[2]).encode()
    ).digest()
    if digest not in _texts:
        _texts[digest] = read_letters(image)
    return _texts[digest]


def check_ocr() -> None:
    """The engine is installed.

    Raises:
        ValueError: when it is not.
    """
    missing = [
        name for name in ("rapidocr", "onnxruntime") if importlib.util.find_spec(name) is None
    ]
    if missing:
        raise ValueError(
            f"reward ocr: expected the package {missing[0]}; install it by "
            "`pip install unified-autoencoder[ocr]`, or leave the reward out"
        )


def read_letters(image: Float[Tensor, "3 h w"]) -> str:
    """The letters in a picture, in reading order, in lower case and without spaces."""
    pixels = to_bytes(image)
    height, width = pixels.shape[:2]
    factor = -(-MIN_SIDE // max(height, width))
    enlarged = Image.fromarray(pixels).resize(
        (width * factor, height * factor), Image.Resampling.BICUBIC
    )
    return _letters(_engine()(np.asarray(enlarged)[:, :, ::-1]).txts or ())  # it takes blue first


def _quoted_letters(prompt: str) -> str:
    return _letters(QUOTED.findall(prompt))


def _letters(lines: Sequence[str]) -> str:
    return "".join("".join(lines).lower().split())


@cache
def _engine() -> Any:
    check_ocr()
    from rapidocr import RapidOCR

    # use_cls: would look for text that stands on its head
    return RapidOCR(params={"Global.log_level": "error", "Global.use_cls": False})


def text_likeness(a: str, b: str) -> float:
    """1 minus the Levenshtein distance over the longer length; 1 for two empty texts."""
    row = list(range(len(b) + 1))
    for i, letter in enumerate(a, 1):
        previous, row = row, [i]
        for j, other in enumerate(b, 1):
            row.append(min(previous[j] + 1, row[-1] + 1, previous[j - 1] + (letter != other)))
    return 1 - row[-1] / max(len(a), len(b), 1)
