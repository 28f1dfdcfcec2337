"""The curves of docs/results.md: one chart per stage of a pipeline, one line per run (seed), as an
SVG.

    python benchmarks/curves.py docs/curves/v3-tiny.svg runs/v3-tiny-seed*

Faint: as logged; strong: the running mean. RL stages show their mean reward, the others their loss.
"""

from __future__ import annotations

import argparse
from html import escape
from pathlib import Path

from uae.report.charts import Chart, make_chart
from uae.utils.metrics import read_metrics

COLORS = ("#2563eb", "#d97706", "#059669", "#9333ea")
KEY_HEIGHT, COLUMNS = 24, 2


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, help="SVG to write")
    parser.add_argument(
        "runs", type=Path, nargs="+", help="folders that `uae train PIPELINE` wrote"
    )
    args = parser.parse_args()
    charts = [stage_chart(name, args.runs) for name in stage_names(args.runs)]
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(svg(charts), encoding="utf-8")


def stage_names(runs: list[Path]) -> list[str]:
    """Folders of the runs' stages, in order."""
    names = sorted({path.parent.name for run in runs for path in run.glob("*/metrics.jsonl")})
    if not names:
        raise SystemExit(
            "expected runs of `uae train PIPELINE`, no */metrics.jsonl in "
            f"{', '.join(map(str, runs))}"
        )
    return names


def stage_chart(stage: str, runs: list[Path]) -> Chart:
    """Mean reward of an RL stage, the loss of another, one line per run."""
    files = {run.name: run / stage / "metrics.jsonl" for run in runs}
    logged = {name: read_metrics(file) for name, file in files.items() if file.exists()}
    key = (
        "reward/total"
        if any("reward/total" in row for rows in logged.values() for row in rows)
        else "loss"
    )
    lines = {
        name: [(row["step"], row[key]) for row in rows if key in row]
        for name, rows in logged.items()
    }
    chart = make_chart(
        f"{stage.partition('_')[2].replace('_', ' ')}: {key.replace('/total', '')}", lines
    )
    if chart is None:
        raise SystemExit(f"expected {key} in metrics.jsonl of {stage}, found none that is finite")
    return chart


def svg(charts: list[Chart]) -> str:
    """Charts side by side, on white."""
    wide, high = charts[0].width, charts[0].height + KEY_HEIGHT
    columns = min(COLUMNS, len(charts))
    width, height = columns * wide, -(-len(charts) // columns) * high
    drawn = [
        f'<g transform="translate({i % columns * wide},{i // columns * high + KEY_HEIGHT})">'
        f"{draw(chart)}</g>"
        for i, chart in enumerate(charts)
    ]
    box = f'width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {box} font-family="sans-serif" font-size="10">'
    return "\n".join(
        [head, f'<rect width="{width}" height="{height}" fill="#fff"/>', *drawn, "</svg>\n"]
    )


def draw(chart: Chart) -> str:
    """Title, grid, ticks and lines of one chart."""
    parts = [
        f'<text x="{chart.left}" y="-8" font-size="12" font-weight="bold">'
        f"{escape(chart.title)}</text>"
    ]
    for y, label in chart.y_ticks:
        parts.append(
            f'<line x1="{chart.left}" x2="{chart.right}" y1="{y}" y2="{y}" stroke="#e5e7eb"/>'
        )
        parts.append(
            f'<text x="{chart.left - 6}" y="{y + 3}" text-anchor="end" fill="#555">{label}</text>'
        )
    for x, label in chart.x_ticks:
        parts.append(
            f'<text x="{x}" y="{chart.bottom + 15}" text-anchor="middle" fill="#555">{label}</text>'
        )
    for line, color in zip(chart.lines, COLORS * len(chart.lines), strict=False):
        for points, how in (
            (line.raw, 'stroke-opacity="0.25"'),
            (line.smooth, 'stroke-width="1.6"'),
        ):
            parts.append(f'<polyline points="{points}" fill="none" stroke="{color}" {how}/>')
    return "".join(parts)


if __name__ == "__main__":
    main()
