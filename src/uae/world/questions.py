"""Questions about scenes, and how many a model answers right."""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch

from uae.bench.result import Share
from uae.models.base import Captioner
from uae.world.data import pictures
from uae.world.language import QUESTION_KINDS, Question, any_question
from uae.world.scene import Scene

QUESTIONS_PER_SCENE = 5
MAX_QUESTIONS = 500
MAX_ANSWER_TOKENS = 4
_QUESTION_BATCH = 100  # questions answered together


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
