"""What a user names by MODULE:NAME."""

from __future__ import annotations

import importlib
from typing import Any


def import_named(path: str, what: str) -> Any:
    """The object at ``MODULE:NAME``, of a module that Python finds (the working directory is on its
    path under ``python -m``, else set PYTHONPATH). what: how errors call it.

    Raises:
        ValueError: when there is none, or it cannot be called.
    """
    module, _, name = path.partition(":")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"{what} {path}: expected an importable MODULE:NAME, got {error}; is its folder in "
            "PYTHONPATH?"
        ) from error
    if not callable(found):
        raise ValueError(f"{what} {path}: expected something to call, got {type(found).__name__}")
    return found
