"""Any unified model on the embedded world: the numbers of ``results.json``.

    scene → picture → caption → reconstruction   four backbones, and the detector object by object
    prompt → picture                             GenEval-style, judged by the detector
    picture + question → answer                  with the subset about small objects

All shares are times 100. ``measure_ceiling`` puts exhaustive true captions in the place of the
model's own: what the same decoder reaches when nothing is left unsaid.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from uae.bench.result import Share, shares_to_json
from uae.bench.unified import BACKBONES, ScoreSettings, UnifiedResult, score_pairs
from uae.config import CaptionSettings, DecodeSettings
from uae.models.base import Captioner, UnifiedModel
from uae.similarity.backbones import Backbone
from uae.types import RoundTrip
from uae.utils.device import autocast
from uae.world.data import pictures
from uae.world.detector import detect
from uae.world.fidelity import fidelity, paint
from uae.world.language import (
    INSTRUCTIONS,
    LEVELS,
    NUMBERS,
    QUESTION_KINDS,
    Question,
    any_question,
    caption,
    exhaustive_caption,
    read_caption,
    score_caption,
)
from uae.world.prompts import (
    ScenePrompt,
    Verdict,
    geneval_rows,
    judge,
    make_prompts,
    mean_over_tags,
    shares_by_tag,
)
from uae.world.scene import IMAGE_SIZE, Scene, Split, first_scenes

QUESTIONS_PER_SCENE = 5
MAX_QUESTIONS = 500
MAX_ANSWER_TOKENS = 4
_QUESTION_BATCH = 100  # questions answered together


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


# --- everything ----------------------------------------------------------------------------------


def measure_model(
    model: UnifiedModel,
    backbones: Mapping[str, Backbone],
    num_scenes: int = 100,
    *,
    split: Split = "test",
    captioning: CaptionSettings | None = None,
    prompts_per_tag: int = 20,
    num_questions: int = MAX_QUESTIONS,
    num_samples: int = 12,
    num_bootstrap: int = 2000,
    seed: int = 0,
) -> WorldResult:
    """All measures of one model, with its own settings unless ``captioning`` is given."""
    captioning, decoding = captioning or model.captioning, at_world_size(model.decoding)
    scenes = first_scenes(split, num_scenes)
    images = pictures(scenes)
    captions, reconstructions = round_trip(model, images, captioning, decoding, seed)
    result = score_round_trip(
        scenes,
        images,
        captions.texts,
        reconstructions,
        backbones,
        captions.truncated.tolist(),
        num_bootstrap,
        seed,
    )
    true_captions = true_at_the_same_level(captions.texts, scenes)
    images_if_true = paint(model, true_captions, decoding, seed)
    settings = ScoreSettings(batch_size=64, num_bootstrap=num_bootstrap)
    result_if_true = score_pairs(images, images_if_true, backbones, settings=settings)
    result.numbers["unified_score_if_true"] = result_if_true.unified_score
    verdicts = geneval(model, make_prompts(prompts_per_tag), seed=seed)
    _add_geneval(result, verdicts)
    _add_perception(result, perception(model, scenes, num_questions, seed=seed))
    result.details["settings"] = {
        "num_scenes": num_scenes,
        "split": split,
        "captioning": asdict(captioning),
        "decoding": asdict(decoding),
        "prompts_per_tag": prompts_per_tag,
        "seed": seed,
    }
    result.samples.extend(first_round_trips(images, captions.texts, reconstructions, num_samples))
    return result


def measure_ceiling(
    model: UnifiedModel,
    backbones: Mapping[str, Backbone],
    num_scenes: int = 100,
    *,
    split: Split = "test",
    prompts_per_tag: int = 20,
    num_samples: int = 12,
    num_bootstrap: int = 2000,
    seed: int = 0,
) -> WorldResult:
    """As ``measure_model``, from exhaustive true captions.

    They are of the same scenes, and of scenes that fit the prompts.
    Such a caption answers every question about its scene, so perception is 100 by construction.
    """
    decoding = at_world_size(model.decoding)
    scenes = first_scenes(split, num_scenes)
    images = pictures(scenes)
    texts = [exhaustive_caption(scene) for scene in scenes]
    reconstructions = paint(model, texts, decoding, seed)
    result = score_round_trip(
        scenes, images, texts, reconstructions, backbones, num_bootstrap=num_bootstrap, seed=seed
    )
    verdicts = geneval(model, make_prompts(prompts_per_tag), seed=seed, exhaustive=True)
    _add_geneval(result, verdicts)
    result.numbers.update(
        unified_score_if_true=result.numbers["unified_score"],
        perception=100.0,
        perception_small=100.0,
    )
    result.samples.extend(first_round_trips(images, texts, reconstructions, num_samples))
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


# --- image → caption → image ---------------------------------------------------------------------


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
    truncated: Sequence[bool] | None = None,
    num_bootstrap: int = 2000,
    seed: int = 0,
) -> WorldResult:
    """Backbones, detector and caption metrics of given captions and reconstructions."""
    settings = ScoreSettings(batch_size=64, num_bootstrap=num_bootstrap, seed=seed)
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


# --- captions ------------------------------------------------------------------------------------


def caption_quality(
    texts: Sequence[str], scenes: Sequence[Scene], truncated: Sequence[bool] | None = None
) -> dict[str, Any]:
    """How much captions say and how much of it is true, times 100.

    ``tokens`` are words per caption, not a share. ``precision`` is the share of mentions that are
    true, None when nothing is mentioned. ``recall`` is the share of objects that a true mention
    names, whatever it leaves out. ``recall_complete`` and ``small_recall`` count only mentions that
    state every attribute, of all objects and of small ones. ``levels``: what level captions are of.
    """
    scores = [score_caption(text, scene) for text, scene in zip(texts, scenes, strict=True)]
    total = {name: sum(getattr(s, name) for s in scores) for name in vars(scores[0])}
    levels = [level_of(text) for text in texts]
    return {
        "tokens": sum(len(text.split()) for text in texts) / len(texts),
        "precision": Share(total["correct"], total["mentions"]).percent,
        "recall": Share(total["correct"], total["objects"]).percent,
        "recall_complete": Share(total["complete"], total["objects"]).percent,
        "small_recall": Share(total["small_complete"], total["small_objects"]).percent,
        "truncated": Share.of(truncated).percent if truncated is not None else None,
        "empty": Share.of(not text.strip() for text in texts).percent,
        "levels": {name: Share.of(level == name for level in levels).percent for name in LEVELS},
    }


def true_at_the_same_level(texts: Sequence[str], scenes: Sequence[Scene]) -> list[str]:
    """For each caption, a true one of its scene that says as much."""
    return [
        caption(scene, level_of(text), random.Random(f"true {i}"))
        for i, (text, scene) in enumerate(zip(texts, scenes, strict=True))
    ]


def level_of(text: str) -> str:
    """The level of detail of a caption, by what it states.

    One that names all objects is not ``salient``.
    """
    tokens = set(text.split())
    mentions = read_caption(text).mentions
    if not mentions:
        return "count" if tokens & set(NUMBERS) else "gist"
    if any(m.size is not None for m in mentions):
        return "exhaustive"
    if any(m.cell is not None for m in mentions):
        return "layout"
    return "salient" if "other" in tokens else "objects"


@torch.no_grad()
def measure_captions(
    captioner: Captioner, scenes: Sequence[Scene], captioning: CaptionSettings, *, seed: int = 0
) -> dict[str, Any]:
    """``caption_quality`` of a model's captions."""
    captions = captioner.caption(list(pictures(scenes)), captioning, seed=seed)
    return caption_quality(captions.texts, scenes, captions.truncated.tolist())


