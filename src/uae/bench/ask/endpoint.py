"""Answers of a model behind an address that speaks OpenAI's chat completions.

Many requests are on their way at once. One that failed for a reason that may pass (429, 408, 5xx, a
time-out, a body that is cut off or no completion) is made again after a while; a wrong key or an
unknown model ends all of it.

Deviation of ``first_tokens``: an endpoint gives the most likely tokens as text and no tokenizer. A
form's first token is taken to be the longest of these that the form begins with; a form that none
begins has probability 0.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any, NamedTuple, TypeVar

from uae.bench.ask.api import Question, Reply
from uae.bench.ask.backoff import Backoff, asked_to_wait_sec
from uae.data.answers import Answer, ImageRefused, NoAnswer, caption_of, read_completion
from uae.data.chat import ChatClient, Pace, chat_messages, data_url, is_url
from uae.images.read import ImageError
from uae.utils.importing import require_library
from uae.utils.messages import one_line

STOP_AFTER = 10  # questions in a row without an answer
MAY_DROP = ("temperature", "seed")
AGAIN_TEMPERATURE = 1.0  # of later attempts: every endpoint's to give
Item = TypeVar("Item")
Value = TypeVar("Value")


@dataclass(frozen=True)
class EndpointAsker:
    """A model of an endpoint; the key is the environment's OPENAI_API_KEY, if any."""

    url: str
    """The address before /chat/completions, such as http://localhost:8000/v1."""
    model: str
    """Its name there."""
    concurrency: int = 8
    """Requests at a time."""
    requests_per_minute: float | None = None
    """Never more than this, retries included."""
    retries: int = 6
    """How often a request that failed is made again."""
    timeout_sec: float = 180.0
    """For one request."""
    temperature: float = 0.0
    """Of the first attempt; a question that is asked again is drawn at 1."""
    seed: int = 0
    """Sent with each request, and one more with each attempt."""
    top_logprobs: int = 20
    """For ``first_tokens``: of how many tokens the probability is asked."""
    backoff: Backoff = field(default_factory=Backoff)
    """Waits before retries."""
    pace: Callable[[float | None], Pace] = Pace
    """What holds requests back."""
    not_taken: set[str] = field(default_factory=set, compare=False)
    """Options that the model refused, so that it answered without them."""

    def __post_init__(self) -> None:
        if not is_url(self.url):
            raise ValueError(
                f"endpoint: expected a URL such as http://localhost:8000/v1, got {self.url}"
            )
        for name, least in (("concurrency", 1), ("retries", 0), ("timeout_sec", 1e-3)):
            if (number := getattr(self, name)) < least:
                raise ValueError(f"endpoint: {name} must be at least {least}, got {number}")
        if self.requests_per_minute is not None and self.requests_per_minute <= 0:
            raise ValueError(
                f"endpoint: requests_per_minute must be more than 0, got {self.requests_per_minute}"
            )
        require_library("openai", "bench")

    @property
    def settings(self) -> dict[str, Any]:
        return {
            "answerer": "endpoint",
            "url": self.url,
            "model": self.model,
            "temperature": self.temperature,
            "seed": self.seed,
        }

    def ask(
        self, questions: Sequence[Question], max_new_tokens: int
    ) -> Iterator[tuple[int, Reply]]:
        async def reply(chat: ChatClient, question: Question) -> Reply:
            messages = await messages_of(question)
            options = self._options(question)
            answer = await chat.complete(messages, max_new_tokens, read_completion, **options)
            return reply_of(answer)

        return self._each(questions, reply, lambda problem: Reply(None, problem))

    def first_tokens(
        self, questions: Sequence[Question], forms: Sequence[Sequence[str]]
    ) -> Iterator[tuple[int, list[float] | str]]:
        """Raises:
        ValueError: where the endpoint gives no log-probabilities.
        """
        asked = list(zip(questions, forms, strict=True))

        async def likely(chat: ChatClient, item: tuple[Question, Sequence[str]]) -> list[float]:
            options = {"logprobs": True, "top_logprobs": self.top_logprobs}
            messages = await messages_of(item[0])
            found = await chat.complete(
                messages, 1, read_first_token, **self._options(item[0]), **options
            )
            if found is None:
                raise ValueError(
                    f"{self.url}: expected log-probabilities of model {self.model!r}, got none; "
                    "ask one that is served with them, such as by vLLM, or a model on this machine"
                )
            return [probability_of(form, found) for form in item[1]]

        return self._each(asked, likely, lambda problem: problem)

    def _options(self, question: Question) -> dict[str, Any]:
        return {
            "temperature": AGAIN_TEMPERATURE if question.attempt else self.temperature,
            "seed": self.seed + question.attempt,
        }

    def _each(
        self,
        items: Sequence[Item],
        answer: Callable[[ChatClient, Item], Awaitable[Value]],
        failed: Callable[[str], Value | Any],
    ) -> Iterator[tuple[int, Any]]:
        """Answers as they come, ``concurrency`` at a time."""
        rest = iter(enumerate(items))
        health = Health()
        with asyncio.Runner() as runner:
            chat = self._client()
            on_their_way: set[asyncio.Task[tuple[int, Value | Failure]]] = set()
            try:
                while True:
                    for place, item in islice(rest, self.concurrency - len(on_their_way)):
                        work = self._patiently(place, partial(answer, chat, item))
                        on_their_way.add(runner.get_loop().create_task(work))
                    if not on_their_way:
                        return
                    done, on_their_way = runner.run(_first_done(on_their_way))
                    for place, value in [task.result() for task in done]:
                        health.note(value)
                        yield place, failed(value.problem) if isinstance(value, Failure) else value
            finally:
                self.not_taken.update(chat.not_taken)
                runner.run(_end(on_their_way, chat))

    def _client(self) -> ChatClient:
        pace = self.pace(self.requests_per_minute)
        return ChatClient(self.url, self.model, pace, 0, self.timeout_sec, MAY_DROP)

    async def _patiently(
        self, place: int, answer: Callable[[], Awaitable[Value]]
    ) -> tuple[int, Value | Failure]:
        """The answer after as many retries as it takes, or why there is none."""
        num_failed = 0
        while True:
            try:
                return place, await answer()
            except (ImageRefused, ImageError, OSError) as error:
                is_here = not isinstance(error, ImageRefused)
                return place, Failure(one_line(error), is_refused=True, is_here=is_here)
            except NoAnswer as error:
                num_failed += 1
                if num_failed > self.retries:
                    return place, Failure(str(error))
                asked_sec = asked_to_wait_sec(_headers(error))
                await asyncio.sleep(self.backoff.wait_sec(num_failed, asked_sec))


