"""The world's captioner: captions at all levels of detail, and answers to questions, by next-token
prediction.

The default instruction leaves the level open, as web captions do; ``brief`` and ``detailed`` ask
for one. Each image is seen once and continued twice: by a caption, and by a chat of several
questions with their answers.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from uae.config import CaptionSettings
from uae.models.encoders.causal import CaptionContext, CausalCaptioner
from uae.models.encoders.qwen_vl import QwenVL
from uae.models.encoders.tokens import pad
from uae.models.janus import Janus
from uae.stages.fit import FitSettings
from uae.world import measure as world
from uae.world.data import pictures, train_scenes
from uae.world.language import (
    INSTRUCTIONS,
    LEVELS,
    QUESTION_KINDS,
    Question,
    any_question,
    caption,
    question,
)
from uae.world.models import build_captioner
from uae.world.scene import Scene, pick, scene_at

NUM_QUESTIONS = 4  # per image
HARD_QUESTIONS = (
    "existence",
    "position",
    "relation",
)  # they take two looks or more, and are asked twice as often
MAX_CAPTION_TOKENS = 40
TURNS = {  # what begins the user's turn in a chat, and what ends it and begins the assistant's
    QwenVL: ("<|im_start|> user", "<|im_end|> <|im_start|> assistant"),
    Janus: ("<|User|>:", "<|Assistant|>:"),
}


class CaptionerTask:
    """Cross-entropy of caption tokens plus that of answer tokens."""

    name = "captioner"
    fit_settings = FitSettings(
        num_steps=2_000, batch_size=32, learning_rate=1.5e-3, warmup_steps=300, ema_decay=0.998
    )

    def __init__(self, vision_folder: Path) -> None:
        torch.manual_seed(self.fit_settings.seed)
        self.captioner = build_captioner()
        seeing = QwenVL.from_pretrained(vision_folder).model.model.visual
        self.captioner.model.model.visual.load_state_dict(seeing.state_dict())
        self.modules: dict[str, nn.Module] = {"captioner": self.captioner.model}

    def loss(self, step: int) -> tuple[Tensor, dict[str, float]]:
        scenes = train_scenes(step, self.fit_settings.batch_size)
        with torch.autocast("cpu", torch.bfloat16):
            return caption_and_answer_loss(
                self.captioner, scenes, random.Random(f"captioner {step}")
            )

    def evaluate(self) -> dict[str, float]:
        scenes = [scene_at("validation", i) for i in range(200)]
        detailed = measure_captions(self.captioner, scenes, "detailed")
        return {
            "question_accuracy": measure_questions(self.captioner, scenes)["all"],
            "detailed_precision": detailed["precision"],
            "detailed_recall": detailed["exact_recall"],
            "default_tokens": measure_captions(self.captioner, scenes, "default")["tokens"],
        }

    def export(self, folder: Path) -> None:
        self.captioner.save_pretrained(folder)

    def after_step(self, step: int) -> None:
        pass


def caption_and_answer_loss(
    captioner: CausalCaptioner, scenes: list[Scene], rng: random.Random
) -> tuple[Tensor, dict[str, float]]:
    """Mean cross-entropy over caption tokens plus mean over answer tokens, for one caption and one
    chat an image."""
    rows, is_target = [], []
    for scene in scenes:
        for tokens, targets in (
            _caption_row(captioner, scene, rng),
            _chat_row(captioner, scene, rng),
        ):
            rows.append(tokens)
            is_target.append(targets)
    ids, mask = pad(rows, captioner.pad_id, "right", captioner.device)
    target, _ = pad(is_target, 0, "right", captioner.device)
    context = captioner.look(list(pictures(scenes)), [""] * len(scenes), group_size=2)
    errors = token_errors(captioner, captioner.until_question(context), ids)
    weight = target * mask
    caption_loss = (errors[0::2] * weight[0::2]).sum() / weight[0::2].sum()
    answer_loss = (errors[1::2] * weight[1::2]).sum() / weight[1::2].sum()
    return caption_loss + answer_loss, {
        "caption_loss": caption_loss.item(),
        "answer_loss": answer_loss.item(),
    }


def token_errors(captioner: CausalCaptioner, context: CaptionContext, ids: Tensor) -> Tensor:
    """``[B, T]``: cross-entropy of each token, given those before it and the context."""
    prefix = captioner.prefill(context)
    logits = captioner.advance(prefix, torch.cat([prefix.last_token[:, None], ids[:, :-1]], 1))
    return nn.functional.cross_entropy(logits.float().transpose(1, 2), ids, reduction="none")


def _caption_row(
    captioner: CausalCaptioner, scene: Scene, rng: random.Random
) -> tuple[list[int], list[int]]:
    draw = rng.random()
    style = "default" if draw < 0.5 else "brief" if draw < 0.65 else "detailed"
    level = {
        "default": pick(rng, LEVELS),
        "brief": pick(rng, LEVELS[:3]),
        "detailed": "exhaustive",
    }[style]
    return _turns(captioner, [(INSTRUCTIONS[style], caption(scene, level, rng))])


def _chat_row(
    captioner: CausalCaptioner, scene: Scene, rng: random.Random
) -> tuple[list[int], list[int]]:
    asked = [_question(scene, rng) for _ in range(NUM_QUESTIONS)]
    return _turns(captioner, [(q.text, q.answer) for q in asked])


def _question(scene: Scene, rng: random.Random) -> Question:
    asked = question(scene, pick(rng, (*QUESTION_KINDS, *HARD_QUESTIONS)), rng)
    return asked or any_question(scene, rng)


def _turns(
    captioner: CausalCaptioner, pairs: Sequence[tuple[str, str]]
) -> tuple[list[int], list[int]]:
    """Token ids after the image, and 1 where the assistant speaks (its end token included)."""
    opening, closing = TURNS[type(captioner)]
    ids: list[int] = []
    targets: list[int] = []
    for i, (said, answer) in enumerate(pairs):
        prompt = captioner.tokenize(f"{opening if i else ''} {said} {closing}")
        reply = captioner.tokenize(f"{answer} {captioner.tokenizer.eos_token}")
        ids += prompt + reply
        targets += [0] * len(prompt) + [1] * len(reply)
    return ids, targets


# --- measurements --------------------------------------------------------------------------------


def measure_captions(
    captioner: CausalCaptioner, scenes: list[Scene], style: str
) -> dict[str, float]:
    """Greedy captions' length in words, share of true mentions, and share of objects described
    completely."""
    settings = CaptionSettings(
        INSTRUCTIONS[style], temperature=0.0, max_new_tokens=MAX_CAPTION_TOKENS
    )
    found = world.measure_captions(captioner, scenes, settings)
    precision, recall = (
        found[name] or 0.0 for name in ("precision", "recall_complete")
    )  # None: nothing mentioned
    return {"tokens": found["tokens"], "precision": precision / 100, "exact_recall": recall / 100}


def measure_questions(
    captioner: CausalCaptioner, scenes: list[Scene], per_scene: int = 5
) -> dict[str, float]:
    """Share of questions answered exactly: all, about small objects, and by kind."""
    shares = world.perception(captioner, scenes, num_questions=per_scene * len(scenes))
    return {
        name: share.percent / 100 for name, share in shares.items() if share.percent is not None
    }
