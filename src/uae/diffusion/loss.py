"""Flow matching: regress the network's velocity on ``v = ε − x`` at random noise levels.

    loss = mean over samples and latent dimensions of (v_θ(x_σ, σ, c) − v)²

Lipman et al., arXiv 2210.02747; Esser et al. (SD3), arXiv 2403.03206: logit-normal σ, every level
weighed alike.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor


def flow_matching_loss(
    velocity: Float[Tensor, "N c h w"],
    latents: Float[Tensor, "N c h w"],
    noise: Float[Tensor, "N c h w"],
) -> Float[Tensor, ""]:
    """``velocity`` is the network's at ``add_noise(latents, noise, sigma)``."""
    return (velocity.float() - (noise - latents)).square().mean()
