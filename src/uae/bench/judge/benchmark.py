"""``uae bench judge``: which of two sides described or painted images better."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

from rich.console import RenderableType

from uae.bench.api import Answers
from uae.bench.ask.transcript import num_missing
from uae.bench.judge.cost import counted, estimated
from uae.bench.judge.judges import EXACT, LOCAL, EndpointOptions, Judge, judge_of, names_of
from uae.bench.judge.pairing import Contest, Entries
from uae.bench.judge.prompts import Form, question_about
from uae.bench.judge.referee import rule
from uae.bench.judge.result import Estimate, Judged, JudgeResult
from uae.bench.judge.sample import draw_images, find_images, list_text, read_list
from uae.bench.judge.table import estimate_table, judge_table
from uae.utils.files import atomic_write_text
from uae.utils.outputs import check_out_file
from uae.utils.processes import is_main
from uae.utils.progress import phase


@dataclass(frozen=True)
class JudgeBench:
    """Have judges compare two sides' captions of images, or reconstructions, in both orders."""

    source: Path
    """Folder of the original images."""
    images_a: Path | None = None
    """Side A: folder of its pictures, called as the originals or recon_NAME."""
    images_b: Path | None = None
    """Side B, such as the baseline."""
    captions_a: Path | None = None
    """Side A: .jsonl file with an `image` and a `caption` in each line, or folder of NAME.txt."""
    captions_b: Path | None = None
    """Side B."""
    judges: tuple[str, ...] = ("paper",)
    """Each a model of --endpoint.url, NAME@URL, local:MODEL (on this machine), `exact` (computes,
    for pictures of the embedded world), or `paper` for the paper's four."""
    endpoint: EndpointOptions = field(default_factory=EndpointOptions)
    """How endpoints are asked."""
    num_images: int = 100
    """How many of the originals are drawn, by content; fewer if there are fewer."""
    seed: int = 0
    """Of the draw."""
    image_list: Path | None = None
    """Instead of a draw: a list that an earlier run wrote, STEM_images.txt."""
    reply: Form = "json"
    """`json`: scores and a verdict; `letter`: free words, then a verdict in the last line."""
    attempts: int = 3
    """How often a judge is asked until it gives a verdict."""
    max_new_tokens: int = 4096
    """The cap on a reply, with what the judge thinks."""
    batch_size: int = 8
    """For local judges: questions at a time."""
    prices: dict[str, tuple[float, float]] = field(default_factory=dict)
    """By judge: price of a million tokens in, and out."""
    image_tokens: int = 1000
    """For the estimate: tokens of an image."""
    dry_run: bool = False
    """Ask nothing, and estimate requests, tokens and cost, into STEM_estimate.json."""
    out: Path = Path("judge.json")
    """Result file; transcripts and the list of images go beside it, and the same command goes on
    where it was stopped."""

    def __post_init__(self) -> None:
        if self.dry_run:  # it writes over no result
            object.__setattr__(self, "out", self._beside("estimate.json"))

    def check(self) -> None:
        self._entries.check()
        names = names_of(self.judges)
        for name in ("num_images", "attempts", "max_new_tokens", "batch_size"):
            if (number := getattr(self, name)) < 1:
                raise ValueError(f"--{name.replace('_', '-')} must be at least 1, got {number}")
        if unknown := sorted(self.prices.keys() - set(names)):
            raise ValueError(
                f"--prices: expected names of judges, {', '.join(names)}, got {unknown[0]}"
            )
        check_out_file(self.out)
        _ = self._judges  # an error, if one cannot be asked

    def task(self) -> None:
        """None: captions and pictures were made elsewhere."""
        return

    def score(self, answers: Answers[Any] | None) -> JudgeResult | Estimate:
        images, num_sources = self._drawn()
        contest = self._entries.gather(images)
        if self.dry_run:
            return self._estimate(contest)
        if is_main():
            atomic_write_text(self._beside("images.txt"), list_text(images))
        judged = [self._judged(judge, contest) for judge in self._judges]
        compared = {pair.name: images[pair.name] for pair in contest.pairs}
        left_out, remarks = contest.left_out, contest.remarks
        return JudgeResult(compared, judged, left_out, remarks, self._settings, num_sources)

    def table(self, result: JudgeResult | Estimate) -> RenderableType:
        return estimate_table(result) if isinstance(result, Estimate) else judge_table(result)

    # --- parts -----------------------------------------------------------------------------------

    @property
    def _entries(self) -> Entries:
        sides = (self.images_a, self.images_b, self.captions_a, self.captions_b)
        return Entries(self.source, *sides)

    @cached_property
    def _judges(self) -> list[Judge]:
        return [judge_of(name, self.endpoint, self.batch_size) for name in names_of(self.judges)]

    @property
    def _settings(self) -> dict[str, Any]:
        return {
            name: getattr(self, name)
            for name in (
                *("source", "images_a", "images_b", "captions_a", "captions_b", "judges"),
                *("num_images", "seed", "image_list", "reply", "attempts", "max_new_tokens"),
            )
        }

    def _drawn(self) -> tuple[dict[str, str], int]:
        """Names and hashes of the images to be compared, and of how many they were drawn."""
        files = self._entries.sources()
        if self.image_list is not None:
            return find_images(files, read_list(self.image_list)), len(files)
        return draw_images(files, self.num_images, self.seed), len(files)

    def _judged(self, judge: Judge, contest: Contest) -> Judged:
        attempts = 1 if judge.name == EXACT else self.attempts
        with phase(judge.name):
            rulings = rule(
                judge,
                contest.pairs,
                self._transcript(judge),
                self.reply,
                attempts,
                self.max_new_tokens,
            )
        return Judged(judge, rulings, counted(rulings.replies.values(), self._price(judge)))

    def _estimate(self, contest: Contest) -> Estimate:
        places = product(contest.pairs, (False, True))
        questions = [question_about(pair, swapped, self.reply) for pair, swapped in places]
        usages = {}
        for judge in self._judges:
            num = num_missing(judge.asker, questions, self._transcript(judge), self.max_new_tokens)
            price = self._price(judge)
            usages[judge.name] = estimated(questions, num, self.image_tokens, price)
        pairs, left_out, remarks = contest
        return Estimate(usages, len(pairs), left_out, self._settings, remarks)

    def _price(self, judge: Judge) -> tuple[float, float] | None:
        """What is here costs nothing."""
        is_free = judge.name == EXACT or judge.name.startswith(LOCAL)
        return (0.0, 0.0) if is_free else self.prices.get(judge.name)

    def _transcript(self, judge: Judge) -> Path:
        folder = self._beside("transcripts")
        return folder / f"{re.sub(r'[^A-Za-z0-9.-]+', '_', judge.name)}.jsonl"

    def _beside(self, what: str) -> Path:
        return self.out.with_name(f"{self.out.stem.removesuffix('_estimate')}_{what}")
