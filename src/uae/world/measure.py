"""Any unified model on the embedded world: the numbers of ``results.json``.

    scene → picture → caption → reconstruction  four backbones, and the detector by object
    prompt → picture                            GenEval-style, judged by the detector
    picture + question → answer                 with the subset about small objects

All shares are times 100. ``measure_ceiling`` puts exhaustive true captions in the place of the
model's own: what the same decoder reaches when nothing is left unsaid.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from uae.bench.result import Share, shares_to_json
from uae.bench.unified import BACKBONES, ScoreSettings, UnifiedResult, score_pairs
from uae.config import CaptionSettings, DecodeSettings
from uae.models.base import UnifiedModel
from uae.similarity.backbones import Backbone
from uae.types import RoundTrip
from uae.utils.device import autocast
from uae.world.captions import caption_quality, true_at_the_same_level
from uae.world.data import pictures
from uae.world.detector import detect
from uae.world.fidelity import fidelity, paint
from uae.world.language import exhaustive_caption
from uae.world.prompts import (
    ScenePrompt,
    Verdict,
    geneval_rows,
    judge,
    make_prompts,
    mean_over_tags,
    shares_by_tag,
)
from uae.world.questions import MAX_QUESTIONS, perception
from uae.world.scene import IMAGE_SIZE, Scene, Split, first_scenes


@dataclass(frozen=True)
class WorldResult:
    """What ``results.json`` holds of one model, with the images and rows behind it."""

    numbers: dict[str, float | None]
    """The headline, flat; None where nothing could be counted."""
    details: dict[str, Any]
    """Breakdowns and 95 % intervals, ready for JSON."""
    geneval_rows: list[dict[str, Any]] = field(default_factory=list)
    """One row per generated image, in GenEval's result format."""
    samples: list[RoundTrip] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Numbers and details; images and rows go elsewhere."""
        return {**self.numbers, "details": self.details}


@dataclass(frozen=True)
class WorldSettings:
    """What of the world a model is measured on."""

    num_scenes: int = 100
    """Scenes of the round trip, which questions are about too."""
    split: Split = "test"
    """Where they are from."""
    prompts_per_tag: int = 20
    """Short prompts of each kind."""
    num_questions: int = MAX_QUESTIONS
    """Questions at most."""
    num_samples: int = 12
    """Round trips to look at."""
    num_bootstrap: int = 2000
    """Resamples for the Unified-Score's interval."""
    seed: int = 0
    """Of painting, questions and resamples."""

    @property
    def score(self) -> ScoreSettings:
        """Of the Unified-Score."""
        return ScoreSettings(batch_size=64, num_bootstrap=self.num_bootstrap, seed=self.seed)


# --- everything ----------------------------------------------------------------------------------


def measure_model(
    model: UnifiedModel,
    backbones: Mapping[str, Backbone],
    settings: WorldSettings = WorldSettings(),
    captioning: CaptionSettings | None = None,
) -> WorldResult:
    """All measures of one model, with its own settings unless ``captioning`` is given."""
    captioning, decoding = captioning or model.captioning, at_world_size(model.decoding)
    scenes = first_scenes(settings.split, settings.num_scenes)
    images = pictures(scenes)
    captions, reconstructions = round_trip(model, images, captioning, decoding, settings.seed)
    texts, truncated = captions.texts, captions.truncated.tolist()
    result = score_round_trip(
        scenes, images, texts, reconstructions, backbones, settings.score, truncated
    )
    images_if_true = paint(model, true_at_the_same_level(texts, scenes), decoding, settings.seed)
    score_if_true = score_pairs(images, images_if_true, backbones, settings=settings.score)
    result.numbers["unified_score_if_true"] = score_if_true.unified_score
    prompts = make_prompts(settings.prompts_per_tag)
    _add_geneval(result, geneval(model, prompts, seed=settings.seed))
    accuracy = perception(model, scenes, settings.num_questions, seed=settings.seed)
    _add_perception(result, accuracy)
    result.details["settings"] = {
        "num_scenes": settings.num_scenes,
        "split": settings.split,
        "captioning": asdict(captioning),
        "decoding": asdict(decoding),
        "prompts_per_tag": settings.prompts_per_tag,
        "seed": settings.seed,
    }
    trips = first_round_trips(images, texts, reconstructions, settings.num_samples)
    result.samples.extend(trips)
    return result


def measure_ceiling(
    model: UnifiedModel,
    backbones: Mapping[str, Backbone],
    settings: WorldSettings = WorldSettings(),
) -> WorldResult:
    """As ``measure_model``, from exhaustive true captions.

    They are of the same scenes, and of scenes that fit the prompts.
    Such a caption answers every question about its scene, so perception is 100 by construction.
    """
    decoding = at_world_size(model.decoding)
    scenes = first_scenes(settings.split, settings.num_scenes)
    images = pictures(scenes)
    texts = [exhaustive_caption(scene) for scene in scenes]
    reconstructions = paint(model, texts, decoding, settings.seed)
    result = score_round_trip(scenes, images, texts, reconstructions, backbones, settings.score)
    prompts = make_prompts(settings.prompts_per_tag)
    _add_geneval(result, geneval(model, prompts, seed=settings.seed, exhaustive=True))
    result.numbers.update(
        unified_score_if_true=result.numbers["unified_score"],
        perception=100.0,
        perception_small=100.0,
    )
    trips = first_round_trips(images, texts, reconstructions, settings.num_samples)
    result.samples.extend(trips)
    return result


