"""Objects of GenEval's classes in images, by ``transformers``' Mask2Former.

The official detector is mmdet's Mask2Former Swin-S of COCO. Here its own post-processing is done on
the outputs of ``transformers``' model:

    100 pairs of query and class with the highest p(class | query), of 80 classes and nothing
    mask = [logits, bilinear at the image's size, > 0],   box = the mask's bounds
    score = p(class | query) · mean of σ(logits) in the mask

``transformers``' ``post_process_instance_segmentation`` is not used: it measures masks at 384x384,
enlarges them by nearest neighbour, rounds scores and gives no boxes.

Images are scaled as officially, the shorter side to 800 pixels and the longer to 1333 at most,
whatever the checkpoint's own processor does (that of the published one squeezes to 384x384).

Deviations: another training run of the same architecture (agreement unknown); the image is
stretched to multiples of 32 where mmdet pads, resampled by Pillow, and mask logits are enlarged in
one step; pairs come best first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn
from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, Mask2FormerModel
from transformers.models.mask2former.image_processing_pil_mask2former import (
    Mask2FormerImageProcessorPil,
)
from transformers.models.mask2former.modeling_mask2former import Mask2FormerPreTrainedModel

from uae.bench.geneval.classes import label_of_class
from uae.bench.geneval.rules import THRESHOLD
from uae.utils.quiet import quiet
from uae.utils.weights import (
    CONFIG,
    STEM,
    ModelFileError,
    check_weight_file,
    load_part,
    load_pretrained,
    read_json,
    weight_files,
)

PUBLISHED = "facebook/mask2former-swin-small-coco-instance"
MODEL_TYPE, PROCESSOR = "mask2former", "preprocessor_config.json"
MAX_PAIRS = 100
SIDES = {"shortest_edge": 800, "longest_edge": 1333}


@dataclass(frozen=True)
class Found:
    """Objects in an image, in the detector's order."""

    boxes: dict[str, np.ndarray]
    """By class: left, top, right, bottom and score in float32, ``[N 5]``."""
    masks: dict[str, np.ndarray]
    """By class: which pixels are the object's, ``[N h w]``."""


class Segmenter(Mask2FormerForUniversalSegmentation):
    """``transformers``' model without its loss, which nobody needs here and which wants scipy."""

    def __init__(self, config: Mask2FormerConfig) -> None:
        Mask2FormerPreTrainedModel.__init__(self, config)
        self.model = Mask2FormerModel(config)
        self.class_predictor = nn.Linear(config.hidden_dim, len(config.id2label or {}) + 1)
        self.post_init()


class Detector:
    """Finds GenEval's classes in images."""

    def __init__(self, folder: Path, device: str) -> None:
        check_detector(folder)
        with quiet():
            self.processor: Any = load_part(Mask2FormerImageProcessorPil, folder, PROCESSOR)
            model: Any = load_pretrained(Segmenter, folder, torch.float32)
        self.model = model.to(device).eval()
        self.labels = label_of_class(self.model.config.id2label)

    @torch.no_grad()
    def detect(self, images: Sequence[Image.Image]) -> list[Found]:
        """What each RGB image shows; images of one size go through the model together."""
        found: dict[int, Found] = {}
        for size in dict.fromkeys(image.size for image in images):
            places = [place for place, image in enumerate(images) if image.size == size]
            alike = self._detect_alike([images[place] for place in places])
            found |= dict(zip(places, alike, strict=True))
        return [found[place] for place in range(len(images))]

    def _detect_alike(self, images: Sequence[Image.Image]) -> list[Found]:
        width, height = images[0].size
        inputs = self.processor(images=list(images), size=SIDES, return_tensors="pt")
        outputs = self.model(
            pixel_values=inputs["pixel_values"].to(self.model.device), output_hidden_states=True
        )
        pairs = zip(outputs.class_queries_logits, outputs.masks_queries_logits, strict=True)
        return [find(*logits, (height, width), self.labels) for logits in pairs]


def find(
    class_logits: Float[Tensor, "Q C"],
    mask_logits: Float[Tensor, "Q h w"],
    size: tuple[int, int],
    labels: dict[str, int],
) -> Found:
    """The objects that one image's outputs speak of, without those that can never count.

    labels: of each class, its place among the C; the last of these is nothing. size: height and
    width of the image.
    """
    shares = class_logits.float().softmax(-1)[:, :-1]
    scores, places = shares.flatten().topk(min(MAX_PAIRS, shares.numel()))
    places = places[scores > float(THRESHOLD)]  # a mask can only lower a score
    scores = scores[scores > float(THRESHOLD)]
    queries, classes = places // shares.shape[1], places % shares.shape[1]
    logits = nn.functional.interpolate(
        mask_logits[queries][:, None].float(), size=size, mode="bilinear", align_corners=False
    )[:, 0]
    masks = logits > 0
    areas = masks.sum((1, 2))
    scores = scores * (logits.sigmoid() * masks).sum((1, 2)) / (areas + 1e-6)
    boxes = torch.cat([bounds(masks), scores[:, None]], dim=1).cpu().numpy()
    kept = {
        name: ((classes == label) & (areas > 0)).cpu().numpy() for name, label in labels.items()
    }
    kept = {name: rows for name, rows in kept.items() if rows.any()}
    all_masks = masks.cpu().numpy()
    return Found(
        {name: boxes[rows] for name, rows in kept.items()},
        {name: all_masks[rows] for name, rows in kept.items()},
    )


def bounds(masks: Tensor) -> Float[Tensor, "N 4"]:
    """Left, top, right and bottom of each mask, the latter two exclusive; zeros of an empty one."""
    sides = []
    for axis in (1, 2):  # columns, then rows
        are_touched = masks.any(axis).int()
        first = are_touched.argmax(1)
        last = are_touched.shape[1] - are_touched.flip(1).argmax(1)
        sides += [first, torch.where(are_touched.any(1), last, 0)]
    left, right, top, bottom = sides
    return torch.stack([left, top, right, bottom], dim=1).float()


def check_detector(folder: Path) -> None:
    """Configuration, classes and weight files of a checkpoint; no weights are read.

    Raises:
        ValueError: in one line, where it is another model, or not whole.
    """
    config = read_json(folder / CONFIG)
    if (got := config.get("model_type")) != MODEL_TYPE:
        raise ModelFileError(
            f"{folder / CONFIG}: expected model_type {MODEL_TYPE}, got {got}; published weights: "
            f"{PUBLISHED}"
        )
    names = config.get("id2label")
    try:
        label_of_class(names if isinstance(names, dict) else {})
    except ValueError as error:
        raise ModelFileError(f"{folder / CONFIG}: {error}") from error
    read_json(folder / PROCESSOR)
    for file in weight_files(folder, STEM):
        check_weight_file(file)
