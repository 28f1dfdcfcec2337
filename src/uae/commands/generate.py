"""``uae generate``: images of prompts, in the folders that GenEval's evaluation reads.

    OUT/00000/metadata.jsonl    the prompt's line, as it was given
    OUT/00000/samples/00000.png …

A prompt's images depend on its place in the file and the seed alone. What is there already is not
painted again.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro

from uae.config import DecodeOptions, changed
from uae.data.folders import note_outputs
from uae.data.prompts import read_prompts
from uae.images.write import save_png
from uae.models.load import load_model
from uae.utils.checkpoint import check_same_config
from uae.utils.files import atomic_write_json, atomic_write_text, json_ready
from uae.utils.outputs import check_out_folder
from uae.utils.progress import track
from uae.utils.quiet import quiet_libraries


@dataclass(frozen=True)
class Arguments:
    """Paint prompts, for GenEval, DPG-Bench and the like."""

    prompts: Annotated[Path, tyro.conf.Positional]
    """A .jsonl or .json file of objects with a `prompt`, as GenEval's evaluation_metadata.jsonl, or
    of strings; a .csv or .tsv table with a column of prompts, as PartiPrompts.tsv; or a .txt file
    with a prompt in each line."""
    model: str = "tiny"
    """`tiny`, a folder that uae wrote, Janus-Pro, or ENCODER+DECODER by hub id or folder."""
    out: Path = Path("generated")
    """Folder for one folder per prompt; the same command goes on where it was stopped."""
    images_per_prompt: int = 4
    """Images of each prompt."""
    decoding: DecodeOptions = field(default_factory=DecodeOptions)
    """How they are painted; by default as the model's uae.json says, else as its family was
    published."""
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
    if args.images_per_prompt < 1:
        raise ValueError(f"--images-per-prompt must be at least 1, got {args.images_per_prompt}")
    check_out_folder(args.out)
    rows = read_prompts(args.prompts)
    model: Any = load_model(args.model)
    decoding = changed(model.decoding, args.decoding)
    prompts = [row["prompt"] for row in rows]
    settings = json_ready(
        {"model": args.model, "decoding": vars(decoding), "seed": args.seed, "prompts": prompts}
    )
    folders = [args.out / f"{i:05}" for i in range(len(rows))]
    note_outputs(args.out, [Path(folder.name) for folder in folders])
    record = args.out / "settings.json"
    if record.exists():
        check_same_config(json.loads(record.read_text()), settings, ("decoding.micro_batch",))
    else:
        atomic_write_json(record, settings)
    for i, (folder, row) in enumerate(
        track(list(zip(folders, rows, strict=True)), "generating", "prompts")
    ):
        files = [folder / "samples" / f"{k:05}.png" for k in range(args.images_per_prompt)]
        if all(file.exists() for file in (*files, folder / "metadata.jsonl")):
            continue
        (folder / "samples").mkdir(parents=True, exist_ok=True)
        made = model.generate(
            [row["prompt"]], decoding, group_size=len(files), seed=args.seed, step=i
        )
        if made.metrics.get("image/text_cut_frac"):
            print(
                f"prompt {i} is longer than the decoder reads: painted without its end",
                file=sys.stderr,
            )
        for file, image in zip(files, made.images, strict=True):
            save_png(file, image)
        atomic_write_text(
            folder / "metadata.jsonl", json.dumps(row, ensure_ascii=False) + "\n"
        )  # last: it is complete
    print(f"{len(rows)} prompts, {args.images_per_prompt} images each: {args.out}")
