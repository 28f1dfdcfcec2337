"""What a unified model must offer. A new family is one file with a class of this shape."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor, nn

from uae.config import CaptionSettings, DecodeSettings, VLLMSettings
from uae.types import Captions, Policy, Ratio, Reconstructions


@runtime_checkable
class Captioner(Protocol):
    """Understanding: image → caption, image and question → answer.

    Draws are keyed by ``(seed, step)``, the image's key (by default its place) and the sequence's
    place among those of its image, so they do not depend on how a batch is split.
    """

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
        """``group_size`` captions of each image (``[3, h, w]`` in [0, 1], any sizes)."""
        ...

    def answer(
        self, images: Sequence[Tensor], questions: Sequence[str], *, max_new_tokens: int = 16
    ) -> list[str]:
        """A greedy answer to one question about each image."""
        ...


@runtime_checkable
class Limited(Protocol):
    """A family that cannot do all that settings can say; the others need no such method."""

    def check_settings(self, captioning: CaptionSettings, decoding: DecodeSettings) -> None:
        """A ValueError that names the option: to be raised before any work."""
        ...


def check_settings(model: object, captioning: CaptionSettings, decoding: DecodeSettings) -> None:
    """A ValueError where this model cannot caption or paint so."""
    if isinstance(model, Limited):
        model.check_settings(captioning, decoding)


@runtime_checkable
class Matching(Protocol):
    """A family whose painting half can be taught pictures of texts; the others need no such
    method."""

    def matching_loss(
        self,
        images: Float[Tensor, "N 3 H W"],
        texts: Sequence[str],
        *,
        seed: int,
        step: int,
        keys: Sequence[int] | None = None,
    ) -> Float[Tensor, ""]:
        """That of pretraining, as flow matching or the cross-entropy of image tokens; mean over
        pairs. Draws are keyed by ``(seed, step, key)``, a pair's place by default."""
        ...


@runtime_checkable
class Anchored(Protocol):
    """A captioner that can be held to the answers it gave before training; the others need no such
    method."""

    def answer_drift(
        self, images: Sequence[Float[Tensor, "3 _ _"]], questions: Sequence[str]
    ) -> Ratio:
        """How far the answers are from those of the reference, in nats a token, differentiable."""
        ...


@runtime_checkable
class TextAnchored(Protocol):
    """A family whose painting half reads texts as the captioning half encodes them; the others need
    no such method."""

    def text_drift(self, texts: Sequence[str]) -> Ratio:
        """Squared distance of what is read of the texts from what was read before training, as a
        share of its square, differentiable."""
        ...


@runtime_checkable
class Compilable(Protocol):
    """A decoder whose network can be compiled; the others need no such method."""

    def compiled(self) -> AbstractContextManager[None]:
        """A context in which compiled code runs, compiled where it is first run."""
        ...


@runtime_checkable
class Shardable(Protocol):
    """A half whose networks can be spread over processes; the others need no such methods."""

    def networks(self) -> Sequence[nn.Module]:
        """What has blocks: what learns, and the frozen copy that it is compared with."""
        ...

    def named_trainable_parameters(self) -> dict[str, nn.Parameter]:
        """As ``Policy`` has it."""
        ...


@runtime_checkable
class Served(Protocol):
    """A captioner whose captions vLLM can sample; the others need no such method."""

    def sampled_by_vllm(self, settings: VLLMSettings) -> AbstractContextManager[None]:
        """A context in which it does, by the weights as they are when captions are asked for."""
        ...


@runtime_checkable
class UnifiedModel(Captioner, Protocol):
    """Understanding (image → caption) and generation (caption → image) under one roof."""

    family: str
    captioning: CaptionSettings
    """How it captions where nothing else is asked for, as in benchmarks."""
    decoding: DecodeSettings
    """How it paints then."""

    @property
    def encoder(self) -> Policy:
        """The captioner as a policy over caption tokens."""
        ...

    @property
    def decoder(self) -> Any:
        """The painter; a ``Policy`` where its reconstructions come with a rollout."""
        ...

    def reconstruct(
        self,
        captions: Captions,
        settings: DecodeSettings,
        *,
        group_size: int = 1,
        seed: int = 0,
        step: int = 0,
        keys: Sequence[int] | None = None,
    ) -> Reconstructions:
        """``group_size`` images of each caption; where decoding starts from noise, that of one
        image is the same."""
        ...

    def generate(
        self,
        texts: Sequence[str],
        settings: DecodeSettings,
        *,
        group_size: int = 1,
        seed: int = 0,
        step: int = 0,
        keys: Sequence[int] | None = None,
    ) -> Reconstructions:
        """``group_size`` images of each text; text ``i`` starts from noise ``i``, or that of its
        key."""
        ...

    def begin_training(
        self, lora_rank: int, *, captions: bool, decoding: DecodeSettings | None
    ) -> None:
        """Freeze all but what learns to caption, if ``captions``, and to paint with such
        ``decoding``, unless None; by LoRA, or fully at rank 0."""
        ...

    def save_pretrained(self, folder: str | Path) -> None:
        """As ``load_model`` loads it."""
        ...
