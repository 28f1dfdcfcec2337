"""Parts of messages: whatever a file is called and a library says, on one line."""

from __future__ import annotations

import unicodedata
from pathlib import Path

ODD = ("Cc", "Cs", "Zl", "Zp")  # Unicode's categories of what is no text on one line


def printable(name: str | Path) -> str:
    """A name on one line: control characters and bytes that are no UTF-8 are escaped."""
    return "".join(ascii(c)[1:-1] if unicodedata.category(c) in ODD else c for c in str(name))


def one_line(error: Exception) -> str:
    """All that it says, or its class where it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__


def first_line(error: BaseException) -> str:
    """What it says first, or its class where it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
