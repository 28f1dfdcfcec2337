"""``uae reconstruct``: what a model says of images and what it makes of its own words."""

from __future__ import annotations

import tyro

from uae.bench.api import Answers
from uae.bench.reconstruct import Photo, ReconstructImages
from uae.bench.run import answer_items
from uae.commands.show import load_for_photos, show_round_trips
from uae.utils.quiet import quiet_libraries


def main(arguments: list[str]) -> None:
    """``uae reconstruct PATH… [--model MODEL] [--out DIR]``"""
    quiet_libraries()
    reconstruct(tyro.cli(ReconstructImages, args=arguments, prog="uae reconstruct"))


def reconstruct(task: ReconstructImages) -> Answers[Photo]:
    """Caption and paint all images of the given paths. What is finished is reported, whatever comes
    then."""
    return answer_items(task, load_for_photos, show_round_trips)
