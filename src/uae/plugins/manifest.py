"""What lmms-eval's entry point loads: it names our class and imports no model."""

from __future__ import annotations

from typing import Any


def manifest() -> Any:
    """The model ``uae``, for lmms-eval's registry."""
    from lmms_eval.models.registry_v2 import (  # pyright: ignore[reportMissingImports]
        ModelManifest,
    )

    return ModelManifest(model_id="uae", chat_class_path="uae.plugins.lmms_eval.UaeModel")
