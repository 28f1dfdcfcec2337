"""Captions of any endpoint that speaks OpenAI's chat completions."""

from __future__ import annotations

import asyncio
import base64
import io
import os
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from PIL import Image

from uae.data.longcap.annotators import Annotator, require_library
from uae.data.longcap.answers import (
    Answer,
    AnsweredError,
    ImageRefused,
    NoAnswer,
    read_completion,
)
from uae.images.read import ImageError, open_rgb
from uae.utils.messages import one_line

SENT_AS_THEY_ARE = {"JPEG": "image/jpeg", "PNG": "image/png", "WEBP": "image/webp"}
PERMANENT_STATUS = (401, 402, 403, 404)
RETRIED_STATUS = (408, 409, 429)  # and 5xx
PERMANENT_CODES = (
    "billing_hard_limit_reached",
    "insufficient_quota",
    "invalid_api_key",
    "model_not_found",
    "unsupported_parameter",
    "unsupported_value",
)
ABOUT_IMAGE = ("moderation", "flagged", "content_policy", "content_filter")
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
    import openai

    pace = Pace(requests_per_minute)

    async def wait(request: Any) -> None:
        await pace.wait()

    # a hook, so that retries wait too
    http_client = openai.DefaultAsyncHttpxClient(event_hooks={"request": [wait]})
    client = openai.AsyncOpenAI(
        base_url=url, api_key=api_key(), max_retries=MAX_RETRIES, http_client=http_client
    )
    token_limit = "max_tokens"

    async def annotate(file: Path, attempt: int) -> Answer:
        nonlocal token_limit
        messages, option = chat_messages(prompt, await read_for_sending(file)), token_limit
        options: dict[str, Any] = {option: max_tokens, **({"temperature": 1.0} if attempt else {})}
        try:
            response = await client.chat.completions.with_raw_response.create(
                model=model, messages=messages, **options
            )
            return read_completion(response.http_response.content)
        except (openai.APIError, AnsweredError) as error:
            # newer models know the limit by another name
            if option == "max_tokens" and "max_completion_tokens" in str(error):
                token_limit = "max_completion_tokens"
                return await annotate(file, attempt)
            raise explain(error, url, model) from error

    return annotate


def api_key() -> str:
    """The environment's; what would be no HTTP header is named before it is sent."""
    key = os.environ.get("OPENAI_API_KEY", "").strip()
    if not (key.isascii() and key.isprintable()):
        raise ValueError(
            "OPENAI_API_KEY: expected a key of plain letters and digits, got others in it; set "
            "it again"
        )
    return key or "none"


def chat_messages(prompt: str, image_url: str) -> list[Any]:
    """One message of an image and a text."""
    parts = [
        {"type": "image_url", "image_url": {"url": image_url}},
        {"type": "text", "text": prompt},
    ]
    return [{"role": "user", "content": parts}]


def explain(error: Exception, url: str, model: str) -> Exception:
    """What an endpoint's error means for the image and for the rest."""
    status, code = getattr(error, "status_code", None), getattr(error, "code", None)
    reason = one_line(error)
    is_about_image = any(word in f"{code} {reason}".lower() for word in ABOUT_IMAGE)
    is_permanent = status in PERMANENT_STATUS or code in PERMANENT_CODES
    if is_permanent and not is_about_image:
        return ValueError(f"{url} refuses to work with model {model!r}: {reason}\n{advice(status)}")
    if status is None:
        is_refused = is_about_image
    else:
        is_refused = 400 <= status < 500 and status not in RETRIED_STATUS
    if is_refused:
        return ImageRefused(reason)
    cause = f" ({one_line(error.__cause__):.200})" if isinstance(error.__cause__, Exception) else ""
    return NoAnswer(reason + cause)


def advice(status: int | None) -> str:
    if status in (401, 403):
        return "Set the environment variable OPENAI_API_KEY to a key that may use it."
    if status == 404:
        return (
            "Check --model and that --endpoint is the URL before /chat/completions, such as "
            "http://localhost:8000/v1."
        )
    return "Check the account and the options of the command."


async def read_for_sending(file: Path) -> str:
    try:
        return await asyncio.to_thread(data_url, file)
    except (ImageError, OSError) as error:  # it was readable when the folder was looked through
        raise NoAnswer(one_line(error)) from error


def data_url(file: Path) -> str:
    """The file's own bytes if every server understands them; else a PNG of what people see."""
    data = file.read_bytes()
    kind = plain_kind(data)
    if kind is None:
        buffer = io.BytesIO()
        open_rgb(file).save(buffer, format="PNG")
        kind, data = "image/png", buffer.getvalue()
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def plain_kind(data: bytes) -> str | None:
    """The media type of a file that needs no turning, no background and no choice of a frame, nor
    has odd metadata."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            is_upright = image.getexif().get(0x0112, 1) == 1
            is_plain = image.mode in ("RGB", "L") and not image.has_transparency_data
            is_still = getattr(image, "n_frames", 1) == 1
            if not (is_upright and is_plain and is_still):
                return None
            return SENT_AS_THEY_ARE.get(image.format or "")
    except Exception:  # what Pillow raises at metadata beside pixels that `open_rgb` may read
        return None


class Pace:
    """Lets one request through every ``60 / per_minute`` seconds; all of them without a number."""

    def __init__(
        self,
        per_minute: float | None,
        now: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._interval = 60 / per_minute if per_minute else 0.0
        self._now, self._sleep = now, sleep
        self._next = now()

    async def wait(self) -> None:
        """Until it is this request's turn."""
        turn = max(self._next, self._now())
        self._next = turn + self._interval
        if turn > self._now():
            await self._sleep(turn - self._now())
