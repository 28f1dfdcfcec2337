"""Training of the world's similarity backbones: CLIPs by contrast with captions, DINOs alone.

One loss, InfoNCE over the logits s q kᵀ of a batch of B pairs of unit rows at inverse temperature
s:

    contrast(s q kᵀ) = CE(s q kᵀ, arange(B))

- CLIP (Radford et al., ICML 2021, arXiv 2103.00020): q images, k captions, both ways, s learnt;
  plus, as in SLIP (Mu et al., ECCV 2022, arXiv 2112.12750), the same between two views of an image,
  without which the image side waits for the text side to tell shapes, sizes and places apart.
- DINOv2, DINOv3: self-distillation of two views a, b of an image from an EMA teacher T to the
  student S, q = S(a), k = T(b) and q = S(b), k = T(a), s fixed. Pixels only: no caption, no
  description of the scene.

Batches are groups of near-duplicates, a scene and ``NUM_VARIANTS - 1`` edits of one attribute each.
For CLIP these are hard negatives; for the others they are a choice of *data*, not labels: every
image counts as an image of its own.

Deviations:

- The DINO backbones have DINO's architectures and teacher, but MoCo v3's objective (Chen et al.,
  ICCV 2021, arXiv 2104.02057) instead of prototypes with Sinkhorn centring, KoLeo, masked patches
  and Gram anchoring: the other images of the batch take the prototypes' place. It acts on the CLS
  token itself, without a head, as that is the feature.
- Two views of 80-100 % of the area, no local crops, no flips, no colour jitter: colour, position
  and size must count.
- All see slight noise and blur, so that what a decoder adds matters less than what it gets wrong.
"""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize
from transformers import CLIPModel

from uae.similarity.preprocess import parse_preprocess
from uae.stages.fit import FitSettings
from uae.world.backbones import (
    build_clip,
    build_clip_tokenizer,
    build_dinov2,
    build_dinov3,
    processor_config,
    stretch_positions,
)
from uae.world.data import pictures, train_scenes
from uae.world.edits import EDIT_KINDS, wrong_scene
from uae.world.language import LEVELS, caption
from uae.world.quality import measure_retrieval, measure_similarity
from uae.world.scene import Scene, first_scenes, pick, split_of

NUM_VARIANTS = 4  # scenes in a group of near-duplicates
VARIANT_KINDS = (*EDIT_KINDS, "shape", "size", "position")  # the hardest twice as often
# CLIP's inverse temperature; higher, wrong attributes need hardly lower the cosine
MAX_LOGIT_SCALE = 30.0
EXHAUSTIVE_SHARE = 0.8  # of CLIP's captions; the others are of any level
MAX_JOINED = 3  # captions in one long caption, before the exhaustive one is placed among them
VIEW_SCALE = 20.0  # inverse temperature between views of an image
TEACHER_DECAY = 0.99
MIN_AREA = 0.8  # of a view


# --- data ----------------------------------------------------------------------------------------


def scene_groups(
    step: int, batch_size: int, *, seed: int = 0, kinds: tuple[str, ...] = VARIANT_KINDS
) -> list[Scene]:
    """One step's scenes: groups of a training scene and others with one attribute changed."""
    rng = random.Random(f"uae groups {seed} {step}")
    num_groups = batch_size // NUM_VARIANTS
    scenes = []
    for base in train_scenes(step, num_groups, seed=seed):
        scenes += [base, *(_variant(base, kinds, rng) for _ in range(NUM_VARIANTS - 1))]
    return scenes


def _variant(scene: Scene, kinds: tuple[str, ...], rng: random.Random) -> Scene:
    """One attribute changed, inside the training split."""
    while True:
        variant = wrong_scene(scene, pick(rng, kinds), rng)
        if variant is not None and split_of(variant) == "train":
            return variant


def short_caption(scene: Scene, rng: random.Random) -> str:
    """What CLIP reads: mostly exhaustive, else of any level of detail."""
    level = "exhaustive" if rng.random() < EXHAUSTIVE_SHARE else pick(rng, LEVELS)
    return caption(scene, level, rng)


def long_caption(scene: Scene, rng: random.Random) -> str:
    """What LongCLIP reads: an exhaustive caption among up to ``MAX_JOINED`` others of the scene."""
    num_others = int(rng.random() * (MAX_JOINED + 1))
    parts = [caption(scene, pick(rng, LEVELS), rng) for _ in range(num_others)]
    parts.insert(int(rng.random() * (len(parts) + 1)), caption(scene, "exhaustive", rng))
    return " . ".join(parts)


