"""Captions by vLLM, behind the interface of the built-in sampler (``encoders/causal.py``).

The vision tower runs here, once an image: it never learns, its features are needed to score the
captions again, and the engine is sent them in the place of pixels. Both thus see the same image.

Weights are pushed before each rollout, so captions are those of the policy that learns from them.
Log-probabilities in the rollout are the engine's own: ``rl/log_prob_gap`` is their distance to
those that the loss computes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Int
from torch import Tensor

from uae.config import VLLMSettings
from uae.models.encoders.causal import CaptionContext
from uae.models.encoders.qwen_vl import QwenVL
from uae.models.encoders.tokens import pad
from uae.types import Captions, Rollout
from uae.utils.finite import require_finite
from uae.utils.seed import sequence_keys, sequence_seeds

VISION = "model.visual."
"""Before the names of weights that an engine does not need."""


class Request(NamedTuple):
    """One caption to be sampled."""

    prompt: list[int]
    """Token ids, the image pad once."""
    features: Tensor
    """Of the image, ``[n, D]``, on the CPU."""
    grid: Tensor
    """Its patches, ``[1, 3]``."""
    seed: int


class Sampling(NamedTuple):
    """How all captions of a batch are sampled."""

    temperature: float
    """0 is greedy."""
    max_new_tokens: int
    end_ids: list[int]


class Answer(NamedTuple):
    """What the engine made of a request."""

    prompt: list[int]
    """Token ids as it read them, the image pad repeated."""
    tokens: list[int]
    """The end token included."""
    log_probs: list[float]
    """At the temperature; greedy ones at temperature 1."""


@runtime_checkable
class Engine(Protocol):
    """vLLM, beside the trainer or elsewhere."""

    def push(self, tensors: Iterable[tuple[str, Tensor]]) -> None:
        """Answer by these weights from now on, and forget what was kept of others."""
        ...

    def answer(self, requests: Sequence[Request], sampling: Sampling) -> list[Answer]:
        """Of each request, in their order."""
        ...


class VLLMSampler:
    """Samples for one captioner."""

    def __init__(self, captioner: QwenVL, engine: Engine, max_length: int) -> None:
        self._captioner, self._engine, self._max_length = captioner, engine, max_length
        self._is_pushed = False

    @torch.no_grad()
    def push(self) -> None:
        """Give the engine the weights as they are; once, where none learns."""
        if self._is_pushed and not self._captioner.named_trainable_parameters():
            return
        tensors = self._captioner.adapters.merged_tensors()
        self._engine.push((name, each) for name, each in tensors if not name.startswith(VISION))
        self._is_pushed = True

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
        """As the built-in one: a caption for each entry of ``context.image_of``, its draws keyed by
        (seed, step, key)."""
        self._check_length(context, max_new_tokens)
        image_of = context.image_of.tolist()
        keys = sequence_keys(None, len(image_of), 1) if keys is None else keys
        requests = self._requests(context, sequence_seeds(seed, step, keys, "caption"))
        sampling = Sampling(context.temperature, max_new_tokens, list(self._captioner.end_ids))
        answers = self._engine.answer(requests, sampling)
        for answer, image in zip(answers, image_of, strict=True):
            _check_prompt(answer.prompt, context.prompts[image])
        return self._captions(answers, context, group_size)

    def _requests(self, context: CaptionContext, seeds: Sequence[int]) -> list[Request]:
        pad_id = self._captioner.image_pad_id
        prompts = [_once(prompt, pad_id) for prompt in context.prompts]
        features = [each.detach().cpu() for each in context.features]
        grids = context.grids.cpu()[:, None]
        images = context.image_of.tolist()
        return [
            Request(prompts[image], features[image], grids[image], seed)
            for image, seed in zip(images, seeds, strict=True)
        ]

    def _captions(
        self, answers: Sequence[Answer], context: CaptionContext, group_size: int
    ) -> Captions:
        captioner, device = self._captioner, self._captioner.device
        tokens, mask = pad([each.tokens for each in answers], captioner.pad_id, "right", device)
        log_probs = torch.zeros(tokens.shape, device=device)
        log_probs[mask] = torch.tensor([p for each in answers for p in each.log_probs]).to(device)
        require_finite(log_probs, "log-probabilities of a caption's tokens")
        ended = torch.tensor([each.tokens[-1] in captioner.end_ids for each in answers])
        rollout = Rollout(tokens, log_probs, mask, context)
        texts = captioner.decode(tokens, mask)
        return Captions(texts, rollout, group_size, ~ended.to(device))

    def _check_length(self, context: CaptionContext, max_new_tokens: int) -> None:
        needed = max(map(len, context.prompts)) + max_new_tokens
        if needed > self._max_length:
            raise ValueError(
                f"vllm.max-length: expected at least {needed}, as an image with its question has "
                f"{needed - max_new_tokens} tokens and a caption at most {max_new_tokens}, got "
                f"{self._max_length}; raise it, or lower captioning.max-new-tokens"
            )


@contextmanager
def opened(captioner: QwenVL, settings: VLLMSettings) -> Iterator[VLLMSampler]:
    """A sampler for this captioner, and its engine as long as the context lasts."""
    from uae.models.vllm.engine import InProcess
    from uae.models.vllm.server import Server

    positions = captioner.model.config.text_config.max_position_embeddings
    settings = replace(settings, max_length=min(settings.max_length, positions))
    engine = (Server if settings.server else InProcess)(captioner, settings)
    try:
        yield VLLMSampler(captioner, engine, settings.max_length)
    finally:
        engine.close()


def _once(prompt: Sequence[int], pad_id: int) -> list[int]:
    """The prompt with its run of image pads as one, which the engine repeats again."""
    pairs = zip((None, *prompt), prompt, strict=False)
    return [token for before, token in pairs if not token == before == pad_id]


def _check_prompt(read: Sequence[int], written: Sequence[int]) -> None:
    if tuple(read) != tuple(written):
        raise ValueError(
            f"expected vLLM to read the prompt of {len(written)} tokens as it is written here, it "
            f"read another of {len(read)}; give it the model and the chat template that is trained"
        )
