"""Captions of a vision-language model on this machine, as ``transformers`` loads it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from uae.data.answers import THOUGHT_TAG, Answer, NoAnswer
from uae.data.longcap.filters import Filters, why_rejected
from uae.images.read import ImageError, open_rgb
from uae.utils.files import sha256_of
from uae.utils.messages import one_line
from uae.utils.shares import in_order
from uae.utils.weights import CONFIG, check_finite, naming_files

AT_A_TIME = 4  # images of a process, before it tells the others; they take unequally long
Annotate = Callable[[Path, int], Answer]  # as an ``Annotator``, but that it is waited for
DRAWN = {"do_sample": True, "temperature": 1.0, "top_p": 1.0, "top_k": 0}


def local_annotator(source: str, prompt: str, max_tokens: int) -> Annotate:
    """A model that sees, of ``transformers``, by hub id or folder; one image at a time, on the GPU
    if there is one.

    The first attempt decodes as the checkpoint's generation settings say, later ones draw; draws
    are those of the image's bytes and the attempt.
    """
    import torch

    model, processor = load_local(source)
    check_prompt(prompt, processor)

    def annotate(file: Path, attempt: int) -> Answer:
        try:
            image = open_rgb(file)
        except (ImageError, OSError) as error:
            raise NoAnswer(one_line(error)) from error
        with torch.random.fork_rng():
            torch.manual_seed(seed_of(file, attempt))
            return answer_about(model, processor, image, prompt, max_tokens, is_drawn=attempt > 0)

    return annotate


def seed_of(file: Path, attempt: int) -> int:
    """Of an answer's draws."""
    named = f"{attempt} ".encode() + sha256_of(file)
    return int.from_bytes(hashlib.sha256(named).digest()[:7])


class Open(NamedTuple):
    """An image without a caption."""

    file: Path
    attempt: int
    """How often it was asked about before."""


def answers_in_order(
    annotate: Annotate, images: Sequence[Open], filters: Filters, attempts: int
) -> Iterator[Answer | NoAnswer]:
    """About each image in turn until one is a caption or no attempt is left. Several processes
    share the images, and all of them get all answers."""

    def work(several: Sequence[Open]) -> Iterator[Answer | NoAnswer]:
        for file, first in several:
            for attempt in range(first, attempts):
                try:
                    answer = annotate(file, attempt)
                except NoAnswer as error:
                    yield error
                    break
                yield answer
                if not why_rejected(answer, filters):
                    break

    starts = range(0, len(images), AT_A_TIME)
    return in_order([images[start : start + AT_A_TIME] for start in starts], work)


def load_local(source: str) -> tuple[Any, Any]:
    """Model and processor; code from the hub is never run."""
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    folder = Path(source).expanduser()
    place = str(folder) if folder.is_dir() else source
    try:
        with naming_files(folder, "a captioner", CONFIG) if folder.is_dir() else nullcontext():
            processor = AutoProcessor.from_pretrained(place)
            model: Any = AutoModelForImageTextToText.from_pretrained(place, dtype="auto")
    except ImportError as error:  # many processors want torchvision
        raise ValueError(
            f"{source} needs a library that is not installed: {one_line(error)}"
        ) from error
    check_finite(model.state_dict(), folder)
    return model.to("cuda" if torch.cuda.is_available() else "cpu").eval(), processor


def check_prompt(prompt: str, processor: Any) -> None:
    """Refuse a prompt that the processor would not read as text: names of control tokens, an
    image's for one."""
    names = getattr(processor, "tokenizer", processor).get_added_vocab()
    if control_tokens := sorted(name for name in names if name in prompt):
        raise ValueError(
            f"expected a prompt of plain words, got one with {', '.join(control_tokens)}, which "
            "this captioner reads as control tokens; write it without"
        )


def answer_about(
    model: Any, processor: Any, image: Image.Image, prompt: str, max_tokens: int, is_drawn: bool
) -> Answer:
    """One answer about one image."""
    import torch

    parts = [{"type": "image", "image": image}, {"type": "text", "text": prompt}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": parts}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    ).to(model.device, model.dtype)
    sampling = DRAWN if is_drawn else {}
    with torch.inference_mode():
        tokens = model.generate(**inputs, max_new_tokens=max_tokens, **sampling)[0]
    num_prompt = inputs["input_ids"].shape[1]
    answer = tokens[num_prompt:].tolist()
    ends = model.generation_config.eos_token_id
    is_ended = answer[-1] in (ends if isinstance(ends, list) else [ends])
    reason = "stop" if is_ended else "length"
    return Answer(decoded(processor, answer), reason, num_prompt, len(answer))


def decoded(processor: Any, tokens: list[int]) -> str:
    """The tokens' text without special ones, save those that begin and end a thought."""
    tokenizer = getattr(processor, "tokenizer", processor)
    added = getattr(tokenizer, "added_tokens_decoder", {}).items()
    tags = {
        number: token.content for number, token in added if THOUGHT_TAG.fullmatch(token.content)
    }
    parts = groupby(tokens, tags.get)
    text = "".join(
        tag or processor.decode(list(part), skip_special_tokens=True) for tag, part in parts
    )
    return text.strip()
