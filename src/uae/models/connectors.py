"""The projector: the LLM's last hidden states, token by token, to what the MM-DiT takes as text
embeddings.

``Linear(in → hidden), GELU, Linear(hidden → out)``; Qwen2.5-VL-3B to SD3.5: 2048 → 8192 → 4096
(arXiv 2509.09666).
"""

from __future__ import annotations

from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from jaxtyping import Float
from torch import Tensor, nn


class Projector(ModelMixin, ConfigMixin):
    """Saved and loaded by ``save_pretrained`` and ``from_pretrained``, as the models it stands
    between."""

    @register_to_config
    def __init__(self, in_features: int, hidden_features: int, out_features: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(in_features, hidden_features),
            nn.GELU(),
            nn.Linear(hidden_features, out_features),
        )

    def forward(self, states: Float[Tensor, "*tokens D"]) -> Float[Tensor, "*tokens E"]:
        return self.layers(states.to(self.dtype))


def projector_between(llm_width: int, joint_attention_dim: int) -> Projector:
    """A new projector with the paper's proportion: hidden twice as wide as out."""
    return Projector(llm_width, 2 * joint_attention_dim, joint_attention_dim)
