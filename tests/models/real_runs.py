"""What holds for a run of any real checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


def assert_resumed_is_uninterrupted(
    load: Callable[[], Any], run: Callable[[Any, Path, int], list[dict]], folder: Path
):
    """``run(model, folder, until)`` trains and returns the log: two steps equal one and, resumed,
    another."""
    whole = load()
    log = run(whole, folder / "whole", 2)
    run(load(), folder / "halves", 1)
    resumed = load()
    resumed_log = run(resumed, folder / "halves", 2)
    for name, parameter in whole.encoder.named_trainable_parameters().items():
        assert torch.equal(resumed.encoder.named_trainable_parameters()[name], parameter), name
    assert [line["reward/total"] for line in log] == [line["reward/total"] for line in resumed_log]
