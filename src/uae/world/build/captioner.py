"""The world's captioner: captions and answers to questions, by next-token prediction.

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
from uae.world.captions import measure_captions
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
from uae.world.questions import perception
from uae.world.scene import Scene, first_scenes, pick

NUM_QUESTIONS = 4  # per image
# they take two looks or more, and come twice as often
HARD_QUESTIONS = ("existence", "position", "relation")
MAX_CAPTION_TOKENS = 40
TURNS = {  # what begins the user's turn, and what ends it and begins the assistant's
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
        vision_tower = QwenVL.from_pretrained(vision_folder).model.model.visual
        self.captioner.model.model.visual.load_state_dict(vision_tower.state_dict())
        self.modules: dict[str, nn.Module] = {"captioner": self.captioner.model}

    def loss(self, step: int) -> tuple[Tensor, dict[str, float]]:
        scenes = train_scenes(step, self.fit_settings.batch_size)
        rng = random.Random(f"captioner {step}")
        with torch.autocast("cpu", torch.bfloat16):
            return caption_and_answer_loss(self.captioner, scenes, rng)

    def evaluate(self) -> dict[str, float]:
        scenes = first_scenes("validation", 200)
        detailed = greedy_caption_quality(self.captioner, scenes, "detailed")
        return {
            "question_accuracy": question_shares(self.captioner, scenes)["all"],
            "detailed_precision": detailed["precision"],
            "detailed_recall": detailed["exact_recall"],
            "default_tokens": greedy_caption_quality(self.captioner, scenes, "default")["tokens"],
        }

    def export(self, folder: Path) -> None:
        self.captioner.save_pretrained(folder)

    def after_step(self, step: int) -> None:
        pass


def caption_and_answer_loss(
    captioner: CausalCaptioner, scenes: list[Scene], rng: random.Random
) -> tuple[Tensor, dict[str, float]]:
    """Mean cross-entropy over caption tokens plus mean over answer tokens.

    Each image has one caption and one chat.
    """
    rows = []
    for scene in scenes:
        rows += [_caption_row(captioner, scene, rng), _chat_row(captioner, scene, rng)]
    ids, mask = pad([tokens for tokens, _ in rows], captioner.pad_id, "right", captioner.device)
    targets, _ = pad([is_target for _, is_target in rows], 0, "right", captioner.device)
    context = captioner.look(list(pictures(scenes)), [""] * len(scenes), group_size=2)
    errors = token_errors(captioner, captioner.until_question(context), ids)
    weight = targets * mask
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
    return _chat_tokens(captioner, [(INSTRUCTIONS[style], caption(scene, level, rng))])


def _chat_row(
    captioner: CausalCaptioner, scene: Scene, rng: random.Random
) -> tuple[list[int], list[int]]:
    questions = [_question(scene, rng) for _ in range(NUM_QUESTIONS)]
    return _chat_tokens(captioner, [(q.text, q.answer) for q in questions])


def _question(scene: Scene, rng: random.Random) -> Question:
    """Of a random kind, or of any other where the scene does not allow that."""
    kind = pick(rng, (*QUESTION_KINDS, *HARD_QUESTIONS))
    return question(scene, kind, rng) or any_question(scene, rng)


def _chat_tokens(
    captioner: CausalCaptioner, turns: Sequence[tuple[str, str]]
) -> tuple[list[int], list[int]]:
    """Token ids after the image, and 1 where the assistant speaks (its end token included)."""
    opening, closing = TURNS[type(captioner)]
    ids: list[int] = []
    is_target: list[int] = []
    for i, (request, reply) in enumerate(turns):
        request_ids = captioner.tokenize(f"{opening if i else ''} {request} {closing}")
        reply_ids = captioner.tokenize(f"{reply} {captioner.tokenizer.eos_token}")
        ids += request_ids + reply_ids
        is_target += [0] * len(request_ids) + [1] * len(reply_ids)
    return ids, is_target


# --- measurements --------------------------------------------------------------------------------


def greedy_caption_quality(
    captioner: CausalCaptioner, scenes: list[Scene], style: str
) -> dict[str, float]:
    """Greedy captions: words, share of true mentions, share of objects described completely."""
    settings = CaptionSettings(
        INSTRUCTIONS[style], temperature=0.0, max_new_tokens=MAX_CAPTION_TOKENS
    )
    quality = measure_captions(captioner, scenes, settings)
    precision = quality["precision"] or 0.0  # None: nothing was mentioned
    recall = quality["recall_complete"] or 0.0
    return {"tokens": quality["tokens"], "precision": precision / 100, "exact_recall": recall / 100}


def captioner_quality(captioner: CausalCaptioner, scenes: list[Scene]) -> dict[str, float]:
    """Shares of questions answered by kind, and of objects described completely when asked."""
    shares = question_shares(captioner, scenes)
    detailed = greedy_caption_quality(captioner, scenes, "detailed")
    return {
        **{f"question_{kind}": share for kind, share in shares.items()},
        "detailed_recall": detailed["exact_recall"],
    }


def question_shares(
    captioner: CausalCaptioner, scenes: list[Scene], per_scene: int = 5
) -> dict[str, float]:
    """Share of questions answered exactly: all, about small objects, and by kind."""
    shares = perception(captioner, scenes, num_questions=per_scene * len(scenes))
    return {
        name: share.percent / 100 for name, share in shares.items() if share.percent is not None
    }
