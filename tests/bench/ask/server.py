"""Chat completions as endpoints answer them, well or not."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from typing import Any

from tests.http_server import JsonServer, Response


def said(text: str, finish_reason: str = "stop", logprobs: Any = None) -> Response:
    """A completion of 100 prompt tokens and 10 completion tokens."""
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": finish_reason, "logprobs": logprobs}
    usage = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
    return Response(200, {"id": "1", "choices": [choice], "usage": usage})


def failure(status: int, message: str = "no", code: str | None = None, **headers: str) -> Response:
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return Response(status, {"error": {"message": message, "code": code}}, names)


def text_of(body: dict[str, Any]) -> str:
    """The question of a request."""
    return body["messages"][0]["content"][-1]["text"]


class Server(JsonServer):
    """Answers by ``on_request(body, times)``: how often this question was asked before."""

    def __init__(self) -> None:
        self.on_request: Callable[[dict[str, Any], int], Response] = lambda body, times: said("yes")
        self.bodies: list[dict[str, Any]] = []
        self.asked: dict[str, int] = {}
        self._lock = threading.Lock()
        super().__init__()

    def respond(self, path: str, body: dict[str, Any]) -> Response:
        with self._lock:
            key = json.dumps(body.get("messages", body.get("prompt")))
            times = self.asked.get(key, 0)
            self.asked[key] = times + 1
            self.bodies.append(body)
            return self.on_request(body, times)
