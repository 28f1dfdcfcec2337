"""Pictures of prompts from an endpoint that speaks OpenAI's images API."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from uae.bench.ask.endpoint import EndpointAsker
from uae.data.answers import NoAnswer
from uae.data.chat import ChatClient
from uae.images.read import read_image_bytes


@dataclass(frozen=True)
class EndpointPainter(EndpointAsker):
    """A model of an endpoint that paints; requests, retries and pace are those of an asker."""

    @property
    def settings(self) -> dict[str, Any]:
        return {"painter": "endpoint", "url": self.url, "model": self.model}

    def paint(self, prompts: Sequence[str], size: str) -> Iterator[tuple[int, Tensor | str]]:
        """Each prompt's place, and its picture ``[3, h, w]`` or the reason why there is none, as
        they come.

        size: such as ``1024x1024``; what comes may be of another.

        Raises:
            ValueError: where none can be painted, such as a wrong key or an unknown model.
        """

        async def picture(client: ChatClient, prompt: str) -> Tensor:
            return read_picture(await client.picture(prompt, size=size))

        return self._each(prompts, picture, lambda problem: problem)


def read_picture(encoded: str | None) -> Tensor:
    """Of base64.

    Raises:
        NoAnswer: where it is none.
        ImageError: where the file cannot be read.
    """
    try:
        content = base64.b64decode(encoded or "", validate=True)
    except binascii.Error as error:
        raise NoAnswer(f"expected a picture in base64, got {encoded!r:.40}") from error
    if not content:
        raise NoAnswer("expected a picture, got none")
    return read_image_bytes(content, "the picture")
