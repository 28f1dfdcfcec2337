"""Texts as a denoising network reads them: embeddings, and which of their positions it attends to.

A network with a text mask passes over padding, so texts of any lengths may share a batch. One
without attends to all that it is given: padding would change the picture with whatever else is in
the batch, so only texts of one length may.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from einops import repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence


@dataclass(frozen=True)
class TextEmbeds:
    """N texts of T positions."""

    embeds: Float[Tensor, "N T E"]
    mask: Bool[Tensor, "N T"]
    """The positions that are attended to: all of them where the network has no text mask."""

    def __len__(self) -> int:
        return len(self.embeds)

    @classmethod
    def of_rows(cls, rows: Sequence[Float[Tensor, "_ E"]]) -> TextEmbeds:
        """Each text's positions, padded to the longest by zeros that are not attended to."""
        lengths = torch.tensor([len(row) for row in rows], device=rows[0].device)
        embeds = pad_sequence(list(rows), batch_first=True)
        position = torch.arange(embeds.shape[1], device=embeds.device)
        return cls(embeds, position < lengths[:, None])

    def rows(self) -> list[Float[Tensor, "_ E"]]:
        """The positions of each text that are attended to."""
        return [embeds[mask] for embeds, mask in zip(self.embeds, self.mask, strict=True)]

    def select(self, index: Int[Tensor, " n"]) -> TextEmbeds:
        """These texts, as often as they are named."""
        return TextEmbeds(self.embeds[index], self.mask[index])

    def repeated(self, num: int) -> TextEmbeds:
        """One text, ``num`` times."""
        return TextEmbeds(
            repeat(self.embeds, "1 t e -> n t e", n=num), repeat(self.mask, "1 t -> n t", n=num)
        )

    def then(self, others: TextEmbeds) -> TextEmbeds:
        """These and others of the same length as one batch."""
        return TextEmbeds(
            torch.cat([self.embeds, others.embeds]), torch.cat([self.mask, others.mask])
        )


def batches_of_texts(lengths: Int[Tensor, " N"], has_text_mask: bool) -> list[Int[Tensor, " _"]]:
    """Indices of texts that may share a batch: all, or those of each length."""
    if has_text_mask:
        return [torch.arange(len(lengths), device=lengths.device)]
    return [(lengths == length).nonzero().flatten() for length in lengths.unique()]
