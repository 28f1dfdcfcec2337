"""The front page does what it says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from uae import catalog
from uae.cli import COMMANDS

PAGE = (Path(__file__).parents[1] / "README.md").read_text()


@pytest.mark.slow
def test_the_idea_in_code_runs():
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    torch.manual_seed(0)
    values: dict[str, Any] = {}
    exec(code, values)
    assert values["rewards"].shape == (4, 8, 1) and 0 < values["rewards"].mean() < 1
    assert abs(values["loss"].item()) < 1e-5  # advantages of a group sum to nothing
    gradients = [p.grad for p in values["policy"].named_trainable_parameters().values()]
    assert all(torch.isfinite(g).all() for g in gradients) and any(g.any() for g in gradients)


def test_commands_that_it_names_exist():
    for command, name in re.findall(r"^uae (\w+) ?([\w-]*)", PAGE, re.MULTILINE):
        assert command in COMMANDS
        assert command != "train" or name in catalog.RECIPES
