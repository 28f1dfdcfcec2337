"""A real HTTP server that speaks chat completions, and misbehaves as it is told."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import MappingProxyType
from typing import Any, NamedTuple


class Response(NamedTuple):
    """What the server sends; ``cut`` bytes are missing at the end of what it announced."""

    status: int
    body: Any
    headers: Mapping[str, str] = MappingProxyType({})
    cut: int = 0
    late_sec: float = 0.0


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


class Server:
    """Answers by ``on_request(body, times)``: how often this question was asked before."""

    def __init__(self) -> None:
        self.on_request: Callable[[dict[str, Any], int], Response] = lambda body, times: said("yes")
        self.bodies: list[dict[str, Any]] = []
        self.asked: dict[str, int] = {}
        self._lock = threading.Lock()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}/v1"

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()

    def response(self, body: dict[str, Any]) -> Response:
        with self._lock:
            key = json.dumps(body.get("messages", body.get("prompt")))
            times = self.asked.get(key, 0)
            self.asked[key] = times + 1
            self.bodies.append(body)
            return self.on_request(body, times)

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                response = server.response(body)
                time.sleep(response.late_sec)
                content = response.body
                data = content if isinstance(content, bytes) else json.dumps(content).encode()
                try:
                    self.send_response(response.status)
                    self.send_header("Content-Type", "application/json")
                    self.send_header("Content-Length", str(len(data)))
                    for name, value in response.headers.items():
                        self.send_header(name, value)
                    self.end_headers()
                    self.wfile.write(data[: len(data) - response.cut])
                except (BrokenPipeError, ConnectionResetError):
                    pass  # the client waits no longer
                self.close_connection = bool(response.cut)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        return Handler