def degrade(images: Float[Tensor, "B 3 h w"]) -> Float[Tensor, "B 3 h w"]:
    """Slight noise for all, slight blur for some: what a decoder adds must not matter much."""
    size = len(images), 1, 1, 1
    blurred = nn.functional.avg_pool2d(images, 3, stride=1, padding=1, count_include_pad=False)
    images = torch.lerp(images, blurred, 0.7 * torch.rand(size) * (torch.rand(size) < 0.5))
    return (images + 0.04 * torch.rand(size) * torch.randn_like(images)).clamp(0, 1)


def crop_views(
    images: Float[Tensor, "B 3 h w"], min_area: float = MIN_AREA
) -> Float[Tensor, "B 3 h w"]:
    """A square crop of each image of ``min_area`` to all of its area, back at full size."""
    num = len(images)
    scale = (min_area + (1 - min_area) * torch.rand(num)).sqrt()
    shift = (1 - scale)[:, None] * (2 * torch.rand(num, 2) - 1)
    theta = torch.cat([torch.diag_embed(scale[:, None].expand(num, 2)), shift[..., None]], dim=2)
    grid = nn.functional.affine_grid(theta, list(images.shape), align_corners=False)
    return nn.functional.grid_sample(images, grid, padding_mode="border", align_corners=False)


# --- contrast ------------------------------------------------------------------------------------


class ContrastiveTask:
    """CLIP on images and their captions."""

    kinds: tuple[str, ...] = VARIANT_KINDS
    """In what scenes of a group differ."""

    def __init__(
        self,
        name: str,
        fit_settings: FitSettings,
        model: CLIPModel,
        write_caption: Callable[[Scene, random.Random], str],
    ) -> None:
        self.name, self.fit_settings, self.write_caption = name, fit_settings, write_caption
        self.model: Any = model
        self.modules: dict[str, nn.Module] = {name: model}
        self.tokenizer = build_clip_tokenizer()
        self.preprocess = parse_preprocess(processor_config(name))
        _use_eager_attention(model)

    def loss(self, step: int) -> tuple[Tensor, dict[str, float]]:
        settings = self.fit_settings
        scenes = scene_groups(step, settings.batch_size, seed=settings.seed, kinds=self.kinds)
        rng = random.Random(f"uae captions {settings.seed} {step}")
        texts = [self.write_caption(scene, rng) for scene in scenes]
        images = pictures(scenes)
        views = torch.cat([degrade(images), degrade(crop_views(images))])
        with torch.autocast("cpu", torch.bfloat16):
            (whole, cropped), captions = self.embed(views).chunk(2), self.embed_text(texts)
        logits = self.model.logit_scale.exp() * whole @ captions.T
        text_loss = contrastive_loss(logits)
        view_loss = contrastive_loss(VIEW_SCALE * whole @ cropped.T)
        metrics = {"text": text_loss.item(), "view": view_loss.item()}
        return text_loss + view_loss, metrics | {"right": share_right(logits)}

    def embed(self, images: Tensor) -> Float[Tensor, "B D"]:
        """Unit image embeddings."""
        features = self.model.get_image_features(pixel_values=self.preprocess(images)).pooler_output
        return normalize(features.float(), dim=-1)

    def embed_text(self, texts: list[str]) -> Float[Tensor, "B D"]:
        """Unit text embeddings."""
        tokens = self.tokenizer(texts, padding=True, return_tensors="pt")
        inputs = {name: tokens[name] for name in ("input_ids", "attention_mask")}
        return normalize(self.model.get_text_features(**inputs).pooler_output.float(), dim=-1)

    def evaluate(self, num_scenes: int = 256) -> dict[str, float]:
        scenes = first_scenes("validation", num_scenes)
        retrieval = measure_retrieval(self.embed, self.embed_text, scenes)
        return measure_similarity(self.embed, scenes) | retrieval

    def export(self, folder: Path) -> None:
        export_backbone(self.name, self.model, folder)

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        self.model.logit_scale.clamp_(max=torch.tensor(MAX_LOGIT_SCALE).log())


def contrastive_loss(logits: Float[Tensor, "B B"]) -> Float[Tensor, ""]:
    """Symmetric InfoNCE: each image's own caption among all, and each caption's own image."""
    return (contrast(logits) + contrast(logits.T)) / 2


def contrast(logits: Float[Tensor, "B B"]) -> Float[Tensor, ""]:
    """InfoNCE: of each row, the diagonal is right."""
    return cross_entropy(logits, torch.arange(len(logits), device=logits.device))


def share_right(logits: Float[Tensor, "B B"]) -> float:
    """Of rows whose diagonal is largest."""
    return (logits.argmax(1) == torch.arange(len(logits))).float().mean().item()