def _add_geneval(result: WorldResult, verdicts: Sequence[Verdict]) -> None:
    by_tag = shares_by_tag(verdicts)
    result.numbers["geneval"] = mean_over_tags(by_tag)
    result.details["geneval"] = shares_to_json(by_tag)
    result.geneval_rows.extend(geneval_rows(verdicts))


def _add_perception(result: WorldResult, accuracy: Mapping[str, Share]) -> None:
    result.numbers["perception"] = accuracy["all"].percent
    result.numbers["perception_small"] = accuracy["small"].percent
    result.details["perception"] = shares_to_json(accuracy)


def split_gain(
    before: Mapping[str, float | None], after: Mapping[str, float | None]
) -> dict[str, float | None]:
    """The gain in Unified-Score, ``detail + correctness``.

    detail: what the gain would be were all captions true, at the levels of detail they are of,
    before and after; correctness: how much more of what is said came to be true.
    """
    gains = delta(before, after)
    gain, detail = gains["unified_score"], gains["unified_score_if_true"]
    correctness = None if gain is None or detail is None else gain - detail
    return {"detail": detail, "correctness": correctness}


def delta(
    before: Mapping[str, float | None], after: Mapping[str, float | None]
) -> dict[str, float | None]:
    """After minus before, number by number; None where either is."""
    pairs = {name: (before[name], after.get(name)) for name in before}
    return {name: None if a is None or b is None else b - a for name, (a, b) in pairs.items()}


# --- image → caption → image -----------------------------------------------------------------


def at_world_size(decoding: DecodeSettings) -> DecodeSettings:
    """``decoding``, of the one size that the detector reads.

    Raises:
        ValueError: for any other size.
    """
    if (decoding.height, decoding.width) != (IMAGE_SIZE, IMAGE_SIZE):
        raise ValueError(
            f"the world's pictures are {IMAGE_SIZE}x{IMAGE_SIZE} pixels, got decoding at "
            f"{decoding.height}x{decoding.width}: use `bench unified --images` for a model of "
            "another size"
        )
    return decoding


@torch.no_grad()
def round_trip(
    model: UnifiedModel,
    images: Tensor,
    captioning: CaptionSettings,
    decoding: DecodeSettings,
    seed: int = 0,
) -> tuple[Any, Tensor]:
    """One caption of each image (as ``Captions``), and one reconstruction of each caption."""
    captions = model.caption(list(images), captioning, seed=seed)
    with autocast(model.encoder.device, use_bf16=True):
        reconstructions = model.reconstruct(captions, decoding, seed=seed).images
    return captions, reconstructions.float().cpu().clamp(0, 1)


def score_round_trip(
    scenes: Sequence[Scene],
    images: Tensor,
    texts: Sequence[str],
    reconstructions: Tensor,
    backbones: Mapping[str, Backbone],
    settings: ScoreSettings,
    truncated: Sequence[bool] | None = None,
) -> WorldResult:
    """Backbones, detector and caption metrics of given captions and reconstructions."""
    unified = score_pairs(images, reconstructions, backbones, settings=settings)
    objects = fidelity(scenes, reconstructions)
    captions = caption_quality(texts, scenes, truncated)
    numbers = {
        **unified_numbers(unified),
        "unified_score_if_true": None,
        "geneval": None,
        "perception": None,
        "perception_small": None,
        "caption_tokens": captions["tokens"],
        "caption_precision": captions["precision"],
        "caption_recall": captions["recall"],
        "caption_complete": captions["recall_complete"],
        "small_recall": captions["small_recall"],
        "reconstruction_objects_exact": objects.objects_exact.percent,
    }
    details = {"unified": unified.details(), "captions": captions, "objects": objects.to_json()}
    return WorldResult(numbers, details)


def unified_numbers(unified: UnifiedResult) -> dict[str, float | None]:
    """The Unified-Score, its four backbones and the rescaled score; None where one is missing."""
    backbones = {
        name: unified.scores[name].score if name in unified.scores else None for name in BACKBONES
    }
    return {
        "unified_score": unified.unified_score,
        **backbones,
        "rescaled_score": unified.rescaled_score,
    }


def first_round_trips(
    images: Tensor, texts: Sequence[str], reconstructions: Tensor, number: int
) -> list[RoundTrip]:
    """Copies, which hold no more memory than they show."""
    trips = list(zip(images, texts, reconstructions, strict=True))[:number]
    return [RoundTrip(source.clone(), text, image.clone()) for source, text, image in trips]


# --- prompts ------------------------------------------------------------------------------------


def geneval(
    model: UnifiedModel, prompts: Sequence[ScenePrompt], *, seed: int = 0, exhaustive: bool = False
) -> list[Verdict]:
    """One image of each prompt, judged.

    ``exhaustive``: of the exhaustive caption of the prompt's scene instead.
    """
    texts = [exhaustive_caption(p.scene) if exhaustive else p.text for p in prompts]
    detections = detect(paint(model, texts, model.decoding, seed))
    return [judge(prompt, detection) for prompt, detection in zip(prompts, detections, strict=True)]
