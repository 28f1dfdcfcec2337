"""``uae generate``: images of prompts, in the folders that GenEval's evaluation reads."""

from __future__ import annotations

import sys

import tyro

from uae.bench.generate import PromptImages
from uae.bench.rewrite.record import rewriting_of
from uae.bench.run import answer_items
from uae.models.load import load_model
from uae.utils.processes import is_main, wait
from uae.utils.quiet import quiet_libraries


def main(arguments: list[str]) -> None:
    """``uae generate PROMPTS [--model MODEL] [--out DIR]``"""
    quiet_libraries()
    task = tyro.cli(PromptImages, args=arguments, prog="uae generate")
    answers = answer_items(task, load_model)
    painted = answers.in_order()
    rewriting = rewriting_of(file for prompt in painted for file in task.images_of(prompt))
    for line in [] if rewriting is None else rewriting.lines():
        print(line)
    print(f"{len(painted)} prompts, {task.images_per_prompt} images each: {task.out}")
    for prompt, reason in answers.left_out.items() if is_main() else ():
        print(f"prompt {prompt.place} was left out: {reason}", file=sys.stderr)
    wait()  # a process that ends by its code ends the others
    if answers.left_out:
        raise SystemExit(3)
