"""``uae train v3-tiny`` and its like: a pipeline. Each stage takes the model that the one before it
left, trains it in a folder of its own, and leaves its own as plain ``transformers``, ``diffusers``
and ``peft`` folders.

    RUN/1_long_captions/{stage.json, checkpoints/, metrics.jsonl, model/, finished.json}
    RUN/2_generation_for_understanding/…

``finished.json`` is written last. A stage without it is begun, or resumed where it was stopped.
What is recorded does not say where the run lies, so a run may be moved, and its pretraining copied
into another one's folder.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass, field, make_dataclass, replace
from pathlib import Path
from typing import Any

import torch
import tyro
from rich.console import Console

from uae.bench.unified_result import BACKBONES
from uae.data.captions import check_pyarrow, find_shards
from uae.data.folders import list_images
from uae.data.training import check_same_files
from uae.models.load import load_model
from uae.pipelines import PIPELINES, Pipeline, StageSettings
from uae.presets import RunConfig
from uae.report.stages_page import StageResult, sample_to_json, stages_table, write_stages_report
from uae.rewards.build import backbones_of, build_reward, check_rewards
from uae.similarity.backbones import load_backbone
from uae.stages.cold_start import ColdStartConfig, ColdStartTask
from uae.stages.fit import fit
from uae.stages.long_captions import LongCaptionConfig, LongCaptionTask
from uae.stages.unified_grpo import image_source, train_model
from uae.utils.checkpoint import check_same_config
from uae.utils.files import appear, atomic_write_json, json_ready
from uae.utils.metrics import read_metrics
from uae.utils.outputs import check_out_folder
from uae.world.measure import measure
from uae.world.pairs import write_captioned_scenes

SETTINGS, FINISHED = "stage.json", "finished.json"
START = "start"  # the name of the model that the first stage takes
WORLD_PAIRS, NUM_WORLD_PAIRS = (
    "captioned_scenes",
    50_000,
)  # what a world's pipeline is pretrained on


@dataclass(frozen=True)
class PipelineArguments:
    """Run the stages of one of the paper's versions; the same command resumes."""

    run_dir: Path
    """Folder of the run, with one folder a stage."""
    model: str | None = None
    """The model to start from; by default the pipeline's."""
    captions: tuple[str, ...] = ()
    """Captioned images for long-caption pretraining: parquet files, WebDataset tars, or folders."""
    data: tuple[str, ...] = ()
    """Image files or folders for the other stages."""
    seed: int | None = None
    """Of reinforcement learning and cold start. Pretraining keeps its own: a run of another seed
    may begin with a copy of its folder."""
    only: str | None = None
    """Run this stage alone; those before it must be finished."""
    self_contained: bool = False
    """Save the base's weights beside the adapters of stages that train by LoRA."""
    redo: bool = False
    """With `only`: begin it anew. Later stages were trained from the old one: redo them too."""


def main(name: str, arguments: list[str]) -> None:
    """``uae train v3-tiny [--run-dir DIR] [--only STAGE]``; the same command resumes."""
    pipeline = PIPELINES[name]
    stages = "\n".join(f"  {number}. {stage}" for number, stage in enumerate(pipeline.stages, 1))
    with_stages = make_dataclass(  # so that each setting of each stage is an option
        "PipelineArguments",
        [
            (stage, type(settings), field(default=settings))
            for stage, settings in pipeline.stages.items()
        ],
        bases=(PipelineArguments,),
        frozen=True,
    )
    args: Any = tyro.cli(
        with_stages,
        default=with_stages(run_dir=Path("runs") / name),
        args=arguments,
        prog=f"uae train {name}",
        description=f"{pipeline.description}\n\n{stages}",
    )
    pipeline = replace(
        pipeline,
        stages={stage: _changed(stage, old, args) for stage, old in pipeline.stages.items()},
    )
    records = run_pipeline(pipeline, args)
    if pipeline.in_world:
        report(f"uae train {name}", records, args.run_dir)
    print(f"models: {args.run_dir}/*/model")


