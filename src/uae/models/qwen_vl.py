"""The encoder of UMM-1: a ``Qwen2_5_VLForConditionalGeneration`` that captions images and encodes text.

Positions are passed explicitly (3-D multimodal RoPE), since the class itself keeps stale ones between calls.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from einops import rearrange, repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import (
    AutoTokenizer,
    PreTrainedTokenizerBase,
    Qwen2_5_VLForConditionalGeneration,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil, smart_resize

from uae.models.captioner import CausalCaptioner
from uae.models.tokens import pad
from uae.rewards.preprocess import resize_like_pil
from uae.utils.checkpoint import atomic_write_json

IMAGE_PAD = "<|image_pad|>"


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


def read_image_settings(source: str | Path) -> ImageSettings:
    """From a checkpoint's ``preprocessor_config.json``, in either of the forms its limits are written in."""
    config: Any = Qwen2VLImageProcessorPil.from_pretrained(source)
    size, mean, std = config.size, config.image_mean, config.image_std
    return ImageSettings(int(size["shortest_edge"]), int(size["longest_edge"]), (*mean,), (*std,))  # type: ignore[arg-type]


class QwenVL(CausalCaptioner):
    """Captioner and text encoder."""

    def __init__(
        self, model: Qwen2_5_VLForConditionalGeneration, tokenizer: PreTrainedTokenizerBase, images: ImageSettings
    ) -> None:
        super().__init__(model, tokenizer)
        self.image_settings = images
        self.image_pad_id = int(tokenizer.convert_tokens_to_ids(IMAGE_PAD))  # type: ignore[arg-type]

    @classmethod
    def from_pretrained(cls, source: str | Path, dtype: torch.dtype = torch.float32) -> QwenVL:
        """From a hub id or a folder, as ``Qwen/Qwen2.5-VL-3B-Instruct`` is laid out."""
        model = Qwen2_5_VLForConditionalGeneration.from_pretrained(source, dtype=dtype)
        tokenizer = AutoTokenizer.from_pretrained(source)
        return cls(model.eval(), tokenizer, read_image_settings(source))

    def save_pretrained(self, folder: str | Path) -> None:
        """As ``from_pretrained`` loads it, weights in bf16 with LoRA merged in; LoRA by itself in ``lora/``."""
        folder = Path(folder)
        self.save_model(folder)
        atomic_write_json(folder / "preprocessor_config.json", self.image_settings.to_config(self.model.config))

    # --- images and prompts ------------------------------------------------------------------------------------

    def see(self, images: Sequence[Float[Tensor, "3 _ _"]]) -> tuple[list[Tensor], Int[Tensor, "_ 3"]]:
        """Vision features of each image, ``[n, D]``, and the patch grids; differentiable unless the tower is frozen."""
        pixels, grids = zip(*(self._patches(image) for image in images), strict=True)
        grid = torch.stack(grids).to(self.device)
        output = self.model.model.get_image_features(torch.cat(pixels).to(self.device), grid)
        return list(output.pooler_output), grid

    def _patches(self, image: Float[Tensor, "3 h w"]) -> tuple[Float[Tensor, "n d"], Int[Tensor, " 3"]]:
        """Resize to whole patches, normalise, and lay patches out as the vision tower reads them."""
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
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in (limits.mean, limits.std))
        frames = repeat((image - mean) / std, "c h w -> t c h w", t=vision.temporal_patch_size)
        rows, columns = size[0] // patch, size[1] // patch
        patches = rearrange(
            frames, "t c (gh mh y) (gw mw x) -> (gh gw mh mw) (c t y x)", mh=merge, mw=merge, y=patch, x=patch
        )
        return patches, torch.tensor([1, rows, columns])

    def prompt(self, question: str, num_image_tokens: int) -> tuple[int, ...]:
        content = [{"type": "image"}, {"type": "text", "text": question}]
        ids = self.chat([{"role": "user", "content": content}])
        place = ids.index(self.image_pad_id)
        return (*ids[:place], *[self.image_pad_id] * num_image_tokens, *ids[place + 1 :])

    def prompt_positions(self, ids: Tensor, mask: Tensor, grids: Tensor) -> Tensor:
        is_image = (ids == self.image_pad_id).int()
        positions, _ = self.model.model.get_rope_index(ids, is_image, image_grid_thw=grids, attention_mask=mask.long())
        return positions

    def answer_positions(self, position: Int[Tensor, "B T"]) -> Tensor:
        return position.expand(3, -1, -1)

    # --- text as the decoder's condition -----------------------------------------------------------------------

    def text_states(self, texts: Sequence[str]) -> tuple[Float[Tensor, "N L D"], Bool[Tensor, "N L"]]:
        """Last hidden states of each text in a chat message of role ``generate``, template included (paper §3).

        Right-padded; the states of padding are meaningless and masked out.
        """
        rows = [self.chat([{"role": "generate", "content": text}]) for text in texts]
        ids, mask = pad(rows, self.pad_id, "right", self.device)
        output = self.language_model(input_ids=ids, attention_mask=mask.long(), use_cache=False)
        return output.last_hidden_state, mask
