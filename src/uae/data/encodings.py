"""The encodings of Unicode that a text says by its first bytes."""

from __future__ import annotations

import codecs

MARKS = (  # longest first: the mark of UTF-32 begins with that of UTF-16
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def encoding_of(beginning: bytes) -> str:
    """By the byte order mark; UTF-8 without one."""
    return next((encoding for mark, encoding in MARKS if beginning.startswith(mark)), "utf-8")
