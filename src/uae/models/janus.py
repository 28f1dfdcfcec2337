"""UMM-2: one autoregressive model that captions, and paints its captions as image tokens
(Janus-Pro).

    image → vision tower → language model → caption
    caption → language model → image tokens → VQ decoder → image

The same ``JanusForConditionalGeneration`` is the encoder (a policy over caption tokens) and the
decoder (a policy over image tokens). Image tokens are sampled with classifier-free guidance, ``u +
w (c - u)`` on the logits of two streams run as one batch, but their log-probabilities are those of
the conditional stream alone (as T2I-R1), which is what the loss scores again; how far the two
distributions are apart is measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import JanusForConditionalGeneration, JanusProcessor
from transformers.models.janus.processing_janus import DEFAULT_SYSTEM_PROMPT

from uae.config import IN_DETAIL, CaptionSettings, DecodeSettings, settings_in
from uae.images.resize import resize_like_pil
from uae.models.decoders.tokens import ImageTokenPolicy, PaintContext
from uae.models.encoders.causal import CausalCaptioner
from uae.models.encoders.prompts import question_about_image
from uae.models.lora import ADAPTER
from uae.models.origin import Origin, describe
from uae.types import Captions, Reconstructions, Rollout
from uae.utils.finite import require_finite
from uae.utils.progress import track
from uae.utils.seed import sequence_keys
from uae.utils.weights import DESCRIPTION, load_pretrained, load_tokenizer, naming_files, read_json


class Janus(CausalCaptioner):
    """Captioner and painter in one. ``encoder`` is the model itself, ``decoder`` the same weights
    over image tokens."""

    family = "umm2"

    def __init__(
        self,
        model: JanusForConditionalGeneration,
        processor: JanusProcessor,
        *,
        captioning: CaptionSettings = IN_DETAIL,
        decoding: DecodeSettings | None = None,
    ) -> None:
        """``decoding`` is by default the published one: temperature 1, guidance 5."""
        super().__init__(model, processor.tokenizer)  # type: ignore[attr-defined]
        self.processor = processor
        self.image_pad_id = int(model.config.image_token_id)
        self.boi_id = int(self.tokenizer.convert_tokens_to_ids(processor.image_start_token))
        self.decoder = ImageTokenPolicy(self)
        self.image_size: int = processor.image_processor.size["height"]  # type: ignore
        self.captioning = captioning
        published = DecodeSettings(
            guidance_scale=5.0, height=self.image_size, width=self.image_size, micro_batch=16
        )
        self.decoding = decoding or published
        self.origin: tuple[Origin, ...] = ()
        """What it was loaded from, by ``load_model``."""
        self.is_self_contained = False
        """Save the base's weights beside adapters."""

    @property
    def encoder(self) -> Janus:
        return self

    # --- files ---

    @classmethod
    def from_pretrained(
        cls, source: str | Path, dtype: torch.dtype | None = torch.float32
    ) -> Janus:
        """From a folder, as ``deepseek-community/Janus-Pro-1B`` is laid out. dtype: None leaves it
        as it is stored."""
        folder = Path(source)
        model = load_pretrained(JanusForConditionalGeneration, folder, dtype)
        janus = cls(model.eval(), load_tokenizer(JanusProcessor, folder, backend="pil"))
        janus.check_prompts(folder)
        janus.put_on(folder, dtype)
        return janus

    def put_on(self, folder: str | Path, dtype: torch.dtype | None) -> None:
        """What ``save_pretrained`` wrote of adapters that lie on this model, in place of those it
        has; and settings. Adapters are fp32, whatever ``dtype`` says of weights."""
        folder = Path(folder)
        self.adapters.load(folder / ADAPTER)
        if (folder / DESCRIPTION).exists():
            with naming_files(folder, "a model's settings", DESCRIPTION):
                settings = settings_in(read_json(folder / DESCRIPTION))
            for name, value in settings.items():
                setattr(self, name, value)

    def save_pretrained(self, folder: str | Path) -> None:
        """As ``from_pretrained`` and the library load it, adapters unmerged in ``adapter``, and
        ``uae.json``. Where only adapters learnt, these alone, and the name of their base, unless
        ``is_self_contained``."""
        folder = Path(folder)
        is_adapted = bool(self.adapters.active) and not self.is_whole
        whole = self.is_self_contained or not self.origin or not is_adapted
        self.save_weights(folder, whole=whole)
        if whole:
            self.processor.save_pretrained(folder)
        settings = {"captioning": asdict(self.captioning), "decoding": asdict(self.decoding)}
        describe(folder, self.family, settings, self.origin, whole=whole)

    # --- training ---

    def begin_training(
        self, lora_rank: int, *, captions: bool, decoding: DecodeSettings | None
    ) -> None:
        """Freeze all but the language model, which both captions and paints; by LoRA, or fully at
        rank 0."""
        if decoding is not None and decoding.temperature == 0:
            raise ValueError(
                "decoding.temperature: at 0 image tokens are not drawn, so nothing can be learnt "
                "of them; expected above 0, or image-weight 0 to learn captions alone"
            )
        self.requires_grad_(False)
        self.eval()
        if captions or decoding is not None:
            self.learn(lora_rank)

    # --- image → caption ---

    def see(
        self, images: Sequence[Float[Tensor, "3 _ _"]]
    ) -> tuple[list[Tensor], Int[Tensor, "_ 3"]]:
        pixels = torch.stack([self._square(image) for image in images]).to(self.device)
        features = self.model.model.get_image_features(pixels.to(self.model.dtype)).pooler_output
        return list(features), torch.zeros(len(images), 3, dtype=torch.long, device=self.device)

    def _square(self, image: Float[Tensor, "3 h w"]) -> Float[Tensor, "3 s s"]:
        """As the checkpoint's processor: the long side to its size, the mean colour beside the
        short one."""
        settings = self.processor.image_processor  # type: ignore[attr-defined]
        size, longest = settings.size["height"], max(image.shape[1:])
        height, width = (
            max(round(side * size / longest), settings.min_size) for side in image.shape[1:]
        )
        if (height, width) != tuple(image.shape[1:]):
            image = resize_like_pil(
                image[None], height, width, crop=max(height, width), resample="bicubic"
            )[0]
        mean, std = self._mean_and_std(image)
        square = (mean * 255).int().float().div(255).expand(3, size, size).clone()
        top, left = (size - height) // 2, (size - width) // 2
        square[:, top : top + height, left : left + width] = image
        return (square - mean) / std

    def prompt(self, question: str, num_image_tokens: int) -> tuple[int, ...]:
        text = self.fill_template([question_about_image(question)])
        if self.processor.use_default_system_prompt:
            text = DEFAULT_SYSTEM_PROMPT + text
        names = self.processor
        image = (
            names.image_start_token + names.image_token * num_image_tokens + names.image_end_token
        )
        return tuple(self.user_text.encode(text.replace(names.image_token, image), begins=True))

    @property
    def templates(self) -> Any:
        return self.processor

    def prompt_positions(self, ids: Tensor, mask: Tensor, grids: Tensor | None = None) -> Tensor:
        return (mask.long().cumsum(-1) - 1).clamp(min=0)

    # --- caption → image ---

    def check_settings(self, captioning: CaptionSettings, decoding: DecodeSettings) -> None:
        """A ValueError where other pixels are asked for than the VQ decoder paints."""
        size = self.image_size
        if (decoding.height, decoding.width) != (size, size):
            raise ValueError(
                f"this model paints {size}x{size} pixels, got {decoding.height}x{decoding.width}"
            )

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
        """``group_size`` images of each caption, each from draws of its own."""
        draws_of = sequence_keys(
            sequence_keys(keys, len(captions) // captions.group_size, captions.group_size),
            len(captions),
            group_size,
        )
        return self._paint(captions.texts, settings, draws_of, group_size, seed, step)

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
        """``group_size`` images of each text, drawn by its place or its key.

        Raises:
            ValueError: when other pixels are asked for than the VQ decoder paints.
        """
        return self._paint(
            texts, settings, sequence_keys(keys, len(texts), group_size), group_size, seed, step
        )

    @torch.no_grad()
    def _paint(
        self,
        texts: Sequence[str],
        settings: DecodeSettings,
        keys: Tensor,
        group_size: int,
        seed: int,
        step: int,
    ) -> Reconstructions:
        """Draws are keyed by ``keys``, one for each image; equal texts share one prompt."""
        self.check_settings(self.captioning, settings)
        row = {text: i for i, text in enumerate(dict.fromkeys(texts))}
        prompt_of = torch.tensor([row[text] for text in texts]).repeat_interleave(group_size)
        prompts = tuple(self.paint_prompt(text) for text in row)
        context = PaintContext(prompts, prompt_of, settings.temperature)
        parts = [
            self.decoder.sample(
                context.select(index), settings.guidance_scale, keys[index], seed=seed, step=step
            )
            for index in track(
                torch.arange(len(prompt_of)).split(settings.micro_batch),
                "painting",
                "images",
                size=len,
            )
        ]
        images = torch.cat([self.pixels(rollout.actions) for rollout, _ in parts])
        actions, log_probs, mask = (
            torch.cat([getattr(r, name) for r, _ in parts])
            for name in ("actions", "log_probs", "mask")
        )
        metrics = {"image/guidance_gap": sum(gap.sum().item() for _, gap in parts) / mask.numel()}
        return Reconstructions(
            images, group_size, Rollout(actions, log_probs, mask, context), metrics
        )

    def matching_loss(
        self,
        images: Float[Tensor, "N 3 h w"],
        texts: Sequence[str],
        *,
        seed: int,
        step: int,
        keys: Sequence[int] | None = None,
    ) -> Float[Tensor, ""]:
        """Cross-entropy of the image tokens of pictures in [0, 1] after these texts, mean over
        tokens, in nats. Nothing is drawn."""
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            tokens = self.image_tokens(images)
        prompts = tuple(self.paint_prompt(text) for text in texts)
        context = PaintContext(prompts, torch.arange(len(prompts)), temperature=1.0)
        return nn.functional.nll_loss(self.decoder.scores(tokens, context).transpose(1, 2), tokens)

    def paint_prompt(self, text: str) -> tuple[int, ...]:
        """Token ids of a request to paint; the last begins the image."""
        message = {"role": "user", "content": [{"type": "text", "text": text}]}
        request = self.fill_template([message])
        return (*self.user_text.encode(request, begins=True), self.boi_id)

    def pixels(self, tokens: Int[Tensor, "B L"]) -> Float[Tensor, "B 3 h w"]:
        """The VQ decoder's images in [0, 1]."""
        pixels = self.model.model.vqmodel.decode(tokens).float()
        require_finite(pixels, "pixels")
        mean, std = self._mean_and_std(pixels)
        return (pixels * std + mean).clamp(0, 1)

    def image_tokens(self, images: Float[Tensor, "B 3 h w"]) -> Int[Tensor, "B L"]:
        """The VQ encoder's tokens of images in [0, 1]."""
        mean, std = self._mean_and_std(images)
        pixels = ((images - mean) / std).to(self.device, self.model.dtype)
        return self.model.model.vqmodel.encode(pixels).image_tokens.view(len(images), -1)

    def _mean_and_std(self, like: Tensor) -> tuple[Tensor, Tensor]:
        settings = self.processor.image_processor  # type: ignore[attr-defined]
        mean, std = (
            like.new_tensor(v).view(3, 1, 1) for v in (settings.image_mean, settings.image_std)
        )
        return mean, std
