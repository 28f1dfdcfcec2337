"""Captions of any endpoint that speaks OpenAI's chat completions."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from uae.data.answers import Answer, NoAnswer, read_completion
from uae.data.chat import ChatClient, Pace, chat_messages, data_url
from uae.data.longcap.annotators import Annotator
from uae.images.read import ImageError
from uae.utils.importing import require_library
from uae.utils.messages import one_line

# of the openai library: waits of 0.5 to 8 s, or as long as the server asks, up to two minutes
MAX_RETRIES = 6


def endpoint_annotator(
    url: str, model: str, prompt: str, max_tokens: int, requests_per_minute: float | None = None
) -> Annotator:
    """Asks ``url`` (such as ``http://localhost:8000/v1``); the key is the environment's
    OPENAI_API_KEY, if any.

    Later attempts ask for temperature 1, which is every endpoint's to give: some serve greedy
    answers by default.
    """
    require_library("openai")
    chat = ChatClient(url, model, Pace(requests_per_minute), MAX_RETRIES)

    async def annotate(file: Path, attempt: int) -> Answer:
        messages = chat_messages(prompt, await read_for_sending(file))
        options: dict[str, Any] = {"temperature": 1.0} if attempt else {}
        return await chat.complete(messages, max_tokens, read_completion, **options)

    return annotate


async def read_for_sending(file: Path) -> str:
    try:
        return await asyncio.to_thread(data_url, file)
    except (ImageError, OSError) as error:  # it was readable when the folder was looked through
        raise NoAnswer(one_line(error)) from error
