"""What judges said, to print."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table

from uae.bench.judge.cost import Usage
from uae.bench.judge.result import Estimate, JudgeResult
from uae.bench.judge.tally import Agreement, Tally, WinRate
from uae.bench.result import Share, first_of

MOST_LINES = 5


def judge_table(result: JudgeResult) -> RenderableType:
    """Win rates, then how far judges can be trusted, then what is missing."""
    return Group(_win_rates(result), *_agreements(result), _spent(result.judged), *_missing(result))


def _win_rates(result: JudgeResult) -> Table:
    drawn = f"{len(result.images)} of {result.num_sources} images"
    columns = ("judge", "A wins", "95 %", "win", "tie", "loss", "unread", "chose the first")
    table = Table(*columns, title=f"A against B, {drawn}")
    for name, each in result.tallies.items():
        table.add_row(name, *_rate(each.win_rate), *_counts(each), _share(each.first_chosen))
    if (rate := result.pooled) is not None:
        table.add_row("all judges", *_rate(rate))
    return table


def _rate(rate: WinRate) -> tuple[str, str]:
    row = rate.to_json()
    if row["percent"] is None:
        return "-", "-"
    return f"{row['percent']:.1f}", f"{row['low']:.1f} to {row['high']:.1f}"


def _counts(each: Tally) -> tuple[str, ...]:
    shares = (each.win, each.tie, each.loss)
    return (*(str(share.right) for share in shares), str(each.unread))


def _share(share: Share) -> str:
    return "-" if share.percent is None else f"{share.percent:.1f}"


def _agreements(result: JudgeResult) -> list[Table]:
    rows = {f"{one} / {other}": each for (one, other), each in result.agreements.items()}
    rows |= {f"{name} / exact": each for name, each in result.calibration.items()}
    if not rows:
        return []
    table = Table("agreement", "%", "95 %", "kappa", "images")
    for name, each in rows.items():
        table.add_row(name, *_agreement(each))
    return [table]


def _agreement(each: Agreement) -> tuple[str, ...]:
    kappa = "-" if each.kappa is None else f"{each.kappa:.2f}"
    low, high = each.same.interval or (None, None)
    interval = "-" if low is None else f"{low:.1f} to {high:.1f}"
    return _share(each.same), interval, kappa, str(each.same.total)


def _spent(judged: list) -> Table:
    return usage_table("counted", {each.judge.name: each.usage for each in judged})


def estimate_table(estimate: Estimate) -> RenderableType:
    """What is still to be asked."""
    table = usage_table("estimate", estimate.usages)
    table.caption = "nothing was asked; replies that are kept already cost nothing"
    return Group(
        table, *_first_lines([f"left out: {n}: {w}" for n, w in estimate.left_out.items()])
    )


def usage_table(title: str, usages: dict[str, Usage]) -> Table:
    """Requests, tokens and money of each judge."""
    table = Table(title, "requests", "tokens in", "out", "cost")
    for name, usage in usages.items():
        tokens = f"{usage.tokens_in:,}", f"{usage.tokens_out:,}"
        cost = "no price" if usage.cost is None else f"{usage.cost:,.2f}"
        table.add_row(name, f"{usage.requests:,}", *tokens, cost)
    return table


def _missing(result: JudgeResult) -> list[str]:
    left_out = [f"left out: {name}: {why}" for name, why in result.left_out.items()]
    unread = [
        f"unread: {judge}: {name}: {why}"
        for judge, problems in result.unread.items()
        for name, why in problems.items()
    ]
    return [*_first_lines(left_out), *_first_lines(unread), *_first_lines(result.remarks)]


def _first_lines(lines: list[str]) -> list[str]:
    return first_of(lines, "… and {} more, in the result file", MOST_LINES)
