"""``uae generate``: images of prompts, in the folders that GenEval's evaluation reads.

    OUT/00000/metadata.jsonl    the prompt's line, as it was given
    OUT/00000/samples/00000.png …

A prompt's images depend on its place in the file and the seed alone. What is there already is not painted again.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.progress import track

from uae.commands.reconstruct import save_png
from uae.config import DecodeOptions, changed
from uae.models.loading import load_model, published_dtype
from uae.utils.checkpoint import atomic_write_json, atomic_write_text, check_same_config, json_ready
from uae.utils.quiet import quiet_libraries


@dataclass(frozen=True)
class Arguments:
    """Paint prompts, for GenEval, DPG-Bench and the like."""

    prompts: Annotated[Path, tyro.conf.Positional]
    """A .jsonl file with a `prompt` in each line, as GenEval's evaluation_metadata.jsonl, or a text file of prompts."""
    model: str = "tiny"
    """`tiny`, a folder that uae wrote, Janus-Pro, or ENCODER+DECODER by hub id or folder."""
    out: Path = Path("generated")
    """Folder for one folder per prompt; the same command goes on where it was stopped."""
    images_per_prompt: int = 4
    """Images of each prompt."""
    decoding: DecodeOptions = field(default_factory=DecodeOptions)
    """How they are painted; by default as the model's uae.json says, else as its family was published."""
    seed: int = 0
    """Of the noise or the draws that painting starts from."""


def main(arguments: list[str]) -> None:
    """``uae generate PROMPTS [--model MODEL] [--out DIR]``"""
    quiet_libraries()
    generate(tyro.cli(Arguments, args=arguments, prog="uae generate"))


def generate(args: Arguments) -> None:
    """Paint what is not there yet.

    Raises:
        ValueError: when the file holds no prompts, or the folder was begun with other settings.
    """
    rows = read_prompts(args.prompts)
    model: Any = load_model(args.model, published_dtype(args.model))
    decoding = changed(model.decoding, args.decoding)
    prompts = [row["prompt"] for row in rows]
    settings = json_ready({"model": args.model, "decoding": vars(decoding), "seed": args.seed, "prompts": prompts})
    args.out.mkdir(parents=True, exist_ok=True)
    record = args.out / "settings.json"
    if record.exists():
        check_same_config(json.loads(record.read_text()), settings, ("decoding.micro_batch",))
    else:
        atomic_write_json(record, settings)
    for i, row in enumerate(track(rows, "painting", console=Console(stderr=True))):
        folder = args.out / f"{i:05}"
        files = [folder / "samples" / f"{k:05}.png" for k in range(args.images_per_prompt)]
        if all(file.exists() for file in (*files, folder / "metadata.jsonl")):
            continue
        (folder / "samples").mkdir(parents=True, exist_ok=True)
        images = model.generate([row["prompt"]], decoding, group_size=len(files), seed=args.seed, step=i).images
        for file, image in zip(files, images, strict=True):
            save_png(file, image)
        atomic_write_text(folder / "metadata.jsonl", json.dumps(row, ensure_ascii=False) + "\n")  # last: it is complete
    print(f"{len(rows)} prompts, {args.images_per_prompt} images each: {args.out}")


def read_prompts(path: Path) -> list[dict[str, Any]]:
    """The lines that are not empty, each with its ``prompt``."""
    lines = [line.strip() for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
    if not lines:
        raise ValueError(f"{path}: expected a prompt in each line, the file is empty")
    if path.suffix != ".jsonl":
        return [{"prompt": line} for line in lines]
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number}: expected JSON, got {line[:60]!r}") from error
        if not isinstance(row, dict) or not isinstance(row.get("prompt"), str):
            raise ValueError(f'{path}, line {number}: expected {{"prompt": "…"}}, got {line[:60]!r}')
        rows.append(row)
    return rows
