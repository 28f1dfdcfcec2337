"""The encoder of UMM-1: a ``Qwen2_5_VLForConditionalGeneration`` that captions images and encodes text.

One forward serves sampling and scoring. An image's vision features and its prompt are computed once, whatever the
number of captions: the prompt (all but its last token) is run into a key-value cache, the cache is repeated for the
captions, and gradients flow back through it when captions are scored. Positions are passed explicitly (3-D
multimodal RoPE), since the class itself keeps stale ones between calls.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from einops import rearrange, repeat
from jaxtyping import Bool, Float, Int
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import (
    AutoTokenizer,
    PreTrainedTokenizerBase,
    Qwen2_5_VLForConditionalGeneration,
)
from transformers.cache_utils import DynamicCache
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil, smart_resize

from uae.config import CaptionSettings
from uae.models.tokens import draw, k3_kl, log_softmax, pad
from uae.rewards.preprocess import resize_like_pil
from uae.types import Captions, Evaluation, Rollout
from uae.utils.checkpoint import atomic_write_json
from uae.utils.seed import uniforms

IMAGE_PAD = "<|image_pad|>"


@dataclass(frozen=True)
class ImageSettings:
    """What the checkpoint's image processor does: limits on pixels, and normalisation."""

    min_pixels: int
    max_pixels: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def to_config(self, model_config: Any) -> dict:
        """As ``preprocessor_config.json`` states it."""
        vision = model_config.vision_config
        return {
            "image_processor_type": "Qwen2VLImageProcessor",
            "min_pixels": self.min_pixels,
            "max_pixels": self.max_pixels,
            "image_mean": list(self.mean),
            "image_std": list(self.std),
            "patch_size": vision.patch_size,
            "merge_size": vision.spatial_merge_size,
            "temporal_patch_size": vision.temporal_patch_size,
        }


def read_image_settings(source: str | Path) -> ImageSettings:
    """From a checkpoint's ``preprocessor_config.json``, in either of the forms its limits are written in."""
    config: Any = Qwen2VLImageProcessorPil.from_pretrained(source)
    size, mean, std = config.size, config.image_mean, config.image_std
    return ImageSettings(int(size["shortest_edge"]), int(size["longest_edge"]), (*mean,), (*std,))  # type: ignore[arg-type]


