"""The encoder of UMM-1: a ``Qwen2_5_VLForConditionalGeneration`` that captions images and encodes
text.

Positions are passed explicitly (3-D multimodal RoPE), since the class itself keeps stale ones
between calls.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from einops import rearrange, repeat
from jaxtyping import Float, Int
from torch import Tensor
from transformers import (
    AutoTokenizer,
    PreTrainedTokenizerBase,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLTextModel,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import (
    Qwen2VLImageProcessorPil,
    smart_resize,
)

from uae.config import VLLMSettings
from uae.images.resize import resize_like_pil
from uae.models.encoders.conditioning import ConditioningCaptioner
from uae.models.encoders.prompts import question_about_image
from uae.models.lora import ADAPTER
from uae.utils.files import atomic_write_json
from uae.utils.weights import load_part, load_pretrained, load_tokenizer, naming_files

IMAGE_PAD = "<|image_pad|>"
IMAGE_CONFIG = "preprocessor_config.json"


@dataclass(frozen=True)
class ImageSettings:
    """What the checkpoint's image processor does: limits on pixels, and normalisation."""

    min_pixels: int
    max_pixels: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def to_config(self, model_config: Any) -> dict:
        """As ``preprocessor_config.json`` states it."""
        vision = model_config.vision_config
        return {
            "image_processor_type": "Qwen2VLImageProcessor",
            "min_pixels": self.min_pixels,
            "max_pixels": self.max_pixels,
            "image_mean": list(self.mean),
            "image_std": list(self.std),
            "patch_size": vision.patch_size,
            "merge_size": vision.spatial_merge_size,
            "temporal_patch_size": vision.temporal_patch_size,
        }


def read_image_settings(folder: Path) -> ImageSettings:
    """From a checkpoint's ``preprocessor_config.json``, in either of the forms its limits are
    written in."""
    config: Any = load_part(Qwen2VLImageProcessorPil, folder, IMAGE_CONFIG)
    size, mean, std = config.size, config.image_mean, config.image_std
    with naming_files(folder, "settings of an image processor", IMAGE_CONFIG):
        (r, g, b), (r_std, g_std, b_std) = (map(float, each) for each in (mean, std))
        return ImageSettings(
            int(size["shortest_edge"]), int(size["longest_edge"]), (r, g, b), (r_std, g_std, b_std)
        )


class QwenVL(ConditioningCaptioner):
    """Captioner and text encoder."""

    text_model_class = Qwen2_5_VLTextModel

    def __init__(
        self,
        model: Qwen2_5_VLForConditionalGeneration,
        tokenizer: PreTrainedTokenizerBase,
        images: ImageSettings,
    ) -> None:
        super().__init__(model, tokenizer)
        self.image_settings = images
        self.image_pad_id = int(tokenizer.convert_tokens_to_ids(IMAGE_PAD))  # type: ignore

    @classmethod
    def from_pretrained(
        cls, source: str | Path, dtype: torch.dtype | None = torch.float32
    ) -> QwenVL:
        """From a folder, as ``Qwen/Qwen2.5-VL-3B-Instruct`` is laid out. dtype: None leaves it as
        it is stored."""
        folder = Path(source)
        model = load_pretrained(Qwen2_5_VLForConditionalGeneration, folder, dtype)
        tokenizer = load_tokenizer(AutoTokenizer, folder)
        captioner = cls(model.eval(), tokenizer, read_image_settings(folder))
        captioner.check_prompts(folder)
        captioner.adapters.load(folder / ADAPTER)
        return captioner

    def save_pretrained(self, folder: str | Path, *, whole: bool = True) -> None:
        """As ``from_pretrained`` loads it; only its adapters unless ``whole``."""
        folder = Path(folder)
        self.save_weights(folder, whole=whole)
        if whole:
            atomic_write_json(
                folder / IMAGE_CONFIG,
                self.image_settings.to_config(self.model.config),
            )

    # --- images and prompts ----------------------------------------------------------------------

    def see(
        self, images: Sequence[Float[Tensor, "3 _ _"]]
    ) -> tuple[list[Tensor], Int[Tensor, "_ 3"]]:
        """Vision features of each image, ``[n, D]``, and the patch grids; differentiable unless the
        tower is frozen."""
        pixels, grids = zip(*(self._patches(image) for image in images), strict=True)
        grid = torch.stack(grids).to(self.device)
        output = self.model.model.get_image_features(torch.cat(pixels).to(self.device), grid)
        return list(output.pooler_output), grid

    def _patches(
        self, image: Float[Tensor, "3 h w"]
    ) -> tuple[Float[Tensor, "n d"], Int[Tensor, " 3"]]:
        """Resize to whole patches, normalise, and lay patches out as the vision tower reads
        them."""
        vision, limits = self.model.config.vision_config, self.image_settings
        patch, merge = vision.patch_size, vision.spatial_merge_size
        size = smart_resize(
            image.shape[1],
            image.shape[2],
            factor=patch * merge,
            min_pixels=limits.min_pixels,
            max_pixels=limits.max_pixels,
        )
        if size != tuple(image.shape[1:]):
            image = resize_like_pil(image[None], *size, crop=max(size), resample="bicubic")[0]
        mean, std = (
            torch.tensor(values, device=image.device).view(3, 1, 1)
            for values in (limits.mean, limits.std)
        )
        frames = repeat((image - mean) / std, "c h w -> t c h w", t=vision.temporal_patch_size)
        rows, columns = size[0] // patch, size[1] // patch
        patches = rearrange(
            frames,
            "t c (gh mh y) (gw mw x) -> (gh gw mh mw) (c t y x)",
            mh=merge,
            mw=merge,
            y=patch,
            x=patch,
        )
        return patches, torch.tensor([1, rows, columns])

    def prompt(self, question: str, num_image_tokens: int) -> tuple[int, ...]:
        ids = self.chat([question_about_image(question)])
        place = ids.index(self.image_pad_id)
        return (*ids[:place], *[self.image_pad_id] * num_image_tokens, *ids[place + 1 :])

    def prompt_positions(self, ids: Tensor, mask: Tensor, grids: Tensor) -> Tensor:
        is_image = (ids == self.image_pad_id).int()
        positions, _ = self.model.model.get_rope_index(
            ids, is_image, image_grid_thw=grids, attention_mask=mask.long()
        )
        return positions

    def answer_positions(self, position: Int[Tensor, "B T"]) -> Tensor:
        return position.expand(3, -1, -1)

    # --- sampling --------------------------------------------------------------------------------

    @contextmanager
    def sampled_by_vllm(self, settings: VLLMSettings) -> Iterator[None]:
        """In this context vLLM samples captions, by the weights as they are when they are asked
        for."""
        from uae.models.vllm.sampler import opened

        with opened(self, settings) as self.sampler:
            try:
                yield
            finally:
                self.sampler = None

    # --- text as the decoder's condition ---------------------------------------------------------

    def text_tokens(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text in a chat message of role ``generate``, template included (paper
        §3)."""
        return [self.chat([{"role": "generate", "content": text}]) for text in texts]
