"""``uae bench unified``: Unified-Bench, Protocol 1, of a model on images or of two folders made
elsewhere."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path

import tyro
from rich.console import Console

from uae.bench.pairing import Pairing
from uae.bench.unified import check_backbones, run_folders
from uae.bench.unified_result import BACKBONES, UnifiedResult
from uae.bench.unified_table import unified_table
from uae.commands.group import choose
from uae.commands.reconstruct import Arguments as Reconstruct
from uae.commands.reconstruct import Reconstructed, reconstruct
from uae.config import CaptionOptions, DecodeOptions
from uae.utils.device import default_device
from uae.utils.outputs import check_out_file
from uae.utils.quiet import quiet_libraries
from uae.utils.suggest import did_you_mean


@dataclass(frozen=True)
class UnifiedArguments:
    """Score reconstructions with four similarity backbones. Give --images, or --source and
    --recon."""

    images: Path | None = None
    """Folder of images that --model captions and reconstructs first."""
    source: Path | None = None
    """Folder of source images."""
    recon: Path | None = None
    """Folder of their reconstructions, matched by name (NAME or recon_NAME)."""
    model: str = "tiny"
    """For --images: `tiny`, a folder that uae wrote, Janus-Pro, or ENCODER+DECODER by hub id or
    folder."""
    captioning: CaptionOptions = field(default_factory=CaptionOptions)
    """For --images: how captions are made; by default as the model's uae.json says, else in detail
    and greedy."""
    decoding: DecodeOptions = field(default_factory=DecodeOptions)
    """For --images: how they are painted; by default as the model's uae.json says, else as its
    family was published."""
    seed: int = 0
    """For --images: of the noise or the draws that painting starts from."""
    backbones: dict[str, str] = field(default_factory=dict)
    """Checkpoints by backbone name (clip, longclip, dinov2, dinov3): hub id, folder, .pt, or
    `tiny`; by default the published ones."""
    out: Path = Path("unified_bench.json")
    """Result file, with the official keys."""
    allow_partial: bool = False
    """Go on without a backbone that cannot be loaded; the result is then marked partial and has no
    overall score."""
    device: str = field(default_factory=default_device)
    """Where backbones run; a GPU if there is one."""


def main(arguments: list[str]) -> None:
    """``uae bench unified …``"""
    quiet_libraries()
    choose("bench", arguments)
    args = tyro.cli(UnifiedArguments, args=arguments[1:], prog="uae bench unified")
    backbones = sources_of(args)
    check_out_file(args.out)
    check_backbones(backbones, args.allow_partial)
    result = score(args, backbones)
    Console().print(unified_table(result))
    print(f"numbers: {args.out}")
    if result.partial:
        raise SystemExit(3)


def score(args: UnifiedArguments, backbones: dict[str, str | None]) -> UnifiedResult:
    """Of the two folders; reconstructions of ``--images`` are made beside the result file, and how
    they were is told."""
    options = {"allow_partial": args.allow_partial, "device": args.device}
    if args.images is not None and args.source is None and args.recon is None:
        recon = args.out.with_name(f"{args.out.stem}_reconstructions")
        made = reconstruct(
            Reconstruct(
                (str(args.images),),
                args.model,
                recon,
                args.captioning,
                args.decoding,
                seed=args.seed,
            )
        )
        settings = {"captioning": asdict(made.captioning), "decoding": asdict(made.decoding)}
        settings |= {"model": args.model, "painting_seed": args.seed}
        return run_folders(
            args.images, recon, backbones, args.out, made=settings, pairs=pairs_of(made), **options
        )
    if args.images is None and args.source is not None and args.recon is not None:
        return run_folders(args.source, args.recon, backbones, args.out, **options)
    raise ValueError("expected either --images DIR, or --source DIR and --recon DIR")


def pairs_of(made: Reconstructed) -> Pairing:
    """What was made just now; an older reconstruction in the same folder is none."""
    sources, reconstructions = zip(*made.pairs.values(), strict=True)
    return Pairing(
        names=[str(name) for name in made.pairs],
        sources=list(sources),
        reconstructions=list(reconstructions),
        unmatched_sources={str(name): reason for name, reason in made.left_out.items()},
        unmatched_reconstructions=[],
        remarks=[],
    )


def sources_of(args: UnifiedArguments) -> dict[str, str | None]:
    """A checkpoint for each of the four backbones."""
    for name in args.backbones:
        if name not in BACKBONES:
            raise ValueError(
                f"unknown backbone {name!r}: expected "
                f"{', '.join(BACKBONES)}{did_you_mean(name, BACKBONES)}"
            )
    return {name: args.backbones.get(name) for name in BACKBONES}
