"""Recipes by name, the core's and the embedded world's."""

from __future__ import annotations

from uae import catalog
from uae.stages.recipes import RECIPES, Recipe


def find_recipe(name: str) -> Recipe:
    """Those of the tiny models are built with the world, the others without it.

    Raises:
        ModuleNotFoundError: for a tiny model's where the world is not installed.
    """
    if name not in catalog.TINY:
        return RECIPES[name]
    from uae.world.recipes import RECIPES as IN_THE_WORLD

    return IN_THE_WORLD[name]
