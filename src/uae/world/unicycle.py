"""The world's texts for ``uae bench unicycle``."""

from __future__ import annotations

from uae.world.language import exhaustive_caption
from uae.world.scene import first_scenes


def texts(number: int) -> list[str]:
    """Exhaustive captions of the first scenes that no training shows."""
    return [exhaustive_caption(scene) for scene in first_scenes("test", number)]
