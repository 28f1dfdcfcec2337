"""``uae data longcap``: long captions for folders of images, as parquet shards."""

from __future__ import annotations

import tyro

from uae.commands.group import choose
from uae.data.longcap.run import LongCapConfig, caption_folders


def main(arguments: list[str]) -> None:
    """``uae data longcap FOLDER… --out DIR (--endpoint URL --model NAME | --local MODEL)``"""
    choose("data", arguments)
    config = tyro.cli(LongCapConfig, args=arguments[1:], prog="uae data longcap")
    if caption_folders(config):
        raise SystemExit(3)