@dataclass(frozen=True)
class CaptionContext:
    """What captions are conditioned on: P images with their prompts, and which image each of B captions is of.

    features: vision features of each image, ``[n_p, D]``; prompts: token ids, the image pad already repeated.
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
    """Prompts run into a cache, for each of B sequences; the last prompt token is still to be fed."""

    cache: DynamicCache
    mask: Bool[Tensor, "B L"]
    next_position: Int[Tensor, " B"]
    last_token: Int[Tensor, " B"]


class QwenVL(nn.Module):
    """Captioner and text encoder. ``reference`` answers for the model as it was before training."""

    def __init__(
        self, model: Qwen2_5_VLForConditionalGeneration, tokenizer: PreTrainedTokenizerBase, images: ImageSettings
    ) -> None:
        super().__init__()
        self.model: Any = model  # the library annotates its configurations more loosely than they are
        self.tokenizer: Any = tokenizer
        self.image_settings = images
        self._frozen_copy: nn.Module | None = None
        self._adapter: PeftModel | None = None
        self.image_pad_id = int(tokenizer.convert_tokens_to_ids(IMAGE_PAD))  # type: ignore[arg-type]
        self.end_ids = _end_ids(model, tokenizer)

    @classmethod
    def from_pretrained(cls, source: str | Path, dtype: torch.dtype = torch.float32) -> QwenVL:
        """From a hub id or a folder, as ``Qwen/Qwen2.5-VL-3B-Instruct`` is laid out."""
        model = Qwen2_5_VLForConditionalGeneration.from_pretrained(source, dtype=dtype)
        tokenizer = AutoTokenizer.from_pretrained(source)
        return cls(model.eval(), tokenizer, read_image_settings(source))

    def save_pretrained(self, folder: str | Path) -> None:
        """As ``from_pretrained`` loads it, weights in bf16 with LoRA merged in; LoRA by itself in ``lora/``."""
        folder = Path(folder)
        if self._adapter is None:
            model = copy.deepcopy(self.model)
        else:
            self._adapter.save_pretrained(str(folder / "lora"))
            model = copy.deepcopy(self._adapter).merge_and_unload()
        model.to(torch.bfloat16).save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        atomic_write_json(folder / "preprocessor_config.json", self.image_settings.to_config(self.model.config))

    # --- what is trained, and what it is held to ---------------------------------------------------------------

    @property
    def language_model(self) -> nn.Module:
        return self.model.model.language_model

    @property
    def device(self) -> torch.device:
        return self.model.device

    def named_trainable_parameters(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    def train_language_model(self) -> None:
        """Full fine-tuning: everything but the vision tower learns; a frozen copy stays as the reference."""
        self.model.requires_grad_(True)
        self.model.model.visual.requires_grad_(False)
        self._frozen_copy = copy.deepcopy(nn.ModuleList([self.language_model, self.model.lm_head]))
        self._frozen_copy.requires_grad_(False)

    def add_lora(self, rank: int) -> None:
        """LoRA on all linear layers of the language model, alpha twice the rank, Gaussian start (paper §4).

        The start is the same in every run, so that equal runs have equal weights.
        """
        linear = [n for n, m in self.language_model.named_modules() if isinstance(m, nn.Linear)]
        names = [f"model.language_model.{name}" for name in linear]
        config = LoraConfig(r=rank, lora_alpha=2 * rank, init_lora_weights="gaussian", target_modules=names)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            adapter = get_peft_model(self.model, config)  # layers are replaced in place
        object.__setattr__(self, "_adapter", adapter)

    @contextmanager
    def reference(self) -> Iterator[None]:
        """In this context the model answers as it was before training: adapters off, or the frozen copy."""
        if self._frozen_copy is None:
            with self._adapter.disable_adapter() if self._adapter is not None else nullcontext():
                yield
            return
        current = self.language_model, self.model.lm_head
        self.model.model.language_model, self.model.lm_head = self._frozen_copy  # type: ignore[assignment,misc]
        try:
            yield
        finally:
            self.model.model.language_model, self.model.lm_head = current

    # --- images and prompts ------------------------------------------------------------------------------------

    def look(
        self,
        images: Sequence[Float[Tensor, "3 _ _"]],
        questions: Sequence[str],
        *,
        group_size: int = 1,
        temperature: float = 1.0,
    ) -> CaptionContext:
        """Run the vision tower once per image (values in [0, 1]) and write each image's prompt."""
        features, grids = self.see(images)
        prompts = []
        for question, feature in zip(questions, features, strict=True):
            prompts.append(self._prompt(question, len(feature)))
        image_of = torch.arange(len(images)).repeat_interleave(group_size)
        return CaptionContext(tuple(features), grids, tuple(prompts), image_of, temperature)

    def see(self, images: Sequence[Float[Tensor, "3 _ _"]]) -> tuple[list[Tensor], Int[Tensor, "_ 3"]]:
        """Vision features of each image, ``[n, D]``, and the patch grids; differentiable unless the tower is frozen."""
        pixels, grids = zip(*(self._patches(image) for image in images), strict=True)
        grid = torch.stack(grids).to(self.device)
        output = self.model.model.get_image_features(torch.cat(pixels).to(self.device), grid)
        return list(output.pooler_output), grid

    def _patches(self, image: Float[Tensor, "3 h w"]) -> tuple[Float[Tensor, "n d"], Int[Tensor, " 3"]]:
        """Resize to whole patches, normalise, and lay patches out as the vision tower reads them."""
        vision, limits = self.model.config.vision_config, self.image_settings
        patch, merge = vision.patch_size, vision.spatial_merge_size
        size = smart_resize(
            image.shape[1],
            image.shape[2],
            factor=patch * merge,
            min_pixels=limits.min_pixels,
            max_pixels=limits.max_pixels,
        )
        if size != tuple(image.shape[1:]):
            image = resize_like_pil(image[None], *size, crop=max(size), resample="bicubic")[0]
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in (limits.mean, limits.std))
        frames = repeat((image - mean) / std, "c h w -> t c h w", t=vision.temporal_patch_size)
        rows, columns = size[0] // patch, size[1] // patch
        patches = rearrange(
            frames, "t c (gh mh y) (gw mw x) -> (gh gw mh mw) (c t y x)", mh=merge, mw=merge, y=patch, x=patch
        )
        return patches, torch.tensor([1, rows, columns])

    def _prompt(self, question: str, num_image_tokens: int) -> tuple[int, ...]:
        content = [{"type": "image"}, {"type": "text", "text": question}]
        ids = self.chat([{"role": "user", "content": content}])
        place = ids.index(self.image_pad_id)
        return (*ids[:place], *[self.image_pad_id] * num_image_tokens, *ids[place + 1 :])

    def until_question(self, context: CaptionContext) -> CaptionContext:
        """The same images with prompts that end right after the image, for teaching what follows."""
        ends = [len(p) - p[::-1].index(self.image_pad_id) + 1 for p in context.prompts]
        return replace(context, prompts=tuple(p[:end] for p, end in zip(context.prompts, ends, strict=True)))

    def tokenize(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False).input_ids  # type: ignore[return-value]

    def chat(self, messages: list[dict]) -> list[int]:
        text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return self.tokenize(text)  # type: ignore[arg-type]

    # --- sampling ----------------------------------------------------------------------------------------------

    @torch.no_grad()
    def caption(
        self, images: Sequence[Tensor], settings: CaptionSettings, *, group_size: int = 1, seed: int = 0, step: int = 0
    ) -> Captions:
        """``group_size`` captions of each image; vision tower and prompt run once per image."""
        questions = [settings.instruction] * len(images)
        context = self.look(images, questions, group_size=group_size, temperature=settings.temperature)
        return self.sample(context, max_new_tokens=settings.max_new_tokens, seed=seed, step=step, group_size=group_size)

    @torch.no_grad()
    def answer(self, images: Sequence[Tensor], questions: Sequence[str], *, max_new_tokens: int = 16) -> list[str]:
        """A greedy answer to one question about each image."""
        return self.sample(self.look(images, questions, temperature=0.0), max_new_tokens=max_new_tokens).texts

    @torch.no_grad()
    def sample(
        self, context: CaptionContext, *, max_new_tokens: int, seed: int = 0, step: int = 0, group_size: int = 1
    ) -> Captions:
        """One caption for each entry of ``context.image_of``; temperature 0 is greedy.

        Token draws are keyed by (seed, step, sequence), so they do not depend on how a batch is split.
        """
        prefix = self.prefill(context)
        num = len(context.image_of)
        draws = uniforms(seed, step, range(num), "caption", max_new_tokens).to(self.device)
        end_ids = torch.tensor(self.end_ids, device=self.device)
        tokens = torch.full((num, max_new_tokens), self.pad_id, device=self.device)
        log_probs = torch.zeros(num, max_new_tokens, device=self.device)
        mask = torch.zeros(num, max_new_tokens, dtype=torch.bool, device=self.device)
        done = torch.zeros(num, dtype=torch.bool, device=self.device)
        token = prefix.last_token
        for t in range(max_new_tokens):
            logits = self.advance(prefix, token[:, None])[:, -1]
            scores = log_softmax(logits, context.temperature)
            token = scores.argmax(-1) if context.temperature == 0 else draw(scores, draws[:, t])
            tokens[:, t] = torch.where(done, self.pad_id, token)
            mask[:, t] = ~done
            log_probs[:, t] = torch.where(done, 0.0, scores.gather(-1, token[:, None])[:, 0])
            done |= torch.isin(token, end_ids)
            if done.all():
                break
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

    # --- scoring -----------------------------------------------------------------------------------------------

    def evaluate(self, rollout: Rollout, *, with_kl: bool) -> Evaluation:
        """Log-probability and entropy of each caption token now, and the k3 KL to the reference."""
        log_probs, entropy = self._score(rollout)
        if not with_kl:
            return Evaluation(log_probs, entropy)
        with torch.no_grad(), self.reference():
            reference, _ = self._score(rollout)
        return Evaluation(log_probs, entropy, k3_kl(log_probs, reference))

    def _score(self, rollout: Rollout) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B T"]]:
        prefix = self.prefill(rollout.context)
        fed = torch.cat([prefix.last_token[:, None], rollout.actions[:, :-1]], dim=1)
        scores = log_softmax(self.advance(prefix, fed), rollout.context.temperature)
        entropy = -(scores.detach().exp() * scores.detach()).sum(-1)
        return scores.gather(-1, rollout.actions[..., None])[..., 0], entropy

    # --- text as the decoder's condition -----------------------------------------------------------------------

    def text_states(self, texts: Sequence[str]) -> tuple[Float[Tensor, "N L D"], Bool[Tensor, "N L"]]:
        """Last hidden states of each text in a chat message of role ``generate``, template included (paper §3).

        Right-padded; the states of padding are meaningless and masked out.
        """
        rows = [self.chat([{"role": "generate", "content": text}]) for text in texts]
        ids, mask = pad(rows, self.pad_id, "right", self.device)
        output = self.language_model(input_ids=ids, attention_mask=mask.long(), use_cache=False)
        return output.last_hidden_state, mask

    def answer_states(self, rollout: Rollout) -> Float[Tensor, "B T D"]:
        """Last hidden states at the caption's own tokens, from the pass that also sees the image."""
        prefix = self.prefill(rollout.context)
        self.feed(prefix, prefix.last_token[:, None])
        return self.feed(prefix, rollout.actions)

    # --- the shared forward ------------------------------------------------------------------------------------

    def prefill(self, context: CaptionContext) -> Prefix:
        """Run each needed image's prompt once, and hand its cache to every sequence of that image."""
        needed, row = context.image_of.unique(return_inverse=True)
        ids, mask = pad([context.prompts[i] for i in needed.tolist()], self.pad_id, "left", self.device)
        features = torch.cat([context.features[i] for i in needed.tolist()])
        is_image = ids == self.image_pad_id
        positions, _ = self.model.model.get_rope_index(
            ids, is_image.int(), image_grid_thw=context.grids[needed], attention_mask=mask.long()
        )
        embeds = self.language_model.embed_tokens(ids)  # type: ignore[operator,union-attr]
        embeds = embeds.masked_scatter(is_image[..., None], features.to(embeds.dtype))
        cache = DynamicCache(config=self.model.config.text_config)
        self.language_model(
            inputs_embeds=embeds[:, :-1],
            attention_mask=mask[:, :-1].long(),
            position_ids=positions[..., :-1],
            past_key_values=cache,
            use_cache=True,
        )
        cache.batch_select_indices(row)
        return Prefix(cache, mask[row, :-1], positions[0, row, -1], ids[row, -1])

    def advance(self, prefix: Prefix, tokens: Int[Tensor, "B T"]) -> Float[Tensor, "B T V"]:
        """Feed tokens after what the prefix holds; the logits that follow each."""
        return self.model.lm_head(self.feed(prefix, tokens))

    def feed(self, prefix: Prefix, tokens: Int[Tensor, "B T"]) -> Float[Tensor, "B T D"]:
        """Feed tokens after what the prefix holds; the last hidden state at each."""
        num_fed = tokens.shape[1]
        prefix.mask = torch.cat([prefix.mask, prefix.mask.new_ones(len(tokens), num_fed)], dim=1)
        position = prefix.next_position[:, None] + torch.arange(num_fed, device=tokens.device)
        prefix.next_position = prefix.next_position + num_fed
        output = self.language_model(
            input_ids=tokens,
            attention_mask=prefix.mask.long(),
            position_ids=position.expand(3, -1, -1),
            past_key_values=prefix.cache,
            use_cache=True,
        )
        return output.last_hidden_state


def _end_ids(model: Any, tokenizer: Any) -> list[int]:
    declared = model.generation_config.eos_token_id if model.generation_config else None
    ids = declared if isinstance(declared, list) else [declared]
    return sorted({int(i) for i in (*ids, tokenizer.eos_token_id) if i is not None})
