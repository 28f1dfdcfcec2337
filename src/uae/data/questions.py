"""Questions that can be asked about any image, for holding a captioner to its own answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from uae.types import ImageSource

QUESTIONS_PER_IMAGE = 2
GENERIC = (
    "What is the main object in this image?",
    "How many objects can you count?",
    "What colors stand out?",
    "What is in the background?",
    "Is there any text in this image? If so, what does it say?",
    "What is on the left side of the image?",
    "What is on the right side of the image?",
    "What is the smallest thing that you can see?",
    "Are there any people in this image?",
    "Where was this image taken?",
    "What is happening in this image?",
    "What are the main objects made of?",
    "Is this a photograph or a drawing?",
)


@dataclass(frozen=True)
class GenericQuestions:
    """A question source: each image is asked ``QUESTIONS_PER_IMAGE`` of them, which go round."""

    images: ImageSource
    texts: Sequence[str] = GENERIC

    def batch(self, step: int, num_questions: int) -> tuple[list[Tensor], list[str]]:
        images = self.images.batch(step, num_images_of(num_questions))
        places = range(num_questions)
        texts = [self.texts[(step * num_questions + i) % len(self.texts)] for i in places]
        return [images[i // QUESTIONS_PER_IMAGE] for i in places], texts


def num_images_of(num_questions: int) -> int:
    """How many images so many questions are asked about."""
    return -(-num_questions // QUESTIONS_PER_IMAGE)