# --- self-distillation ---------------------------------------------------------------------------


class SelfDistillationTask:
    """A DINO backbone on pixels alone; the student's averaged weights are the result."""

    kinds: tuple[str, ...] = VARIANT_KINDS
    """In what scenes of a group differ."""

    def __init__(self, name: str, fit_settings: FitSettings, model: nn.Module) -> None:
        self.name, self.fit_settings, self.model = name, fit_settings, model
        _use_eager_attention(model)
        self.teacher = copy.deepcopy(model).requires_grad_(False)
        self.modules: dict[str, nn.Module] = {name: model, "teacher": self.teacher}
        self.preprocess = parse_preprocess(processor_config(name))

    def loss(self, step: int) -> tuple[Tensor, dict[str, float]]:
        settings = self.fit_settings
        scenes = scene_groups(step, settings.batch_size, seed=settings.seed, kinds=self.kinds)
        images = pictures(scenes)
        views = torch.cat([degrade(crop_views(images)) for _ in range(2)])
        with torch.autocast("cpu", torch.bfloat16):
            student = self.embed(views)
            with torch.no_grad():
                teacher = self.cls(self.teacher, views)
        (s_a, s_b), (t_a, t_b) = student.chunk(2), teacher.chunk(2)
        logits = VIEW_SCALE * s_a @ t_b.T
        loss = (contrast(logits) + contrast(VIEW_SCALE * s_b @ t_a.T)) / 2
        return loss, {"right": share_right(logits)}

    def cls(self, model: nn.Module, images: Tensor) -> Float[Tensor, "B D"]:
        """Unit CLS tokens."""
        states = model(pixel_values=self.preprocess(images)).last_hidden_state
        return normalize(states[:, 0].float(), dim=-1)

    def embed(self, images: Tensor) -> Float[Tensor, "B D"]:
        """Unit image embeddings of the student."""
        return self.cls(self.model, images)

    def evaluate(self, num_scenes: int = 256) -> dict[str, float]:
        return measure_similarity(self.embed, first_scenes("validation", num_scenes))

    def export(self, folder: Path) -> None:
        export_backbone(self.name, self.model, folder)

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        parameters = zip(self.teacher.parameters(), self.model.parameters(), strict=True)
        for teacher, student in parameters:
            teacher.lerp_(student, 1 - TEACHER_DECAY)


# --- both ----------------------------------------------------------------------------------------


def export_backbone(name: str, model: Any, folder: Path) -> None:
    """Write ``model`` in bf16, its preprocessing and tokenizer, as ``load_backbone`` reads it."""
    copy.deepcopy(model).to(torch.bfloat16).save_pretrained(folder)
    config = json.dumps(processor_config(name), indent=2)
    (folder / "preprocessor_config.json").write_text(config + "\n")
    if isinstance(model, CLIPModel):
        build_clip_tokenizer().save_pretrained(folder)


def _use_eager_attention(model: Any) -> None:
    """Twice as fast in training as fused attention for a few tokens on a CPU."""
    model.set_attn_implementation("eager")


def clip_task() -> ContrastiveTask:
    """CLIP from nothing."""
    fit_settings = FitSettings(
        num_steps=700, batch_size=64, learning_rate=1e-3, warmup_steps=50, ema_decay=0.99
    )
    torch.manual_seed(fit_settings.seed)
    return ContrastiveTask("clip", fit_settings, build_clip(), short_caption)


def longclip_task(clip_folder: Path) -> ContrastiveTask:
    """LongCLIP, tuned from an exported CLIP."""
    fit_settings = FitSettings(
        num_steps=150, batch_size=64, learning_rate=5e-4, warmup_steps=20, ema_decay=0.99, seed=2
    )
    clip = CLIPModel.from_pretrained(clip_folder, dtype=torch.float32, local_files_only=True)
    return ContrastiveTask("longclip", fit_settings, stretch_positions(clip), long_caption)


def dinov2_task() -> SelfDistillationTask:
    """DINOv2 from nothing."""
    fit_settings = FitSettings(
        num_steps=800, batch_size=64, learning_rate=1e-3, warmup_steps=50, ema_decay=0.99
    )
    torch.manual_seed(fit_settings.seed)
    return SelfDistillationTask("dinov2", fit_settings, build_dinov2())


def dinov3_task() -> SelfDistillationTask:
    """DINOv3 from nothing."""
    fit_settings = FitSettings(
        num_steps=600, batch_size=64, learning_rate=1e-3, warmup_steps=50, ema_decay=0.99, seed=1
    )
    torch.manual_seed(fit_settings.seed)
    return SelfDistillationTask("dinov3", fit_settings, build_dinov3())
