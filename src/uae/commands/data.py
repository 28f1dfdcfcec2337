"""``uae data longcap``: long captions for folders of images, as parquet shards."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import tyro
from rich.console import Console

from uae.commands.group import choose
from uae.data.folders import list_images
from uae.data.longcap.ask import Asking
from uae.data.longcap.captioners import Captioner, endpoint_captioner, local_captioner, need
from uae.data.longcap.filters import Filters
from uae.data.longcap.journal import Journal
from uae.data.longcap.outcome import outcome_of, outcome_table, write_left_out
from uae.data.longcap.pictures import Picture, find_duplicates, survey
from uae.data.longcap.shards import write_shards
from uae.utils.metrics import TrainProgress
from uae.utils.outputs import check_out_folder
from uae.utils.quiet import quiet_libraries

PROMPT = (
    "Describe this image in at least 350 words, so that someone who has never seen it could "
    "paint it from your words alone. Begin with the scene as a whole, then go through it part by "
    "part: every object with its kind, number, colour, material, shape, size and state; where "
    "each is, and how it stands to the others; people with their pose, clothing and expression; "
    "any text, word for word; the background, the light, the viewpoint and the style. Write "
    "plain paragraphs without headings or lists. Say only what can be seen, do not guess, and do "
    "not repeat yourself."
)


@dataclass(frozen=True)
class Arguments:
    """Caption folders of images at length, by an endpoint or a local model. The same command
    resumes."""

    folders: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Folders of images, or image files."""
    out: Path
    """Folder for the journal and the shards; keep it to resume."""
    endpoint: str | None = None
    """URL that speaks OpenAI's chat completions, such as http://localhost:8000/v1; the key is the
    environment's OPENAI_API_KEY."""
    model: str | None = None
    """For --endpoint: the model's name there."""
    local: str | None = None
    """A vision-language model that transformers can load, by hub id or folder."""
    prompt: str = PROMPT
    """What is asked about each image."""
    max_tokens: int = 2048
    """The cap on an answer's tokens; captions that it cuts are rejected."""
    concurrency: int = 8
    """Questions at a time, for --endpoint."""
    requests_per_minute: float | None = None
    """For --endpoint: never more than this, retries included; by default as fast as it answers."""
    min_words: int = Filters.min_words
    """Shorter captions are rejected."""
    max_repeated: float = Filters.max_repeated
    """Captions with a larger share of repeated runs of 4 words are rejected."""
    attempts: int = 2
    """How often an image is asked about until a caption is accepted."""
    near_bits: int = 2
    """Images whose 64-bit hashes differ in at most so many bits are near-duplicates; -1 looks for
    equal files only."""
    price_in: float = 0.0
    """Per million prompt tokens, for the cost line."""
    price_out: float = 0.0
    """Per million completion tokens."""
    shard_size: int = 1000
    """Images per parquet file."""


def main(arguments: list[str]) -> None:
    """``uae data longcap FOLDER… --out DIR (--endpoint URL --model NAME | --local MODEL)``"""
    choose("data", arguments)
    longcap(tyro.cli(Arguments, args=arguments[1:], prog="uae data longcap"))


def longcap(args: Arguments) -> None:
    """Look through the folders, ask for what is missing, write shards, and say what became of each
    image."""
    check(args)
    model = args.model or args.local or ""
    listing = list_images(args.folders)
    for remark in listing.remarks():
        print(remark)
    filters = Filters(args.min_words, args.max_repeated)
    with Journal(args.out, model, args.prompt, filters, args.attempts) as journal:
        found = survey(listing.files, args.out)
        twice = find_duplicates(found.pictures, args.near_bits)
        once = [p for p in found.pictures if p.file not in twice.equal and p.file not in twice.near]
        unanswered = ask_for_missing(once, journal, args)
        outcome = outcome_of(found, twice, journal, unanswered)
        write_left_out(outcome, args.out / "left_out.jsonl")
        shards = write_shards(
            outcome.captioned, journal, model, args.out / "shards", args.shard_size
        )
        Console().print(
            outcome_table(outcome, journal, (args.price_in, args.price_out), len(shards))
        )
    print(f"shards: {args.out / 'shards'}   left out, with reasons: {args.out / 'left_out.jsonl'}")
    if unanswered:
        raise SystemExit(3)


def check(args: Arguments) -> None:
    """A ValueError for options that cannot go together, before any work."""
    if (args.endpoint is None) == (args.local is None):
        raise ValueError("expected either --endpoint URL and --model NAME, or --local MODEL")
    if (args.endpoint is None) != (args.model is None):
        raise ValueError("--endpoint URL and --model NAME go together")
    if args.endpoint is not None and not is_url(args.endpoint):
        raise ValueError(
            f"--endpoint: expected a URL such as http://localhost:8000/v1, got {args.endpoint}"
        )
    for name in ("max_tokens", "concurrency", "attempts", "shard_size"):
        if getattr(args, name) < 1:
            raise ValueError(
                f"--{name.replace('_', '-')} must be at least 1, got {getattr(args, name)}"
            )
    if args.requests_per_minute is not None and args.requests_per_minute <= 0:
        raise ValueError(
            f"--requests-per-minute must be more than 0, got {args.requests_per_minute}"
        )
    if not -1 <= args.near_bits <= 15:
        raise ValueError(f"--near-bits must be from -1 to 15, got {args.near_bits}")
    check_out_folder(args.out)
    need("datasets")
    if args.endpoint:
        need("openai")


def is_url(text: str) -> bool:
    try:
        url = urlsplit(text)
        return url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
    except ValueError:  # a port or an address that is none
        return False


def ask_for_missing(pictures: list[Picture], journal: Journal, args: Arguments) -> dict[str, str]:
    """Caption what the journal lacks; the images that got no answer, with reasons."""
    missing = [picture for picture in pictures if journal.should_ask(picture.sha256)]
    if not missing:
        return {}
    num_done, num_before, began = (
        len(pictures) - len(missing),
        journal.num_captions,
        time.monotonic(),
    )
    with TrainProgress("captioning", len(pictures), start=num_done) as progress:

        def on_done() -> None:
            nonlocal num_done
            num_done += 1
            speed = (journal.num_captions - num_before) / max(time.monotonic() - began, 1e-3)
            progress.update(num_done, **{"captions/s": speed}, **spent(journal, args))

        asking = Asking(captioner_of(args), journal, on_done)
        asyncio.run(asking.run(missing, args.concurrency if args.endpoint else 1))
    return asking.unanswered


def spent(journal: Journal, args: Arguments) -> dict[str, float]:
    """Tokens in thousands, and money if a price is known."""
    usage = journal.usage
    tokens = {"ktokens in": usage.prompt_tokens / 1e3, "out": usage.completion_tokens / 1e3}
    cost = usage.cost(args.price_in, args.price_out)
    return tokens | ({"cost": cost} if cost else {})


def captioner_of(args: Arguments) -> Captioner:
    if args.endpoint and args.model:
        return endpoint_captioner(
            args.endpoint, args.model, args.prompt, args.max_tokens, args.requests_per_minute
        )
    assert args.local
    quiet_libraries()
    return local_captioner(args.local, args.prompt, args.max_tokens)
