"""What a command says when it fails: one message, whatever was raised, and an exit code.

Code 2: the user, a file or the machine, and the message says what to do. Code 1: nothing that was
foreseen. That is a mistake in ``uae`` or a file that is broken in a way it does not know, and the
traceback is kept for a report.
"""

from __future__ import annotations

import os
import sys
import tempfile
import traceback
from typing import NamedTuple

EXTRAS = {
    "datasets": "data",
    "openai": "data",
    "onnxruntime": "ocr",
    "rapidocr": "ocr",
    "tensorboard": "track",
    "vllm": "vllm",
}
READERS = (
    "PIL",
    "_lzma",
    "_pickle",
    "jinja2",
    "lzma",
    "pickle",
    "pyarrow",
    "safetensors",
    "safetensors_rust",
    "struct",
    "tarfile",
    "zipfile",
    "zlib",
)
"""Packages whose own exceptions tell of a file that is broken."""
LESS_MEMORY = {
    "train": (
        "lower --train.micro-batch and --train.decoding.micro-batch (in a pipeline "
        "--STAGE.train.…), which change no result, or --train.group-size, "
        "--train.captioning.max-new-tokens or --lora-rank"
    ),
    "reconstruct": "lower --batch-size or --decoding.micro-batch",
    "generate": "lower --decoding.micro-batch or --images-per-prompt",
    "bench": (
        "lower --batch-size, --answerer.batch-size or --decoding.micro-batch, or give --device "
        "cpu, whichever the benchmark has"
    ),
}
WORLD = "uae.world"  # can be left out of an installation
OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "failed to allocate")


class Failure(NamedTuple):
    """What to print, and the code to exit with."""

    message: str
    code: int


def failure_of(error: BaseException, command: str) -> Failure:
    """The failure that this exception of ``uae COMMAND`` is to the user."""
    while isinstance(error, BaseExceptionGroup):  # of tasks that ran at once: one tells enough
        error = error.exceptions[0]
    if _is_out_of_memory(error):
        advice = LESS_MEMORY.get(command, "close other programs, or take a smaller model")
        return Failure(f"out of memory: {_text(error)}\n{advice}", 2)
    if isinstance(error, ImportError) and (error.name or "").startswith(WORLD):
        return Failure(
            f"expected the embedded world of the tiny models, the package {WORLD}, which this "
            "installation lacks; install unified-autoencoder whole",
            2,
        )
    if isinstance(error, ImportError) and not (error.name or "").startswith("uae"):
        return Failure(_missing_package(error), 2)
    if _is_from_outside(error):
        return Failure(f"{_text(error)}\n(UAE_DEBUG=1 shows where)", 2)
    unforeseen = "This was not foreseen: a mistake in uae, or a file that is broken."
    return Failure(f"{_with_class(error)}\n{unforeseen}{_keep_traceback(error)}", 1)


def _is_from_outside(error: BaseException) -> bool:
    """Raised with the user in mind, by the system, or by a package that reads files."""
    if isinstance(error, ValueError | OSError):
        return True
    module = type(error).__module__
    return module.startswith("uae.") or module.partition(".")[0] in READERS


def _is_out_of_memory(error: BaseException) -> bool:
    by_torch = isinstance(error, RuntimeError) and any(
        words in str(error).lower() for words in OUT_OF_MEMORY
    )
    return isinstance(error, MemoryError) or by_torch


def _missing_package(error: ImportError) -> str:
    package = (error.name or "").partition(".")[0]
    requirement = f"'unified-autoencoder[{EXTRAS[package]}]'" if package in EXTRAS else package
    is_missing = isinstance(error, ModuleNotFoundError) and package
    advice = f"\npip install {requirement}" if is_missing else ""
    return f"{_text(error)}{advice}\n(UAE_DEBUG=1 shows where)"


def _text(error: BaseException) -> str:
    """Its message, where that is written for people."""
    is_for_people = isinstance(error, ValueError | OSError | RuntimeError | ImportError)
    message = _message(error)
    return message if is_for_people and message else _with_class(error)


def _with_class(error: BaseException) -> str:
    return ": ".join(part for part in (type(error).__name__, _message(error)) if part)


def _message(error: BaseException) -> str:
    """Its message; of one that quotes another process's traceback, the last line, which says what
    happened."""
    text = str(error).strip()
    return text.splitlines()[-1] if "Traceback (most recent call last)" in text else text


def _keep_traceback(error: BaseException) -> str:
    """Write it to a file, and say where that is."""
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="uae-", suffix=".txt", delete=False, encoding="utf-8"
        ) as file:
            print(" ".join(["uae", *sys.argv[1:]]), file=file)
            traceback.print_exception(error, file=file)
    except OSError:
        return "\n(UAE_DEBUG=1 shows where)"
    return f"\nWhere it happened: {os.path.normpath(file.name)} (UAE_DEBUG=1 shows it here)"
