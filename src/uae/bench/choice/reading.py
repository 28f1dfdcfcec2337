"""Which option an answer means, as VLMEvalKit reads it (``can_infer``, commit e8e78f0).

    1  one of four refusals is in it                        "Z": an answer, and a wrong one
    2  of all option letters one is among its words,        that letter
       first among the last four; no letter but "Z"         "Z"
    3  "answer is X", X from A to D, in any case            X; words need not end: "is a dog" is A
    4  the text of one option is contained in it,           that option, unless the answer is longer
       in any case, inside words too                        than twice all options together

An answer that says that an API failed goes to step 4 at once. What no step reads is wrong, unless a
judge reads it (``judge.py``). Not reproduced: the environment's VERBOSE, which ends step 2 early
where the word A stands.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

REFUSALS = (
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)
API_FAILED = "Failed to obtain answer via API"
NONE_OF_THEM = "Z"
LAST_WORDS = 4
LENGTH_FACTOR = 2
WAYS = ("letter", "answer is", "option text", "refusal", "none of them", "judge", "unread")
"""How an answer can be read."""

_PUNCTUATION = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))
_ANSWER_IS = re.compile(r"answer\s+is\s+\**([ABCD])", re.IGNORECASE)
Choices = Mapping[str, Any]  # letter → text or number


class Reading(NamedTuple):
    """What an answer means."""

    letter: str | None
    """None where it was not read."""
    way: str
    """One of ``WAYS``."""


UNREAD = Reading(None, "unread")


def read_answer(answer: Any, choices: Choices) -> Reading:
    """The whole reading. answer: text, or any value as Python prints it."""
    text = str(answer)
    reading = read_letter(text, choices)
    return reading if reading.letter else read_text(text, choices)


def read_letter(answer: str, choices: Choices) -> Reading:
    """Steps 1 to 3."""
    if API_FAILED in answer:
        return UNREAD
    if any(refusal in answer for refusal in REFUSALS):
        return Reading(NONE_OF_THEM, "refusal")
    words = answer.translate(_PUNCTUATION).split()
    letters = [letter for letter in choices if letter in words]
    if len(letters) == 1 and words.index(letters[0]) >= len(words) - LAST_WORDS:
        return Reading(letters[0], "letter")
    if not letters and NONE_OF_THEM in words:
        return Reading(NONE_OF_THEM, "none of them")
    said = _ANSWER_IS.search(answer)
    if said and said[1].upper() in choices:
        return Reading(said[1].upper(), "answer is")
    return UNREAD


def read_text(answer: str, choices: Choices) -> Reading:
    """Step 4."""
    answer = answer.lower()
    texts = {letter: str(text) for letter, text in choices.items()}
    if len(answer) > LENGTH_FACTOR * sum(map(len, texts.values())):
        return UNREAD
    contained = [letter for letter, text in texts.items() if text.lower() in answer]
    return Reading(contained[0], "option text") if len(contained) == 1 else UNREAD
