"""GenEval++'s rules: what the judge is asked, how its reply is read, and how verdicts are summed up
(arXiv 2508.09987).

    right    the judge's JSON has ``correct`` equal to 1 (true and 1.0 are, "1" is not)
    tag      share of right images, rounded to 4 digits
    overall  mean over tags of these, rounded to 4 digits

A reply is JSON from its first brace to its last, or it is unreadable and the judge is asked again,
at most 3 times in all; what is unreadable then counts as wrong. JSON without ``correct`` is wrong
at once. An image that is missing counts as wrong and costs no call.

Deviation: the instruction is worded anew. It asks for the same: classes, counts, colours, positions
and sizes, and that the picture be a natural photograph. The latter fails every rendered picture, so
it can be left out.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

NUM_TRIES = 3
MAX_NEW_TOKENS = 200
UNREADABLE = -1
ABSENT = "absent"

_TASK = """\
You check whether a picture shows all that its prompt asks for. Look at the picture, then go \
through the list.

Prompt: {prompt}

{checklist}

Answer 1 only if every one of these holds, else 0:
- Each kind of object on the list is there and can be recognised.
- The number of each is exactly the one on the list.
- Colours are those on the list, where it names any.
- Positions in the picture are those on the list, where it names any.
- Sizes, compared with one another, are those on the list, where it names any.
"""
_PHOTOGRAPH = """\
- The picture looks like a natural photograph: not drawn, rendered or pasted together, and without \
distorted objects.
"""
_FORMAT = """\

Reply with one JSON object and nothing else: {"correct": 1 or 0, "reason": "one short sentence"}"""


def checklist(metadata: Mapping[str, Any]) -> list[str]:
    """What the picture should contain, a line each; the plural is always an s, as officially."""
    lines = ["This image should contain:"]
    lines += [f"- {_described(clause)}." for clause in metadata.get("include", ())]
    for clause in metadata.get("exclude", ()):
        most = clause["count"] - 1
        lines.append(f"- No more than {_counted(most, clause['class'])} should appear.")
    return lines


def _described(clause: Mapping[str, Any]) -> str:
    words = [f"{clause['color']}-colored"] if clause.get("color") else []
    words += [clause["size"]] if clause.get("size") else []
    words.append(_counted(clause["count"], clause["class"]))
    region = clause.get("region")
    words.append(f"located in the {region} part of the image" if region else "present in the image")
    return " ".join(words)


def _counted(count: int, name: str) -> str:
    return f"{count} {name}{'s' if count > 1 else ''}"


def judge_text(metadata: Mapping[str, Any], must_be_photograph: bool) -> str:
    """What the judge is told beside the picture."""
    task = _TASK.format(prompt=metadata["prompt"], checklist="\n".join(checklist(metadata)))
    return task + (_PHOTOGRAPH if must_be_photograph else "") + _FORMAT


def read_verdict(text: str | None) -> Any:
    """The judge's ``correct``, whatever it is; ``ABSENT`` where its JSON has none.

    Raises:
        ValueError: for a reply without one JSON object.
    """
    text = text or ""
    start, end = text.find("{"), text.rfind("}")
    try:
        return json.loads(text[start : end + 1] if start >= 0 else "").get("correct", ABSENT)
    except RecursionError as error:
        raise ValueError("JSON that is nested too deeply") from error


@dataclass(frozen=True)
class Verdict:
    """On one image."""

    tag: str
    correct: Any
    """As the judge said it; -1 where it could not be read, 0 for a missing image."""
    state: str
    """``judged``, ``unreadable`` or ``missing image``."""
    num_calls: int
    """Replies that were asked for."""
    reply: str | None = None
    """The last one."""

    @property
    def is_right(self) -> bool:
        return self.correct == 1

    @classmethod
    def missing(cls, tag: str) -> Verdict:
        """Of an image that is not there."""
        return cls(tag, 0, "missing image", 0)


def judge_verdict(tag: str, replies: Iterable[str | None]) -> Verdict | None:
    """Of the replies so far; None where it must be asked again."""
    num_calls, reply = 0, None
    for num_calls, reply in enumerate(replies, 1):
        try:
            return Verdict(tag, read_verdict(reply), "judged", num_calls, reply)
        except ValueError:
            continue
    is_over = num_calls >= NUM_TRIES
    return Verdict(tag, UNREADABLE, "unreadable", num_calls, reply) if is_over else None


def by_tag(verdicts: Iterable[Verdict]) -> dict[str, list[bool]]:
    """Whether each is right, by tag in order of first appearance."""
    rights: dict[str, list[bool]] = defaultdict(list)
    for verdict in verdicts:
        rights[verdict.tag].append(verdict.is_right)
    return dict(rights)


def tag_accuracy(rights: Iterable[bool]) -> float:
    """Rounded to 4 digits."""
    listed = list(rights)
    return round(sum(listed) / len(listed), 4)


def overall_score(tags: Mapping[str, Iterable[bool]]) -> float:
    """Mean over tags of their rounded accuracies, rounded again."""
    accuracies = [tag_accuracy(rights) for rights in tags.values()]
    return round(sum(accuracies) / len(accuracies), 4)
