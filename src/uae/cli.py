"""``uae``: the command line. Each command is a module of ``uae.commands``, imported when it is called."""

from __future__ import annotations

import importlib
import os
import sys

from uae.utils.suggest import did_you_mean

COMMANDS = {
    "quickstart": "post-train the tiny model with Unified-GRPO and compare before and after (7 minutes)",
    "train": "Unified-GRPO on the embedded world or a folder of images",
    "reconstruct": "caption images and paint the captions: source | caption | reconstruction",
    "generate": "paint prompts, into the folders that GenEval reads",
    "bench": "Unified-Bench: score a model on images, or two folders of images (uae bench unified --help)",
    "data": "write long captions for folders of images: the data of long-caption pretraining (uae data longcap --help)",
    "tiny": "rebuild the tiny models from nothing (uae tiny build --help)",
}

USAGE = """uae - unified multimodal models as auto-encoders (arXiv 2509.09666)

Understanding is the encoder (image -> caption), generation is the decoder (caption -> image), and the similarity
between an image and its reconstruction is both the reward (Unified-GRPO) and the benchmark (Unified-Bench).

usage: uae COMMAND [OPTIONS]        uae COMMAND --help

commands:
{commands}

start here:
  uae quickstart                                   before/after table and report.html, no downloads
  uae reconstruct photo.jpg                        what the tiny model makes of it
  uae train --data my_images/ --run-dir runs/mine  train on your own images
  uae bench unified --source DIR --recon DIR       score reconstructions made elsewhere
"""


def main() -> None:
    """Run the command named first; errors meant for the user are one message, without a traceback."""
    try:
        run(sys.argv[1:])
        sys.stdout.flush()
    except BrokenPipeError:  # whoever reads, `head` say, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def run(arguments: list[str]) -> None:
    """As ``main``, of given arguments."""
    if not arguments or arguments[0] in ("-h", "--help"):
        listing = "\n".join(f"  {name:<12} {text}" for name, text in COMMANDS.items())
        print(USAGE.format(commands=listing))
        return
    if arguments[0] == "--version":
        print(importlib.import_module("uae").__version__)
        return
    command = arguments[0]
    if command not in COMMANDS:
        _fail(f"unknown command {command!r}{did_you_mean(command, COMMANDS)}\nuae --help lists the commands")
    try:
        importlib.import_module(f"uae.commands.{command}").main(arguments[1:])
    except BrokenPipeError:
        raise
    except (ValueError, OSError, RuntimeError) as error:
        if os.environ.get("UAE_DEBUG"):
            raise
        _fail(f"{error}\n(UAE_DEBUG=1 shows where)")
    except KeyboardInterrupt:
        _fail("interrupted; a run resumes from its last checkpoint when started again", code=130)


def _fail(message: str, code: int = 2) -> None:
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(code)
