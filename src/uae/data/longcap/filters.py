"""Which answers are captions: long enough, finished, no refusal, not going in circles."""

from __future__ import annotations

import re
from dataclasses import dataclass

from uae.data.answers import Answer, caption_of

REFUSALS = re.compile(
    r"\W*("
    r"(i['’]?m|i am) (really |very |so )?(sorry|afraid|unable|not able)"
    r"|sorry\b"
    r"|i (cannot|can['’]?t|can not|won['’]?t|do not|don['’]?t) "
    r"(assist|help|describe|provide|see|view|comply|process)"
    r"|as an? (ai|artificial|large language|language) "
    r"|unfortunately,? i "
    r"|(i|my) apolog"
    r")",
    re.IGNORECASE,
)
"""How answers begin that refuse; captions begin so too, but go on."""
MAX_REFUSAL_WORDS = 100
REFUSED = ("content_filter", "refusal", "safety")  # finish reasons


@dataclass(frozen=True)
class Filters:
    """What a caption must be."""

    min_words: int = 250
    """Words, separated by white space."""
    max_repeated: float = 0.2
    """Share of runs of 4 words that stood before in the same caption; plain descriptions have a few
    percent."""


def why_rejected(answer: Answer, filters: Filters) -> str:
    """Why this answer is no caption; empty if it is one. Thoughts are none, so they do not
    count."""
    if answer.finish_reason == "length":
        return "cut off by the token limit"
    caption = caption_of(answer.text)
    num_words = count_words(caption)
    sounds_refused = num_words <= MAX_REFUSAL_WORDS and REFUSALS.match(caption)
    if answer.finish_reason.lower() in REFUSED or sounds_refused:
        return "refused"
    if not num_words:
        return "thoughts alone" if answer.text.strip() else "empty"
    if num_words < filters.min_words:
        return f"fewer than {filters.min_words} words"
    if repeated_run_share(caption) > filters.max_repeated:
        return "repeats itself"
    return ""


def count_words(text: str) -> int:
    return len(text.split())


def repeated_run_share(text: str, run: int = 4) -> float:
    """The share of runs of ``run`` words that are not the first of their kind."""
    words = re.findall(r"\w+", text.lower())
    runs = [tuple(words[i : i + run]) for i in range(len(words) - run + 1)]
    return 1 - len(set(runs)) / len(runs) if runs else 0.0
