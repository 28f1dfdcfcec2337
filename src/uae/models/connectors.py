"""Connectors: from the language model's last hidden states to the text embeddings of a decoder.

The projector goes token by token: ``Linear(in → hidden), GELU, Linear(hidden → out)``;
Qwen2.5-VL-3B to SD3.5: 2048 → 8192 → 4096 (arXiv 2509.09666).
"""

from __future__ import annotations

import warnings
from abc import abstractmethod
from pathlib import Path

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from jaxtyping import Bool, Float
from torch import Tensor, nn

from uae.diffusion.texts import TextEmbeds
from uae.utils.weights import load_pretrained

FOLDER = "projector"  # of a decoder's files, whatever the connector


class Connector(ModelMixin, ConfigMixin):
    """Saved and loaded by ``save_pretrained`` and ``from_pretrained``, as the models it stands
    between."""

    @property
    @abstractmethod
    def in_width(self) -> int:
        """Of the hidden states."""

    @property
    @abstractmethod
    def out_width(self) -> int:
        """Of the text embeddings."""

    @abstractmethod
    def connect(self, states: Float[Tensor, "N L D"], mask: Bool[Tensor, "N L"]) -> TextEmbeds:
        """Embeddings of each text, first position first, exact zeros behind them. Padding of the
        states may be on either side, and is never read."""


class Projector(Connector):
    """Two layers, token by token."""

    @register_to_config
    def __init__(self, in_features: int, hidden_features: int, out_features: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(in_features, hidden_features),
            nn.GELU(),
            nn.Linear(hidden_features, out_features),
        )

    @property
    def in_width(self) -> int:
        return self.config["in_features"]

    @property
    def out_width(self) -> int:
        return self.config["out_features"]

    def forward(self, states: Float[Tensor, "*tokens D"]) -> Float[Tensor, "*tokens E"]:
        return self.layers(states.to(self.dtype))

    def connect(self, states: Float[Tensor, "N L D"], mask: Bool[Tensor, "N L"]) -> TextEmbeds:
        row, position = mask.nonzero(as_tuple=True)
        target = mask.long().cumsum(1)[row, position] - 1
        projected = self(states[row, position])
        lengths = mask.sum(1)
        longest = int(lengths.max())
        embeds = projected.new_zeros(len(states), longest, projected.shape[-1])
        positions = torch.arange(longest, device=mask.device)
        return TextEmbeds(embeds.index_put((row, target), projected), positions < lengths[:, None])


def projector_between(llm_width: int, text_width: int) -> Projector:
    """A new projector with the paper's proportion: hidden twice as wide as out."""
    return Projector(llm_width, 2 * text_width, text_width)


def load_connector(
    folder: Path, llm_width: int | None, text_width: int, dtype: torch.dtype | None
) -> Connector:
    """A decoder's; a new projector, in fp32, where its folder has none, as of stock checkpoints.

    llm_width: of the LLM's states; None where the folder has one.
    """
    if (folder / FOLDER).is_dir():
        connector = load_pretrained(Projector, folder / FOLDER, dtype)
        if llm_width not in (None, connector.in_width):
            raise ValueError(
                f"expected a projector from the LLM's width {llm_width}, the one in {folder} takes "
                f"{connector.in_width}; use the LLM that this decoder was trained with"
            )
        return connector
    assert llm_width is not None
    warnings.warn(
        (
            f"{folder} has no projector: it starts untrained, and what is painted means nothing "
            "until `uae train v3` has taught it, or projector/ is laid in the decoder's folder"
        ),
        stacklevel=3,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # untrained, but the same whenever a run is resumed
        return projector_between(llm_width, text_width)
