"""What every command does, recorded, so that two versions of the code can be held against each
other bit for bit.

    python benchmarks/behaviour.py record ROOT before   # in the old checkout: half an hour
    python benchmarks/behaviour.py record ROOT after           # in the new one
    python benchmarks/behaviour.py record ROOT across --begun before
    python benchmarks/behaviour.py compare ROOT before after

Each case is a few commands in a folder of its own, always at the same path, one thread each.
`across` takes runs that `before` had begun and was stopped in, and goes on with them. What may
differ between two identical runs (seconds, versions of libraries, the time left) is left out of the
record.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open

REPOSITORY = Path(__file__).parents[1]
CODE = "from uae.cli import main; main()"
VOLATILE = re.compile(
    r"time/|^seconds$|^versions$|^command$|^platform$|^captioned_at$|^sha256$|^rng$"
)
MOST_SHOWN = 4
CHECKOUT = re.compile(r"[\w/.-]*/src/uae/")
CHANGING_LINE = re.compile(r"s/step|ETA|\d+m\d\ds$|\d+ s\b|it/s|took|%\|")
REAL = "inputs/qwen+inputs/sd3"
SMALL = (
    "--train.num-steps 3 --train.images-per-step 2 --train.group-size 2 "
    "--train.captioning.max-new-tokens 6 --train.save-every 1 --train.probe-every 2"
)
PAIR = "--train.reconstructions-per-caption 2"
COLD_SIZE = "--decoding.height 64 --decoding.width 64"
SIZE = "--train.decoding.height 64 --train.decoding.width 64"
TINY_STEPS = "--train.decoding.num-steps 3"


def stage(name: str, options: str) -> str:
    """Options of a pipeline's stage, written as those of a run."""
    return options.replace("--", f"--{name}.")


RL_STAGES = {
    name: stage(name, f"{SMALL} {TINY_STEPS}")
    for name in (
        "generation-for-understanding",
        "understanding-for-generation",
        "unified-grpo",
        "joint",
    )
}
LONG = stage("long-captions", "--num-steps 4 --batch-size 2 --pool-size 8 --num-held-out 2")
COLD = stage("cold-start", "--num-steps 2 --images-per-step 2 --captioning.max-new-tokens 6")
REAL_RL = f"{SMALL} {TINY_STEPS} {SIZE} --rewards ssim 1"
REAL_V1 = (
    f"train v1 --model {REAL} --captions inputs/pairs --data inputs/photos --run-dir run {LONG} "
    f"{COLD} {stage('long-captions', '--resolution 64 --lora-rank 2')} "
    f"{stage('cold-start', '--rewards ssim 1 --decoding.num-steps 2 ' + COLD_SIZE)} "
    f"{stage('generation-for-understanding', REAL_RL + ' --lora-rank 2')} "
    f"{stage('understanding-for-generation', REAL_RL + ' --lora-rank 2 ' + PAIR)} "
    "--understanding-for-generation.train.group-size 1 "
    "--understanding-for-generation.train.decoding.window-size 1"
)


@dataclass(frozen=True)
class Case:
    """Commands in turn. With ``stop_at``, the first is terminated once a file of this pattern is
    there, and given again as ``again``, by default as it was."""

    commands: tuple[str, ...]
    stop_at: str = ""
    again: str = ""


