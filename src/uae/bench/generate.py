"""Images of prompts, in the folders that GenEval's evaluation reads.

    OUT/00000/metadata.jsonl    the prompt's line, as it was given
    OUT/00000/samples/00000.png …

A prompt's images depend on its place in the file and the seed alone. What is there already is not
painted again. A language model may rewrite the prompts first (``rewrite/``); what was painted then
lies in ``OUT/00000/rewrite.json``.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import tyro
from torch import Tensor

from uae.bench.api import Answers
from uae.bench.ask.api import Asker
from uae.bench.provenance import provenance
from uae.bench.rewrite.options import RewriterOptions
from uae.bench.rewrite.prompts import Rewrite, rewrite_all
from uae.bench.rewrite.record import RECORD, TRANSCRIPT, write_rewrite
from uae.config import DecodeOptions, changed
from uae.data.prompts import read_prompts
from uae.images.write import save_png
from uae.models.base import UnifiedModel
from uae.types import RoundTrip
from uae.utils.files import atomic_write_text
from uae.utils.outputs import check_out_folder


@dataclass(frozen=True)
class PlacedPrompt:
    """A row of the file."""

    place: int
    """In the file, from 0: what its draws are keyed by."""
    row: Mapping[str, Any] = field(compare=False)
    """As it was given."""

    @property
    def folder(self) -> Path:
        """Where its images are, inside the output folder."""
        return Path(f"{self.place:05}")


@dataclass(frozen=True)
class PromptImages:
    """Paint prompts, for GenEval, DPG-Bench and the like."""

    prompts: Annotated[Path, tyro.conf.Positional]
    """A .jsonl or .json file of objects with a `prompt`, as GenEval's evaluation_metadata.jsonl, or
    of strings; a .csv or .tsv table with a column of prompts, as PartiPrompts.tsv; or a .txt file
    with a prompt in each line."""
    model: str = "tiny"
    """`tiny`, `tiny-ar`, `tiny-early`, a folder that uae wrote, Janus-Pro, or ENCODER+DECODER
    by hub id or folder."""
    out: Path = Path("generated")
    """Folder for one folder per prompt; the same command goes on where it was stopped."""
    images_per_prompt: int = 4
    """Images of each prompt."""
    decoding: DecodeOptions = field(default_factory=DecodeOptions)
    """How they are painted; by default as the model's uae.json says, else as its family was
    published."""
    seed: int = 0
    """Of the noise or the draws that painting starts from."""
    rewriter: RewriterOptions = field(default_factory=RewriterOptions)
    """Who writes prompts anew before they are painted; nobody without --rewriter.model."""

    batch_size = 1
    progress = ("generating", "prompts")
    journal = None

    @property
    def record(self) -> Path:
        return self.out / "settings.json"

    def items(self) -> list[PlacedPrompt]:
        if self.images_per_prompt < 1:
            raise ValueError(
                f"--images-per-prompt must be at least 1, got {self.images_per_prompt}"
            )
        check_out_folder(self.out)
        self.rewriter.check()
        return [PlacedPrompt(place, row) for place, row in enumerate(self.rows())]

    def rows(self) -> Sequence[Mapping[str, Any]]:
        """The file's, each with a ``prompt``."""
        return read_prompts(self.prompts)

    def settings(self, model: UnifiedModel, items: Sequence[PlacedPrompt]) -> dict[str, Any]:
        return {
            "model": self.model,
            "weights": provenance(self.model, model)["weights"],
            "decoding": vars(changed(model.decoding, self.decoding)),
            "seed": self.seed,
            "prompts": [prompt.row["prompt"] for prompt in items],
            **({"rewriter": self._rewriter_settings} if self.rewriter.is_given else {}),
        }

    def outputs(self, item: PlacedPrompt) -> list[Path]:
        return [item.folder]

    def is_answered(self, item: PlacedPrompt) -> bool:
        record = [self.out / item.folder / RECORD] if self.rewriter.is_given else []
        files = (*self.images_of(item), *record, self._metadata(item))
        return all(file.exists() for file in files)

    def prepare(self) -> None:
        """Have all prompts rewritten, if they are to be."""
        if self.rewriter.is_given:
            _ = self._rewrites

    def answer(
        self, model: UnifiedModel, items: Sequence[PlacedPrompt]
    ) -> Iterator[tuple[PlacedPrompt, str | None]]:
        """Prompt by prompt: text ``i`` of a call starts from noise ``i``, and each is the first of
        its own."""
        for prompt in items:
            rewrite = self.rewrite_of(prompt)
            if rewrite is not None and rewrite.problem is not None:
                yield prompt, rewrite.problem
                continue
            self._paint(model, prompt, rewrite)
            yield prompt, None

    def line(self, item: PlacedPrompt) -> None:
        """None: a prompt's folder says by itself that it is complete."""

    def round_trips(self, answers: Answers[PlacedPrompt]) -> dict[str, RoundTrip]:
        """None: there is no source."""
        return {}

    def rewrite_of(self, prompt: PlacedPrompt) -> Rewrite | None:
        """What becomes of it; None where prompts are painted as they are."""
        return self._rewrites[prompt.place] if self.rewriter.is_given else None

    @cached_property
    def _asker(self) -> Asker:
        return self.rewriter.build()

    @cached_property
    def _rewriter_settings(self) -> dict[str, Any]:
        return self.rewriter.settings_of(self._asker)

    @cached_property
    def _rewrites(self) -> list[Rewrite]:
        """Of all prompts, many at a time."""
        return rewrite_all(self.rewriter, self._asker, self.rows(), self.out / TRANSCRIPT)

    def _paint(self, model: UnifiedModel, prompt: PlacedPrompt, rewrite: Rewrite | None) -> None:
        decoding = changed(model.decoding, self.decoding)
        reconstructions = model.generate(
            [prompt.row["prompt"] if rewrite is None else rewrite.painted],
            decoding,
            group_size=self.images_per_prompt,
            seed=self.seed,
            step=prompt.place,
        )
        if is_too_long := bool(reconstructions.metrics.get("image/text_cut_frac")):
            print(
                f"prompt {prompt.place} is longer than the decoder reads: painted without its end",
                file=sys.stderr,
            )
        if rewrite is not None:
            rewrite = replace(rewrite, is_too_long=is_too_long)
        self.save(prompt, reconstructions.images, rewrite)

    def save(self, prompt: PlacedPrompt, images: Tensor, rewrite: Rewrite | None = None) -> None:
        """Write its images and what was painted, then its line."""
        files = self.images_of(prompt)
        files[0].parent.mkdir(parents=True, exist_ok=True)
        for file, image in zip(files, images, strict=True):
            save_png(file, image)
        if rewrite is not None:
            write_rewrite(self.out / prompt.folder, rewrite, self._rewriter_settings)
        line = json.dumps(prompt.row, ensure_ascii=False)
        atomic_write_text(self._metadata(prompt), f"{line}\n")  # last: it is complete

    def images_of(self, prompt: PlacedPrompt) -> list[Path]:
        """The files of its images."""
        samples = self.out / prompt.folder / "samples"
        return [samples / f"{k:05}.png" for k in range(self.images_per_prompt)]

    def _metadata(self, prompt: PlacedPrompt) -> Path:
        return self.out / prompt.folder / "metadata.jsonl"
