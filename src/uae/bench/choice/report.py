"""Scores by split and category, as VLMEvalKit groups them.

MMT-Bench: a level-2 score is the mean of its sub-tasks, and every split has its scores, as do all
rows together. Its interval (95 %) adds those of the sub-tasks in quadrature, each taken as by
Agresti and Coull (Am. Stat. 52, 1998). A sub-task without rows leaves its level-2 category without
a score, as officially; a level-2 category without rows is named (the official report fails).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from uae.bench.choice.circular import Outcome
from uae.bench.result import Share, shares_to_json

ALL = "ALL"
NO_SPLIT = "none"
MMBENCH = {
    "coarse_perception": "CP",
    "finegrained_perception (instance-level)": "FP-S",
    "finegrained_perception (cross-instance)": "FP-C",
    "logic_reasoning": "LR",
    "relation_reasoning": "RR",
    "attribute_reasoning": "AR",
}
"""What MMBench's groups are called in reports."""
MMT = {
    "visual_recognition": "VR",
    "localization": "Loc",
    "ocr": "OCR",
    "counting": "Count",
    "hallucination": "HLN",
    "image_retrieval": "IR",
    "threed": "3D",
    "visual_captioning": "VC",
    "visual_grounding": "VG",
    "doc_understanding": "DU",
    "action_recognition": "AR",
    "pixel_level_perception": "PLP",
    "image-to-image_translation": "I2IT",
    "relation_reasoning": "RR",
    "intelligence_quotient_test": "IQT",
    "emotion": "Emo",
    "visual_illusion": "VI",
    "meme_understanding": "MemU",
    "visual_prompt_understanding": "VPU",
    "anomaly_detection": "AND",
    "keypoint_detection": "KD",
    "visual_commonsense_reasoning": "VCR",
    "image_evaluation_judgement": "IEJ",
    "multiple_image_analysis": "MIA",
    "cross_image_matching": "CIM",
    "temporal_understanding": "TU",
    "visual_code": "VP",
    "medical_understanding": "MedU",
    "autonomous_driving": "AUD",
    "discipline_knowledge_reasoning": "DKR",
    "embodied_ai": "EA",
    "gui_navigation": "GN",
}
"""MMT-Bench's 32 level-2 categories."""
_Z = 1.959963984540054  # 95 %, two-sided


@dataclass(frozen=True)
class TaskMean:
    """The mean of sub-tasks, each counting the same."""

    tasks: dict[str, Share]

    @property
    def percent(self) -> float | None:
        """None where one of them has no rows."""
        percents = [share.percent for share in self.tasks.values()]
        known = [percent for percent in percents if percent is not None]
        return sum(known) / len(known) if known and len(known) == len(percents) else None

    @property
    def interval(self) -> tuple[float, float] | None:
        if self.percent is None:
            return None
        centre = variance = 0.0
        for share in self.tasks.values():
            total = share.total + _Z**2
            p = (share.right + _Z**2 / 2) / total
            centre, variance = centre + p, variance + p * (1 - p) / total
        number = len(self.tasks)
        half = _Z * math.sqrt(variance)
        return (
            100 * max(0.0, (centre - half) / number),
            100 * min(1.0, (centre + half) / number),
        )

    def to_json(self) -> dict[str, Any]:
        low, high = self.interval or (None, None)
        tasks = list(self.tasks)
        total = sum(share.total for share in self.tasks.values())
        return {"percent": self.percent, "low": low, "high": high, "total": total, "tasks": tasks}


@dataclass(frozen=True)
class SplitReport:
    """The scores of a split, or of all rows."""

    overall: Share
    l2_categories: Mapping[str, Share | TaskMean]
    """By official abbreviation, where there is one."""
    categories: Mapping[str, Share]

    def to_json(self) -> dict[str, Any]:
        return {
            "overall": self.overall.to_json(),
            "l2_categories": {name: score.to_json() for name, score in self.l2_categories.items()},
            "categories": shares_to_json(self.categories),
        }


def is_mmt(dataset: str) -> bool:
    """It is reported as MMT-Bench is."""
    return "MMT" in dataset


def report(outcomes: Sequence[Outcome], *, as_mmt: bool) -> dict[str, SplitReport]:
    """By split, in order of appearance, and for all rows where there are several splits or it is
    MMT-Bench."""
    splits: dict[str, list[Outcome]] = defaultdict(list)
    for outcome in outcomes:
        splits[outcome.split or NO_SPLIT].append(outcome)
    names = {
        "category": sorted({outcome.category for outcome in outcomes} - {""}),
        "l2": sorted({outcome.l2_category for outcome in outcomes} - {""}),
    }
    tasks = _tasks(outcomes) if as_mmt else None
    reports = {
        split: _split_report(rows, names["category"], names["l2"], tasks)
        for split, rows in splits.items()
    }
    if as_mmt or len(reports) > 1:
        reports[ALL] = _split_report(outcomes, names["category"], names["l2"], tasks)
    return reports


def missing_mmt(outcomes: Iterable[Outcome]) -> list[str]:
    """MMT-Bench's level-2 categories that have no rows."""
    present = {outcome.l2_category for outcome in outcomes}
    return [name for name in MMT if name not in present]


def group_score(outcomes: Iterable[Outcome], members: Sequence[str]) -> tuple[Share, TaskMean]:
    """Of some categories, of either level: all their rows, and the mean of the members."""
    by_member: dict[str, list[bool]] = {name: [] for name in members}
    pooled = []
    for outcome in outcomes:
        mine = {outcome.category, outcome.l2_category} & by_member.keys()
        for name in mine:
            by_member[name].append(outcome.is_right)
        if mine:
            pooled.append(outcome.is_right)
    shares = {name: Share.of(rights) for name, rights in by_member.items()}
    return Share.of(pooled), TaskMean(shares)


def _tasks(outcomes: Iterable[Outcome]) -> dict[str, list[str]]:
    """The sub-tasks of each level-2 category."""
    tasks: dict[str, dict[str, None]] = defaultdict(dict)
    for outcome in outcomes:
        if outcome.l2_category and outcome.category:
            tasks[outcome.l2_category][outcome.category] = None
    return {name: list(members) for name, members in tasks.items()}


def _split_report(
    rows: Sequence[Outcome],
    categories: Sequence[str],
    l2_categories: Sequence[str],
    tasks: Mapping[str, Sequence[str]] | None,
) -> SplitReport:
    by_category = _shares([(row.category, row.is_right) for row in rows], categories)
    if tasks is None:
        l2 = _shares([(row.l2_category, row.is_right) for row in rows], l2_categories)
        return SplitReport(
            Share.of(row.is_right for row in rows),
            {MMBENCH.get(name, name): share for name, share in l2.items()},
            {MMBENCH.get(name, name): share for name, share in by_category.items()},
        )
    means = {
        MMT.get(name, name): TaskMean({task: by_category[task] for task in tasks.get(name, ())})
        for name in l2_categories
    }
    return SplitReport(Share.of(row.is_right for row in rows), means, by_category)


def _shares(rows: Iterable[tuple[str, bool]], names: Sequence[str]) -> dict[str, Share]:
    counts = {name: [0, 0] for name in names}
    for name, is_right in rows:
        if name:
            counts[name][0] += is_right
            counts[name][1] += 1
    return {name: Share(right, total) for name, (right, total) in counts.items()}
