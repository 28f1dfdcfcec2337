"""Unified-Bench of a model on images, or of two folders made elsewhere."""

from __future__ import annotations

import json
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from rich.console import RenderableType

from uae.bench.api import Answers
from uae.bench.reconstruct import Photo, ReconstructImages
from uae.bench.unified.pairing import Pairing, pair_folders
from uae.bench.unified.result import BACKBONES, UnifiedResult
from uae.bench.unified.score import ScoreSettings, check_backbones, score_files
from uae.bench.unified.table import PublishedRow, markdown, unified_table
from uae.config import CaptionOptions, DecodeOptions
from uae.similarity.cache import EmbeddingCache
from uae.utils.device import default_device
from uae.utils.files import atomic_write_text
from uae.utils.outputs import check_out_file
from uae.utils.processes import is_main, wait
from uae.utils.suggest import did_you_mean

CACHE = "uae_embeddings.sqlite"


@dataclass(frozen=True)
class UnifiedBench:
    """Score reconstructions with four similarity backbones. Give --images, or --source and
    --recon."""

    images: Path | None = None
    """Folder of images that --model captions and reconstructs first."""
    source: Path | None = None
    """Folder of source images."""
    recon: Path | None = None
    """Folder of their reconstructions, matched by name (NAME or recon_NAME)."""
    model: str = "tiny"
    """For --images: `tiny`, `tiny-ar`, `tiny-early`, a folder that uae wrote, Janus-Pro, or
    ENCODER+DECODER by hub id or folder; or two, as 'CAPTIONER -> PAINTER', each a model, an
    endpoint's (URL#MODEL), or captions in a .json or .jsonl."""
    captioning: CaptionOptions = field(default_factory=CaptionOptions)
    """For --images: how captions are made; by default as the model's uae.json says, else in detail
    and greedy."""
    decoding: DecodeOptions = field(default_factory=DecodeOptions)
    """For --images: how they are painted; by default as the model's uae.json says, else as its
    family was published."""
    seed: int = 0
    """For --images: of the noise or the draws that painting starts from."""
    backbones: dict[str, str] = field(default_factory=dict)
    """Checkpoints by backbone name (clip, longclip, dinov2, dinov3): hub id, folder, .pt, or
    `tiny`; by default the published ones."""
    beside: tuple[Path, ...] = ()
    """Result files to show beside this one, ours or the official scorer's."""
    out: Path = Path("unified_bench.json")
    """Result file, with the official keys; beside it .jsonl, a row for each image, and .md, the
    table."""
    allow_partial: bool = False
    """Go on without a backbone that cannot be loaded; the result is then marked partial and has no
    overall score."""
    device: str = field(default_factory=default_device)
    """Where backbones run; a GPU if there is one."""
    cache: Path | None = None
    """File that keeps the embeddings of images, by their content; by default
    `uae_embeddings.sqlite` beside the result file. What is there is not computed again."""

    def check(self) -> None:
        for name in self.backbones:
            if name not in BACKBONES:
                raise ValueError(
                    f"unknown backbone {name!r}: expected "
                    f"{', '.join(BACKBONES)}{did_you_mean(name, BACKBONES)}"
                )
        check_out_file(self.out)
        _ = self._others
        _ = self._unusable  # an error, if one is needed
        if self._given not in ([True, False, False], [False, True, True]):
            raise ValueError("expected either --images DIR, or --source DIR and --recon DIR")

    def task(self) -> ReconstructImages | None:
        """Reconstructions of ``--images`` are made beside the result file."""
        if self.images is None:
            return None
        return ReconstructImages(
            paths=(str(self.images),),
            model=self.model,
            out=self.out.with_name(f"{self.out.stem}_reconstructions"),
            captioning=self.captioning,
            decoding=self.decoding,
            seed=self.seed,
            keeps_record=True,
        )

    def score(self, answers: Answers[Photo] | None) -> UnifiedResult:
        task = self.task()
        if task is not None and answers is not None:
            pairing = _pairing(answers, task.out)
            recorded = {
                "source_dir": str(self.images),
                "recon_dir": str(task.out),
                "captioning": answers.settings["captioning"],
                "decoding": answers.settings["decoding"],
                "model": self.model,
                "painting_seed": self.seed,
            }
            result = replace(self._score(pairing, recorded), model=answers.settings["model"])
        else:
            assert self.source is not None and self.recon is not None
            recorded = {"source_dir": str(self.source), "recon_dir": str(self.recon)}
            result = self._score(pair_folders(self.source, self.recon), recorded)
        if is_main():
            self._write(result)
        return result

    def table(self, result: UnifiedResult) -> RenderableType:
        return unified_table(result, self._label, self._others)

    def _write(self, result: UnifiedResult) -> None:
        """What lies beside the result file."""
        rows = "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in result.rows())
        atomic_write_text(self.out.with_suffix(".jsonl"), rows)
        atomic_write_text(self.out.with_suffix(".md"), markdown(self._label, result, self._others))

    @property
    def _label(self) -> str:
        """Of the row."""
        return self.model if self.images is not None else self.recon.name if self.recon else ""

    @cached_property
    def _others(self) -> dict[str, PublishedRow]:
        """Those of the files given, by name, or by path where names are not enough."""
        are_enough = len({file.stem for file in self.beside}) == len(self.beside)
        return {
            file.stem if are_enough else str(file): PublishedRow.read(file) for file in self.beside
        }

    @property
    def _given(self) -> list[bool]:
        return [folder is not None for folder in (self.images, self.source, self.recon)]

    @property
    def _checkpoints(self) -> dict[str, str | None]:
        """One for each of the four backbones."""
        return {name: self.backbones.get(name) for name in BACKBONES}

    @cached_property
    def _unusable(self) -> dict[str, str]:
        """Backbones that the result does without, with the reason; looked for once a run."""
        return check_backbones(self._checkpoints, self.allow_partial)

    def _score(self, pairing: Pairing, recorded: dict) -> UnifiedResult:
        settings = ScoreSettings(
            device=self.device, allow_partial=self.allow_partial, is_shared=True
        )
        with closing(self._opened_cache()) as cache:
            return score_files(
                pairing, self._checkpoints, settings, self._unusable, recorded, cache
            )

    def _opened_cache(self) -> EmbeddingCache:
        """The main process writes it, and makes it if there is none; the others read."""
        file = self.cache or self.out.with_name(CACHE)
        cache = EmbeddingCache(file if is_main() else None)
        wait()
        return cache if is_main() else EmbeddingCache(file)


def _pairing(answers: Answers[Photo], folder: Path) -> Pairing:
    """What the task made; an older reconstruction in the same folder is none."""
    photos = answers.in_order()
    return Pairing(
        names=[str(photo.name) for photo in photos],
        sources=[photo.file for photo in photos],
        reconstructions=[folder / photo.reconstruction for photo in photos],
        unmatched_sources={
            str(photo.name): answers.left_out[photo]
            for photo in answers.items
            if photo in answers.left_out
        },
        unmatched_reconstructions=[],
        remarks=[],
    )
