"""A stage: one training, which takes a model and leaves another.

Recipes are lists of stages (``recipes.py``); what runs them knows this protocol alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable


@dataclass(frozen=True)
class UserData:
    """What a user gives all stages of a run, beside their settings."""

    run_dir: Path
    """The run's folder."""
    captions: tuple[str, ...] = ()
    """Captioned images: parquet files, WebDataset tars, or folders."""
    images: tuple[str, ...] = ()
    """Image files or folders."""
    seed: int | None = None
    """Of reinforcement learning and cold start; None leaves theirs."""


@dataclass(frozen=True)
class Assignment:
    """One stage's work: from which model, and where."""

    source: str
    """The model that it takes, as ``load_model`` does."""
    folder: Path
    """Where it is trained, and where it leaves ``model``."""
    recorded_source: str
    """What the run's record calls the source: the same wherever the run lies."""
    is_self_contained: bool = False
    """Save the base's weights beside adapters."""


@runtime_checkable
class Stage(Protocol):
    """One training with its settings."""

    @property
    def settings(self) -> Any:
        """A frozen dataclass with a field ``data``: what the command line offers, and what is
        recorded."""
        ...

    def given(self, user: UserData) -> Stage:
        """The same stage, on the user's data."""
        ...

    def check(self) -> None:
        """Whatever can fail before any work.

        Raises:
            ValueError: naming what is missing or cannot be meant.
        """
        ...

    def run(self, work: Assignment) -> None:
        """Train, or go on where it was stopped, and leave ``work.folder / "model"``."""
        ...
