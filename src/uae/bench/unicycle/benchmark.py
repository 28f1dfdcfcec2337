"""UniCycle, the mirror of Unified-Bench: how much of a text survives text -> image -> text.

arXiv 2601.03193 has a unified model paint a text and describe its own picture, and measures what is
kept. We know of its scoring no more than that, so the loop alone is the paper's. Ours compares the
caption with the text by the text sides of CLIP and LongCLIP, the backbones of Unified-Bench that
have one; in the embedded world also by exact attributes. Numbers are not comparable with the
paper's.

CLIP reads 77 tokens and LongCLIP 248: what is longer is compared without its end.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from rich.console import RenderableType

from uae.bench.api import Answers
from uae.bench.generate import PlacedPrompt
from uae.bench.painted.result import PaintedResult, painted_table
from uae.bench.unicycle.score import Cycles, attribute_scores, cosines, similarity_scores
from uae.bench.unicycle.task import PaintAndCaption
from uae.config import CaptionOptions, DecodeOptions
from uae.data.prompts import read_prompts
from uae.similarity.backbones import load_backbone
from uae.similarity.checkpoints import TINY, check_backbone_source
from uae.utils.device import default_device
from uae.utils.importing import import_named
from uae.utils.outputs import check_out_file
from uae.utils.suggest import did_you_mean

WORLD = "world"
TEXTS = "uae.world.unicycle:texts"
BACKBONES = ("clip", "longclip")  # those with a text side


@dataclass(frozen=True)
class UniCycle:
    """UniCycle: is a text still there in what the model says of its own picture?"""

    prompts: str = WORLD
    """Texts, as `uae generate` reads them, or `world` for the embedded world's."""
    num_texts: int = 100
    """Of the embedded world."""
    captions: Path | None = None
    """Captions made elsewhere: a .jsonl file of objects with a `prompt` and a `caption`; without it
    --model paints and captions."""
    model: str = "tiny"
    """`tiny`, `tiny-ar`, `tiny-early`, a folder that uae wrote, Janus-Pro, or ENCODER+DECODER
    by hub id or folder."""
    images_per_prompt: int = 1
    """Pictures of each text."""
    captioning: CaptionOptions = field(default_factory=CaptionOptions)
    """How they are captioned; by default as the model's uae.json says, else in detail and
    greedy."""
    decoding: DecodeOptions = field(default_factory=DecodeOptions)
    """How they are painted; by default as the model's uae.json says, else as its family was
    published."""
    seed: int = 0
    """Of the noise or the draws that painting starts from, and of the draws of texts."""
    backbones: dict[str, str] = field(default_factory=dict)
    """Checkpoints of clip and longclip: hub id, folder, .pt, or `tiny`; by default the published
    ones, and for `world` the tiny ones."""
    num_bootstrap: int = 2000
    """Draws of the texts, for intervals."""
    out: Path = Path("unicycle.json")
    """Result file; pictures and captions are kept beside it."""
    device: str = field(default_factory=default_device)
    """Where backbones run; a GPU if there is one."""

    def check(self) -> None:
        for name in self.backbones:
            if name not in BACKBONES:
                raise ValueError(
                    f"unknown backbone {name!r}: expected "
                    f"{', '.join(BACKBONES)}{did_you_mean(name, BACKBONES)}"
                )
        for option in ("num_texts", "num_bootstrap"):
            if (number := getattr(self, option)) < 1:
                raise ValueError(f"--{option.replace('_', '-')} must be at least 1, got {number}")
        check_out_file(self.out)
        for name, source in self._sources.items():
            check_backbone_source(name, source)
        _ = self._rows  # an error, if they cannot be read

    def task(self) -> PaintAndCaption | None:
        """Pictures and captions are made beside the result file."""
        if self.captions is not None:
            return None
        return PaintAndCaption(
            prompts=Path(),
            model=self.model,
            out=self.out.with_name(f"{self.out.stem}_images"),
            images_per_prompt=self.images_per_prompt,
            decoding=self.decoding,
            seed=self.seed,
            listed=tuple(self._rows),
            captioning=self.captioning,
        )

    def score(self, answers: Answers[PlacedPrompt] | None) -> PaintedResult:
        cycles, unscored, remarks = self._cycles(answers)
        if not cycles:
            reasons = "; ".join(list(unscored.values())[:3])
            raise ValueError(f"expected a caption of one of {len(self._rows)} texts: {reasons}")
        found, shuffled, provenance = {}, {}, {}
        for name, source in self._sources.items():
            backbone = load_backbone(name, source, device=self.device)
            found[name], shuffled[name] = cosines(backbone, cycles)
            provenance[name] = asdict(backbone.provenance)
        scores = similarity_scores(found, shuffled, self.num_bootstrap, self.seed)
        if self.prompts == WORLD:
            exact = attribute_scores(cycles, self.num_bootstrap, self.seed)
            scores = {"attributes": exact, **scores}
        return PaintedResult(
            title="UniCycle (text to image to text)",
            scores=scores,
            images={
                name: {"text": text, "captions": list(said), **{b: found[b][name] for b in found}}
                for name, (text, said) in cycles.items()
            },
            unscored=unscored,
            remarks=remarks,
            notes=["scored by text similarity: not comparable with the paper's numbers"],
            settings={**self._recorded(answers), "backbones": provenance},
            answerer={},
            partial=bool(unscored),
        )

    def table(self, result: PaintedResult) -> RenderableType:
        return painted_table(result)

    @cached_property
    def _rows(self) -> list[dict[str, Any]]:
        if self.prompts == WORLD:
            return [{"prompt": text} for text in import_named(TEXTS, "world")(self.num_texts)]
        return read_prompts(Path(self.prompts))

    @property
    def _sources(self) -> dict[str, str | None]:
        default = TINY if self.prompts == WORLD else None
        return {name: self.backbones.get(name, default) for name in BACKBONES}

    def _cycles(
        self, answers: Answers[PlacedPrompt] | None
    ) -> tuple[Cycles, dict[str, str], list[str]]:
        """Texts with their captions, texts without, and captions of no text."""
        task = self.task()
        if task is None or answers is None:
            assert self.captions is not None
            return match_captions(self._rows, read_captions(self.captions))
        captions = {item: task.captions_of(item) for item in answers.in_order()}
        cycles = {
            f"{item.place:05}": (item.row["prompt"], said)
            for item, said in captions.items()
            if said is not None
        }
        left_out = {f"{item.place:05}": why for item, why in answers.left_out.items()}
        return cycles, left_out, []

    def _recorded(self, answers: Answers[PlacedPrompt] | None) -> dict[str, Any]:
        own = {"texts": self.prompts, "num_bootstrap": self.num_bootstrap}
        if answers is None:
            return {**own, "captions": str(self.captions)}
        made = {name: value for name, value in answers.settings.items() if name != "prompts"}
        return {**own, **made, "images_per_prompt": self.images_per_prompt}


def read_captions(path: Path) -> dict[str, list[str]]:
    """Captions by text, each once, in file order.

    Raises:
        ValueError: where a row has none.
    """
    captions: dict[str, list[str]] = {}
    for number, row in enumerate(read_prompts(path), 1):
        caption = row.get("caption")
        if not isinstance(caption, str):
            raise ValueError(
                f"{path}, caption {number}: expected a prompt and a caption, got "
                f"{json.dumps(row)[:60]}"
            )
        said = captions.setdefault(row["prompt"], [])
        if caption not in said:
            said.append(caption)
    return captions


def match_captions(
    rows: Sequence[Mapping[str, Any]], captions: Mapping[str, list[str]]
) -> tuple[Cycles, dict[str, str], list[str]]:
    """By text, whatever their order: cycles, texts without a caption, and captions of no text."""
    cycles, unscored = {}, {}
    for place, row in enumerate(rows):
        text = row["prompt"]
        if text in captions:
            cycles[f"{place:05}"] = (text, captions[text])
        else:
            unscored[f"{place:05}"] = "no caption"
    texts = {row["prompt"] for row in rows}
    extra = [f"a caption of no text: {text[:60]!r}" for text in captions if text not in texts]
    return cycles, unscored, extra
