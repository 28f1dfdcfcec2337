"""What a command says when it fails: who can mend it, and how."""

from __future__ import annotations

import json
import os
import struct
import zipfile
from pathlib import Path

import pytest
import torch
from jinja2 import TemplateSyntaxError
from PIL import Image
from safetensors import SafetensorError

from uae.rewards.base import RewardError
from uae.utils.failures import failure_of

HINT = "\n(UAE_DEBUG=1 shows where)"


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ValueError("expected a folder, got nothing"), "expected a folder, got nothing"),
        (
            FileNotFoundError(2, "No such file or directory", "a.png"),
            "[Errno 2] No such file or directory: 'a.png'",
        ),
        (
            UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
            "'utf-8' codec can't decode byte 0xff in position 0: invalid start byte",
        ),
        (
            json.JSONDecodeError("Expecting value", "", 0),
            "Expecting value: line 1 column 1 (char 0)",
        ),
        (RewardError("reward clip raised KeyError: 'a'"), "reward clip raised KeyError: 'a'"),
        (SafetensorError("header too large"), "SafetensorError: header too large"),
        (zipfile.BadZipFile("File is not a zip file"), "BadZipFile: File is not a zip file"),
        (struct.error("unpack requires 4 bytes"), "error: unpack requires 4 bytes"),
        (TemplateSyntaxError("unexpected '}'", 1), "TemplateSyntaxError: unexpected '}'\n  line 1"),
        (
            Image.DecompressionBombError("too many pixels"),
            "DecompressionBombError: too many pixels",
        ),
        (TimeoutError(), "TimeoutError"),
        (
            ExceptionGroup("tasks", [ExceptionGroup("more", [ValueError("no key")]), OSError()]),
            "no key",
        ),
    ],
)
def test_what_comes_from_outside_is_its_own_message(error: Exception, message: str):
    assert failure_of(error, "train") == (message + HINT, 2)


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (
            ModuleNotFoundError("No module named 'datasets'", name="datasets"),
            "'unified-autoencoder[data]'",
        ),
        (
            ModuleNotFoundError("No module named 'rapidocr'", name="rapidocr.main"),
            "'unified-autoencoder[ocr]'",
        ),
        (ModuleNotFoundError("No module named 'flash_attn'", name="flash_attn"), "flash_attn"),
    ],
)
def test_a_missing_package_is_named_with_how_to_get_it(error: ImportError, advice: str):
    assert failure_of(error, "data") == (f"{error}\npip install {advice}{HINT}", 2)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory"
        ),
    ],
)
@pytest.mark.parametrize(
    ("command", "option"),
    [
        ("train", "--train.micro-batch"),
        ("reconstruct", "--batch-size"),
        ("generate", "--images-per-prompt"),
        ("bench", "--batch-size"),
    ],
)
def test_out_of_memory_names_the_options_to_lower(error: Exception, command: str, option: str):
    message, code = failure_of(error, command)
    assert (
        code == 2 and message.startswith("out of memory: ") and option in message.splitlines()[-1]
    )


@pytest.mark.parametrize(
    "error",
    [
        KeyError("family"),
        TypeError("'NoneType' object is not iterable"),
        AssertionError(),
        IndexError("out of range"),
        RecursionError("maximum recursion depth exceeded"),
        RuntimeError("shapes cannot be multiplied"),
        AttributeError("no attribute"),
        ImportError("cannot import name", name="uae.models"),
        Exception("no variant"),
    ],
)
def test_what_was_not_foreseen_keeps_its_traceback(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    try:
        raise error
    except Exception as raised:
        message, code = failure_of(raised, "train")
    (file,) = tmp_path.iterdir()
    assert code == 1
    assert message.splitlines()[0].startswith(type(error).__name__)
    assert (
        message.splitlines()[1]
        == "This was not foreseen: a mistake in uae, or a file that is broken."
    )
    assert message.splitlines()[2] == f"Where it happened: {file} (UAE_DEBUG=1 shows it here)"
    report = file.read_text()
    assert "test_failures.py" in report and report.strip().splitlines()[-1].startswith(
        type(error).__name__
    )


def test_without_room_for_a_traceback_the_message_stays(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tempfile.tempdir", os.devnull)  # no folder
    message, code = failure_of(KeyError("family"), "train")
    assert code == 1 and message.endswith("a file that is broken.\n(UAE_DEBUG=1 shows where)")


def test_an_error_of_another_process_is_its_last_line():
    quoted = (
        "\n\n-- Process 1 terminated with the following error:\nTraceback (most recent call "
        "last):\n  …\nKeyError: 3"
    )
    assert failure_of(Exception(quoted), "tiny").message.splitlines()[0] == "Exception: KeyError: 3"
