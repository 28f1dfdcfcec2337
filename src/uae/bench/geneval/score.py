"""From samples to result rows, image by image: what was judged once is not judged again.

Verdicts go to a journal as they are made, by the hash of the image's file, its prompt's metadata
and the judge's settings. Whatever cannot be read is named and costs no other image its verdict.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from uae.bench.geneval.crops import open_picture
from uae.bench.geneval.folders import Sample
from uae.bench.geneval.judge import Judge, Judged
from uae.images.read import ImageError
from uae.utils.files import json_ready, sha256_of
from uae.utils.json_lines import JsonLines
from uae.utils.messages import one_line
from uae.utils.processes import is_main, of_main
from uae.utils.progress import track
from uae.utils.shares import in_order

LINE = {"image": str, "metadata": str, "judge": str, "correct": bool, "reason": str}
Key = tuple[str, str, str]
Seen = tuple[str, str]  # the hash of an image's file, and its prompt's metadata


@dataclass
class Scores:
    """What came of the samples."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    """One per image that was judged, in the official form."""
    unscored: dict[str, str] = field(default_factory=dict)
    """Images without a verdict, and why."""
    same_content: list[str] = field(default_factory=list)
    """Images of a prompt that are another of its images again."""


class Verdicts:
    """The journal of what was judged, under these settings of the judge: the main process's. All
    processes know the verdicts."""

    def __init__(self, file: Path, settings: Mapping[str, Any]) -> None:
        text = json.dumps(json_ready(settings), sort_keys=True)
        self._judge = hashlib.sha256(text.encode()).hexdigest()
        self._lines = JsonLines(file, _is_line) if is_main() else None
        try:
            self._known: dict[Key, Judged] = of_main(self._read())
        except ValueError:
            self.__exit__()
            raise

    def __enter__(self) -> Verdicts:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._lines is not None:
            self._lines.close()

    def _read(self) -> dict[Key, Judged]:
        return {
            (line["image"], line["metadata"], line["judge"]): Judged(
                line["correct"], line["reason"], line["details"]
            )
            for _, line in self._lines or ()
        }

    def of(self, image: str, sample: Sample) -> Judged | None:
        """That of an earlier run, if there is one."""
        return self._known.get((image, sample.prompt_key, self._judge))

    def add(self, image: str, sample: Sample, judged: Judged) -> None:
        """On the disk before anything else happens."""
        key = (image, sample.prompt_key, self._judge)
        names = zip(("image", "metadata", "judge"), key, strict=True)
        if self._lines is not None:
            self._lines.append(dict(names) | judged._asdict())
        self._known[key] = judged


def score_samples(
    samples: Sequence[Sample], judge: Judge, journal: Path, batch_size: int
) -> Scores:
    """Judge what was not judged yet, and gather all rows in the order of the samples. Several
    processes share the pictures."""
    hashes, unread = _hashes(samples)
    with Verdicts(journal, judge.settings()) as verdicts:
        problems = _judge_new(samples, hashes, judge, verdicts, batch_size)
    scores = Scores()
    seen: dict[Seen, str] = {}
    for sample in samples:
        if sample.name in unread:
            scores.unscored[sample.name] = unread[sample.name]
            continue
        key = (hashes[sample.name], sample.prompt_key)
        first = seen.setdefault(key, sample.name)
        is_first, judged = first == sample.name, verdicts.of(hashes[sample.name], sample)
        if judged is None:
            again = "" if is_first else f"the same image as {first}: "
            scores.unscored[sample.name] = f"{again}{problems[key]}"
            continue
        scores.rows.append(result_row(sample, judged))
        if not is_first:
            scores.same_content.append(f"{sample.name}: the same image as {first}")
    return scores


def result_row(sample: Sample, judged: Judged) -> dict[str, Any]:
    """GenEval's row of an image; ``metadata`` and ``details`` are JSON in strings."""
    return {
        "filename": str(sample.file),
        "tag": sample.metadata["tag"],
        "prompt": sample.metadata["prompt"],
        "correct": judged.correct,
        "reason": judged.reason,
        "metadata": sample.prompt_key,
        "details": json.dumps(judged.details),
    }


def _hashes(samples: Sequence[Sample]) -> tuple[dict[str, str], dict[str, str]]:
    """Of the files by the samples' names, and why there is none."""
    hashes, unread = {}, {}
    for sample in track(samples, "reading", "images"):
        try:
            hashes[sample.name] = sha256_of(sample.file).hex()
        except OSError as error:
            unread[sample.name] = f"cannot be read: {one_line(error)}"
    return hashes, unread


def _judge_new(
    samples: Sequence[Sample],
    hashes: Mapping[str, str],
    judge: Judge,
    verdicts: Verdicts,
    batch_size: int,
) -> dict[Seen, str]:
    """Add the verdicts of pictures that have none yet, each once; why others can have none, by
    their hash and prompt."""
    new: dict[Seen, Sample] = {}
    for sample in samples:
        if sample.name in hashes and verdicts.of(hashes[sample.name], sample) is None:
            new.setdefault((hashes[sample.name], sample.prompt_key), sample)
    keys = list(new)
    batches = [keys[start : start + batch_size] for start in range(0, len(keys), batch_size)]
    problems: dict[Seen, str] = {}

    def work(batch: Sequence[Seen]) -> Iterator[tuple[Seen, Judged | str]]:
        return zip(batch, _judged([new[key] for key in batch], judge), strict=True)

    for key, judged in in_order(batches, work, ("scoring", "batches")):
        if isinstance(judged, str):
            problems[key] = judged
        else:
            verdicts.add(key[0], new[key], judged)
    return problems


def _judged(samples: Sequence[Sample], judge: Judge) -> list[Judged | str]:
    """Of each sample the verdict, or why there can be none."""
    pictures: dict[int, Image.Image] = {}
    found: dict[int, Judged | str] = {}
    for place, sample in enumerate(samples):
        try:
            pictures[place] = open_picture(sample.file)
        except ImageError as error:
            found[place] = str(error)
    if pictures:
        metadata = [samples[place].metadata for place in pictures]
        answers = judge.judge(list(pictures.values()), metadata)
        found |= zip(pictures, answers, strict=True)
    return [found[place] for place in range(len(samples))]


def _is_line(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and value.keys() == {*LINE, "details"}
        and all(isinstance(value[name], kind) for name, kind in LINE.items())
        and isinstance(value["details"], dict)
    )
