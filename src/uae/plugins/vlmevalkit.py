"""Our models in VLMEvalKit, which has no entry points: ``register`` makes the class one of its own.

A config for its ``run.py`` then names it:

    {"model": {"tiny": {"class": "UaeModel", "model": "tiny"}}, "data": {…}}
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import vlmeval.vlm  # pyright: ignore[reportMissingImports]
from vlmeval.vlm.base import BaseModel  # pyright: ignore[reportMissingImports]

from uae.models.load import load_model
from uae.plugins.answers import MAX_NEW_TOKENS, Asked, answer_all


class UaeModel(BaseModel):
    """A model of ours, by the name that ``uae.load_model`` takes."""

    INTERLEAVE = False
    # what is no image is refused for its question; the package would stop the run
    allowed_types = ("text", "image", "video", "audio")

    def __init__(self, model: str = "tiny", max_new_tokens: int = MAX_NEW_TOKENS) -> None:
        super().__init__()
        self._model, self._max_new_tokens = load_model(model), max_new_tokens

    def generate_inner(self, message: Sequence[dict[str, Any]], dataset: str | None = None) -> str:
        """A greedy answer."""
        parts = [(part["type"], part["value"]) for part in message]
        asked = Asked(f"a question of {dataset or 'yours'}", parts)
        return answer_all(self._model, [asked], self._max_new_tokens)[0]


def register() -> None:
    """Make ``UaeModel`` known to VLMEvalKit's configs."""
    vlmeval.vlm.UaeModel = UaeModel
