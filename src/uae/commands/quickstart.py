"""``uae quickstart``: the whole idea in one command, on a shipped tiny model."""

from __future__ import annotations

import tyro
from rich.console import Console

from uae.report.run_page import BY_TAG, breakdown_table, breakdowns, results_table
from uae.utils.quiet import quiet_libraries
from uae.world.quickstart import QuickstartSettings, quickstart, reward_backbones


def main(arguments: list[str]) -> None:
    """``uae quickstart [--family umm2] [--out DIR] [--seed N]``"""
    quiet_libraries()
    settings = tyro.cli(QuickstartSettings, args=arguments, prog="uae quickstart")
    results = quickstart(settings, command=" ".join(["uae quickstart", *arguments]))
    console, config = Console(), settings.run()
    console.print(results_table(results, reward_backbones(config), settings.lead))
    for breakdown in breakdowns(results):
        if config.prompts is not None and breakdown.title == BY_TAG:
            console.print(breakdown_table(breakdown))
    out = settings.folder
    print(
        f"report: {out / 'report.html'}   numbers: {out / 'results.json'}   model: {out / 'model'}"
    )
