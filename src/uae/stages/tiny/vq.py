"""UMM-2's VQ model: pixels to 6x6 tokens and back, good enough that the detector cannot tell (>= 98 %)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from uae.models.tiny import build_janus
from uae.scenes.scene import Scene, scene_at
from uae.stages.fit import Recipe
from uae.stages.tiny.data import images_of, train_scenes
from uae.stages.tiny.vae import compare_round_trip, weighted_error

REVIVE_EVERY = 50  # steps; a code that was not used since is dead


class VqTask:
    """Absolute plus squared error, more of it where objects are small, and the class's own codebook loss.

    The class decodes codes at unit length, so codes are kept there, and encodings too. Dead codes are put where the
    encoder is.
    """

    name = "vq"
    recipe = Recipe(num_steps=6_000, batch_size=32, learning_rate=1.5e-3, ema_decay=0.998)

    def __init__(self) -> None:
        torch.manual_seed(self.recipe.seed)
        self.janus = build_janus()
        self.vq: Any = self.janus.model.model.vqmodel
        codes = self.vq.quantize.embedding.weight
        codes.data = nn.functional.normalize(torch.randn_like(codes), dim=-1)
        self.uses = nn.Parameter(torch.ones(len(codes)), requires_grad=False)  # since the last revival
        self.modules: dict[str, nn.Module] = {"vq": self.vq, "uses": nn.ParameterList([self.uses])}

    def loss(self, step: int) -> tuple[Tensor, dict[str, float]]:
        scenes = train_scenes(step, self.recipe.batch_size)
        images = images_of(scenes)
        with torch.autocast("cpu", torch.bfloat16):
            encoded = self.vq.quant_conv(self.vq.encoder(images * 2 - 1))
        encoded = nn.functional.normalize(encoded.float(), dim=1)
        quantized, codebook_loss, tokens = self.vq.quantize(encoded)
        with torch.autocast("cpu", torch.bfloat16):
            decoded = self.vq.decoder(self.vq.post_quant_conv(quantized)).float()
        error = decoded - (images * 2 - 1)
        reconstruction = weighted_error(error, scenes)
        self._encoded = encoded.detach().permute(0, 2, 3, 1).flatten(0, 2)
        self.uses += tokens.bincount(minlength=len(self.uses))
        used = (self.uses > 0).float().mean().item()
        metrics = {"abs_error": error.abs().mean().item(), "codebook_loss": codebook_loss.item(), "codes_alive": used}
        return reconstruction + codebook_loss, metrics

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        """Codes back to unit length; now and then, dead ones to where the encoder is, but not near the end."""
        codes = self.vq.quantize.embedding.weight
        if step % REVIVE_EVERY == REVIVE_EVERY - 1:
            dead = (self.uses == 0).nonzero()[:, 0]
            if step < 0.8 * self.recipe.num_steps:
                codes[dead] = self._encoded[torch.randperm(len(self._encoded))[: len(dead)]]
            self.uses.zero_()
        codes.copy_(nn.functional.normalize(codes, dim=-1))

    def evaluate(self, num_scenes: int = 512) -> dict[str, float]:
        return measure_vq(self.vq, [scene_at("validation", i) for i in range(num_scenes)])

    def export(self, folder: Path) -> None:
        self.janus.save_pretrained(folder)


@torch.no_grad()
def measure_vq(vq: Any, scenes: list[Scene]) -> dict[str, float]:
    """Round trip through tokens: what the detector still reads exactly, PSNR in dB, and the share of codes in use."""
    images = images_of(scenes)
    tokens = image_tokens(vq, images)
    decoded = torch.cat([vq.decode(part) for part in tokens.split(64)])
    used = len(tokens.unique()) / vq.config.num_embeddings
    return compare_round_trip(scenes, images, decoded) | {"codebook_used": used}


@torch.no_grad()
def image_tokens(vq: Any, images: Tensor, batch_size: int = 64) -> Tensor:
    """``[B, 36]``: the tokens of images in [0, 1]."""
    parts = [vq.encode(part * 2 - 1).image_tokens.view(len(part), -1) for part in images.split(batch_size)]
    return torch.cat(parts)
