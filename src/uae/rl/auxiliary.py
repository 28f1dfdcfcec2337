"""Auxiliary losses: they stand beside what is learnt from rewards, so that it undoes nothing.

Pairs remind painting of what it was pretrained on. Questions hold the captioner to the answers it
gave before training, which are its own: they take no labels. Texts hold what they tell a decoder.
Each process takes a share of them.
"""

from __future__ import annotations

from dataclasses import dataclass

from uae.models.base import Anchored, Matching, TextAnchored, UnifiedModel
from uae.rl.config import TrainConfig
from uae.rl.learning import Learning
from uae.types import PairSource, PromptSource, QuestionSource, Ratio
from uae.utils.device import autocast
from uae.utils.processes import add_up, own_share, slice_of


@dataclass(frozen=True)
class Auxiliary:
    """What these losses are taken of, where the settings ask for them."""

    pairs: PairSource | None = None
    questions: QuestionSource | None = None
    texts: PromptSource | None = None

    def check(self, model: UnifiedModel, config: TrainConfig) -> None:
        """A ValueError where a loss is asked for that this model does not have, or that nothing is
        given for. The model is ready to train."""
        if config.matching_coef > 0 and not isinstance(model, Matching):
            raise ValueError(
                "matching-coef: expected a model that can be taught pictures of texts, got "
                f"{type(model).__name__} ({model.family}); leave it at 0"
            )
        if config.matching_coef > 0 and self.pairs is None:
            raise ValueError("matching-coef: expected 0 where no pairs are given to match")
        if holds_answers(model, config) and not isinstance(model.encoder, Anchored):
            raise ValueError(
                "anchor-coef: expected a model that can be held to its answers, got "
                f"{type(model).__name__} ({model.family}); leave it at 0"
            )
        if holds_answers(model, config) and self.questions is None:
            raise ValueError("anchor-coef: expected 0 where no questions are given to be asked")
        if config.text_anchor_coef > 0:
            self._check_texts(model)

    def _check_texts(self, model: UnifiedModel) -> None:
        name, of = "text-anchor-coef", f"{type(model).__name__} ({model.family})"
        if not isinstance(model, TextAnchored) or getattr(model, "text_encoder", "") != "policy":
            raise ValueError(
                f"{name}: expected a diffusion decoder whose texts the policy encodes, got {of}; "
                "leave it at 0"
            )
        if not model.encoder.named_trainable_parameters():
            raise ValueError(f"{name}: expected 0 where nothing that encodes texts learns")
        if self.texts is None:
            raise ValueError(f"{name}: expected 0 where no texts are given to be held")

    def backward(
        self, model: UnifiedModel, config: TrainConfig, learning: Learning, step: int
    ) -> dict[str, float]:
        """Add their gradients; the losses."""
        losses = {}
        if config.matching_coef > 0:
            with learning.painting_gradients():
                losses["rl_image/matching_loss"] = self._match(model, config, step)
        if holds_answers(model, config):
            losses["rl/anchor_kl"] = self._anchor(model, config, step)
        if config.text_anchor_coef > 0:
            losses["rl/text_drift"] = self._hold_texts(model, config, step)
        return losses

    def _match(self, model: UnifiedModel, config: TrainConfig, step: int) -> float:
        """The loss of pretraining on some pairs."""
        assert isinstance(model, Matching) and self.pairs is not None, "check"
        images, texts = self.pairs.batch(step, config.pairs_per_step)
        places = own_share(len(texts))
        own, draws = slice_of(places), {"seed": config.seed, "step": step, "keys": places}
        with autocast(model.encoder.device, config.use_bf16):
            loss = model.matching_loss(images[own], texts[own], **draws)
            return _added(Ratio(len(places) * loss, len(places)), config.matching_coef)

    def _anchor(self, model: UnifiedModel, config: TrainConfig, step: int) -> float:
        """How far the answers to some questions are from those before training."""
        encoder = model.encoder
        assert isinstance(encoder, Anchored) and self.questions is not None, "check"
        images, texts = self.questions.batch(step, config.questions_per_step)
        own = slice_of(own_share(len(texts)))
        with autocast(encoder.device, config.use_bf16):
            return _added(encoder.answer_drift(images[own], texts[own]), config.anchor_coef)

    def _hold_texts(self, model: UnifiedModel, config: TrainConfig, step: int) -> float:
        """How far what some texts tell the decoder is from what they told it before training."""
        assert isinstance(model, TextAnchored) and self.texts is not None, "check"
        texts = [prompt.text for prompt in self.texts.batch(step, config.texts_per_step)]
        own = slice_of(own_share(len(texts)))
        with autocast(model.encoder.device, config.use_bf16):
            return _added(model.text_drift(texts[own]), config.text_anchor_coef)


def holds_answers(model: UnifiedModel, config: TrainConfig) -> bool:
    """Whether questions are asked: only of what learns."""
    return config.anchor_coef > 0 and bool(model.encoder.named_trainable_parameters())


def _added(own: Ratio, coef: float) -> float:
    """Add the gradient of this process's part; the loss of all."""
    whole = add_up({"total": own.total.item(), "size": own.size})
    (coef * own.total / whole["size"]).backward()
    return whole["total"] / whole["size"]
