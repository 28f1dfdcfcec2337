"""``uae generate``: images of prompts, in the folders that GenEval's evaluation reads."""

from __future__ import annotations

import tyro

from uae.bench.generate import PromptImages
from uae.bench.run import answer_items
from uae.models.load import load_model
from uae.utils.quiet import quiet_libraries


def main(arguments: list[str]) -> None:
    """``uae generate PROMPTS [--model MODEL] [--out DIR]``"""
    quiet_libraries()
    task = tyro.cli(PromptImages, args=arguments, prog="uae generate")
    answers = answer_items(task, load_model)
    print(f"{len(answers.items)} prompts, {task.images_per_prompt} images each: {task.out}")
