"""Requests to a vLLM server that samples for a run, and what their failures mean."""

from __future__ import annotations

import json
from contextlib import suppress
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from uae.data.chat import api_key, is_url
from uae.utils.messages import one_line

SECONDS_TO_ANSWER = 1800.0  # a caption, or a reload
GUIDE = "docs/scaling.md has the command"


class Refused(ValueError):
    """The server answered that it does not do what it was asked for."""


class Connection:
    """Requests to one server, and what their failures mean to the user."""

    def __init__(self, url: str) -> None:
        if not is_url(url):
            raise ValueError(
                f"vllm.server: expected an address such as http://localhost:8000, got {url}"
            )
        self.url = url.rstrip("/")

    def get(self, path: str) -> Any:
        return self._ask(Request(self.url + path))

    def post(self, path: str, body: Any) -> Any:
        data = json.dumps(body).encode()
        return self._ask(Request(self.url + path, data, {"Content-Type": "application/json"}))

    def error(self, problem: str, kind: type[ValueError] = ValueError) -> ValueError:
        return kind(f"vllm.server {self.url}: {problem}")

    def _ask(self, request: Request) -> Any:
        if (key := api_key()) != "none":
            request.add_header("Authorization", f"Bearer {key}")
        try:
            with urlopen(request, timeout=SECONDS_TO_ANSWER) as response:
                content = response.read()
            return json.loads(content) if content else None
        except HTTPError as error:
            problem = _problem(error, request.full_url.removeprefix(self.url))
            raise self.error(problem, Refused) from error
        except (HTTPException, OSError) as error:
            reason = getattr(error, "reason", error)
            raise self.error(
                "expected a vLLM server, it does not answer "
                f"({one_line(reason if isinstance(reason, Exception) else error)}); start it, and "
                f"the same command goes on ({GUIDE})"
            ) from error
        except ValueError as error:
            raise self.error("expected a vLLM server, got an answer that is no JSON") from error


def check_server(url: str) -> tuple[Connection, int]:
    """A connection to the server, and the most tokens that it takes.

    Raises:
        ValueError: where there is none, or one that was started otherwise than is needed.
    """
    server = Connection(url)
    models, info = server.get("/v1/models"), server.get("/server_info?config_format=json")
    try:
        longest = int(models["data"][0]["max_model_len"])
        mode = info["vllm_config"]["model_config"]["logprobs_mode"]
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise server.error(
            "expected the answers of vLLM 0.32 or later to /v1/models and /server_info"
        ) from error
    if mode != "processed_logprobs":
        raise server.error(
            "expected log-probabilities at the temperature, it gives others; start it with "
            f"--logprobs-mode processed_logprobs, not {mode}"
        )
    return server, longest


def _problem(error: HTTPError, path: str) -> str:
    """What is wrong, by the server's answer to this path."""
    if error.code == 404 and path == "/v1/models":
        return "expected the address of a vLLM server, before /v1, it has no /v1/models"
    if error.code == 404:
        return (
            f"expected a vLLM server whose weights may be set, it has no {path}; start it with "
            f"VLLM_SERVER_DEV_MODE=1 in its environment ({GUIDE})"
        )
    content = error.read().decode(errors="replace")
    with suppress(KeyError, TypeError, ValueError):  # where it has another form
        content = str(json.loads(content)["error"]["message"])
    return f"it answered {path} by {error.code}: {' '.join(content.split()):.500}"