CASES = {
    "quickstart": Case(("quickstart",)),
    "quickstart_ar": Case(("quickstart --family ar --out quickstart",)),
    "quickstart_prompted": Case(("quickstart --control prompted --num-steps 2",)),
    "quickstart_supervised": Case(
        ("quickstart --control supervised --num-steps 2 --half captions",)
    ),
    "quickstart_images": Case(("quickstart --num-steps 2 --half images",)),
    "quickstart_resumed": Case(
        ("quickstart --num-steps 24",),
        stop_at="quickstart/run/checkpoints/step_*10",
        again="quickstart --num-steps 24 --resume",
    ),
    "train_tiny": Case(
        (
            (
                f"train tiny --run-dir run {SMALL} {TINY_STEPS} --train.ema-decay 0.9 "
                "--train.ema-every 1"
            ),
        )
    ),
    "train_tiny_lora": Case(
        (
            (
                f"train tiny --run-dir run {SMALL} {TINY_STEPS} --lora-rank 4 --data inputs/photos "
                "--train.num-updates 2"
            ),
            "export run/model merged --dtype fp32",
            "export run/model small",
            "reconstruct inputs/photos --model run/model --out painted",
            (
                f"train tiny --run-dir second {SMALL} {TINY_STEPS} --lora-rank 4 --model run/model "
                "--data inputs/photos"
            ),
        )
    ),
    "train_tiny_sde": Case(
        (
            (
                f"train tiny --run-dir run {SMALL} {TINY_STEPS} --train.decoding.sampler sde "
                "--train.decoding.window-size 2 --train.reconstructions-per-caption 2 "
                "--train.caption-weight 0 --train.group-size 1 --rewards caption_likelihood 1 "
                "objects 0.5 clip 0 --lora-rank 4"
            ),
            (
                f"train tiny --run-dir cps {SMALL} {TINY_STEPS} --train.decoding.sampler cps "
                "--text-encoder reference --train.decoder-learning-rate 1e-4 "
                "--train.reconstructions-per-caption 2"
            ),
        )
    ),
    "train_tiny_ar": Case((f"train tiny-ar --run-dir run {SMALL}",)),
    "train_tiny_ar_lora": Case(
        (f"train tiny-ar --run-dir run {SMALL} --lora-rank 4 --train.decoding.guidance-scale 2",)
    ),
    "train_resumed": Case(
        (f"train tiny --run-dir run {SMALL} {TINY_STEPS} --train.num-steps 30",),
        stop_at="run/checkpoints/step_*05",
    ),
    "train_longer": Case(
        tuple(
            (
                f"train tiny --run-dir run {SMALL} {TINY_STEPS} --train.lr-scheduler-type constant "
                f"--train.num-steps {n}"
            )
            for n in (2, 4)
        )
    ),
    "paper": Case((f"train paper --model {REAL} --data inputs/photos --run-dir run {REAL_RL}",)),
    "paper_full": Case(
        (f"train paper --model {REAL} --data inputs/photos --run-dir run {REAL_RL} --lora-rank 0",)
    ),
    "decoder": Case(
        (
            (
                f"train decoder --model {REAL} --data inputs/photos --run-dir run {REAL_RL} "
                "--train.group-size 1 --train.reconstructions-per-caption 2 "
                "--train.decoding.window-size 1 --train.ema-every 1"
            ),
        )
    ),
    "janus": Case(
        (
            (
                f"train janus --model inputs/janus --data inputs/photos --run-dir run {SMALL} "
                "--rewards ssim 1 --train.decoding.height 64 --train.decoding.width 64"
            ),
            "reconstruct inputs/photos --model run/model --out painted",
            "export run/model merged",
        )
    ),
    "v1": Case((REAL_V1,)),
    "v1_resumed": Case((REAL_V1,), stop_at="run/3_*/checkpoints/step_*1"),
    "v5_ar": Case(
        (
            "train v5-ar --model inputs/janus --data inputs/photos --run-dir run "
            + stage(
                "unified-grpo",
                f"{SMALL} --rewards ssim 1 --train.decoding.height 64 --train.decoding.width 64",
            ),
        )
    ),
    "v1_tiny": Case(
        (
            (
                f"train v1-tiny --run-dir run {LONG} {COLD} "
                f"{RL_STAGES['generation-for-understanding']} "
                f"{RL_STAGES['understanding-for-generation']} "
                "--understanding-for-generation.train.group-size 1 "
                "--understanding-for-generation.train.reconstructions-per-caption 2"
            ),
        )
    ),
    "joint_tiny": Case((f"train joint-tiny --run-dir run {RL_STAGES['joint']} --seed 3",)),
    "v3_tiny_ar": Case(
        (
            "train v3-tiny-ar --run-dir run "
            + stage("generation-for-understanding", SMALL)
            + " "
            + stage("understanding-for-generation", SMALL)
            + " --understanding-for-generation.train.group-size 1"
            " --understanding-for-generation.train.reconstructions-per-caption 2",
        )
    ),
    "v3_tiny_resumed": Case(
        (
            (
                "train v3-tiny --run-dir run "
                f"{stage('long-captions', '--num-steps 60 --batch-size 2 --pool-size 8')} "
                f"{RL_STAGES['generation-for-understanding']} "
                f"{RL_STAGES['understanding-for-generation']} "
                "--understanding-for-generation.train.group-size 1 "
                "--understanding-for-generation.train.reconstructions-per-caption 2 --only "
                "long_captions"
            ),
        ),
        stop_at="run/1_long_captions/checkpoints/step_*12",
    ),
    "reconstruct": Case(
        (
            "reconstruct inputs/photos --out painted",
            (
                "reconstruct inputs/photos --out painted_ar --model tiny-ar --seed 2 "
                "--decoding.temperature 1"
            ),
            f"reconstruct inputs/photos --out real --model {REAL} --captioning.max-new-tokens 8 "
            "--decoding.height 64 --decoding.width 64 --decoding.num-steps 2",
        )
    ),
    "generate": Case(
        (
            "generate inputs/prompts.txt --out umm1 --images-per-prompt 2",
            "generate inputs/prompts.txt --out umm2 --images-per-prompt 2 --model tiny-ar",
            "generate inputs/prompts.txt --out umm1 --images-per-prompt 2",
            "generate inputs/prompts.txt --out umm1 --images-per-prompt 2 --seed 1",
        )
    ),
    "bench": Case(
        (
            (
                "bench unified --images inputs/photos --out images.json --backbones clip tiny "
                "longclip tiny dinov2 tiny dinov3 tiny"
            ),
            (
                "bench unified --source inputs/photos --recon images_reconstructions --out "
                "folders.json --backbones clip tiny longclip tiny dinov2 tiny dinov3 tiny"
            ),
            (
                "bench unified --source inputs/photos --recon images_reconstructions --out "
                "partial.json --backbones clip tiny --allow-partial"
            ),
            "bench unified --source inputs/photos --out folders.json",
            "bench unified --images inputs/photos --backbones clop tiny",
        )
    ),
    "measure": Case(
        ("tiny measure --out umm1.json", "tiny measure --model tiny-ar --out umm2.json")
    ),
    "longcap": Case(
        ("data longcap inputs/photos --local inputs/qwen --out out --max-tokens 8 --attempts 1",)
    ),
    "refusals": Case(
        (
            "train nothing",
            "train paper --run-dir run",
            "train paper --dry-run",
            "train tiny --model nowhere",
            "train v5-tiny --only nothing",
            "train v1 --run-dir run",
            "train tiny-ar --text-encoder reference --run-dir run",
            "reconstruct nowhere.png",
            "generate nowhere.txt",
            "tiny build --only nothing",
            "bench nothing",
        )
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    commands = parser.add_subparsers(required=True, dest="command")
    recording = commands.add_parser("record")
    recording.add_argument("root", type=Path)
    recording.add_argument("name")
    recording.add_argument("--begun", help="go on with the stopped runs of this record")
    recording.add_argument("--only", nargs="*", default=[], help="cases; by default all")
    recording.add_argument("--processes", type=int, default=2)
    comparing = commands.add_parser("compare")
    comparing.add_argument("root", type=Path)
    comparing.add_argument("before")
    comparing.add_argument("after")
    args = parser.parse_args()
    if args.command == "compare":
        raise SystemExit(compare(args.root.absolute(), args.before, args.after))
    record(args.root.absolute(), args.name, args.begun, args.only, args.processes)


def record(root: Path, name: str, begun: str | None, only: list[str], processes: int) -> None:
    """Run the cases, and keep what each left in ``root / name``."""
    write_inputs(root / "inputs")
    cases = [case for case in (only or CASES) if begun is None or CASES[case].stop_at]
    with ThreadPoolExecutor(processes) as pool:
        list(pool.map(lambda case: record_case(root, name, begun, case), cases))


def record_case(root: Path, name: str, begun: str | None, case: str) -> None:
    """One case, run in ``root / work``, where every record runs it, and kept in ``root / name``."""
    started, folder, kept = time.monotonic(), root / "work" / case, root / name / case
    for path in (folder, kept, kept.with_name(f"{case}.begun")):
        shutil.rmtree(path, ignore_errors=True)
    said = []
    if begun is not None:
        shutil.copytree(root / begun / f"{case}.begun", folder, symlinks=True)
    else:
        folder.mkdir(parents=True)
        (folder / "inputs").symlink_to(root / "inputs")
    first, *others = CASES[case].commands
    if CASES[case].stop_at:
        if begun is None:
            run(first, folder, CASES[case].stop_at)
            shutil.copytree(folder, kept.with_name(f"{case}.begun"), symlinks=True)
        first = CASES[case].again or first
    for command in (first, *others):
        said.append({"command": command, "said": run(command, folder)})
    shutil.move(folder, kept)
    (root / name / f"{case}.json").write_text(json.dumps(said, indent=1))
    print(f"{name} {case}: {time.monotonic() - started:.0f} s", flush=True)


def contents(kept: Path) -> dict[str, dict[str, str]]:
    """Of a case as it is kept: each file, and what each command printed, unless one was stopped."""
    outputs = {str(path.relative_to(kept)): parts(path) for path in sorted(files_in(kept))}
    if CASES[kept.name].stop_at:
        return outputs
    said = json.loads(kept.with_name(f"{kept.name}.json").read_text())
    printed = {f"printed by command {i}": lines(each["said"]) for i, each in enumerate(said)}
    return outputs | printed


def run(command: str, folder: Path, stop_at: str = "") -> str:
    """What ``uae COMMAND`` printed, and its exit status; terminated once ``stop_at`` is there."""
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    environment = {
        **os.environ,
        **threads,
        "PYTHONPATH": str(REPOSITORY / "src"),
        "HF_HUB_OFFLINE": "1",
        "COLUMNS": "100",
        "OMP_WAIT_POLICY": "passive",
    }
    process = subprocess.Popen(
        [sys.executable, "-c", CODE, *shlex.split(command)],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    while stop_at and process.poll() is None:
        if any(folder.glob(stop_at)):
            process.send_signal(signal.SIGTERM)
            break
        time.sleep(0.05)
    said, _ = process.communicate()
    if stop_at and process.returncode == 0:
        raise RuntimeError(f"uae {command} ended before it could be stopped")
    return f"{said}exit status {process.returncode}\n"


def files_in(folder: Path) -> list[Path]:
    """All that a run left, but for inputs, locks and what lists the bytes of other files."""
    paths = [
        path
        for path in folder.rglob("*")
        if path.is_file() and "inputs" not in path.relative_to(folder).parts
    ]
    return [
        path
        for path in paths
        if path.name not in ("manifest.json", "latest") and path.suffix != ".lock"
    ]


def parts(path: Path) -> dict[str, str]:
    """What the file says, by place in it, whatever its bytes are."""
    if path.suffix == ".safetensors":
        with safe_open(path, "pt") as opened:
            tensors = {key: opened.get_tensor(key) for key in list(opened.keys())}
            return flat({"metadata": opened.metadata() or {}, "tensors": tensors})
    if path.suffix == ".json":
        return flat(json.loads(path.read_text()))
    if path.suffix == ".jsonl":
        return flat([json.loads(line) for line in path.read_text().splitlines()])
    if path.suffix == ".png":
        return flat({"pixels": torch.from_numpy(np.array(Image.open(path)))})
    if path.suffix == ".pt":
        return flat(torch.load(path, map_location="cpu", weights_only=True))
    if path.suffix in (".html", ".txt", ".md", ".svg"):
        return lines(path.read_text())
    content = path.read_bytes()
    content = gzip.decompress(content) if path.suffix == ".gz" else content
    return {"bytes": hashlib.sha256(content).hexdigest()[:12]}


def flat(value: Any, place: str = "") -> dict[str, str]:
    """Leaves by dotted place, without what is volatile; tensors as hashes."""
    if isinstance(value, list) and value and all(isinstance(item, str) for item in value):
        value = sorted(value)  # peft writes sets in any order
    if isinstance(value, (dict, list, tuple)):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        leaves: dict[str, str] = {}
        for key, item in items:
            if not VOLATILE.search(str(key)):
                leaves |= flat(item, f"{place}.{key}" if place else str(key))
        return leaves or {place: repr(value)}
    if isinstance(value, torch.Tensor):
        content = value.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
        digest = hashlib.sha256(content).hexdigest()[:12]
        return {place: f"{value.dtype} {tuple(value.shape)} {digest}"}
    return {place: CHECKOUT.sub("src/uae/", repr(value))}


def lines(text: str) -> dict[str, str]:
    """Those that do not speak of time, by number."""
    steady = [line for line in text.splitlines() if not CHANGING_LINE.search(line)]
    return {f"line {i}": CHECKOUT.sub("src/uae/", line) for i, line in enumerate(steady, 1)}


def compare(root: Path, before: str, after: str) -> int:
    """Print what differs, in each output the first few places; 1 if anything does."""
    num_same = num_other = 0
    for path in sorted((root / after).glob("*.json")):
        old, new = (contents(root / name / path.stem) for name in (before, after))
        for output in sorted(old.keys() | new.keys()):
            changes = differences(old.get(output, {}), new.get(output, {}))
            num_same, num_other = num_same + (not changes), num_other + bool(changes)
            if changes:
                print(f"{path.stem}: {output}")
                print("\n".join(f"    {change}" for change in changes[:MOST_SHOWN]))
    print(f"{num_same} outputs are the same, {num_other} are not")
    return min(num_other, 1)


def differences(old: dict[str, str], new: dict[str, str]) -> list[str]:
    """Each place that is not the same, before and after."""
    places = list(dict.fromkeys([*old, *new]))
    pairs = [(place, old.get(place, "nothing"), new.get(place, "nothing")) for place in places]
    return [f"{place}: {a:.90} -> {b:.90}" for place, a, b in pairs if a != b]


def write_inputs(folder: Path) -> None:
    """Images, captioned images, prompts, and small checkpoints in the layouts of the published
    ones."""
    if folder.exists():
        return
    sys.path.insert(0, str(REPOSITORY))
    from tests.models.real_layouts import (
        large_like_transformer,
        large_like_vae,
        write_janus,
        write_qwen,
        write_sd3,
    )

    draw, made = np.random.default_rng(0), folder.with_name("inputs.unfinished")
    shutil.rmtree(made, ignore_errors=True)
    (made / "photos" / "below").mkdir(parents=True)
    (made / "pairs").mkdir()
    names = ["0.png", "1.jpg", "2.png", "below/3.png", "4.bmp", "5.png"]
    for i, name in enumerate(names):
        coarse = draw.integers(0, 256, (4, 4 + i % 3, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((48 + 9 * i, 48), Image.Resampling.BICUBIC).save(
            made / "photos" / name
        )
    (made / "photos" / "broken.png").write_bytes(b"no image")
    rows = []
    for i in range(24):
        coarse = draw.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((64, 64), Image.Resampling.BICUBIC).save(
            made / "pairs" / f"{i}.png"
        )
        rows.append(
            {"file_name": f"{i}.png", "text": f"a large red circle and {i} small blue squares"}
        )
    (made / "pairs" / "metadata.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    (made / "prompts.txt").write_text("a red circle\ntwo small blue squares on grey\n")
    torch.manual_seed(0)
    write_qwen(made / "qwen")
    write_sd3(made / "sd3", large_like_transformer(), large_like_vae())
    write_janus(made / "janus")
    made.rename(folder)


if __name__ == "__main__":
    main()
