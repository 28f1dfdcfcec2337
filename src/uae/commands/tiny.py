"""``uae tiny build``: the shipped models from nothing, in order; each part resumes where it was
stopped. ``uae tiny measure``: what they can do before any reinforcement learning."""

from __future__ import annotations

import tyro

from uae.commands.group import choose
from uae.utils.quiet import quiet_libraries
from uae.world.build.parts import BuildSettings, build
from uae.world.shipped import MeasureSettings, measure_shipped


def main(arguments: list[str]) -> None:
    """``uae tiny build [--only PART …] [--work DIR]`` or ``uae tiny measure [--out FILE]``"""
    command, *options = choose("tiny", arguments), *arguments[1:]
    quiet_libraries()
    run = {"build": _build, "measure": _measure}[command]
    run(options)


def _build(options: list[str]) -> None:
    build(tyro.cli(BuildSettings, args=options, prog="uae tiny build"))


def _measure(options: list[str]) -> None:
    settings = tyro.cli(MeasureSettings, args=options, prog="uae tiny measure")
    results = measure_shipped(settings)
    exact = results["codec"]["objects_exact"]["percent"]
    print(f"codec round trip: {exact:.1f} % of objects exact")
    for decoding, cases in results["decoder"].items():
        shares = "   ".join(
            f"{name} {case['objects_exact']['percent']:.1f}" for name, case in cases.items()
        )
        print(f"decoder, {decoding}, % of objects exact:   {shares}")
    right = results["questions"]["all"]["percent"]
    print(f"questions: {right:.1f} % right   numbers: {settings.out}")
