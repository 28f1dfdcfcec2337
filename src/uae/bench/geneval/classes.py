"""The 80 classes and ten colours of GenEval's prompts, and a checkpoint's names for the classes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

OBJECTS = (  # COCO's classes in COCO's order; three go by a longer name
    *("person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat"),
    *("traffic light", "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog"),
    *("horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe", "backpack", "umbrella"),
    *("handbag", "tie", "suitcase", "frisbee", "skis", "snowboard", "sports ball", "kite"),
    *("baseball bat", "baseball glove", "skateboard", "surfboard", "tennis racket", "bottle"),
    *("wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich"),
    *("orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch"),
    *("potted plant", "bed", "dining table", "toilet", "tv", "laptop", "computer mouse"),
    *("tv remote", "computer keyboard", "cell phone", "microwave", "oven", "toaster", "sink"),
    *("refrigerator", "book", "clock", "vase", "scissors", "teddy bear", "hair drier"),
    "toothbrush",
)
COLORS = (
    *("red", "orange", "yellow", "green", "blue"),
    *("purple", "pink", "brown", "black", "white"),
)
_OTHER_NAMES = {  # of checkpoints, letters alone
    "mouse": "computer mouse",
    "remote": "tv remote",
    "keyboard": "computer keyboard",
    "motorbike": "motorcycle",
    "aeroplane": "airplane",
    "sofa": "couch",
    "tvmonitor": "tv",
    "hairdryer": "hair drier",
}


def label_of_class(id2label: Mapping[Any, str]) -> dict[str, int]:
    """The label that each of GenEval's classes has in a checkpoint, in GenEval's order.

    Raises:
        ValueError: naming the classes that it lacks.
    """
    known = {_letters(name): name for name in OBJECTS} | _OTHER_NAMES
    labels = {known.get(_letters(str(name))): int(label) for label, name in id2label.items()}
    if missing := [name for name in OBJECTS if name not in labels]:
        dots = ", …" if len(missing) > 3 else ""
        raise ValueError(
            f"expected a detector of COCO's 80 classes, got one of {len(id2label)} that lacks "
            f"{len(missing)} ({', '.join(missing[:3])}{dots}); take one of COCO's instances"
        )
    return {name: labels[name] for name in OBJECTS}


def _letters(name: str) -> str:
    return re.sub(r"[^a-z]", "", name.lower())
