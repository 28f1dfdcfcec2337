"""What was painted in place of each prompt: kept beside its pictures, and told in results."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

from uae.bench.rewrite.prompts import Rewrite
from uae.utils.files import atomic_write_json
from uae.utils.messages import one_line, printable

RECORD = "rewrite.json"  # in a prompt's folder
TRANSCRIPT = "rewrites.jsonl"  # beside these folders
MAX_LISTED = 5
KINDS = {"prompt": str, "painted": str, "is_empty": bool, "is_cut": bool, "is_too_long": bool}


class Recorded(NamedTuple):
    """A rewrite, and the settings of who made it."""

    rewrite: Rewrite
    rewriter: dict[str, Any]


def write_rewrite(folder: Path, rewrite: Rewrite, rewriter: Mapping[str, Any]) -> None:
    """Beside a prompt's pictures."""
    atomic_write_json(folder / RECORD, {**asdict(rewrite), "rewriter": rewriter})


def read_rewrite(folder: Path) -> Recorded:
    """What ``write_rewrite`` wrote.

    Raises:
        ValueError: for anything else.
    """
    try:
        read = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"expected JSON, got none ({one_line(error)})") from error
    names = {each.name for each in fields(Rewrite)}
    if (
        not isinstance(read, dict)
        or read.keys() != {*names, "rewriter"}
        or not all(isinstance(read[name], kind) for name, kind in KINDS.items())
        or not isinstance(read["rewriter"], dict)
        or not _is_of_lost(read["lost"])
    ):
        raise ValueError("expected a rewrite as uae writes it, got something else")
    return Recorded(Rewrite(**{name: read[name] for name in names}), read["rewriter"])


def _is_of_lost(value: Any) -> bool:
    is_list = isinstance(value, list) and all(isinstance(name, str) for name in value)
    return value is None or is_list


@dataclass(frozen=True)
class Rewriting:
    """Of the pictures that were scored: whose prompts were rewritten, and how."""

    num_prompts: int
    """Rewritten or not."""
    recorded: list[Recorded]
    unreadable: list[str]
    """Records that cannot be read."""

    def to_json(self) -> dict[str, Any]:
        """Ready to be written; prompts are as they were given."""
        rewriters = {json.dumps(each.rewriter, sort_keys=True) for each in self.recorded}
        rewrites = [each.rewrite for each in self.recorded]
        return {
            "rewritten_by": [json.loads(rewriter) for rewriter in sorted(rewriters)],
            "prompts": self.num_prompts,
            "rewritten": len(rewrites),
            "empty": [each.prompt for each in rewrites if each.is_empty],
            "cut": [each.prompt for each in rewrites if each.is_cut],
            "too_long": [each.prompt for each in rewrites if each.is_too_long],
            "objects_known": sum(each.lost is not None for each in rewrites),
            "objects_lost": {each.prompt: each.lost for each in rewrites if each.lost},
            "unreadable": self.unreadable,
        }

    def lines(self) -> list[str]:
        """What a reader must know beside the numbers."""
        said = self.to_json()
        names = dict.fromkeys(str(each.get("model")) for each in said["rewritten_by"])
        counted = (
            (len(said["empty"]), "rewrites are empty: these prompts were painted as given"),
            (len(said["cut"]), "rewrites were ended by the limit of tokens"),
            (len(said["too_long"]), "rewrites are longer than the decoder reads"),
        )
        return [
            f"prompts rewritten by {printable(', '.join(names)) or 'unknown'}: {said['rewritten']} "
            f"of {self.num_prompts}; not comparable with prompts as they are",
            *(f"  {number} {what}" for number, what in counted if number),
            *self._lost_lines(said["objects_lost"], said["objects_known"]),
            *(f"  {printable(problem)}" for problem in self.unreadable[:MAX_LISTED]),
        ]

    @staticmethod
    def _lost_lines(lost: Mapping[str, list[str]], num_known: int) -> list[str]:
        if not lost:
            return []
        listed = [f"{', '.join(names)} ({prompt})" for prompt, names in lost.items()]
        rest = " …" if len(listed) > MAX_LISTED else ""
        named = printable("; ".join(listed[:MAX_LISTED]))
        return [f"  {len(lost)} of {num_known} rewrites lost objects: {named}{rest}"]


def rewriting_of(pictures: Iterable[Path]) -> Rewriting | None:
    """Of pictures in the folders that ``bench/generate.py`` writes; None where none is of a
    rewritten prompt."""
    folders = list(dict.fromkeys(file.parent.parent for file in pictures))
    recorded: list[Recorded] = []
    unreadable: list[str] = []
    for folder in folders:
        try:
            recorded.append(read_rewrite(folder))
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:
            unreadable.append(f"{folder.name}/{RECORD}: {one_line(error)}")
    return Rewriting(len(folders), recorded, unreadable) if recorded or unreadable else None
