"""GenEval of a model, or of images made elsewhere, without mmdet.

The prompts, the folders, the rules and the result rows are the official ones (``rules.py``,
``folders.py``, ``score.py``, ``summary.py``). The detector is ``transformers``' Mask2Former and the
colours are read by ``transformers``' CLIP; what that changes is listed in every result and in
``detector.py`` and ``colors.py``. Thresholds are part of the benchmark and no options.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from rich.console import RenderableType

from uae.bench.api import Answers
from uae.bench.generate import PlacedPrompt, PromptImages
from uae.bench.geneval import detector
from uae.bench.geneval.folders import ImageTree, Sample, read_tree
from uae.bench.geneval.judge import CLIP, Judge, ObjectJudge
from uae.bench.geneval.result import GenEvalResult, geneval_table
from uae.bench.geneval.score import score_samples
from uae.bench.geneval.summary import summarise
from uae.bench.rewrite.options import RewriterOptions
from uae.bench.rewrite.record import rewriting_of
from uae.config import DecodeOptions
from uae.data.prompts import read_prompts
from uae.utils.device import default_device
from uae.utils.files import atomic_write_text
from uae.utils.importing import import_named
from uae.utils.outputs import check_out_file
from uae.utils.processes import is_main

WORLD = "world"
WORLD_PROMPTS, WORLD_JUDGE = "uae.world.geneval:WorldPrompts", "uae.world.geneval:WorldJudge"
IMAGES_PER_PROMPT = 4


@dataclass(frozen=True)
class GenEvalBench:
    """Do pictures show the objects, numbers, colours and positions of their prompts? Give --prompts
    to have --model paint them, or --images."""

    prompts: str | None = None
    """GenEval's evaluation_metadata.jsonl, or `world` for prompts of the embedded world; with
    --images, those that are looked for there."""
    images: Path | None = None
    """Folder of images made elsewhere, in GenEval's folders."""
    model: str = "tiny"
    """For --prompts alone: `tiny`, `tiny-ar`, `tiny-early`, a folder that uae wrote, Janus-Pro, or
    ENCODER+DECODER by hub id or folder."""
    images_per_prompt: int | None = None
    """Images of each prompt: painted (by default 4, of the world's prompts 1), or expected of
    --images (by default as many as most have)."""
    decoding: DecodeOptions = field(default_factory=DecodeOptions)
    """How they are painted; by default as the model's uae.json says, else as its family was
    published."""
    seed: int = 0
    """Of the noise or the draws that painting starts from."""
    rewriter: RewriterOptions = field(default_factory=RewriterOptions)
    """Who writes prompts anew before --model paints them; nobody without --rewriter.model."""
    prompts_per_tag: int = 20
    """Of the world's prompts, which are of six tags."""
    detector: str = detector.PUBLISHED
    """Hub id or folder of a Mask2Former of COCO's instances, or `world` for the exact detector of
    the embedded world."""
    clip: str = CLIP
    """Hub id or folder of the CLIP that reads colours."""
    batch_size: int = 8
    """Images judged at a time; no verdict depends on it."""
    out: Path = Path("geneval.json")
    """Result file; beside it NAME_rows.jsonl (official result rows), NAME_scored.jsonl (what a
    stopped run goes on from) and NAME_images (what was painted)."""
    device: str = field(default_factory=default_device)
    """Where the judge runs; a GPU if there is one."""

    def check(self) -> None:
        check_out_file(self.out)
        if self.prompts is None and self.images is None:
            raise ValueError("expected --prompts FILE, or --images DIR, got neither")
        for option in ("batch_size", "images_per_prompt", "prompts_per_tag"):
            value = getattr(self, option)
            if value is not None and value < 1:
                name = option.replace("_", "-")
                raise ValueError(f"--{name} must be at least 1, got {value}")
        if self.prompts == WORLD and self.detector != WORLD:
            raise ValueError(
                f"--prompts {WORLD}: expected --detector {WORLD}, got {self.detector}; no other "
                "detector knows the world's shapes"
            )
        if self.images is not None and not self.images.is_dir():
            raise ValueError(f"{self.images}: expected a folder of images, found none there")
        self.rewriter.check(self.images)
        _ = self._asked  # an error, if one is needed
        self._judge.check()

    def task(self) -> PromptImages | None:
        """Images of ``--prompts`` are painted beside the result file."""
        if self.images is not None:
            return None
        assert self.prompts is not None
        options: dict[str, Any] = {
            "model": self.model,
            "out": self.out.with_name(f"{self.out.stem}_images"),
            "decoding": self.decoding,
            "seed": self.seed,
            "rewriter": self.rewriter,
        }
        if self.prompts == WORLD:
            return import_named(WORLD_PROMPTS, "prompts")(
                prompts=Path(WORLD),
                images_per_prompt=self.images_per_prompt or 1,
                prompts_per_tag=self.prompts_per_tag,
                **options,
            )
        return PromptImages(
            prompts=Path(self.prompts),
            images_per_prompt=self.images_per_prompt or IMAGES_PER_PROMPT,
            **options,
        )

    def score(self, answers: Answers[PlacedPrompt] | None) -> GenEvalResult:
        tree = self._found() if answers is None else self._painted(answers)
        scores = score_samples(
            tree.samples, self._judge, self._beside("scored.jsonl"), self.batch_size
        )
        if is_main():
            write_rows(self._beside("rows.jsonl"), scores.rows)
        painted_by = {} if answers is None else {**answers.settings}
        painted_by.pop("prompts", None)  # each row has its own
        return GenEvalResult(
            summary=summarise(scores.rows),
            unscored=scores.unscored,
            missing=tree.missing,
            remarks=tree.remarks + scores.same_content,
            settings={
                "prompts": self.prompts,
                "images": self.images and str(self.images),
                "judge": self._judge.settings(),
            },
            deviations=self._judge.deviations,
            model=painted_by or None,
            rewriting=rewriting_of(sample.file for sample in tree.samples),
        )

    def table(self, result: GenEvalResult) -> RenderableType:
        return geneval_table(result)

    def _beside(self, name: str) -> Path:
        return self.out.with_name(f"{self.out.stem}_{name}")

    @cached_property
    def _judge(self) -> Judge:
        if self.detector == WORLD:
            return import_named(WORLD_JUDGE, "detector")()
        return ObjectJudge(self.detector, self.clip, self.device)

    @cached_property
    def _asked(self) -> list[dict[str, Any]] | None:
        """The prompts of the file, each one that can be judged."""
        if self.prompts is None or self.prompts == WORLD:
            return None
        rows = read_prompts(Path(self.prompts))
        for number, row in enumerate(rows, 1):
            self._judge.check_metadata(row, f"{self.prompts}, prompt {number}")
        return rows

    def _found(self) -> ImageTree:
        """What lies in ``--images``."""
        assert self.images is not None
        return read_tree(
            self.images, self._judge.check_metadata, self.images_per_prompt, self._asked
        )

    def _painted(self, answers: Answers[PlacedPrompt]) -> ImageTree:
        """What the task made; older images in the same folder are none."""
        task = self.task()
        assert task is not None
        samples = [
            Sample(file, str(file.relative_to(task.out)), prompt.row)
            for prompt in answers.in_order()
            for file in task.images_of(prompt)
        ]
        left_out = [f"{item.folder}: {reason}" for item, reason in answers.left_out.items()]
        return ImageTree(samples, left_out)


def write_rows(file: Path, rows: list[dict[str, Any]]) -> None:
    """A JSON object in each line."""
    atomic_write_text(file, "".join(f"{json.dumps(row)}\n" for row in rows))
