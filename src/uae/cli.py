"""``uae``: the command line. Each command is a module of ``uae.commands``, imported when it is
called."""

from __future__ import annotations

import importlib
import io
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from uae.commands.group import CHOICES
from uae.utils.failures import failure_of
from uae.utils.progress import show_phases
from uae.utils.quiet import plain_warnings
from uae.utils.suggest import did_you_mean

COMMANDS = {
    "quickstart": "post-train a tiny model with Unified-GRPO, compare before and after (7 minutes)",
    "train": "a recipe, on the embedded world or your own images (uae train --help lists them)",
    "reconstruct": "caption images and paint the captions: source | caption | reconstruction",
    "generate": "paint prompts, into the folders that GenEval reads",
    "export": "merge a trained model's adapters into its weights, and say what survives",
    "bench": "benchmarks: score a model, or images made elsewhere (uae bench lists them)",
    "data": "long captions for folders of images, to pretrain on (uae data longcap --help)",
    "tiny": "rebuild the tiny models from nothing (uae tiny build --help)",
}

USAGE = """uae - unified multimodal models as auto-encoders (arXiv 2509.09666)

Understanding is the encoder (image -> caption), generation is the decoder (caption -> image), and
the similarity between an image and its reconstruction is both the reward (Unified-GRPO) and the
benchmark (Unified-Bench).

usage: uae COMMAND [OPTIONS]        uae COMMAND --help

commands:
{commands}

start here:
  uae quickstart                                   before/after table and report.html, no downloads
  uae reconstruct photo.jpg                        what the tiny model makes of it
  uae train --data my_images/ --run-dir runs/mine  train on your own images
  uae bench unified --source DIR --recon DIR       score reconstructions made elsewhere
"""
OF_SEVERAL_PROCESSES = ("train", "reconstruct", "generate", "bench", "data")
AFTER_A_STOP = (
    "what is finished stays, and a run resumes when started again (a quickstart by --resume)"
)


class Terminated(KeyboardInterrupt):
    """SIGTERM, which ends a command as Ctrl-C does: what is open is closed first."""


def main() -> None:
    """Run the command named first; whatever goes wrong is one message, without a traceback."""
    before = signal.signal(signal.SIGTERM, _terminate)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # names that the terminal cannot show are no error
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        run(sys.argv[1:])
        sys.stdout.flush()
    except BrokenPipeError:  # whoever reads, `head` say, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except Terminated:
        _say_error(f"terminated; {AFTER_A_STOP}")
        os.kill(os.getpid(), signal.SIGTERM)  # whoever sent it sees that it was heeded
    finally:
        signal.signal(signal.SIGTERM, before)


def run(arguments: list[str]) -> None:
    """As ``main``, of given arguments."""
    if not arguments or arguments[0] in ("-h", "--help"):
        listing = "\n".join(f"  {name:<12} {text}" for name, text in COMMANDS.items())
        print(USAGE.format(commands=listing))
        return
    if arguments[0] == "--version":
        print(importlib.import_module("uae").__version__)
        return
    command, *options = arguments
    if command not in COMMANDS:
        _fail(
            f"unknown command {command!r}{did_you_mean(command, COMMANDS)}\nuae --help lists the "
            "commands"
        )
    _check_name(command, options)
    try:
        with together(command), plain_warnings(), show_phases():
            importlib.import_module(f"uae.commands.{command}").main(options)
    except (BrokenPipeError, Terminated):
        raise
    except KeyboardInterrupt:
        _fail(f"interrupted; {AFTER_A_STOP}", code=130)
    except Exception as error:
        if os.environ.get("UAE_DEBUG"):
            raise
        _fail(*failure_of(error, command))


@contextmanager
def together(command: str) -> Iterator[None]:
    """Where a launcher started several processes of this command, they meet first, and part when
    all have ended. What stops one stops all."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    if command not in OF_SEVERAL_PROCESSES:
        raise ValueError(
            f"uae {command} is one process, got WORLD_SIZE {os.environ['WORLD_SIZE']}; start it "
            f"without torchrun ({', '.join(OF_SEVERAL_PROCESSES)} may be several)"
        )
    processes = importlib.import_module("uae.utils.processes")
    processes.join()
    with processes.speaking_once():
        try:
            yield
        except BaseException as error:
            if not isinstance(error, Terminated):
                # the launcher ends all where one has ended; what is to be said is said first
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
            raise _told(error, command, processes) from error
    processes.leave()


def _told(error: BaseException, command: str, processes: Any) -> BaseException:
    """What this process raises for the error, which the others have been told of: of all of them
    one prints it."""
    if isinstance(error, Terminated):  # a launcher does that where another process died
        outage = processes.find_outage()
        error = processes.PeerLost(outage) if outage else error
    if isinstance(error, SystemExit):  # --help, or options that all read alike
        return error
    speaker = 0
    if isinstance(error, processes.PeerLost):
        speaker = error.speaker  # type: ignore[attr-defined]
    else:
        is_stop = isinstance(error, KeyboardInterrupt)
        said = "stopped" if is_stop else failure_of(error, command).message.splitlines()[0]
        processes.tell_failure(said)
    return error if processes.process_rank() == speaker else SystemExit(2)


def _check_name(command: str, options: list[str]) -> None:
    """List what the command goes on with, or name the nearest, before its module loads torch."""
    try:
        if command in CHOICES:
            CHOICES[command](options)
    except ValueError as error:
        _fail(str(error))


def _terminate(number: int, frame: Any) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a second one does not wait
    raise Terminated


def _fail(message: str, code: int = 2) -> NoReturn:
    _say_error(message)
    raise SystemExit(code)


def _say_error(message: str) -> None:
    """In one write, so that nothing another process says at that moment stands within it."""
    sys.stderr.write(f"error: {message}\n")
    sys.stderr.flush()
