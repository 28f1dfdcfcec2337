"""Chat completions of any endpoint that speaks OpenAI's: one request, what its failure means, how
images are sent, and the pace that a provider allows."""

from __future__ import annotations

import asyncio
import base64
import io
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from PIL import Image

from uae.data.answers import AnsweredError, ImageRefused, NoAnswer
from uae.images.read import open_rgb
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
NOT_TAKEN_CODES = ("unsupported_parameter", "unsupported_value")
Read = TypeVar("Read")


class ChatClient:
    """One model behind one address, such as ``http://localhost:8000/v1``; the key is the
    environment's OPENAI_API_KEY, if any."""

    def __init__(
        self,
        url: str,
        model: str,
        pace: Pace,
        max_retries: int,
        timeout_sec: float | None = None,
        may_drop: Sequence[str] = (),
    ) -> None:
        """max_retries: of the library. may_drop: options that are left away where the model takes
        none of them."""
        import openai

        async def wait(request: Any) -> None:
            await pace.wait()

        # a hook, so that retries wait too
        http_client = openai.DefaultAsyncHttpxClient(event_hooks={"request": [wait]})
        timeout: dict[str, Any] = {} if timeout_sec is None else {"timeout": timeout_sec}
        self._client = openai.AsyncOpenAI(
            base_url=url,
            api_key=api_key(),
            max_retries=max_retries,
            http_client=http_client,
            **timeout,
        )
        self.url, self.model, self._may_drop = url, model, may_drop
        self._token_limit = "max_tokens"
        self.not_taken: set[str] = set()
        """Options that the model has refused."""

    async def complete(
        self,
        messages: list[Any],
        max_tokens: int,
        read: Callable[[bytes], Read],
        **options: Any,
    ) -> Read:
        """What ``read`` makes of the response's body.

        Raises:
            ImageRefused, NoAnswer, ValueError: as ``explain`` says.
        """
        import openai

        limit = self._token_limit
        sent = {name: value for name, value in options.items() if name not in self.not_taken}
        try:
            response = await self._client.chat.completions.with_raw_response.create(
                model=self.model, messages=messages, **{limit: max_tokens, **sent}
            )
            return read(response.http_response.content)
        except (openai.APIError, AnsweredError) as error:
            if self._adapts(error, limit, sent):
                return await self.complete(messages, max_tokens, read, **options)
            raise explain(error, self.url, self.model) from error

    async def picture(self, prompt: str, **options: Any) -> str | None:
        """A picture of the prompt, a file in base64.

        Raises:
            ImageRefused, NoAnswer, ValueError: as ``explain`` says.
        """
        import openai

        sent = {name: value for name, value in options.items() if name not in self.not_taken}
        # only OpenAI's newest models give base64 without being asked, and they take no such wish
        wish = {} if "response_format" in self.not_taken else {"response_format": "b64_json"}
        try:
            response = await self._client.images.generate(
                model=self.model, prompt=prompt, n=1, **wish, **sent
            )
        except openai.APIError as error:
            if wish and "response_format" in str(error):
                self.not_taken.add("response_format")
                return await self.picture(prompt, **options)
            raise explain(error, self.url, self.model) from error
        pictures = getattr(response, "data", None)
        return pictures[0].b64_json if pictures else None

    async def close(self) -> None:
        await self._client.close()

    def _adapts(self, error: Exception, limit: str, sent: dict[str, Any]) -> bool:
        """Whether another try differs: newer models know the limit by another name, and some take
        no temperature."""
        if limit == "max_tokens" and "max_completion_tokens" in str(error):
            self._token_limit = "max_completion_tokens"
            return True
        if getattr(error, "code", None) not in NOT_TAKEN_CODES:
            return False
        refused = {name for name in sent if name in self._may_drop and f"'{name}'" in str(error)}
        self.not_taken |= refused
        return bool(refused)


def is_url(text: str) -> bool:
    """An address of the web with a host."""
    try:
        url = urlsplit(text)
        return url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
    except ValueError:  # a port or an address that is none
        return False


def api_key() -> str:
    """The environment's; what would be no HTTP header is named before it is sent."""
    key = os.environ.get("OPENAI_API_KEY", "").strip()
    if not (key.isascii() and key.isprintable()):
        raise ValueError(
            "OPENAI_API_KEY: expected a key of plain letters and digits, got others in it; set "
            "it again"
        )
    return key or "none"


def chat_messages(prompt: str, *image_urls: str) -> list[Any]:
    """One message of images and a text."""
    images = [{"type": "image_url", "image_url": {"url": url}} for url in image_urls]
    return [{"role": "user", "content": [*images, {"type": "text", "text": prompt}]}]


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
