"""From samples to result rows, image by image: what was judged once is not judged again.

Verdicts go to a journal as they are made, by the hash of the image's file, its prompt's metadata
and the judge's settings. Whatever cannot be read is named and costs no other image its verdict.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
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
from uae.utils.progress import track

LINE = {"image": str, "metadata": str, "judge": str, "correct": bool, "reason": str}
Key = tuple[str, str, str]


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
    """The journal of what was judged, under these settings of the judge."""

    def __init__(self, file: Path, settings: Mapping[str, Any]) -> None:
        text = json.dumps(json_ready(settings), sort_keys=True)
        self._judge = hashlib.sha256(text.encode()).hexdigest()
        self._lines = JsonLines(file, _is_line)
        self._known: dict[Key, Judged] = {}
        try:
            for _, line in self._lines:
                key = (line["image"], line["metadata"], line["judge"])
                self._known[key] = Judged(line["correct"], line["reason"], line["details"])
        except ValueError:
            self._lines.close()
            raise

    def __enter__(self) -> Verdicts:
        return self

    def __exit__(self, *exception: object) -> None:
        self._lines.close()

    def of(self, image: str, sample: Sample) -> Judged | None:
        """That of an earlier run, if there is one."""
        return self._known.get((image, sample.prompt_key, self._judge))

    def add(self, image: str, sample: Sample, judged: Judged) -> None:
        """On the disk before anything else happens."""
        key = (image, sample.prompt_key, self._judge)
        names = zip(("image", "metadata", "judge"), key, strict=True)
        self._lines.append(dict(names) | judged._asdict())
        self._known[key] = judged


def score_samples(
    samples: Sequence[Sample], judge: Judge, journal: Path, batch_size: int
) -> Scores:
    """Judge what was not judged yet, and gather all rows in the order of the samples."""
    scores = Scores()
    seen: dict[tuple[str, str], str] = {}
    starts = range(0, len(samples), batch_size)
    with Verdicts(journal, judge.settings()) as verdicts:
        for start in track(starts, "scoring", "batches"):
            batch = samples[start : start + batch_size]
            hashes = _hashes(batch, scores)
            _judge_new(batch, hashes, judge, verdicts, scores)
            for sample in batch:
                if sample.name in scores.unscored:
                    continue
                judged = verdicts.of(hashes[sample.name], sample)
                assert judged is not None, "every image has a verdict or a reason"
                scores.rows.append(result_row(sample, judged))
                first = seen.setdefault((hashes[sample.name], sample.prompt_key), sample.name)
                if first != sample.name:
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


def _hashes(batch: Sequence[Sample], scores: Scores) -> dict[str, str]:
    hashes = {}
    for sample in batch:
        try:
            hashes[sample.name] = sha256_of(sample.file).hex()
        except OSError as error:
            scores.unscored[sample.name] = f"cannot be read: {one_line(error)}"
    return hashes


def _judge_new(
    batch: Sequence[Sample],
    hashes: Mapping[str, str],
    judge: Judge,
    verdicts: Verdicts,
    scores: Scores,
) -> None:
    """Verdicts of those that have none yet; reasons of those that can have none."""
    new: list[tuple[Sample, Image.Image]] = []
    for sample in batch:
        if sample.name not in hashes or verdicts.of(hashes[sample.name], sample):
            continue
        try:
            new.append((sample, open_picture(sample.file)))
        except ImageError as error:
            scores.unscored[sample.name] = str(error)
    if not new:
        return
    answers = judge.judge([picture for _, picture in new], [s.metadata for s, _ in new])
    for (sample, _), judged in zip(new, answers, strict=True):
        if isinstance(judged, str):
            scores.unscored[sample.name] = judged
        else:
            verdicts.add(hashes[sample.name], sample, judged)


def _is_line(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and value.keys() == {*LINE, "details"}
        and all(isinstance(value[name], kind) for name, kind in LINE.items())
        and isinstance(value["details"], dict)
    )
