"""What a decoder reads: the connected states of texts, and which texts may share a batch."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from uae.diffusion.texts import TextEmbeds, batches_of_texts
from uae.models.connectors import Connector


class TextConditioned:
    """The side of a decoder that texts come in by."""

    has_text_mask = False
    """The transformer passes over padding: texts of any lengths may share a batch."""
    projector: Connector
    text_length: int | None
    """Tokens of the longest text that it reads; without a text mask all texts are padded by zeros
    to it. None: texts of any length."""

    def condition(self, states: Float[Tensor, "N L D"], mask: Bool[Tensor, "N L"]) -> TextEmbeds:
        """Each text's connected states, first position first.

        Padding may be on either side; it is never read. Without a text mask, exact zeros follow up
        to ``text_length``, and are attended to; without ``text_length`` all texts must have one
        length then (see ``length_groups``).
        """
        self._check_lengths(mask)
        texts = self.projector.connect(states, mask)
        if self.has_text_mask or self.text_length is None:
            return texts
        num_missing = self.text_length - texts.embeds.shape[1]
        embeds = nn.functional.pad(texts.embeds, (0, 0, 0, num_missing))
        return TextEmbeds(embeds, torch.ones_like(embeds[..., 0], dtype=torch.bool))

    def _check_lengths(self, mask: Tensor) -> None:
        lengths = mask.sum(1)
        shortest, longest = int(lengths.min()), int(lengths.max())
        if shortest == 0:
            raise ValueError(
                "expected at least one token in each text, got an empty one; "
                "a chat template gives some even to an empty caption"
            )
        if not self.has_text_mask and self.text_length is None and shortest != longest:
            raise ValueError(
                f"expected texts of one length, got {shortest} to {longest} tokens; "
                f"{type(self).__name__} has no text mask: group them by length_groups, or give it "
                "a text_length"
            )
        if self.text_length is not None and longest > self.text_length:
            raise ValueError(
                f"expected texts of at most {self.text_length} tokens (this decoder's "
                f"text_length), got one of {longest}; cap the caption's new tokens lower"
            )

    def length_groups(self, mask: Bool[Tensor, "N L"]) -> list[Int[Tensor, " _"]]:
        """Indices of texts that may share a batch: all of them with a text mask or
        ``text_length``, else those of each length."""
        return batches_of_texts(mask.sum(1), self.has_text_mask or self.text_length is not None)

    def condition_negative(
        self, states: Float[Tensor, "1 Ln D"] | None, guidance_scale: float
    ) -> TextEmbeds | None:
        """What guidance leads away from; None where there is no guidance."""
        if states is None or guidance_scale == 1:
            return None
        return self.condition(states, torch.ones_like(states[..., 0], dtype=torch.bool))
