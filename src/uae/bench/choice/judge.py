"""A judge for answers that the rules cannot read: a language model that is told the question, its
options and the answer, and says which option was meant.

Its reply is read as answers are (``reading.py``). What cannot be read is asked again, three times
in all, and is wrong then. Deviations from VLMEvalKit: the wording is our own, and no option is
drawn at random in the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from uae.bench.ask.api import Asker, Question
from uae.bench.ask.transcript import ask_all
from uae.bench.choice.reading import Reading, read_answer

ATTEMPTS = 3
MAX_NEW_TOKENS = 16
WORDING = """A question with options was answered freely. Which of the options does the answer mean?
Reply with the letter of that option and nothing else, or with Z if it means none of them.

Question: {question}
Options:
{options}
Answer: {answer}
"""


@dataclass(frozen=True)
class Unread:
    """An answer that is to be judged."""

    question: str
    choices: dict[str, str]
    answer: str
    right: str
    """The right letter."""

    def asked(self, attempt: int) -> Question:
        """The judge's question."""
        options = "\n".join(f"{letter}. {text}" for letter, text in self.choices.items())
        text = WORDING.format(question=self.question, options=options, answer=self.answer)
        return Question(text, attempt=attempt)


def judge_answers(asker: Asker, unread: Sequence[Unread], transcript: Path) -> list[Reading]:
    """What each means; what the judge did not read stays unread."""
    readings = [Reading(None, "unread") for _ in unread]
    for attempt in range(ATTEMPTS):
        open_ = [i for i, reading in enumerate(readings) if reading.letter is None]
        questions = [unread[i].asked(attempt) for i in open_]
        replies = ask_all(asker, questions, transcript, MAX_NEW_TOKENS) if questions else []
        for i, reply in zip(open_, replies, strict=True):
            letter = read_answer(reply.text or "", unread[i].choices).letter
            if letter is not None:
                readings[i] = Reading(letter, "judge")
    return readings