class Failure(NamedTuple):
    """Why there is no answer."""

    problem: str
    is_refused: bool = False
    """It would not be answered later either."""
    is_here: bool = False
    """The file cannot be read: the endpoint was not asked."""


class Health:
    """Stops where nothing is answered: after ``STOP_AFTER`` failures in a row. Refusals count as
    long as nothing was answered; later they are about the image."""

    def __init__(self) -> None:
        self._num_failed = 0
        self._has_answered = False

    def note(self, value: Any) -> None:
        if not isinstance(value, Failure):
            self._num_failed, self._has_answered = 0, True
            return
        self._num_failed += not (value.is_here or (value.is_refused and self._has_answered))
        if self._num_failed >= STOP_AFTER:
            raise ValueError(
                f"{STOP_AFTER} questions in a row got no answer, the last one: {value.problem}; "
                "the same command goes on from what was answered"
            )


async def _first_done(tasks: set[asyncio.Task]) -> tuple[set[asyncio.Task], set[asyncio.Task]]:
    return await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)


async def _end(tasks: set[asyncio.Task], chat: ChatClient) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await chat.close()


def _headers(error: NoAnswer) -> dict[str, str]:
    """Of the response that told of the error, in lower case."""
    headers = getattr(getattr(error.__cause__, "response", None), "headers", {})
    return {name.lower(): value for name, value in headers.items()}


async def messages_of(question: Question) -> list[Any]:
    """As they are sent.

    Raises:
        ImageError, OSError: where an image cannot be read.
    """
    urls = [await asyncio.to_thread(data_url, file) for file in question.images]
    return chat_messages(question.text, *urls)


def reply_of(answer: Answer) -> Reply:
    """What a model thinks aloud is no part of its reply."""
    return Reply(
        caption_of(answer.text),
        tokens_in=answer.prompt_tokens,
        tokens_out=answer.completion_tokens,
        is_cut=answer.finish_reason == "length",
    )


# --- the first token -----------------------------------------------------------------------------


def read_first_token(body: bytes) -> dict[str, float] | None:
    """The most likely first tokens with their probabilities; None where the server gave none.

    Raises:
        AnsweredError, NoAnswer: as ``read_completion`` does.
    """
    read_completion(body)
    try:
        first = json.loads(body)["choices"][0]["logprobs"]["content"][0]
        top = [*first["top_logprobs"], first]
        return {each["token"]: math.exp(float(each["logprob"])) for each in top}
    except (ValueError, KeyError, IndexError, TypeError):
        return None


def probability_of(form: str, tokens: dict[str, float]) -> float:
    """Of the longest token that the form begins with."""
    begins = [token for token in tokens if token and form.startswith(token)]
    return tokens[max(begins, key=len)] if begins else 0.0
