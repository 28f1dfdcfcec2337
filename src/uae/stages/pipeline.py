"""Stage after stage. Each takes the model that the one before it left, trains it in a folder of its
own, and leaves its own as plain ``transformers``, ``diffusers`` and ``peft`` folders.

    RUN/1_long_captions/{stage.json, checkpoints/, metrics.jsonl, model/, finished.json}
    RUN/2_generation_for_understanding/…

``finished.json`` is written last. A stage without it is begun, or resumed where it was stopped.
What is recorded does not say where the run lies, so a run may be moved, and its pretraining copied
into another one's folder. Several processes train a stage together; one of them measures and
records it.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from uae.rl.run import PolicyRun
from uae.stages.base import Assignment, Stage, UserData
from uae.stages.recipes import Measure, Recipe
from uae.utils.checkpoint import check_same_config, defaults_of
from uae.utils.files import atomic_write_json, json_ready
from uae.utils.lock import locked
from uae.utils.outputs import check_out_folder
from uae.utils.processes import is_main, of_main, wait

SETTINGS, FINISHED = "stage.json", "finished.json"
START = "start"  # the name of the model that the first stage takes
MAY_CHANGE = (
    "settings.keep_checkpoints",
    "settings.reward_device",
    "settings.shard",
    *(f"settings.{path}" for path in PolicyRun.may_change if path != "train.num_steps"),
)
NO_LONGER_RECORDED = ("model", "run_dir", "dry_run")  # of a stage's settings

Record = dict[str, Any]
"""What is kept of a finished stage: its name, its model, and what was measured."""


@dataclass(frozen=True)
class PipelineSettings:
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


def run_pipeline(recipe: Recipe, settings: PipelineSettings) -> list[Record]:
    """Run or resume; what each stage recorded, in order, the start first where stages are measured.

    Raises:
        ValueError: when ``only`` names no stage, data is missing, a stage was finished with other
            settings, or the folder is in use.
    """
    check_out_folder(settings.run_dir)
    stages = checked_stages(recipe, settings)
    with locked(settings.run_dir):
        return _finish_stages(recipe, stages, settings)


def _finish_stages(
    recipe: Recipe, stages: dict[str, Stage], settings: PipelineSettings
) -> list[Record]:
    source = settings.model or recipe.model
    records = []
    if recipe.measure is not None:
        records.append(measured_start(source, settings.run_dir, recipe.measure))
    for number, (name, stage) in enumerate(stages.items(), 1):
        folder = settings.run_dir / f"{number}_{name}"
        if settings.only in (None, name):
            if settings.redo and is_main():
                shutil.rmtree(folder, ignore_errors=True)
            recorded_source = _in_run(source, settings.run_dir)
            work = Assignment(source, folder, recorded_source, settings.self_contained)
            records.append(finish_stage(name, stage, work, recipe.measure))
        elif (folder / FINISHED).exists():
            records.append(_finished(folder))
        elif list(stages).index(settings.only) >= number:
            raise ValueError(
                f"expected stage {name} to be finished before {settings.only}: run it first, by "
                f"--only {name} or without --only"
            )
        source = str(folder / "model")
    return records


def checked_stages(recipe: Recipe, settings: PipelineSettings) -> dict[str, Stage]:
    """The stages on the user's data; what will run fails before any work."""
    user = UserData(settings.run_dir, settings.captions, settings.data, settings.seed)
    stages = {name: stage.given(user) for name, stage in recipe.stages.items()}
    check_all_is_used(recipe, user)
    for name, stage in stages.items():
        if settings.only in (None, name):
            stage.check()
    if settings.redo and settings.only is None:
        raise ValueError(
            "--redo begins one stage anew: name it by --only, or give another --run-dir"
        )
    if settings.only is not None and settings.only not in stages:
        raise ValueError(f"unknown stage {settings.only!r}: expected one of {', '.join(stages)}")
    return stages


def check_all_is_used(recipe: Recipe, user: UserData) -> None:
    """A ValueError for images or captions that no stage would learn from."""
    for option, field in (("--data", "images"), ("--captions", "captions")):
        without = replace(user, **{field: ()})
        stages = recipe.stages.values()
        if user != without and all(each.given(user) == each.given(without) for each in stages):
            raise ValueError(
                f"{option}: expected none, as no stage of this recipe learns from {field}; leave "
                "it out, or take another recipe"
            )


def finish_stage(name: str, stage: Stage, work: Assignment, measure: Measure | None) -> Record:
    """The stage's record; it is trained first unless it is finished."""
    run_dir = work.folder.parent
    recorded = asdict(stage.settings)
    recorded["data"] = [_in_run(path, run_dir) for path in stage.settings.data]
    if is_main():
        record_settings(
            {"name": name, "source": work.recorded_source, "settings": recorded},
            work.folder,
            {"settings": defaults_of(stage.settings)},
        )
    if of_main((work.folder / FINISHED).exists()):
        print(f"{name}: finished before, {work.folder}")
        return _finished(work.folder)
    print(f"{name}: from {work.source}, in {work.folder}")
    model = work.folder / "model"
    if not of_main(model.exists()):
        stage.run(work)
    if is_main():
        record = {"stage": name} | (measure(str(model)) if measure else {})
        atomic_write_json(work.folder / FINISHED, record)
    wait()
    return _finished(work.folder)


def record_settings(
    settings: dict[str, Any], folder: Path, defaults: dict[str, Any] | None = None
) -> None:
    """A stage goes on as it was begun; until it has a checkpoint, it may begin otherwise."""
    path = folder / SETTINGS
    if path.exists() and ((folder / "checkpoints").exists() or (folder / FINISHED).exists()):
        before = json.loads(path.read_text())
        for option in NO_LONGER_RECORDED:
            before.get("settings", {}).pop(option, None)
        check_same_config(before, json_ready(settings), MAY_CHANGE, defaults)
    else:
        folder.mkdir(parents=True, exist_ok=True)
        atomic_write_json(path, json_ready(settings))


def measured_start(source: str, run_dir: Path, measure: Measure) -> Record:
    """The record of the model that the first stage starts from."""
    path = run_dir / "start.json"
    is_measured = path.exists() and json.loads(path.read_text())["model"] == source
    if is_main() and not is_measured:
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write_json(path, {"stage": START, "model": source, **measure(source)})
    wait()
    return json.loads(path.read_text())


def _finished(folder: Path) -> Record:
    """What a finished stage recorded, and where its model is now."""
    return {**json.loads((folder / FINISHED).read_text()), "model": str(folder / "model")}


def _in_run(path: str, run_dir: Path) -> str:
    """A path as it is recorded: one in the run's folder as it is called in any copy of that."""
    place, run = Path(path).absolute(), run_dir.absolute()
    return f"RUN/{place.relative_to(run)}" if place.is_relative_to(run) else path
