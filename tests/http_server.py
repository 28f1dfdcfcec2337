"""A real HTTP server of this machine that reads and writes JSON, and misbehaves as it is told."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Mapping
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


class _Http(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is no error; what is printed would be taken for the client's."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class JsonServer:
    """Answers by ``respond``, many requests at a time."""

    def __init__(self) -> None:
        self._http = _Http(("127.0.0.1", 0), self._handler())
        threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}/v1"

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()

    def respond(self, path: str, body: dict[str, Any]) -> Response:
        raise AssertionError("a server says what it answers")

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self._answer({})

            def do_POST(self) -> None:
                self._answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

            def _answer(self, body: Any) -> None:
                response = server.respond(self.path, body)
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