def _changed(stage: str, old: StageSettings, args: Any) -> StageSettings:
    """A stage's settings as the command line has them."""
    new = getattr(args, stage)
    if getattr(new, "dry_run", False):
        raise ValueError(
            f"--{stage}.dry-run: not of a stage; expected the preset alone, as in `uae train "
            "paper --dry-run`"
        )
    for option in ("model", "run_dir"):
        if getattr(new, option, None) != getattr(old, option, None):
            raise ValueError(
                f"--{stage}.{option}: a stage takes the model of the one before it and works in "
                "the pipeline's folder; expected --model and --run-dir of the whole"
            )
    return new


def report(title: str, records: list[dict[str, Any]], run_dir: Path) -> None:
    """What was measured: in the terminal, as ``stages.json`` and as ``report.html``."""
    stages = [
        StageResult(record["stage"], record["measured"], _log(record), record["samples"])
        for record in records
    ]
    Console().print(stages_table(stages))
    write_stages_report(run_dir / "report.html", title, stages)
    without_pictures = [
        {key: value for key, value in record.items() if key != "samples"} for record in records
    ]
    atomic_write_json(run_dir / "stages.json", without_pictures)
    print(f"report: {run_dir / 'report.html'}   numbers: {run_dir / 'stages.json'}")


def _log(record: dict[str, Any]) -> list[dict[str, Any]]:
    path = Path(record["model"]).parent / "metrics.jsonl"
    return read_metrics(path) if record["stage"] != START and path.exists() else []


def run_pipeline(pipeline: Pipeline, args: PipelineArguments) -> list[dict[str, Any]]:
    """Run or resume; what each stage recorded, in order, the start first where stages are measured.

    Raises:
        ValueError: when ``only`` names no stage, data is missing, or a stage was finished with
            other settings.
    """
    check_out_folder(args.run_dir)
    stages = prepared(pipeline, args)
    if args.redo and args.only is None:
        raise ValueError(
            "--redo begins one stage anew: name it by --only, or give another --run-dir"
        )
    if args.only is not None and args.only not in stages:
        raise ValueError(f"unknown stage {args.only!r}: expected one of {', '.join(stages)}")
    _draw_world(stages, args.run_dir / WORLD_PAIRS)
    source = args.model or pipeline.model
    records = [_start(source, args.run_dir)] if pipeline.in_world else []
    for number, (name, settings) in enumerate(stages.items(), 1):
        folder = args.run_dir / f"{number}_{name}"
        if args.only in (None, name):
            if args.redo:
                shutil.rmtree(folder, ignore_errors=True)
            records.append(
                finish_stage(name, settings, source, folder, pipeline.in_world, args.self_contained)
            )
        elif (folder / FINISHED).exists():
            records.append(_finished(folder))
        elif list(stages).index(args.only) >= number:
            raise ValueError(
                f"expected stage {name} to be finished before {args.only}: run it first, by "
                f"--only {name} or without --only"
            )
        source = str(folder / "model")
    return records


def prepared(pipeline: Pipeline, args: PipelineArguments) -> dict[str, StageSettings]:
    """The stages with the user's data and seed; cheap, and what will run fails before any work."""
    stages = {
        name: _with(settings, args, pipeline.in_world) for name, settings in pipeline.stages.items()
    }
    for name, settings in stages.items():
        if args.only in (None, name):
            _check_data(settings, pipeline.in_world)
            if isinstance(settings, ColdStartConfig | RunConfig):
                check_rewards(settings.rewards, settings.backbones)
    return stages


def _with(settings: StageSettings, args: PipelineArguments, in_world: bool) -> StageSettings:
    if isinstance(settings, LongCaptionConfig):
        drawn = (str(args.run_dir / WORLD_PAIRS),) if in_world else ()
        return replace(settings, data=args.captions or settings.data or drawn)
    settings = replace(settings, data=args.data or settings.data)
    if args.seed is None:
        return settings
    if isinstance(settings, ColdStartConfig):
        return replace(settings, seed=args.seed)
    return replace(settings, train=replace(settings.train, seed=args.seed))


def _check_data(settings: StageSettings, in_world: bool) -> None:
    """What the stage learns from is there, and can be read; the world's is drawn."""
    if isinstance(settings, LongCaptionConfig):
        check_pyarrow()
        if not settings.data:
            raise ValueError(
                "expected captioned images for long-caption pretraining: give --captions "
                "(parquet, tar or a folder with metadata.jsonl); `uae data longcap` makes them"
            )
        if not in_world:
            find_shards(settings.data)
    elif settings.data:
        list_images(settings.data)
    elif not in_world:
        raise ValueError("expected images to learn from: give --data FOLDER")


