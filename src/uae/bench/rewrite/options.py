"""Who rewrites, as options of a command."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from uae.bench.ask.api import Asker
from uae.bench.ask.build import AskerOptions, is_ours

INSTRUCTION = (
    "Rewrite the prompt below for a model that paints pictures from text. Keep every object, "
    "number, color, position and quoted word, by the same names. Add no other objects. Say more "
    "exactly how things look, where they are, and what light and background there are. Answer with "
    "the new prompt alone, in one paragraph of at most 80 words."
)


@dataclass(frozen=True)
class RewriterOptions(AskerOptions):
    """A language model that writes prompts anew before they are painted."""

    model: str | None = None
    """Who rewrites; nobody unless named. With an endpoint the model's name there; else a
    vision-language model that transformers loads, which may be the one that paints."""
    instruction: str = INSTRUCTION
    """What the rewriter is told; the prompt follows."""
    max_new_tokens: int = 256
    """Tokens of a rewrite at most."""

    @property
    def is_given(self) -> bool:
        """Prompts are rewritten."""
        return self.model is not None or self.endpoint is not None

    def check(self, images: Path | None = None) -> None:
        """A ValueError for what can be known to be wrong before any work.

        images: those that were painted elsewhere, if any.
        """
        if not self.is_given:
            return
        if images is not None:
            raise ValueError(
                "expected --rewriter with --model, which paints what was rewritten, got --images, "
                "which are painted already; leave one of them out"
            )
        if self.max_new_tokens < 1:
            raise ValueError(
                f"--rewriter.max-new-tokens must be at least 1, got {self.max_new_tokens}"
            )
        if self.model is None:
            raise ValueError(
                "expected --rewriter.model, the model's name behind --rewriter.endpoint, got none"
            )
        if self.endpoint is None and is_ours(self.model):
            raise ValueError(
                f"--rewriter.model {self.model}: expected a model that answers a text without an "
                "image, which a model of uae does not; name one that transformers loads, or give "
                "--rewriter.endpoint"
            )

    def settings_of(self, asker: Asker) -> dict[str, Any]:
        """Who rewrites and how, as results state it."""
        own = {"instruction": self.instruction, "max_new_tokens": self.max_new_tokens}
        return {**asker.settings, **own}
