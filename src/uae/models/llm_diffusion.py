"""UMM-1: a language model that sees, a diffusion decoder that paints what it says, and a connector
between them.

    image → encoder → caption
    caption → encoder → last hidden states → connector → decoder → image

The paper's are Qwen2.5-VL, a projector and SD3. The connector belongs to the decoder's files.

The same language model captions and encodes the caption for the decoder, so training it to caption
also moves what the frozen decoder is conditioned on. ``text_encoder`` chooses who encodes: the
``policy`` as it is (the paper) or the frozen ``reference``. ``conditioning`` chooses what the
decoder reads: the ``text`` alone, encoded anew (a true bottleneck), or the ``hidden`` states of the
answer tokens from the pass that also saw the image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, get_args

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from uae.config import (
    IN_DETAIL,
    CaptionSettings,
    Conditioning,
    DecodeSettings,
    TextEncoder,
    settings_in,
)
from uae.diffusion.schedule import training_sigmas
from uae.models.decoders.flow import FlowDecoder
from uae.models.decoders.sd3 import SD3Decoder
from uae.models.encoders.conditioning import ConditioningCaptioner
from uae.models.encoders.qwen_vl import QwenVL
from uae.models.lora import ADAPTER
from uae.models.origin import Origin, describe
from uae.types import Captions, Ratio, Reconstructions
from uae.utils.seed import normals, sequence_keys
from uae.utils.weights import DESCRIPTION, naming_files, read_json


class LLMDiffusion(nn.Module):
    """A captioner and a decoder conditioned on its text states."""

    family = "umm1"

    def __init__(
        self,
        encoder: ConditioningCaptioner,
        decoder: FlowDecoder,
        *,
        conditioning: Conditioning = "text",
        text_encoder: TextEncoder = "policy",
        negative_prompt: str = "",
        captioning: CaptionSettings = IN_DETAIL,
        decoding: DecodeSettings | None = None,
    ) -> None:
        """``decoding`` is by default as the decoder was published."""
        super().__init__()
        self.encoder, self.decoder = encoder, decoder
        self.conditioning: Conditioning = conditioning
        self.text_encoder: TextEncoder = text_encoder
        self.negative_prompt = negative_prompt
        self.captioning = captioning
        self.decoding = decoding or decoder.published_decoding
        self.decoder.requires_grad_(False)
        self.origin: tuple[Origin, ...] = ()
        """What it was loaded from, by ``load_model``."""
        self.is_self_contained = False
        """Save the base's weights beside adapters."""

    # --- image → caption ---

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
        return self.encoder.caption(
            images, settings, group_size=group_size, seed=seed, step=step, keys=keys
        )

    def answer(
        self, images: Sequence[Tensor], questions: Sequence[str], *, max_new_tokens: int = 16
    ) -> list[str]:
        """A greedy answer to one question about each image."""
        return self.encoder.answer(images, questions, max_new_tokens=max_new_tokens)

    # --- caption → image ---

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
        """``group_size`` images of each caption. All captions of one image start from the same
        noise, so by the ODE equal ones have equal pictures and are painted once. Random samplers
        return their steps as a rollout, the ODE finished latents where they are kept."""
        per_image = captions.group_size
        draws_of = sequence_keys(keys, len(captions) // per_image, per_image)
        noise_of = draws_of // per_image  # the image's key
        # each differs, even where the words do not
        if self.conditioning == "hidden" or settings.has_rollout:
            with torch.no_grad():
                states, mask = self.condition(captions)
            reconstructions = self._paint(
                states, mask, noise_of, draws_of, settings, group_size, seed, step
            )
            metrics = self._cut(captions.texts) if self.conditioning == "text" else {}
            return replace(reconstructions, metrics=metrics)
        pairs = list(zip(noise_of.tolist(), captions.texts, strict=True))
        row = {pair: i for i, pair in enumerate(dict.fromkeys(pairs))}
        with torch.no_grad():
            states, mask = self.text_states([text for _, text in row])
        noise_of = torch.tensor([image for image, _ in row])
        different = self._paint(states, mask, noise_of, noise_of, settings, group_size, seed, step)
        groups = rearrange(different.images, "(n k) c h w -> n k c h w", k=group_size)
        images = rearrange(groups[[row[pair] for pair in pairs]], "n k c h w -> (n k) c h w")
        return Reconstructions(images, group_size, metrics=self._cut(captions.texts))

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
        with torch.no_grad():
            states, mask = self.text_states(texts)
        place = torch.arange(len(texts)) if keys is None else torch.tensor(keys)
        images = self._paint(states, mask, place, place, settings, group_size, seed, step)
        return replace(images, metrics=self._cut(texts))

    def matching_loss(
        self,
        images: Float[Tensor, "N 3 H W"],
        texts: Sequence[str],
        *,
        seed: int,
        step: int,
        keys: Sequence[int] | None = None,
    ) -> Float[Tensor, ""]:
        """Flow matching on pictures in [0, 1] of these texts, mean over them and latent
        dimensions; noise and levels (logit-normal) are keyed by ``(seed, step, key)``."""
        decoder, places = self.decoder, keys or range(len(texts))
        with torch.no_grad():
            latents = decoder.encode_images(images.to(decoder.device)).float()
            states, mask = self.text_states(texts)
        noise = normals(seed, step, places, "matching", latents.shape[1:]).to(latents)
        draws = normals(seed, step, places, "matching level", (1,))[:, 0].to(latents)
        sigmas = training_sigmas(draws, decoder.scheduler.config["shift"])
        return decoder.matching_loss(latents, states, mask, sigmas, noise)

    def text_drift(self, texts: Sequence[str]) -> Ratio:
        """Squared distance of the policy's states of the texts from the reference's, as a share of
        their square."""
        length = self.decoder.text_length
        with torch.no_grad(), self.encoder.reference():
            before, mask = self.encoder.text_states(texts, length)
        now, _ = self.encoder.text_states(texts, length)
        squares = (now.float() - before.float()).square(), before.float().square()
        moved, whole = (square[mask].sum() for square in squares)
        return Ratio(moved, whole.item())

    def condition(self, captions: Captions) -> tuple[Float[Tensor, "N L D"], Bool[Tensor, "N L"]]:
        """What the decoder reads of each caption."""
        if self.conditioning == "text":
            return self.text_states(captions.texts)
        with self._text_encoder():
            return self.encoder.answer_states(captions.rollout), captions.rollout.mask

    def text_states(
        self, texts: Sequence[str]
    ) -> tuple[Float[Tensor, "N L D"], Bool[Tensor, "N L"]]:
        """The texts alone, encoded in messages of role ``generate``; those ``too_long`` without
        their ends."""
        with self._text_encoder():
            return self.encoder.text_states(texts, self.decoder.text_length)

    def too_long(self, texts: Sequence[str]) -> list[int]:
        """Which texts have more tokens than the decoder reads."""
        limit = self.decoder.text_length
        return (
            []
            if limit is None
            else [i for i, row in enumerate(self.encoder.text_tokens(texts)) if len(row) > limit]
        )

    def check_settings(self, captioning: CaptionSettings, decoding: DecodeSettings) -> None:
        """A ValueError where a caption may have more tokens than the decoder reads, or a picture
        has another size than it paints. The text of a caption may need more tokens than it was
        sampled by: that is cut, and counted."""
        self.decoder.noise_shape(decoding.height, decoding.width)
        if self.decoder.text_length is None:
            return
        around = len(self.encoder.text_tokens([""])[0]) if self.conditioning == "text" else 0
        limit = self.decoder.text_length - around
        if captioning.max_new_tokens > limit:
            raise ValueError(
                f"captioning.max-new-tokens: expected at most {limit}, got "
                f"{captioning.max_new_tokens}: this decoder reads {limit + around} tokens, "
                f"{around} of them the template's"
            )

    def _cut(self, texts: Sequence[str]) -> dict[str, float]:
        """The share of texts that lost their end, if the decoder has a limit."""
        if self.decoder.text_length is None:
            return {}
        return {"image/text_cut_frac": len(self.too_long(texts)) / len(texts)}

    def _text_encoder(self):
        return self.encoder.as_text_encoder() if self.text_encoder == "reference" else nullcontext()

    @torch.no_grad()
    def _paint(
        self,
        states: Tensor,
        mask: Tensor,
        noise_of: Tensor,
        draws_of: Tensor,
        settings: DecodeSettings,
        per_text: int,
        seed: int,
        step: int,
    ) -> Reconstructions:
        """Start noise is keyed by ``noise_of``, that of random steps by ``draws_of``, and either by
        the image's place among those of its text, but for start noise that they share."""
        shape = self.decoder.noise_shape(settings.height, settings.width)
        keys = sequence_keys(noise_of, len(states), per_text)
        if settings.shared_noise and settings.sampler != "ode":
            keys = noise_of.repeat_interleave(per_text)
        unique, row = keys.unique(return_inverse=True)
        noise = normals(seed, step, unique.tolist(), "decode", shape)[row].to(states.device)
        negative = None
        if settings.guidance_scale != 1:
            negative, _ = self.text_states([self.negative_prompt])
        if settings.sampler != "ode":
            draws_of = sequence_keys(draws_of, len(states), per_text)

            def draws(index: Tensor) -> Tensor:
                return normals(
                    seed, step, draws_of[index.cpu()], "denoise", (settings.num_steps, *shape)
                )

            images, rollout = self.decoder.sample(states, mask, noise, draws, settings, negative)
            return Reconstructions(images, per_text, rollout)
        if settings.keeps_latents:
            images, rollout = self.decoder.generate_kept(states, mask, noise, settings, negative)
            return Reconstructions(images, per_text, rollout)
        images = self.decoder.generate(
            states,
            mask,
            noise,
            settings.num_steps,
            guidance_scale=settings.guidance_scale,
            negative_states=negative,
            micro_batch=settings.micro_batch,
        )
        return Reconstructions(images, per_text)

    # --- training ---

    def begin_training(
        self, lora_rank: int, *, captions: bool, decoding: DecodeSettings | None
    ) -> None:
        """Freeze all but what learns: the language model to caption, and the transformer to paint
        if ``decoding`` keeps what it learns from; by LoRA, or fully at rank 0."""
        self.requires_grad_(False)
        self.eval()
        if captions:
            if self.text_encoder == "reference":
                self.encoder.hold_text_encoder()
            self.encoder.learn(lora_rank)
        if decoding is not None and decoding.has_rollout:
            self.decoder.learn(lora_rank)

    # --- files ---

    def save_pretrained(self, folder: str | Path) -> None:
        """``encoder/`` and ``decoder/`` as their own libraries save them, adapters unmerged beside
        the weights, and ``uae.json``. Where only adapters and projector learnt, these alone, and
        the name of their base, unless ``is_self_contained``."""
        folder = Path(folder)
        whole = self.is_self_contained or not self.origin or not self._learnt_adapters_alone()
        self.encoder.save_pretrained(folder / "encoder", whole=whole)
        self.decoder.save_pretrained(folder / "decoder", whole=whole)
        settings = {
            "conditioning": self.conditioning,
            "text_encoder": self.text_encoder,
            "negative_prompt": self.negative_prompt,
            "captioning": asdict(self.captioning),
            "decoding": asdict(self.decoding),
        }
        if self.text_encoder == "reference":
            settings["text_encoder_weights"] = self.encoder.save_text_encoder(
                folder / "text_encoder"
            )
        describe(folder, self.family, settings, self.origin, whole=whole)

    def _learnt_adapters_alone(self) -> bool:
        is_whole = self.encoder.is_whole or self.decoder.is_whole
        return not is_whole and bool(self.encoder.adapters.active or self.decoder.adapters.active)

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, dtype: torch.dtype | None = torch.float32
    ) -> LLMDiffusion:
        """What ``save_pretrained`` wrote, whole. dtype: of all parts; None leaves each as it is
        stored."""
        folder = Path(folder)
        encoder = QwenVL.from_pretrained(folder / "encoder", dtype)
        decoder = SD3Decoder.from_pretrained(folder / "decoder", dtype=dtype)
        model = cls(encoder, decoder.eval())
        model._take_settings(folder, dtype)
        return model

    def merge_adapters(self) -> None:
        """Add them to the weights, in the dtype of these."""
        self.encoder.merge_adapters()
        self.decoder.adapters.merge()

    def put_on(self, folder: str | Path, dtype: torch.dtype | None) -> None:
        """What ``save_pretrained`` wrote of adapters that lie on this model, in place of those it
        has. dtype: of what lies beside them, as in ``from_pretrained``."""
        folder = Path(folder)
        self.encoder.adapters.load(folder / "encoder" / ADAPTER)
        self.decoder.put_on(folder / "decoder", dtype)
        self._take_settings(folder, dtype)

    def take_encoder(self, folder: Path, dtype: torch.dtype | None) -> None:
        """Caption by the encoder in ``folder`` from now on; the language model of before goes on
        encoding texts, as the decoder knows it, where the settings there say ``reference``."""
        text_encoder = self.encoder.language_model
        self.encoder = QwenVL.from_pretrained(folder / "encoder", dtype)
        self._take_settings(folder, dtype)
        self.encoder.hold_text_encoder(text_encoder)

    def _take_settings(self, folder: Path, dtype: torch.dtype | None) -> None:
        settings = read_json(folder / DESCRIPTION)
        named = ("conditioning", "text_encoder", "negative_prompt")
        with naming_files(folder, "a model's settings", DESCRIPTION):
            values = {n: settings[n] for n in named if n in settings} | settings_in(settings)
            _check_settings(values)
        for name, value in values.items():
            setattr(self, name, value)
        if self.text_encoder == "reference":
            kind = settings.get("text_encoder_weights")
            if kind is None:
                raise ValueError(
                    f"{folder}: expected the text encoder that `text_encoder: reference` means, "
                    "but its weights were not saved; train again, or write `text_encoder: "
                    "policy` into uae.json (other pictures)"
                )
            self.encoder.load_text_encoder(folder / "text_encoder", kind, dtype)


def _check_settings(values: Mapping[str, Any]) -> None:
    """Words that stand for nothing would be taken for the other one."""
    for name, choices in (
        ("conditioning", get_args(Conditioning)),
        ("text_encoder", get_args(TextEncoder)),
    ):
        if name in values and values[name] not in choices:
            raise ValueError(f"expected {name} to be {' or '.join(choices)}, got {values[name]!r}")
    if not isinstance(values.get("negative_prompt", ""), str):
        raise ValueError(f"expected negative_prompt to be text, got {values['negative_prompt']!r}")
