"""A run of LongCap: look through folders, ask for the captions that are missing, write shards.

Several processes share the images that a local model captions. An endpoint answers many questions
at a time anyhow, so the main process asks it alone. Reading the folders and writing journal and
shards are the main process's work too.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from uae.data.answers import Answer, NoAnswer
from uae.data.chat import is_url
from uae.data.folders import list_images
from uae.data.longcap.annotators import Annotator
from uae.data.longcap.ask import Asking
from uae.data.longcap.endpoint import endpoint_annotator
from uae.data.longcap.filters import Filters
from uae.data.longcap.journal import Journal
from uae.data.longcap.local import Open, answers_in_order, local_annotator
from uae.data.longcap.outcome import outcome_of, outcome_table, write_left_out
from uae.data.longcap.pictures import Picture, find_duplicates, survey
from uae.data.longcap.shards import write_shards
from uae.utils.importing import require_library
from uae.utils.metrics import TrainProgress
from uae.utils.outputs import check_out_folder
from uae.utils.processes import is_main, of_main
from uae.utils.quiet import quiet_libraries
from uae.utils.shares import Telling, told_by_main

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
class LongCapConfig:
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


def caption_folders(config: LongCapConfig) -> int:
    """Caption what is missing, write shards, and say what became of each image.

    Returns:
        How many images got no answer and wait for the next run.

    Raises:
        ValueError: for options that can't go together, before any work; and when no image can be
            captioned.
    """
    check(config)
    if not is_main():
        help_captioning(config)
    return of_main(caption_and_write(config) if is_main() else 0)


def caption_and_write(config: LongCapConfig) -> int:
    """What the main process does, or the only one."""
    model = config.model or config.local or ""
    listing = list_images(config.folders)
    for remark in listing.remarks():
        print(remark)
    filters = filters_of(config)
    shard_folder, left_out = config.out / "shards", config.out / "left_out.jsonl"
    with Journal(config.out, model, config.prompt, filters, config.attempts) as journal:
        images = survey(listing.files, config.out)
        duplicates = find_duplicates(images.pictures, config.near_bits)
        repeated = duplicates.equal.keys() | duplicates.near.keys()
        originals = [picture for picture in images.pictures if picture.file not in repeated]
        unanswered = ask_for_missing(originals, journal, config)
        outcome = outcome_of(images, duplicates, journal, unanswered)
        write_left_out(outcome, left_out)
        shards = write_shards(outcome.captioned, journal, model, shard_folder, config.shard_size)
        prices = config.price_in, config.price_out
        Console().print(outcome_table(outcome, journal, prices, len(shards)))
    print(f"shards: {shard_folder}   left out, with reasons: {left_out}")
    return len(unanswered)


def check(config: LongCapConfig) -> None:
    """A ValueError for options that cannot go together, before any work."""
    if (config.endpoint is None) == (config.local is None):
        raise ValueError("expected either --endpoint URL and --model NAME, or --local MODEL")
    if (config.endpoint is None) != (config.model is None):
        raise ValueError("--endpoint URL and --model NAME go together")
    if config.endpoint is not None and not is_url(config.endpoint):
        raise ValueError(
            f"--endpoint: expected a URL such as http://localhost:8000/v1, got {config.endpoint}"
        )
    for name in ("max_tokens", "concurrency", "attempts", "shard_size"):
        if (number := getattr(config, name)) < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 1, got {number}")
    if config.requests_per_minute is not None and config.requests_per_minute <= 0:
        raise ValueError(
            f"--requests-per-minute must be more than 0, got {config.requests_per_minute}"
        )
    if not -1 <= config.near_bits <= 15:
        raise ValueError(f"--near-bits must be from -1 to 15, got {config.near_bits}")
    check_out_folder(config.out)
    require_library("datasets")
    if config.endpoint:
        require_library("openai")


def ask_for_missing(
    pictures: list[Picture], journal: Journal, config: LongCapConfig
) -> dict[str, str]:
    """Caption what the journal lacks; the images that got no answer, with reasons."""
    missing = [picture for picture in pictures if journal.should_ask(picture.sha256)]
    images = of_main([Open(each.file, journal.num_answers(each.sha256)) for each in missing])
    if not missing:
        return {}
    num_done, num_before = len(pictures) - len(missing), journal.num_captions
    start, telling = time.monotonic(), Telling()
    with TrainProgress("captioning", len(pictures), start=num_done) as progress:

        def on_done() -> None:
            nonlocal num_done
            num_done += 1
            speed = (journal.num_captions - num_before) / max(time.monotonic() - start, 1e-3)
            progress.update(num_done, **{"captions/s": speed}, **spending(journal, config))
            if config.endpoint:
                telling.add()

        asking = Asking(annotator_of(config, images), journal, on_done)
        asyncio.run(asking.run(missing, config.concurrency if config.endpoint else 1))
    if config.endpoint:
        telling.end()
    return asking.unanswered


def help_captioning(config: LongCapConfig) -> None:
    """What the other processes do."""
    images = of_main([])
    if images:
        for _ in local_answers(config, images) if config.local else told_by_main():
            pass


def filters_of(config: LongCapConfig) -> Filters:
    return Filters(config.min_words, config.max_repeated)


def spending(journal: Journal, config: LongCapConfig) -> dict[str, float]:
    """Tokens in thousands, and money if a price is known."""
    usage = journal.usage
    tokens = {"ktokens in": usage.prompt_tokens / 1e3, "out": usage.completion_tokens / 1e3}
    cost = usage.cost(config.price_in, config.price_out)
    return tokens | ({"cost": cost} if cost else {})


def annotator_of(config: LongCapConfig, images: Sequence[Open]) -> Annotator:
    """The endpoint or the local model that the settings name; the latter is asked about the images
    in their order."""
    if config.endpoint and config.model:
        return endpoint_annotator(
            config.endpoint,
            config.model,
            config.prompt,
            config.max_tokens,
            config.requests_per_minute,
        )
    answers = local_answers(config, images)

    async def annotate(file: Path, attempt: int) -> Answer:
        answer = next(answers)
        if isinstance(answer, NoAnswer):
            raise answer
        return answer

    return annotate


def local_answers(config: LongCapConfig, images: Sequence[Open]) -> Iterator[Answer | NoAnswer]:
    """Of the local model, by all processes."""
    assert config.local
    quiet_libraries()
    annotate = local_annotator(config.local, config.prompt, config.max_tokens)
    return answers_in_order(annotate, images, filters_of(config), config.attempts)
