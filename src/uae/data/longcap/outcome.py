"""What became of each image, in numbers and file by file."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from rich.table import Table

from uae.data.longcap.journal import ImageRecord, Journal
from uae.data.longcap.pictures import Duplicates, Picture, Survey
from uae.utils.files import atomic_write_text


@dataclass(frozen=True)
class Outcome:
    """Every image is in one of these."""

    captioned: list[Picture]
    left_out: dict[Path, tuple[str, str]]
    """By file: what happened (`duplicate`, `near-duplicate`, `rejected`, `failed`, `unanswered`)
    and why."""


def outcome_of(
    survey: Survey, duplicates: Duplicates, journal: Journal, unanswered: dict[str, str]
) -> Outcome:
    """Sort all images by what the journal says of them."""
    equal, near = duplicates.equal.items(), duplicates.near.items()
    left_out = {
        **{file: ("failed", f"unreadable: {why}") for file, why in survey.unreadable.items()},
        **{file: ("duplicate", f"the same as {first}") for file, first in equal},
        **{file: ("near-duplicate", f"nearly the same as {first}") for file, first in near},
    }
    captioned = []
    for picture in survey.pictures:
        record = journal.records.get(picture.sha256, ImageRecord())
        if picture.file in left_out:
            continue
        if record.caption_at >= 0:
            captioned.append(picture)
        elif record.failed:
            left_out[picture.file] = "failed", record.failed
        elif picture.sha256 in unanswered:
            left_out[picture.file] = "unanswered", unanswered[picture.sha256]
        else:
            left_out[picture.file] = "rejected", record.rejected
    return Outcome(captioned, left_out)


def write_left_out(outcome: Outcome, path: Path) -> None:
    """One line per image that is in no shard."""
    lines = (
        json.dumps({"file": str(file), "what": kind, "why": why})
        for file, (kind, why) in outcome.left_out.items()
    )
    atomic_write_text(path, "".join(f"{line}\n" for line in lines))


def outcome_table(
    outcome: Outcome, journal: Journal, prices: tuple[float, float], num_shards: int
) -> Table:
    """The end of a run; tokens and cost are of all runs in this folder."""
    table = Table("LongCap", "", show_header=False)
    kinds = Counter(what for what, _ in outcome.left_out.values())
    reasons = Counter(why for what, why in outcome.left_out.values() if what == "rejected")
    words = [journal.records[picture.sha256].num_words for picture in outcome.captioned]
    usage = journal.usage
    table.add_row("images", f"{len(outcome.captioned) + len(outcome.left_out):,}")
    table.add_row("captioned", f"{len(outcome.captioned):,}")
    table.add_row("duplicates", f"{kinds['duplicate']:,} equal, {kinds['near-duplicate']:,} nearly")
    for reason, count in reasons.most_common():
        table.add_row(f"rejected: {reason}", f"{count:,}")
    table.add_row("failed", f"{kinds['failed']:,}")
    if kinds["unanswered"]:
        table.add_row("no answer, asked again next run", f"{kinds['unanswered']:,}")
    table.add_row("median words", f"{median(words):.0f}" if words else "-")
    table.add_row("tokens", f"{usage.prompt_tokens:,} in, {usage.completion_tokens:,} out")
    if any(prices):
        table.add_row("cost", f"{usage.cost(*prices):,.2f}")
    table.add_row("shards", f"{num_shards:,}")
    return table
