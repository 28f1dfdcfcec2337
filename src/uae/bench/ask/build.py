"""Who answers, as options of a command."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from uae.bench.ask.api import TokenAsker
from uae.bench.ask.endpoint import EndpointAsker
from uae.models.origin import SHIPPED
from uae.utils.importing import import_named
from uae.utils.weights import DESCRIPTION

LOAD = "uae.models.load:load_model"  # no benchmark imports a model


@dataclass(frozen=True)
class AskerOptions:
    """A model behind an endpoint, or one on this machine."""

    model: str | None = None
    """With an endpoint the model's name there; else a vision-language model that transformers
    loads, or one of uae, by name, hub id or folder."""
    endpoint: str | None = None
    """URL that speaks OpenAI's chat completions, such as http://localhost:8000/v1; the key is the
    environment's OPENAI_API_KEY."""
    concurrency: int = 8
    """For an endpoint: requests at a time."""
    requests_per_minute: float | None = None
    """For an endpoint: never more than this, retries included."""
    timeout_sec: float = 180.0
    """For an endpoint: for one request."""
    retries: int = 6
    """For an endpoint: how often a request that failed is made again."""
    temperature: float = 0.0
    """For an endpoint: of the first attempt; what is asked again is drawn at 1."""
    seed: int = 0
    """For an endpoint: sent with each request."""
    batch_size: int = 8
    """For a model on this machine: questions at a time."""

    def build(self) -> TokenAsker:
        """The answerer.

        Raises:
            ValueError: for options that name none.
        """
        if self.model is None:
            raise ValueError(
                "expected who answers: the name of a model here, or of one behind an endpoint"
            )
        if self.endpoint is None:
            return local_asker(self.model, self.batch_size)
        return EndpointAsker(
            self.endpoint,
            self.model,
            self.concurrency,
            self.requests_per_minute,
            self.retries,
            self.timeout_sec,
            self.temperature,
            self.seed,
        )


def local_asker(source: str, batch_size: int = 8) -> TokenAsker:
    """A model on this machine, by name, hub id or folder."""
    if batch_size < 1:
        raise ValueError(f"--batch-size must be at least 1, got {batch_size}")
    if is_ours(source):
        from uae.bench.ask.unified import UnifiedAsker

        model: Any = import_named(LOAD, "loader")(source)
        return UnifiedAsker(source, model, batch_size)
    from uae.bench.ask.local import LocalAsker

    return LocalAsker(source, batch_size)


def is_ours(source: str) -> bool:
    """Is it a model of uae, by name, folder or as ENCODER+DECODER?"""
    is_folder = (Path(source).expanduser() / DESCRIPTION).is_file()
    return source in SHIPPED or is_folder or "+" in source
