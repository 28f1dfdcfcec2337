"""What judges said, in numbers and image by image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from uae.bench.judge.cost import Usage, total_cost
from uae.bench.judge.judges import EXACT, Judge
from uae.bench.judge.referee import Outcome, Rulings
from uae.bench.judge.tally import Agreement, Tally, WinRate, agreement, agreements, pooled, tally
from uae.bench.result import versions


@dataclass(frozen=True)
class Judged:
    """By one judge."""

    judge: Judge
    rulings: Rulings
    usage: Usage


@dataclass(frozen=True)
class JudgeResult:
    """Of all judges."""

    images: dict[str, str]
    """Hashes of the compared sources, by name, in the order of the comparisons."""
    judged: list[Judged]
    left_out: dict[str, str]
    remarks: list[str]
    settings: Mapping[str, Any]
    num_sources: int
    """In the folder."""

    @cached_property
    def outcomes(self) -> dict[str, list[Outcome | None]]:
        """Image by image, of each judge."""
        places = range(len(self.images))
        return {
            each.judge.name: [each.rulings.outcome(place) for place in places]
            for each in self.judged
        }

    @cached_property
    def tallies(self) -> dict[str, Tally]:
        return {each.judge.name: tally(each.rulings, len(self.images)) for each in self.judged}

    @property
    def _asked(self) -> dict[str, list[Outcome | None]]:
        """Of the judges that do not compute."""
        return {name: each for name, each in self.outcomes.items() if name != EXACT}

    @property
    def pooled(self) -> WinRate | None:
        """None where there is but one judge, or the exact one."""
        return pooled(list(self._asked.values())) if len(self._asked) > 1 else None

    @property
    def agreements(self) -> dict[tuple[str, str], Agreement]:
        return agreements(self._asked)

    @property
    def calibration(self) -> dict[str, Agreement]:
        """Of each judge with the exact one, where the pictures are the world's."""
        if EXACT not in self.outcomes:
            return {}
        exact = self.outcomes[EXACT]
        return {name: agreement(each, exact) for name, each in self._asked.items()}

    @property
    def unread(self) -> dict[str, dict[str, str]]:
        """By judge and image, why there is no verdict. The exact judge reads the world's alone."""
        names = list(self.images)
        return {
            each.judge.name: {
                names[place]: problem for (place, _), problem in each.rulings.unread.items()
            }
            for each in self.judged
        }

    @property
    def partial(self) -> bool:
        """An image has no work of both sides, or a judge gave no verdict."""
        unread = any(problems for name, problems in self.unread.items() if name != EXACT)
        return bool(self.left_out) or unread

    def to_json(self) -> dict[str, Any]:
        rate = self.pooled
        return {
            "num_images": len(self.images),
            "num_sources": self.num_sources,
            "judges": {each.judge.name: self._judge_to_json(each) for each in self.judged},
            "pooled_win_rate": None if rate is None else rate.to_json(),
            "agreement": [
                {"judges": list(names), **each.to_json()} for names, each in self.agreements.items()
            ],
            "calibration": {name: each.to_json() for name, each in self.calibration.items()},
            "cost": total_cost(each.usage for each in self.judged),
            "images": self._rows(),
            "left_out": self.left_out,
            "remarks": self.remarks,
            "settings": dict(self.settings),
            "deviations": (
                "the paper's wording is not published, its order of candidates and ties are "
                "unknown: ours asks in both orders and counts a split as a tie"
            ),
            "versions": versions(),
        }

    def _judge_to_json(self, each: Judged) -> dict[str, Any]:
        name = each.judge.name
        return {
            **self.tallies[name].to_json(),
            "usage": each.usage.to_json(),
            "asker": each.judge.asker.settings,
            "options_refused": each.judge.not_taken,
            "problems": self.unread[name],
        }

    def _rows(self) -> list[dict[str, Any]]:
        return [
            {
                "image": image,
                "sha256": digest,
                "outcomes": {name: each[place] for name, each in self.outcomes.items()},
            }
            for place, (image, digest) in enumerate(self.images.items())
        ]


@dataclass(frozen=True)
class Estimate:
    """What it would cost: nothing was asked."""

    usages: dict[str, Usage]
    num_images: int
    left_out: dict[str, str]
    settings: Mapping[str, Any]
    remarks: list[str] = field(default_factory=list)

    @property
    def partial(self) -> bool:
        return False

    @property
    def cost(self) -> float | None:
        return total_cost(self.usages.values())

    def to_json(self) -> dict[str, Any]:
        return {
            "estimate": {name: usage.to_json() for name, usage in self.usages.items()},
            "cost": self.cost,
            "num_images": self.num_images,
            "left_out": self.left_out,
            "remarks": self.remarks,
            "settings": dict(self.settings),
            "versions": versions(),
        }
