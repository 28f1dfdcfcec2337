"""Seconds of a step by one process and by two of one thread each, and what two send.

    python benchmarks/scaling.py [--steps 6] [--repeats 3]

The quickstart's step (64 captions of 8 images) of either family, at equal work: medians over the
steps but the first, of runs that take turns. On an idle machine of two cores.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from uae.models.load import load_to_train
from uae.utils.metrics import read_metrics

RECIPES = ("tiny", "tiny-ar")


def seconds(recipe: str, number: int, num_steps: int) -> dict[str, list[float]]:
    """Of the phases of each step but the first."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command += ["--nproc_per_node", str(number), "-m", "uae", "train", recipe]
        command += ["--run-dir", folder, f"--train.num-steps={num_steps}"]
        command += ["--train.probe-every=1000", "--train.save-every=1000"]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
        lines = read_metrics(Path(folder) / "metrics.jsonl")[1:]
    phases = ("time/step", "time/rollout", "time/reward", "time/update")
    return {phase: [line[phase] for line in lines] for phase in phases}


def gradient_bytes(model_name: str) -> int:
    """That a process adds to the others' in an update."""
    model: Any = load_to_train(model_name, 0)
    model.begin_training(0, captions=True, decoding=None)
    return 4 * sum(p.numel() for p in model.encoder.named_trainable_parameters().values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    print("| recipe | phase | one process, s | two | efficiency | gradients, MB |")
    print("|---|---|---|---|---|---|")
    for recipe in RECIPES:
        runs: dict[int, list[dict[str, list[float]]]] = {1: [], 2: []}
        for _ in range(args.repeats):
            for number, measured in runs.items():
                measured.append(seconds(recipe, number, args.steps))
        size = gradient_bytes(recipe) / 1e6
        for phase in runs[1][0]:
            one, two = (
                median(value for run in runs[number] for value in run[phase]) for number in (1, 2)
            )
            name = phase.removeprefix("time/")
            print(
                f"| {recipe} | {name} | {one:.2f} | {two:.2f} | {one / two / 2:.0%} | {size:.1f} |"
            )


if __name__ == "__main__":
    main()
