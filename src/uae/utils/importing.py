"""What a user names by MODULE:NAME, and libraries that may be missing."""

from __future__ import annotations

import importlib
from importlib.util import find_spec
from typing import Any


def import_named(path: str, role: str) -> Any:
    """The object at ``MODULE:NAME``, of a module that Python finds (the working directory is on its
    path under ``python -m``, else set PYTHONPATH). role: how errors call it.

    Raises:
        ValueError: when there is none, or it cannot be called.
    """
    module, _, name = path.partition(":")
    try:
        value = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"{role} {path}: expected an importable MODULE:NAME, got {error}; is its folder in "
            "PYTHONPATH?"
        ) from error
    if not callable(value):
        raise ValueError(f"{role} {path}: expected something to call, got {type(value).__name__}")
    return value


def require_library(library: str, extra: str = "data") -> None:
    """A ValueError that says what to do when an optional library is missing."""
    if find_spec(library) is None:
        raise ValueError(
            f"this needs the library {library!r}: pip install 'unified-autoencoder[{extra}]'"
        )
