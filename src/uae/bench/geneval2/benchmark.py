"""GenEval 2 of a model, or of pictures made elsewhere, with any answerer that knows how likely its
words are.

``--images`` is a folder (a file is called by its prompt's place from 0, such as 00012.png), or a
JSON file of an object from prompt to picture, as the official scorer takes it.

Deviations: any VLM in place of Qwen3-VL-8B. Several pictures of a prompt are averaged. Prompts
without a picture are named and make the result partial, where the official scorer fails. An
endpoint says of few tokens how likely they are (``ask/endpoint.py``).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from uae.bench.api import Answers
from uae.bench.ask.api import Question, TokenAsker
from uae.bench.ask.transcript import first_tokens_all
from uae.bench.bootstrap import Sums
from uae.bench.generate import PlacedPrompt
from uae.bench.geneval2.rules import Atom, AtomScores, Prompt2, by_atom_count, by_skill
from uae.bench.painted.benchmark import PaintedBench
from uae.bench.painted.pictures import Pictures, Rows, checked
from uae.bench.painted.result import PaintedResult, Score, ratio_scores
from uae.data.prompts import read_prompts

Files = Mapping[str, Sequence[Path]]  # by prompt
Values = list[float | str]  # an atom's value each, or why there is none


@dataclass(frozen=True)
class GenEval2(PaintedBench):
    """GenEval 2: how surely a VLM sees each atom of the prompt. Give --images, or --model."""

    prompts: Path = Path("geneval2_data.jsonl")
    """The official file: `prompt`, `vqa_list`, `skills`, `atom_count` in each line."""
    hard: bool = False
    """Hard TIFA, for answerers that give no probabilities: is the first word right?"""
    out: Path = Path("geneval2.json")
    """Result file; pictures and answers are kept beside it."""

    @cached_property
    def listed(self) -> dict[str, Prompt2]:
        """By place in the file."""
        rows = read_prompts(self.prompts)
        return {
            f"{place:05}": read_prompt(row, f"{self.prompts}, prompt {place + 1}")
            for place, row in enumerate(rows)
        }

    @cached_property
    def rows(self) -> Rows:
        return {name: {"prompt": prompt.prompt} for name, prompt in self.listed.items()}

    def name_of_file(self, file: str) -> str:
        stem = file.split(".", 1)[0]
        return f"{int(stem):05}" if stem.isascii() and stem.isdigit() else stem

    def pictures(self, answers: Answers[PlacedPrompt] | None) -> Pictures:
        if self.images is None or self.images.is_dir():
            return super().pictures(answers)
        files, remarks = pictures_of_list(self.images, self.rows)
        return checked(files, remarks)

    def score(self, answers: Answers[PlacedPrompt] | None) -> PaintedResult:
        pictures = self.pictures(answers)
        values = self._values(pictures.files)
        images: dict[str, list[AtomScores]] = {}
        unscored = dict(pictures.problems)
        for name, each in values.items():
            problems = [value for numbers in each for value in numbers if isinstance(value, str)]
            if problems:
                unscored[name] = problems[0]
                continue
            images[name] = [
                AtomScores(self.listed[name], tuple(map(float, numbers))) for numbers in each
            ]
        self.check_some(images, unscored)
        return PaintedResult(
            title="GenEval 2",
            scores=self._scores(images),
            images={name: [_described(image) for image in each] for name, each in images.items()},
            unscored=unscored,
            remarks=pictures.remarks,
            rewriting=pictures.rewriting,
            notes=self._notes(images),
            settings={
                **self.recorded(answers),
                "prompts": str(self.prompts),
                "method": "tifa" if self.hard else "soft_tifa",
            },
            answerer=self.asker.settings,
            partial=bool(unscored),
        )

    def _values(self, files: Files) -> dict[str, list[Values]]:
        """Of each atom, by prompt and picture."""
        asked = [
            (name, place, atom, Question(atom.text, (file,)))
            for name, paths in files.items()
            for place, file in enumerate(paths)
            for atom in self.listed[name].atoms
        ]
        questions = [question for *_, question in asked]
        atoms = [atom for _, _, atom, _ in asked]
        found = self._hard(questions, atoms) if self.hard else self._soft(questions, atoms)
        values: dict[str, list[Values]] = {name: [[] for _ in ps] for name, ps in files.items()}
        for (name, place, *_), value in zip(asked, found, strict=True):
            values[name][place].append(value)
        return values

    def _soft(self, questions: Sequence[Question], atoms: Sequence[Atom]) -> Values:
        asker = self.asker
        if not isinstance(asker, TokenAsker):
            raise ValueError(
                "expected an answerer that says how likely its words are, got one that does not; "
                "give another, or --hard"
            )
        forms = [atom.forms for atom in atoms]
        found = first_tokens_all(asker, questions, forms, self.transcript)
        return [each if isinstance(each, str) else sum(each) for each in found]

    def _hard(self, questions: Sequence[Question], atoms: Sequence[Atom]) -> Values:
        replies = self.ask(questions, max_new_tokens=1)
        return [
            reply.problem or "no answer" if reply.text is None else float(atom.is_form(reply.text))
            for reply, atom in zip(replies, atoms, strict=True)
        ]

    def _scores(self, images: Mapping[str, list[AtomScores]]) -> dict[str, dict[str, Score]]:
        sections = {
            "overall": [_overall(each, self.hard) for each in images.values()],
            "by skill (arithmetic, atoms pooled)": [
                {name: (sum(v), len(v)) for name, v in by_skill(each).items() if name}
                for each in images.values()
            ],
        }
        scores = {
            section: ratio_scores(sums, self.num_bootstrap, self.seed)
            for section, sums in sections.items()
        }
        if not self.hard:
            scores["by number of atoms (geometric)"] = self._by_count(images)
        return scores

    def _notes(self, images: Mapping[str, list[AtomScores]]) -> list[str]:
        if self.hard:
            return ["hard TIFA: not comparable with Soft-TIFA"]
        values = [value for each in images.values() for image in each for value in image.values]
        above = sum(value > 1 for value in values)
        note = (
            f"{above} of {len(values)} atoms are above 1, as surface forms with the same first "
            "token count again (as officially)"
        )
        return [note] if above else []

    def _by_count(self, images: Mapping[str, list[AtomScores]]) -> dict[str, Score]:
        sums: list[Sums] = [
            {
                str(count): (sum(values), len(values))
                for count, values in by_atom_count(each).items()
            }
            for each in images.values()
        ]
        scores = ratio_scores(sums, self.num_bootstrap, self.seed)
        return dict(sorted(scores.items(), key=lambda item: int(item[0])))


def read_prompt(row: Mapping[str, Any], place: str) -> Prompt2:
    """A row of the file.

    Raises:
        ValueError: where it has no questions, or another number of skills.
    """
    pairs = row.get("vqa_list")
    are_pairs = isinstance(pairs, list) and all(
        isinstance(pair, list) and len(pair) == 2 and all(isinstance(t, str) for t in pair)
        for pair in pairs
    )
    if not pairs or not are_pairs:
        raise ValueError(f"{place}: expected a vqa_list of [question, answer], got {pairs!r:.60}")
    skills = row.get("skills", [""] * len(pairs))
    if not isinstance(skills, list) or len(skills) != len(pairs):
        raise ValueError(
            f"{place}: expected {len(pairs)} skills, one a question, got {skills!r:.60}"
        )
    count = row.get("atom_count", len(pairs))
    if not isinstance(count, int):
        raise ValueError(f"{place}: expected a whole number as atom_count, got {count!r:.60}")
    atoms = tuple(
        Atom(text, answer, str(skill)) for (text, answer), skill in zip(pairs, skills, strict=True)
    )
    return Prompt2(row["prompt"], atoms, count)


def pictures_of_list(path: Path, rows: Rows) -> tuple[dict[str, list[Path]], list[str]]:
    """The official form: a JSON object from prompt to picture. Also what belongs to no prompt.

    Raises:
        ValueError: for anything else.
    """
    try:
        listed = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: expected a folder of pictures, or JSON, got neither") from error
    if not isinstance(listed, dict) or not all(isinstance(each, str) for each in listed.values()):
        raise ValueError(f"{path}: expected a JSON object from prompt to picture")
    found = {prompt.strip(): path.parent / file for prompt, file in listed.items()}
    files = {
        name: [found[row["prompt"]]] if row["prompt"] in found else [] for name, row in rows.items()
    }
    prompts = {row["prompt"] for row in rows.values()}
    extra = [f"passed over {file}: of no prompt" for p, file in found.items() if p not in prompts]
    return files, extra


def _overall(images: Sequence[AtomScores], hard: bool) -> Sums:
    arithmetic = (sum(image.arithmetic for image in images), len(images))
    if hard:
        return {"tifa": arithmetic}
    geometric = (sum(image.geometric for image in images), len(images))
    return {"soft_tifa_gm": geometric, "soft_tifa_am": arithmetic}


def _described(image: AtomScores) -> dict[str, Any]:
    return {"am": image.arithmetic, "gm": image.geometric, "atoms": list(image.values)}
