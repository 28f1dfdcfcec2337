"""What was answered, on the disk before the next question: nothing is asked twice.

A transcript is a file of JSON lines, one a reply, appended as replies come; a kill loses the line
in hand at most. A reply is found again by a hash of all that it depends on: the answerer's
settings, the text, the images' bytes, the attempt and the limit of tokens. A question that got no
reply has a line with the reason, and is asked again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any

from uae.bench.ask.api import Asker, BatchAsker, Question, Reply, TokenAsker
from uae.utils.files import sha256_of
from uae.utils.json_lines import JsonLines
from uae.utils.messages import one_line
from uae.utils.processes import is_main, of_main
from uae.utils.progress import phase
from uae.utils.shares import by_main, in_order

Ask = Callable[[list[int]], Iterator[tuple[int, Any]]]


def ask_all(
    asker: Asker, questions: Sequence[Question], transcript: Path, max_new_tokens: int
) -> list[Reply]:
    """The reply to each question, from the transcript or asked now.

    Raises:
        ValueError: where none can be answered, or the transcript is damaged or in use.
        OSError: when the disk is full; what was answered before is kept.
    """
    keys = keys_of(asker, questions, max_new_tokens)

    def ask(places: list[int]) -> Iterator[tuple[int, Reply]]:
        return asker.ask([questions[place] for place in places], max_new_tokens)

    kept = _ask_missing(asker, questions, keys, transcript, ask, _line_of_reply)
    return [
        Reply(None, key.problem) if isinstance(key, Unreadable) else reply_of(kept[key])
        for key in keys
    ]


def first_tokens_all(
    asker: TokenAsker,
    questions: Sequence[Question],
    forms: Sequence[Sequence[str]],
    transcript: Path,
) -> list[list[float] | str]:
    """As ``ask_all``, for ``TokenAsker.first_tokens``."""
    keys = _keys(asker, questions, [["first tokens", *each] for each in forms])

    def ask(places: list[int]) -> Iterator[tuple[int, list[float] | str]]:
        return asker.first_tokens(
            [questions[place] for place in places], [forms[place] for place in places]
        )

    kept = _ask_missing(asker, questions, keys, transcript, ask, _line_of_probabilities)
    return [
        key.problem if isinstance(key, Unreadable) else _probabilities_of(kept[key]) for key in keys
    ]


def num_missing(
    asker: Asker, questions: Sequence[Question], transcript: Path, max_new_tokens: int
) -> int:
    """How many questions ``ask_all`` would ask now."""
    keys = keys_of(asker, questions, max_new_tokens)
    known = of_main(_read(transcript) if is_main() and transcript.exists() else {})
    return len({key for key in keys if isinstance(key, str) and key not in known})


def keys_of(
    asker: Asker, questions: Sequence[Question], max_new_tokens: int
) -> list[str | Unreadable]:
    """What ``ask_all`` knows questions by: equal ones have one key and are asked once."""
    return _keys(asker, questions, [max_new_tokens] * len(questions))


class Unreadable:
    """Takes the place of a key where an image cannot be read."""

    def __init__(self, problem: str) -> None:
        self.problem = problem


def _keys(
    asker: Asker, questions: Sequence[Question], wanted: Iterable[Any]
) -> list[str | Unreadable]:
    digests: dict[Path, str] = {}
    settings = asker.settings

    def digest(file: Path) -> str:
        if file not in digests:
            digests[file] = sha256_of(file).hex()
        return digests[file]

    def key(question: Question, asked_for: Any) -> str | Unreadable:
        try:
            images = [digest(file) for file in question.images]
        except OSError as error:
            return Unreadable(one_line(error))
        parts = [settings, question.text, images, question.attempt, asked_for]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    return [key(question, each) for question, each in zip(questions, wanted, strict=True)]


def _ask_missing(
    asker: Asker,
    questions: Sequence[Question],
    keys: Sequence[str | Unreadable],
    transcript: Path,
    ask: Ask,
    line_of: Callable[[Any], dict[str, Any]],
) -> dict[str, dict[str, Any]]:
    """The line of each key; each is asked once, however many questions have it. All processes have
    the lines, and the main one writes them."""
    with closing(JsonLines(transcript, is_of_transcript)) if is_main() else nullcontext() as lines:
        of_before = () if lines is None else lines
        known = of_main({line["key"]: line for _, line in of_before if is_answered(line)})
        missing = {
            key: place
            for place, key in reversed(list(enumerate(keys)))
            if isinstance(key, str) and key not in known
        }
        places = sorted(missing.values())
        with (
            phase("asking", len(places), "questions") as take,
            closing(_answers(asker, questions, places, ask)) as answers,
        ):
            for place, answer in answers:
                take(1)
                key, question = keys[place], questions[place]
                assert isinstance(key, str)
                known[key] = {"key": key, **_described(asker, question), **line_of(answer)}
                if lines is not None:
                    lines.append(known[key])
    return known


def _answers(
    asker: Asker, questions: Sequence[Question], places: Sequence[int], ask: Ask
) -> Generator[tuple[int, Any], None, None]:
    """The place of each question that is asked, and the answer."""

    def asked(some: list[int]) -> Generator[tuple[int, Any], None, None]:
        answers = ask(some)
        try:
            yield from ((some[number], answer) for number, answer in answers)
        finally:
            if isinstance(answers, Generator):
                answers.close()  # requests on their way end here, not when memory is freed

    if isinstance(asker, BatchAsker):
        batches = asker.batches([questions[place] for place in places])
        yield from in_order([[places[i] for i in batch] for batch in batches], asked)
    elif places:
        yield from by_main(lambda: asked(list(places)))


def _described(asker: Asker, question: Question) -> dict[str, Any]:
    """For people who read the transcript."""
    return {
        "asker": asker.settings,
        "question": question.text,
        "images": [str(file) for file in question.images],
        "attempt": question.attempt,
    }


def _read(transcript: Path) -> dict[str, dict[str, Any]]:
    with closing(JsonLines(transcript, is_of_transcript)) as lines:
        return {line["key"]: line for _, line in lines if is_answered(line)}


def is_of_transcript(value: Any) -> bool:
    """Is it a line that is written here?"""
    if not (isinstance(value, dict) and isinstance(value.get("key"), str)):
        return False
    kinds = {"text": str, "problem": str, "probabilities": list}
    return any(isinstance(value.get(name), kind) for name, kind in kinds.items())


def is_answered(line: dict[str, Any]) -> bool:
    return "text" in line or "probabilities" in line


def _line_of_reply(reply: Reply) -> dict[str, Any]:
    counted = {"tokens_in": reply.tokens_in, "tokens_out": reply.tokens_out}
    if reply.text is None:
        return {"problem": reply.problem or "no answer", **counted}
    return {"text": reply.text, **counted, "is_cut": reply.is_cut}


def reply_of(line: dict[str, Any]) -> Reply:
    """As it was given."""
    return Reply(
        line.get("text"),
        line.get("problem"),
        line.get("tokens_in"),
        line.get("tokens_out"),
        bool(line.get("is_cut")),
    )


def _line_of_probabilities(answer: list[float] | str) -> dict[str, Any]:
    return {"problem": answer} if isinstance(answer, str) else {"probabilities": answer}


def _probabilities_of(line: dict[str, Any]) -> list[float] | str:
    return line["probabilities"] if "probabilities" in line else line["problem"]
