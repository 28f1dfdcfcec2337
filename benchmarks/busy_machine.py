"""How OpenMP's threads should wait for each other, on a machine that is quiet and on one that is
busy.

    python benchmarks/busy_machine.py   # 5 settings, each quiet and beside 1 and 2 others: 6 min

A step: 64 captions of 8 images by the tiny UMM-1 with random weights, drawn, scored and learnt
from, on two threads. A busy process counts in a Python loop. Each cell is the median of up to 5
steps in a fresh process, since OpenMP reads its settings once; a cell that has no step done after
30 seconds says so.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, contextmanager
from queue import Empty, Queue

SETTINGS = {
    "GNU's own (spins 300,000 times)": {},
    "GOMP_SPINCOUNT=100000": {"GOMP_SPINCOUNT": "100000"},
    "GOMP_SPINCOUNT=10000": {"GOMP_SPINCOUNT": "10000"},
    "GOMP_SPINCOUNT=1000": {"GOMP_SPINCOUNT": "1000"},
    "OMP_WAIT_POLICY=passive": {"OMP_WAIT_POLICY": "passive"},
}
READ_BY_OPENMP = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "KMP_BLOCKTIME", "OMP_NUM_THREADS")
NEIGHBOURS = (0, 1, 2)
NUM_STEPS, CELL_SEC = 5, 30.0
BUSY = "while True: pass"


def main() -> None:
    """Print a Markdown table of seconds."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=NUM_STEPS)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--step-here", action="store_true", help=argparse.SUPPRESS
    )  # in the process that is measured
    args = parser.parse_args()
    if args.step_here:
        take_steps(args.steps, args.threads)
        return
    print("| | quiet | beside one busy process | beside two |\n|---|---|---|---|", flush=True)
    for name, variables in SETTINGS.items():
        cells = [
            cell(seconds(variables, number, args.steps, args.threads)) for number in NEIGHBOURS
        ]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


def seconds(variables: dict[str, str], num_busy: int, steps: int, threads: int) -> list[float]:
    """Of each step that a fresh process took in the time of a cell."""
    environment = {
        name: value for name, value in os.environ.items() if name not in READ_BY_OPENMP
    } | variables
    command = [
        sys.executable,
        __file__,
        "--step-here",
        "--steps",
        str(steps),
        "--threads",
        str(threads),
    ]
    with ExitStack() as stack:
        lines = stack.enter_context(reading(command, environment))
        assert lines.get(timeout=300) == "ready"
        for _ in range(num_busy):
            stack.enter_context(running([sys.executable, "-c", BUSY]))
        found, end = [], time.monotonic() + CELL_SEC
        while len(found) < steps and (left := end - time.monotonic()) > 0:
            try:
                found.append(float(lines.get(timeout=left)))
            except Empty:
                break
        return found


@contextmanager
def running(command: list[str], **options):
    """A process that ends with the context."""
    process = subprocess.Popen(command, **options)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@contextmanager
def reading(command: list[str], environment: dict[str, str]):
    """The lines of a process, as they come."""
    lines: Queue[str] = Queue()
    with running(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        reader = threading.Thread(
            target=lambda: [lines.put(line.strip()) for line in process.stdout], daemon=True
        )
        reader.start()
        yield lines


def cell(found: list[float]) -> str:
    return f"{statistics.median(found):.2f}" if found else f"> {CELL_SEC:.0f}"


def take_steps(num_steps: int, threads: int) -> None:
    """Say that all is loaded, then the seconds of each step."""
    import torch  # before uae, which would choose how to wait

    from uae.config import CaptionSettings
    from uae.world.models import build_captioner
    from uae.world.scene import render_batch, scene_at

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    captioner = build_captioner()
    captioner.eval()
    captioner.end_ids = []  # every caption to its cap
    captioner.learn(0)
    optimizer = torch.optim.AdamW(captioner.named_trainable_parameters().values(), lr=1e-5)
    images = torch.from_numpy(render_batch([scene_at("train", i) for i in range(8)]))

    def step(num_images: int) -> None:
        rollout = captioner.caption(
            images[:num_images], CaptionSettings(max_new_tokens=32), group_size=8
        ).rollout
        evaluation = captioner.evaluate(rollout, with_kl=True)
        (evaluation.kl.mean() - evaluation.log_probs.mean()).backward()
        optimizer.step()
        optimizer.zero_grad()

    step(1)
    print("ready", flush=True)
    for _ in range(num_steps):
        began = time.monotonic()
        step(8)
        print(time.monotonic() - began, flush=True)


if __name__ == "__main__":
    main()
