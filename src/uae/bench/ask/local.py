"""Answers of a vision-language model on this machine, as ``transformers`` loads it: any
``AutoModelForImageTextToText`` with its ``AutoProcessor``.

Decoding is greedy; a question that is asked again is drawn, from a seed of its own. Questions with
equally many images go through the model together, padded on the left.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any

from PIL import Image

from uae.bench.ask.api import Question, Reply
from uae.data.answers import caption_of
from uae.data.longcap.local import DRAWN, check_prompt, decoded, load_local
from uae.images.read import ImageError, open_rgb
from uae.models.origin import checksum
from uae.utils.messages import one_line

GREEDY = {"do_sample": False, "num_beams": 1, "temperature": None, "top_p": None, "top_k": None}


@dataclass(frozen=True)
class LocalAsker:
    """A model of ``transformers``, on the GPU if there is one."""

    source: str
    """Hub id or folder."""
    batch_size: int = 8
    """Questions at a time."""

    @property
    def settings(self) -> dict[str, Any]:
        return {"answerer": "transformers", "model": self.source, "weights": self._weights}

    def batches(self, questions: Sequence[Question]) -> list[list[int]]:
        return list(batches(questions, self.batch_size))

    def ask(
        self, questions: Sequence[Question], max_new_tokens: int
    ) -> Iterator[tuple[int, Reply]]:
        for batch in self.batches(questions):
            prepared = self._prepared(questions, batch)
            yield from ((place, Reply(None, p)) for place, p in prepared.problems)
            if prepared.places:
                replies = self._replies(questions, prepared, max_new_tokens)
                yield from zip(prepared.places, replies, strict=True)

    def first_tokens(
        self, questions: Sequence[Question], forms: Sequence[Sequence[str]]
    ) -> Iterator[tuple[int, list[float] | str]]:
        for batch in self.batches(questions):
            prepared = self._prepared(questions, batch)
            yield from prepared.problems
            if prepared.places:
                yield from self._probabilities(prepared, forms)

    # --- the model -------------------------------------------------------------------------------

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        model, processor = load_local(self.source)
        self._tokenizer_of(processor).padding_side = "left"
        return model, processor

    @cached_property
    def _weights(self) -> str | None:
        folder = Path(self.source).expanduser()
        if folder.is_dir():
            return checksum(folder)
        commit = getattr(self._loaded[0].config, "_commit_hash", None)
        return f"commit:{commit}" if commit else None

    @staticmethod
    def _tokenizer_of(processor: Any) -> Any:
        return getattr(processor, "tokenizer", processor)

    def _prepared(self, questions: Sequence[Question], batch: Sequence[int]) -> Prepared:
        """The model's inputs for those of a batch that can be asked."""
        _, processor = self._loaded
        places, messages, problems = [], [], []
        for place in batch:
            try:
                check_prompt(questions[place].text, processor)
                images = [open_rgb(file) for file in questions[place].images]
            except (ImageError, OSError, ValueError) as error:
                problems.append((place, one_line(error)))
                continue
            places.append(place)
            messages.append(chat_message(questions[place].text, images))
        return Prepared(places, self._inputs(messages) if messages else None, problems)

    def _inputs(self, messages: list[Any]) -> Any:
        model, processor = self._loaded
        return processor.apply_chat_template(
            messages,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": True},
        ).to(model.device, model.dtype)

    def _replies(
        self, questions: Sequence[Question], prepared: Prepared, max_new_tokens: int
    ) -> list[Reply]:
        import torch

        model, _ = self._loaded
        first = questions[prepared.places[0]]
        with torch.inference_mode(), torch.random.fork_rng():
            if first.attempt:
                torch.manual_seed(seed_of(first))
            tokens = model.generate(
                **prepared.inputs,
                max_new_tokens=max_new_tokens,
                **(DRAWN if first.attempt else GREEDY),
            )
        num_prompt = prepared.inputs["input_ids"].shape[1]
        lengths = prepared.inputs["attention_mask"].sum(1).tolist()
        answers = tokens[:, num_prompt:].tolist()
        return [self._reply(*each) for each in zip(answers, lengths, strict=True)]

    def _reply(self, answer: list[int], num_prompt: int) -> Reply:
        """What comes after the first token that ends an answer is padding."""
        model, processor = self._loaded
        ends = model.generation_config.eos_token_id
        ends = ends if isinstance(ends, list) else [ends]
        length = next((i + 1 for i, token in enumerate(answer) if token in ends), None)
        text = caption_of(decoded(processor, answer[:length]))
        return Reply(
            text,
            tokens_in=num_prompt,
            tokens_out=length or len(answer),
            is_cut=length is None,
        )

    def _probabilities(
        self, prepared: Prepared, forms: Sequence[Sequence[str]]
    ) -> Iterator[tuple[int, list[float]]]:
        import torch

        model, processor = self._loaded
        with torch.inference_mode():
            answers = model.generate(
                **prepared.inputs,
                **GREEDY,
                max_new_tokens=1,
                output_logits=True,
                return_dict_in_generate=True,
            )
        probabilities = answers.logits[0].float().softmax(-1)
        tokenizer = self._tokenizer_of(processor)
        for place, row in zip(prepared.places, probabilities, strict=True):
            yield place, [float(row[first_token(tokenizer, form)]) for form in forms[place]]


@dataclass(frozen=True)
class Prepared:
    """A batch as the model takes it."""

    places: list[int]
    inputs: Any
    problems: list[tuple[int, str]]
    """Of questions that cannot be asked."""


def chat_message(text: str, images: Sequence[Image.Image]) -> list[Any]:
    """One message of images and a text."""
    parts = [{"type": "image", "image": image} for image in images]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]


def batches(questions: Sequence[Question], size: int) -> Iterator[list[int]]:
    """Places of questions that go through a model together; drawn ones go alone, so that a draw is
    the same in any company."""
    order = sorted(range(len(questions)), key=lambda place: _kind(questions[place]))
    for (_, is_drawn), group in groupby(order, key=lambda place: _kind(questions[place])):
        places, at_a_time = list(group), 1 if is_drawn else size
        yield from (places[i : i + at_a_time] for i in range(0, len(places), at_a_time))


def _kind(question: Question) -> tuple[int, bool]:
    return len(question.images), question.attempt > 0


def seed_of(question: Question) -> int:
    """Of a drawn answer."""
    named = f"{question.attempt} {question.text}"
    return int.from_bytes(hashlib.sha256(named.encode(errors="replace")).digest()[:7])


def first_token(tokenizer: Any, form: str) -> int:
    """The id that a form begins with.

    Raises:
        ValueError: for a form without a token.
    """
    ids = tokenizer.encode(form, add_special_tokens=False)
    if not ids:
        raise ValueError(f"expected a form of an answer with at least one token, got {form!r}")
    return ids[0]
