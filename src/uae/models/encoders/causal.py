"""A language model that captions what it sees, whatever its family: sampling and scoring.

One forward serves sampling and scoring. An image's vision features and its prompt are computed
once, whatever the number of captions: the prompt (all but its last token) is run into a key-value
cache, the cache is repeated for the captions, and gradients flow back through it when captions are
scored. A family says how it sees an image, how it writes a prompt (``prompts.py``), and what
positions its tokens have.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from transformers.cache_utils import DynamicCache

from uae.config import CaptionSettings
from uae.models.encoders.cache import repeat_rows, reserve
from uae.models.encoders.prompts import PromptWriter
from uae.models.encoders.tokens import draw, log_softmax, pad, token_evaluation
from uae.types import Captions, Evaluation, Ratio, Rollout
from uae.utils.finite import require_finite
from uae.utils.progress import track
from uae.utils.seed import sequence_keys, uniforms

MAX_DRIFT_TOKENS = 16  # of an answer


@dataclass(frozen=True)
class CaptionContext:
    """What captions are conditioned on: P images with their prompts, and which image each of B
    captions is of.

    features: vision features of each image, ``[n_p, D]``; prompts: token ids, the image pad already
    repeated.
    """

    features: tuple[Tensor, ...]
    grids: Int[Tensor, "P 3"]
    prompts: tuple[tuple[int, ...], ...]
    image_of: Int[Tensor, " B"]
    temperature: float

    def select(self, index: Int[Tensor, " b"]) -> CaptionContext:
        return replace(self, image_of=self.image_of[index])


@dataclass
class Prefix:
    """Prompts run into a cache, for each of B sequences; the last prompt token is still to be
    fed."""

    cache: DynamicCache
    mask: Bool[Tensor, "B L"]
    next_position: Int[Tensor, " B"]
    last_token: Int[Tensor, " B"]

    def select(self, row: Int[Tensor, " b"]) -> Prefix:
        """These rows, as often as they are named; the cache is taken over, not copied."""
        repeat_rows(self.cache, row)
        return Prefix(self.cache, self.mask[row], self.next_position[row], self.last_token[row])


class CaptionSampler(Protocol):
    """What samples captions in the place of the class itself."""

    def push(self) -> None:
        """Take the weights as they are now."""
        ...

    def sample(
        self,
        context: CaptionContext,
        *,
        max_new_tokens: int,
        seed: int = 0,
        step: int = 0,
        group_size: int = 1,
        keys: Int[Tensor, " B"] | None = None,
    ) -> Captions:
        """As ``CausalCaptioner.sample``."""
        ...


class CausalCaptioner(PromptWriter):
    """Captioner and token policy."""

    def __init__(self, model: Any, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__(model, tokenizer)
        self.end_ids = _end_ids(model, tokenizer)
        self.sampler: CaptionSampler | None = None
        """Of captions, in the place of ``sample``."""

    # --- what a family says of itself ------------------------------------------------------------

    @abstractmethod
    def see(
        self, images: Sequence[Float[Tensor, "3 _ _"]]
    ) -> tuple[list[Tensor], Int[Tensor, "_ 3"]]:
        """Vision features of each image, ``[n, D]``, and the patch grids; differentiable unless the
        tower is frozen."""

    @abstractmethod
    def prompt_positions(self, ids: Tensor, mask: Tensor, grids: Tensor) -> Tensor:
        """Position ids of left-padded prompts, ``[..., B, L]``."""

    @abstractmethod
    def save_pretrained(self, folder: str | Path) -> None:
        """As the family's ``from_pretrained`` loads it."""

    def answer_positions(self, position: Int[Tensor, "B T"]) -> Tensor:
        """Position ids of tokens after the prompt, ``[..., B, T]``."""
        return position

    # --- images and prompts ----------------------------------------------------------------------

    def look(
        self,
        images: Sequence[Float[Tensor, "3 _ _"]],
        questions: Sequence[str],
        *,
        group_size: int = 1,
        temperature: float = 1.0,
    ) -> CaptionContext:
        """Run the vision tower once per image (values in [0, 1]; the same tensor is the same image)
        and write each image's prompt."""
        images = list(images)
        different = {id(image): image for image in images}
        place = {key: row for row, key in enumerate(different)}
        different_features, grids = self.see(list(different.values()))
        rows = [place[id(image)] for image in images]
        features = tuple(different_features[row] for row in rows)
        prompts = tuple(self.prompt(q, len(f)) for q, f in zip(questions, features, strict=True))
        image_of = torch.arange(len(images)).repeat_interleave(group_size)
        return CaptionContext(features, grids[rows], prompts, image_of, temperature)

    def until_question(self, context: CaptionContext) -> CaptionContext:
        """The same images with prompts that end right after the image, for teaching what
        follows."""
        ends = [len(p) - p[::-1].index(self.image_pad_id) + 1 for p in context.prompts]
        return replace(
            context, prompts=tuple(p[:end] for p, end in zip(context.prompts, ends, strict=True))
        )

    # --- sampling --------------------------------------------------------------------------------

    @torch.no_grad()
    def caption(
        self,
        images: Sequence[Tensor],
        settings: CaptionSettings,
        *,
        group_size: int = 1,
        seed: int = 0,
        step: int = 0,
        keys: Sequence[int] | None = None,
    ) -> Captions:
        """``group_size`` captions of each image; vision tower and prompt run once per image."""
        questions = [settings.instruction] * len(images)
        context = self.look(
            images, questions, group_size=group_size, temperature=settings.temperature
        )
        draws_of = sequence_keys(keys, len(images), group_size)
        if self.sampler is not None:
            self.sampler.push()
        return (self.sampler or self).sample(
            context,
            max_new_tokens=settings.max_new_tokens,
            seed=seed,
            step=step,
            group_size=group_size,
            keys=draws_of,
        )

    @torch.no_grad()
    def answer(
        self, images: Sequence[Tensor], questions: Sequence[str], *, max_new_tokens: int = 16
    ) -> list[str]:
        """A greedy answer to one question about each image."""
        return self.sample(
            self.look(images, questions, temperature=0.0), max_new_tokens=max_new_tokens
        ).texts

    @torch.no_grad()
    def sample(
        self,
        context: CaptionContext,
        *,
        max_new_tokens: int,
        seed: int = 0,
        step: int = 0,
        group_size: int = 1,
        keys: Int[Tensor, " B"] | None = None,
    ) -> Captions:
        """One caption for each entry of ``context.image_of``; temperature 0 is greedy.

        Token draws are keyed by (seed, step, key), a sequence's place by default: how a batch is
        split is all the same.
        """
        prefix = self.prefill(context)
        reserve(prefix.cache, max_new_tokens)
        num = len(context.image_of)
        draws = uniforms(
            seed, step, range(num) if keys is None else keys, "caption", max_new_tokens
        ).to(self.device)
        end_ids = torch.tensor(self.end_ids, device=self.device)
        tokens = torch.full((num, max_new_tokens), self.pad_id, device=self.device)
        log_probs = torch.zeros(num, max_new_tokens, device=self.device)
        mask = torch.zeros(num, max_new_tokens, dtype=torch.bool, device=self.device)
        done = torch.zeros(num, dtype=torch.bool, device=self.device)
        token = prefix.last_token
        for t in track(range(max_new_tokens), "captioning", "tokens"):
            logits = self.advance(prefix, token[:, None])[:, -1]
            scores = log_softmax(logits, context.temperature)
            token = scores.argmax(-1) if context.temperature == 0 else draw(scores, draws[:, t])
            tokens[:, t] = torch.where(done, self.pad_id, token)
            mask[:, t] = ~done
            log_probs[:, t] = torch.where(done, 0.0, scores.gather(-1, token[:, None])[:, 0])
            done |= torch.isin(token, end_ids)
            if done.all():
                break
        require_finite(log_probs, "log-probabilities of a caption's tokens")
        length = int(mask.sum(1).max())
        rollout = Rollout(tokens[:, :length], log_probs[:, :length], mask[:, :length], context)
        return Captions(self.decode(rollout.actions, rollout.mask), rollout, group_size, ~done)

    def decode(self, tokens: Int[Tensor, "B T"], mask: Bool[Tensor, "B T"]) -> list[str]:
        """The captions' text, without special tokens."""
        rows = (row[keep].tolist() for row, keep in zip(tokens, mask, strict=True))
        return [self.tokenizer.decode(row, skip_special_tokens=True).strip() for row in rows]

    @property
    def pad_id(self) -> int:
        return int(self.tokenizer.pad_token_id)  # type: ignore[arg-type]

    # --- scoring ---------------------------------------------------------------------------------

    def evaluate(self, rollout: Rollout, *, with_kl: bool) -> Evaluation:
        """Log-probability and entropy of each caption token now, and the k3 KL to the reference."""
        return token_evaluation(lambda: self._scores(rollout), rollout, self.reference, with_kl)

    def log_likelihood(
        self, images: Sequence[Float[Tensor, "3 _ _"]], texts: Sequence[str], question: str
    ) -> Float[Tensor, " B"]:
        """Of each text as the answer to ``question`` about its image: mean log-probability of its
        tokens and its end, in nats. Differentiable in the images."""
        rows = [self.tokenize_answer(text) for text in texts]
        ids, mask = pad(rows, self.pad_id, "right", self.device)
        context = self.look(images, [question] * len(rows))
        rollout = Rollout(ids, torch.zeros(ids.shape), mask, context)
        log_probs = self.evaluate(rollout, with_kl=False).log_probs
        return (log_probs * mask).sum(1) / mask.sum(1)

    def answer_drift(
        self, images: Sequence[Float[Tensor, "3 _ _"]], questions: Sequence[str]
    ) -> Ratio:
        """KL(reference || now) in nats over the vocabulary, mean over the tokens of the reference's
        own greedy answers, of at most ``MAX_DRIFT_TOKENS``."""
        greedy = self.look(images, questions, temperature=0.0)
        with torch.no_grad(), self.reference():
            rollout = self.sample(greedy, max_new_tokens=MAX_DRIFT_TOKENS).rollout
            before = self._scores(rollout)
        kl = (before.exp() * (before - self._scores(rollout))).sum(-1)
        return Ratio((kl * rollout.mask).sum(), rollout.mask.sum().item())

    def _scores(self, rollout: Rollout) -> Float[Tensor, "B T V"]:
        prefix = self.prefill(rollout.context)
        fed = torch.cat([prefix.last_token[:, None], rollout.actions[:, :-1]], dim=1)
        return log_softmax(self.advance(prefix, fed), rollout.context.temperature)

    def answer_states(self, rollout: Rollout) -> Float[Tensor, "B T D"]:
        """Last hidden states at the caption's own tokens, from the pass that also sees the
        image."""
        prefix = self.prefill(rollout.context)
        self.feed(prefix, prefix.last_token[:, None])
        return self.feed(prefix, rollout.actions)

    # --- the shared forward ----------------------------------------------------------------------

    def prefill(self, context: CaptionContext) -> Prefix:
        """Run each needed image's prompt once, and hand its cache to every sequence of that
        image."""
        needed, row = context.image_of.unique(return_inverse=True)
        ids, mask = pad(
            [context.prompts[i] for i in needed.tolist()], self.pad_id, "left", self.device
        )
        features = torch.cat([context.features[i] for i in needed.tolist()])
        embeds = self.language_model.embed_tokens(ids)  # type: ignore[operator,union-attr]
        embeds = embeds.masked_scatter(
            (ids == self.image_pad_id)[..., None], features.to(embeds.dtype)
        )
        positions = self.prompt_positions(ids, mask, context.grids[needed])
        return self.begin(ids, embeds, mask, positions).select(row)

    def begin(
        self, ids: Int[Tensor, "N L"], embeds: Tensor, mask: Bool[Tensor, "N L"], positions: Tensor
    ) -> Prefix:
        """Run prompts, all but their last token, into a cache."""
        cache = DynamicCache(config=self.model.config.text_config)
        self.language_model(
            inputs_embeds=embeds[:, :-1],
            attention_mask=mask[:, :-1].long(),
            position_ids=positions[..., :-1],
            past_key_values=cache,
            use_cache=True,
        )
        last = positions[..., -1]
        return Prefix(cache, mask[:, :-1], last[0] if last.ndim > 1 else last, ids[:, -1])

    def advance(self, prefix: Prefix, tokens: Int[Tensor, "B T"]) -> Float[Tensor, "B T V"]:
        """Feed tokens after what the prefix holds; the logits that follow each."""
        return self.model.lm_head(self.feed(prefix, tokens))

    def feed(self, prefix: Prefix, tokens: Int[Tensor, "B T"]) -> Float[Tensor, "B T D"]:
        """Feed tokens after what the prefix holds; the last hidden state at each."""
        return self.feed_embeds(prefix, self.language_model.embed_tokens(tokens))  # type: ignore

    def feed_embeds(self, prefix: Prefix, embeds: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        """Feed embedded tokens after what the prefix holds; the last hidden state at each."""
        num_fed = embeds.shape[1]
        prefix.mask = torch.cat([prefix.mask, prefix.mask.new_ones(len(embeds), num_fed)], dim=1)
        position = prefix.next_position[:, None] + torch.arange(num_fed, device=embeds.device)
        prefix.next_position = prefix.next_position + num_fed
        output = self.language_model(
            inputs_embeds=embeds,
            attention_mask=prefix.mask.long(),
            position_ids=self.answer_positions(position),
            past_key_values=prefix.cache,
            use_cache=True,
        )
        return output.last_hidden_state


def _end_ids(model: Any, tokenizer: Any) -> list[int]:
    declared = model.generation_config.eos_token_id if model.generation_config else None
    ids = declared if isinstance(declared, list) else [declared]
    return sorted({int(i) for i in (*ids, tokenizer.eos_token_id) if i is not None})
