"""UMM-2's decoder: the same autoregressive model over image tokens, sampled and scored.

Tokens are sampled with classifier-free guidance, but their log-probabilities are those of the
conditional stream alone: see ``janus.py``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from uae.models.encoders.cache import reserve
from uae.models.encoders.causal import Prefix
from uae.models.encoders.tokens import draw, log_softmax, pad, token_evaluation
from uae.types import Evaluation, Rollout
from uae.utils.finite import require_finite
from uae.utils.progress import track
from uae.utils.seed import uniforms


@dataclass(frozen=True)
class PaintContext:
    """What image tokens are conditioned on: N prompts, which of them each of B images is of, and
    the temperature."""

    prompts: tuple[tuple[int, ...], ...]
    prompt_of: Int[Tensor, " B"]
    temperature: float

    def select(self, index: Int[Tensor, " b"]) -> PaintContext:
        return replace(self, prompt_of=self.prompt_of[index])


class ImageTokenPolicy:
    """Janus over image tokens: what its decoder does, sampled and scored."""

    def __init__(self, janus: Any) -> None:
        self.janus = janus

    @property
    def device(self) -> torch.device:
        return self.janus.device

    def named_trainable_parameters(self) -> dict[str, nn.Parameter]:
        """The same weights as the encoder's."""
        return self.janus.named_trainable_parameters()

    @torch.no_grad()
    def sample(
        self,
        context: PaintContext,
        guidance_scale: float,
        keys: Int[Tensor, " B"],
        *,
        seed: int = 0,
        step: int = 0,
    ) -> tuple[Rollout, Float[Tensor, "B T"]]:
        """Image tokens of each entry of ``context.prompt_of``, and by how much guidance raised
        their log-probability.

        Draws are keyed by (seed, step, key). Guidance 1 runs the conditional stream alone.
        """
        model, num, is_guided = self.janus.model, len(context.prompt_of), guidance_scale != 1
        length = model.config.vision_config.num_image_tokens
        draws = uniforms(seed, step, keys.tolist(), "image", length).to(self.device)
        prefix = self._prefill(context, is_guided)
        reserve(prefix.cache, length)
        tokens = torch.zeros(num, length, dtype=torch.long, device=self.device)
        log_probs, gaps = torch.zeros(2, num, length, device=self.device)
        embeds = self._embed(prefix.last_token[:, None])
        for t in track(range(length), "drawing", "tokens"):
            logits = model.model.generation_head(
                self.janus.feed_embeds(prefix, embeds)[:, -1]
            ).float()
            conditional = log_softmax(logits[:num], context.temperature)
            scores = conditional
            if is_guided:
                guided = logits[num:] + guidance_scale * (logits[:num] - logits[num:])
                scores = log_softmax(guided, context.temperature)
            token = scores.argmax(-1) if context.temperature == 0 else draw(scores, draws[:, t])
            tokens[:, t] = token
            log_probs[:, t] = conditional.gather(-1, token[:, None])[:, 0]
            gaps[:, t] = scores.gather(-1, token[:, None])[:, 0] - log_probs[:, t]
            if t + 1 < length:
                embeds = model.prepare_embeddings_for_image_generation(
                    token[:, None].repeat(1 + is_guided, 1)
                )
        require_finite(log_probs, "log-probabilities of an image's tokens")
        return Rollout(tokens, log_probs, torch.ones_like(tokens, dtype=torch.bool), context), gaps

    def round_trip(self, images: Float[Tensor, "B 3 h w"]) -> Float[Tensor, "B 3 h w"]:
        """Images in [0, 1] to tokens and back: the best that any caption could lead to."""
        return self.janus.pixels(self.janus.image_tokens(images))

    def evaluate(self, rollout: Rollout, *, with_kl: bool) -> Evaluation:
        """Log-probability and entropy of each image token now, and the k3 KL to the reference."""
        return token_evaluation(
            lambda: self.scores(rollout.actions, rollout.context),
            rollout,
            self.janus.reference,
            with_kl,
        )

    def scores(self, tokens: Int[Tensor, "B T"], context: PaintContext) -> Float[Tensor, "B T V"]:
        """Log-probabilities over the codebook at each image token, in the conditional stream."""
        model = self.janus.model
        prefix = self._prefill(context, False)
        token_embeds = model.prepare_embeddings_for_image_generation(tokens[:, :-1])
        embeds = torch.cat([self._embed(prefix.last_token[:, None]), token_embeds], 1)
        return log_softmax(
            model.model.generation_head(self.janus.feed_embeds(prefix, embeds)),
            context.temperature,
        )

    def _prefill(self, context: PaintContext, is_guided: bool) -> Prefix:
        """Each needed prompt once; with guidance, all sequences again without their words behind
        them."""
        needed, row = context.prompt_of.unique(return_inverse=True)
        ids, mask = pad(
            [context.prompts[i] for i in needed.tolist()], self.janus.pad_id, "left", self.device
        )
        if is_guided:
            ids, mask, row = (
                torch.cat([ids, self.without_words(ids)]),
                mask.repeat(2, 1),
                torch.cat([row, row + len(ids)]),
            )
        prefix = self.janus.begin(
            ids, self._embed(ids), mask, self.janus.prompt_positions(ids, mask)
        )
        return prefix.select(row)

    def without_words(self, ids: Int[Tensor, "N L"]) -> Int[Tensor, "N L"]:
        """All but BOS and BOI become padding, which is attended to as the words were (the class's
        own reading)."""
        is_kept = (ids == self.janus.tokenizer.bos_token_id) | (ids == self.janus.boi_id)
        return torch.where(is_kept, ids, self.janus.pad_id)

    def _embed(self, ids: Int[Tensor, "B T"]) -> Float[Tensor, "B T D"]:
        return self.janus.language_model.embed_tokens(ids)  # type: ignore[operator,union-attr]
