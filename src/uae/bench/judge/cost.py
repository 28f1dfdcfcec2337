"""What judging costs: requests, tokens and money, estimated before and counted after."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from uae.bench.ask.api import Question, Reply

CHARS_PER_TOKEN = 4  # of English
REPLY_TOKENS = 200  # of the JSON with its scores
Prices = Mapping[str, tuple[float, float]]


@dataclass(frozen=True)
class Usage:
    """Of one judge."""

    requests: int
    tokens_in: int
    tokens_out: int
    uncounted: int = 0
    """Replies whose tokens the judge did not count."""
    price: tuple[float, float] | None = None
    """Of a million tokens in, and out."""

    @property
    def cost(self) -> float | None:
        """None without a price."""
        if self.price is None:
            return None
        return (self.tokens_in * self.price[0] + self.tokens_out * self.price[1]) / 1e6

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "cost": self.cost}


def counted(replies: Iterable[Reply], price: tuple[float, float] | None) -> Usage:
    """Of replies that came; those without a verdict were paid too."""
    answered = [reply for reply in replies if reply.text is not None]
    return Usage(
        len(answered),
        sum(reply.tokens_in or 0 for reply in answered),
        sum(reply.tokens_out or 0 for reply in answered),
        sum(reply.tokens_in is None or reply.tokens_out is None for reply in answered),
        price,
    )


def estimated(
    questions: Sequence[Question],
    num_missing: int,
    image_tokens: int,
    price: tuple[float, float] | None,
) -> Usage:
    """Of the questions that would be asked now, each at the mean of all and answered at once."""
    images = sum(len(question.images) for question in questions) * image_tokens
    texts = sum(len(question.text) for question in questions) / CHARS_PER_TOKEN
    share = num_missing / max(len(questions), 1)
    return Usage(
        num_missing, round(share * (images + texts)), num_missing * REPLY_TOKENS, price=price
    )


def total_cost(usages: Iterable[Usage]) -> float | None:
    """None where a price is missing of anything that is paid."""
    costs = [usage.cost for usage in usages if usage.requests]
    return None if None in costs else sum((cost for cost in costs if cost is not None), 0.0)
