"""Who judges.

NAME           a model of the endpoint
NAME@URL       a model of another endpoint
local:MODEL    a model on this machine
exact          in the embedded world, a judge that computes what survived
paper          the four of arXiv 2509.09666, as OpenRouter calls them
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from uae.bench.ask.api import Asker
from uae.bench.ask.backoff import Backoff
from uae.bench.ask.build import local_asker
from uae.bench.ask.endpoint import EndpointAsker
from uae.utils.importing import import_named

PAPER = (
    "anthropic/claude-opus-4.1",
    "openai/gpt-4o",
    "x-ai/grok-4",
    "openai/o4-mini",
)
EXACT = "exact"
EXACT_JUDGE = "uae.world.judge:ExactJudge"  # the core does not know the world
LOCAL = "local:"


class Judge(NamedTuple):
    """One judge."""

    name: str
    """As it was asked for; where its transcript is called after it."""
    asker: Asker

    @property
    def not_taken(self) -> list[str]:
        """Options that it refused."""
        return sorted(getattr(self.asker, "not_taken", ()))


@dataclass(frozen=True)
class EndpointOptions:
    """How endpoints are asked."""

    url: str | None = None
    """The gateway's address, such as https://openrouter.ai/api/v1; the key is the environment's
    OPENAI_API_KEY."""
    concurrency: int = 8
    """Requests at a time."""
    requests_per_minute: float | None = None
    """Never more than this, retries included."""
    timeout_sec: float = 180.0
    """For one request."""
    retries: int = 6
    """How often a request that failed is made again."""
    first_wait_sec: float = 0.5
    """Before that; twice as long each time, up to half a minute, or as long as the server asks."""
    temperature: float = 0.0
    """Of the first attempt; a judge without a verdict is asked again at 1."""
    seed: int = 0
    """Sent with each request."""


def names_of(asked: Sequence[str]) -> list[str]:
    """With the preset spelled out.

    Raises:
        ValueError: for none, or the same twice.
    """
    names = [each for name in asked for each in (PAPER if name == "paper" else (name,))]
    if not names:
        raise ValueError("expected at least one judge; give --judges NAME …, or --judges paper")
    if repeated := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"--judges: {', '.join(sorted(repeated))} is there twice; name it once")
    return names


def judge_of(name: str, options: EndpointOptions, batch_size: int) -> Judge:
    """The judge of a name.

    Raises:
        ValueError: where it cannot be asked.
    """
    if name == EXACT:
        return Judge(name, import_named(EXACT_JUDGE, "judge")())
    if name.startswith(LOCAL):
        return Judge(name, local_asker(name.removeprefix(LOCAL), batch_size))
    model, _, url = name.partition("@")
    if not (url or options.url):
        raise ValueError(
            f"judge {name}: expected the address it answers at; give --endpoint.url URL, or name "
            "it NAME@URL, local:MODEL or exact"
        )
    asker = EndpointAsker(
        url or options.url or "",
        model,
        options.concurrency,
        options.requests_per_minute,
        options.retries,
        options.timeout_sec,
        options.temperature,
        options.seed,
        backoff=Backoff(options.first_wait_sec),
    )
    return Judge(name, asker)