def finish_stage(
    name: str,
    settings: StageSettings,
    source: str,
    folder: Path,
    in_world: bool,
    self_contained: bool = False,
) -> dict[str, Any]:
    """The stage's record; it is trained first unless it is finished."""
    recorded = {
        **asdict(settings),
        "data": [_in_run(path, folder.parent) for path in settings.data],
    }
    recorded.pop("self_contained", None)
    _check_settings(
        {"name": name, "source": _in_run(source, folder.parent), "settings": recorded}, folder
    )
    if (folder / FINISHED).exists():
        print(f"{name}: finished before, {folder}")
        return _finished(folder)
    print(f"{name}: from {source}, in {folder}")
    train_stage(settings, source, folder, self_contained)
    record = {"stage": name} | (measured(str(folder / "model")) if in_world else {})
    atomic_write_json(folder / FINISHED, record)
    return _finished(folder)


def _finished(folder: Path) -> dict[str, Any]:
    """What a finished stage recorded, and where its model is now."""
    return {**json.loads((folder / FINISHED).read_text()), "model": str(folder / "model")}


def _check_settings(wanted: dict[str, Any], folder: Path) -> None:
    """A stage goes on as it was begun; until it has a checkpoint, it may begin otherwise."""
    path = folder / SETTINGS
    if path.exists() and ((folder / "checkpoints").exists() or (folder / FINISHED).exists()):
        check_same_config(json.loads(path.read_text()), json_ready(wanted))
    else:
        folder.mkdir(parents=True, exist_ok=True)
        atomic_write_json(path, json_ready(wanted))


def _in_run(path: str, run_dir: Path) -> str:
    """A path as it is recorded: one in the run's folder as it is called in any copy of that."""
    place, run = Path(path).absolute(), run_dir.absolute()
    return f"RUN/{place.relative_to(run)}" if place.is_relative_to(run) else path


def train_stage(
    settings: StageSettings, source: str, folder: Path, self_contained: bool = False
) -> None:
    """Train, or resume, and leave ``folder/model``."""
    if (folder / "model").exists():
        return
    if isinstance(settings, RunConfig):
        settings = replace(settings, model=source, run_dir=folder, self_contained=self_contained)
        model = train_model(settings, _in_run(source, folder.parent))
        appear(folder / "model", model.save_pretrained)
        return
    model: Any = load_model(source, None if settings.lora_rank else torch.float32)
    model.is_self_contained = self_contained
    if isinstance(settings, LongCaptionConfig):
        task: Any = LongCaptionTask(model, settings)
    else:
        device, names = model.encoder.device, backbones_of(settings.rewards)
        backbones = {name: load_backbone(name, settings.backbones, device=device) for name in names}
        images = image_source(settings.data, settings.decoding, settings.seed)
        check_same_files(images, folder)
        reward = build_reward(
            settings.rewards, backbones, model.encoder, settings.captioning.instruction
        )
        task = ColdStartTask(model, reward, images, settings)
    fit(task, folder, save_every=max(1, min(250, settings.num_steps // 10)))
    (folder / "export").replace(folder / "model")  # the average of the weights


def _draw_world(stages: dict[str, StageSettings], folder: Path) -> None:
    """Captioned scenes, where a stage is to read them and they are not there yet."""
    is_read = any(
        isinstance(stage, LongCaptionConfig) and stage.data == (str(folder),)
        for stage in stages.values()
    )
    if is_read and not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        appear(folder, lambda unfinished: write_captioned_scenes(unfinished, NUM_WORLD_PAIRS))


def _start(source: str, run_dir: Path) -> dict[str, Any]:
    """The record of the model that the first stage starts from."""
    path = run_dir / "start.json"
    if not path.exists() or json.loads(path.read_text())["model"] != source:
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write_json(path, {"stage": START, "model": source, **measured(source)})
    return json.loads(path.read_text())


def measured(source: str) -> dict[str, Any]:
    """The world's numbers of a model, as it is loaded again, and what it makes of some pictures."""
    model: Any = load_model(source)
    backbones = {name: load_backbone(name, "tiny") for name in BACKBONES}
    found = measure(model, backbones)
    return {
        "measured": found.to_json(),
        "samples": [sample_to_json(sample) for sample in found.samples],
    }