def captions_by_instruction(
    captioner: Captioner, scenes: Sequence[Scene]
) -> dict[str, dict[str, Any]]:
    """``caption_quality`` of greedy captions under each instruction: open, brief, detailed."""
    return {
        name: measure_captions(captioner, scenes, CaptionSettings(text, temperature=0.0))
        for name, text in INSTRUCTIONS.items()
    }


# --- prompts and questions -----------------------------------------------------------------------


def geneval(
    model: UnifiedModel, prompts: Sequence[ScenePrompt], *, seed: int = 0, exhaustive: bool = False
) -> list[Verdict]:
    """One image of each prompt, judged.

    ``exhaustive``: of the exhaustive caption of the prompt's scene instead.
    """
    texts = [exhaustive_caption(p.scene) if exhaustive else p.text for p in prompts]
    detections = detect(paint(model, texts, model.decoding, seed))
    return [judge(prompt, detection) for prompt, detection in zip(prompts, detections, strict=True)]


def make_questions(
    scenes: Sequence[Scene], number: int = MAX_QUESTIONS, seed: int = 0
) -> list[tuple[int, Question]]:
    """Different questions of random kinds, each with the index of its scene.

    ``QUESTIONS_PER_SCENE`` are drawn for each scene.
    """
    questions: dict[tuple[int, str], Question] = {}
    for i, scene in enumerate(scenes):
        for k in range(QUESTIONS_PER_SCENE):
            q = any_question(scene, random.Random(f"question {seed} {i} {k}"))
            questions.setdefault((i, q.text), q)
    return [(i, q) for (i, _), q in questions.items()][:number]


@torch.no_grad()
def perception(
    captioner: Captioner,
    scenes: Sequence[Scene],
    num_questions: int = MAX_QUESTIONS,
    *,
    seed: int = 0,
) -> dict[str, Share]:
    """Questions answered exactly: ``all``, those about ``small`` objects, and by kind."""
    questions = make_questions(scenes, num_questions, seed)
    images = list(pictures(scenes))  # one tensor for each: it is encoded once for all its questions
    groups: dict[str, list[bool]] = {name: [] for name in ("all", "small", *QUESTION_KINDS)}
    for start in range(0, len(questions), _QUESTION_BATCH):
        batch = questions[start : start + _QUESTION_BATCH]
        answers = captioner.answer(
            [images[i] for i, _ in batch],
            [q.text for _, q in batch],
            max_new_tokens=MAX_ANSWER_TOKENS,
        )
        for answer, (_, q) in zip(answers, batch, strict=True):
            for name in ("all", q.kind, *(["small"] if q.small else [])):
                groups[name].append(answer.strip() == q.answer)
    return {name: Share.of(is_correct) for name, is_correct in groups.items()}
