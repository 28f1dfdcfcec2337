"""A pipeline of all kinds of stages on real files: models are handed on, stages resume, what may
not change is said."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel
from peft import PeftModel
from PIL import Image
from transformers import Qwen2_5_VLForConditionalGeneration

from tests.rl.tiny_run import build_model
from tests.utils.holder import held_elsewhere
from uae import catalog, cli
from uae.config import CaptionSettings, DecodeSettings
from uae.models.load import load_model
from uae.report.stages_page import report_stages
from uae.rl.config import TrainConfig
from uae.stages import pipeline as pipelines
from uae.stages.base import Stage
from uae.stages.cold_start import ColdStart, ColdStartConfig
from uae.stages.grpo_settings import UnifiedGRPOSettings
from uae.stages.long_captions import LongCaptionConfig, LongCaptions
from uae.stages.pipeline import PipelineSettings, run_pipeline
from uae.stages.recipes import RECIPES, Recipe
from uae.stages.unified_grpo import UnifiedGRPO
from uae.utils.checkpoint import defaults_of
from uae.utils.files import json_ready
from uae.world import recipes as world
from uae.world.data import SceneImages
from uae.world.pairs import write_captioned_scenes
from uae.world.scene import render, scene_at

SAID, PAINTED = CaptionSettings(max_new_tokens=4), DecodeSettings(num_steps=2)
RL = TrainConfig(
    num_steps=2,
    images_per_step=2,
    group_size=2,
    captioning=SAID,
    decoding=PAINTED,
    learning_rate=1e-3,
)
STAGES = {
    "long_captions": LongCaptions(
        LongCaptionConfig((), 2, 2, 1e-3, resolution=48, pool_size=8, num_held_out=2)
    ),
    "cold_start": ColdStart(
        ColdStartConfig(2, 2, 1e-3, 1, rewards={"ssim": 1.0}, captioning=SAID, decoding=PAINTED)
    ),
    "generation_for_understanding": UnifiedGRPO(
        UnifiedGRPOSettings(rewards={"ssim": 1.0}, train=RL)
    ),
    "understanding_for_generation": UnifiedGRPO(
        UnifiedGRPOSettings(
            rewards={"ssim": 1.0},
            lora_rank=2,
            train=replace(
                RL, caption_weight=0.0, decoding=replace(PAINTED, sampler="sde", window_size=1)
            ),
        )
    ),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pipeline")
    build_model().save_pretrained(folder / "start")
    write_captioned_scenes(folder / "pairs", 24)
    (folder / "images").mkdir()
    for i in range(12):
        Image.fromarray(render(scene_at("train", i))).save(folder / "images" / f"{i}.png")
    return folder


def pipeline(files: Path, **changed) -> tuple[Recipe, PipelineSettings]:
    args = PipelineSettings(
        files / "run", captions=(str(files / "pairs"),), data=(str(files / "images"),), **changed
    )
    return Recipe(str(files / "start"), STAGES), args


@pytest.mark.slow
def test_all_stages_hand_on_what_they_trained(files: Path):
    records = run_pipeline(*pipeline(files))
    assert [record["stage"] for record in records] == list(STAGES)
    parts = [weights(path) for path in (files / "start", *(record["model"] for record in records))]
    moved = [
        {part for part in old if not same(old[part], new[part])} for old, new in pairwise(parts)
    ]
    assert moved == [{"transformer"}, {"transformer"}, {"encoder"}, {"transformer"}]
    *_, third, last = (Path(record["model"]) for record in records)
    Qwen2_5_VLForConditionalGeneration.from_pretrained(third / "encoder")
    base = SD3Transformer2DModel.from_pretrained(third / "decoder" / "transformer")
    PeftModel.from_pretrained(base, str(last / "decoder" / "adapter"))  # type: ignore[arg-type]


def weights(folder: Path | str) -> dict[str, dict[str, torch.Tensor]]:
    """Of both halves, adapters merged."""
    model: Any = load_model(str(folder))
    model.merge_adapters()
    return {
        "encoder": model.encoder.model.state_dict(),
        "transformer": model.decoder.transformer.state_dict(),
    }


@pytest.mark.slow
def test_in_the_world_each_stage_is_measured_and_reported(tmp_path: Path):
    config = ColdStartConfig(1, 2, 1e-9, 1, captioning=SAID, decoding=PAINTED)
    stages = {"cold_start": ColdStart(config, SceneImages)}
    recipe = Recipe("tiny", stages, world.measure_saved)
    records = run_pipeline(recipe, PipelineSettings(tmp_path))
    report_stages("uae train x", records, tmp_path)
    assert [record["stage"] for record in records] == ["start", "cold_start"]
    start, after = (record["measured"]["unified_score"] for record in records)
    assert after == pytest.approx(start, abs=1.0)  # a rate of 1e-9
    page = (tmp_path / "report.html").read_text()
    assert (
        f"<td>{start:.2f}</td><td>{after:.2f}</td>" in page
        and page.count("data:image/png") == 12 * 3
    )
    assert all(
        "samples" not in record for record in json.loads((tmp_path / "stages.json").read_text())
    )


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.slow
def test_a_finished_stage_is_not_run_again_and_one_can_be_redone(files: Path, monkeypatch, capsys):
    stages, args = pipeline(files)
    run_pipeline(stages, args)
    trained = []
    for kind in (ColdStart, LongCaptions, UnifiedGRPO):

        def run(stage, work, original=kind.run):
            trained.append(work.folder.name)
            original(stage, work)

        monkeypatch.setattr(kind, "run", run)
    run_pipeline(stages, args)
    assert trained == []
    run_pipeline(stages, replace(args, only="cold_start", redo=True))
    assert trained == ["2_cold_start"]
    third = args.run_dir / "3_generation_for_understanding"
    (third / "finished.json").unlink()
    run_pipeline(stages, args)
    assert trained == ["2_cold_start"] and (third / "finished.json").exists()  # it had its model
    (third / "finished.json").unlink()
    shutil.rmtree(third / "model")
    run_pipeline(stages, args)
    assert trained == ["2_cold_start", third.name] and (third / "model").exists()


def test_a_stage_goes_on_as_it_was_begun(files: Path):
    stages, args = pipeline(files)
    folder = files / "other" / "1_long_captions"
    (folder / "checkpoints").mkdir(parents=True)
    begun = {"name": "long_captions", "source": str(files / "start"), "settings": {"num_steps": 3}}
    (folder / "stage.json").write_text(json.dumps(begun))
    with pytest.raises(ValueError, match="num_steps"):
        run_pipeline(stages, replace(args, run_dir=files / "other"))


def test_a_stage_without_a_checkpoint_may_begin_otherwise(files: Path, tmp_path: Path):
    """Settings that failed at once do not bind."""
    folder = tmp_path / "1_long_captions"
    folder.mkdir()
    (folder / "stage.json").write_text(
        json.dumps({"name": "long_captions", "source": "elsewhere", "settings": {}})
    )
    pipelines.record_settings({"name": "long_captions", "source": "here"}, folder)
    assert json.loads((folder / "stage.json").read_text())["source"] == "here"


def test_a_run_may_be_moved_and_its_first_stage_shared(files: Path, tmp_path: Path, monkeypatch):
    """Nothing that is recorded says where the run lies."""
    stage = ColdStart(
        ColdStartConfig(1, 2, 1e-3, 1, rewards={"ssim": 1.0}, captioning=SAID, decoding=PAINTED)
    )
    stages = Recipe(str(files / "start"), {"cold_start": stage, "again": stage})
    args = PipelineSettings(tmp_path / "a", data=(str(files / "images"),))
    run_pipeline(stages, args)
    monkeypatch.setattr(ColdStart, "run", lambda *a: pytest.fail("it was finished"))
    monkeypatch.chdir(tmp_path)
    run_pipeline(stages, replace(args, run_dir=Path("a")))
    (tmp_path / "a").rename(tmp_path / "b")
    records = run_pipeline(stages, replace(args, run_dir=tmp_path / "b"))
    assert [record["model"] for record in records] == [
        str(tmp_path / "b" / f) for f in ("1_cold_start/model", "2_again/model")
    ]


def test_another_start_is_measured_anew(tmp_path: Path):
    for source in ("tiny", "other", "other"):
        record = pipelines.measured_start(source, tmp_path, lambda model: {"measured": model})
        assert record["measured"] == source
    with pytest.raises(AssertionError, match="again"):
        pipelines.measured_start("tiny", tmp_path, _fail)
    assert pipelines.measured_start("other", tmp_path, _fail)["measured"] == "other"


def _fail(source: str) -> dict[str, Any]:
    raise AssertionError("measured again")


def test_a_run_from_when_more_was_recorded_goes_on(tmp_path: Path):
    """A stage's settings once named a model and a folder, which it does not choose."""
    settings = {"data": [], "train": {"num_steps": 3}}
    (tmp_path / "checkpoints").mkdir()
    before = settings | {"model": "tiny", "run_dir": "runs/train", "dry_run": False}
    (tmp_path / "stage.json").write_text(json.dumps({"name": "rl", "settings": before}))
    pipelines.record_settings({"name": "rl", "settings": settings}, tmp_path)
    with pytest.raises(ValueError, match=r"num_steps"):
        pipelines.record_settings(
            {"name": "rl", "settings": settings | {"train": {"num_steps": 4}}}, tmp_path
        )


def test_a_run_from_before_there_was_a_setting_goes_on(tmp_path: Path):
    """While that is at its default."""
    settings = UnifiedGRPOSettings()
    before, now = asdict(settings), asdict(settings)
    del before["train"]["ema_every"]
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "stage.json").write_text(json.dumps({"settings": before}))
    defaults = {"settings": defaults_of(settings)}
    pipelines.record_settings({"settings": now}, tmp_path, defaults)
    now["train"]["ema_every"] = 5
    with pytest.raises(ValueError, match=r"ema_every: was not set, now 5"):
        pipelines.record_settings({"settings": now}, tmp_path, defaults)


def test_a_pipeline_in_use_is_refused(files: Path):
    stages, args = pipeline(files)
    with (
        held_elsewhere(args.run_dir) as other,
        pytest.raises(ValueError, match=rf"in use by process {other.pid} "),
    ):
        run_pipeline(stages, replace(args, only="cold_start", redo=True))


def test_how_many_checkpoints_stay_may_change(tmp_path: Path):
    """Also of a run that was begun before there was a choice."""
    (tmp_path / "checkpoints").mkdir()
    stage = STAGES["cold_start"]
    recorded = asdict(stage.settings)
    del recorded["keep_checkpoints"]
    (tmp_path / "stage.json").write_text(json.dumps(json_ready({"settings": recorded})))
    for number in (2, 5):
        settings = asdict(replace(stage.settings, keep_checkpoints=number))
        pipelines.record_settings(
            {"settings": settings}, tmp_path, {"settings": defaults_of(stage.settings)}
        )


def test_how_work_is_shared_may_change_and_how_much_there_is_not(tmp_path: Path):
    (tmp_path / "checkpoints").mkdir()
    settings: Any = world.RECIPES["v3-tiny"].stages["generation_for_understanding"].settings

    def record(**train: Any) -> None:
        given = replace(settings, train=replace(settings.train, **train))
        pipelines.record_settings({"settings": asdict(given)}, tmp_path, {})

    record()
    record(shard="all", micro_batch=7, save_every=3)
    with pytest.raises(ValueError, match=r"settings\.train\.num_steps: was 80, now 81"):
        record(num_steps=81)


def test_settings_of_stages_are_options(monkeypatch):
    ran = []
    monkeypatch.setattr(
        "uae.commands.train.run_pipeline", lambda recipe, args: ran.append((recipe, args)) or []
    )
    monkeypatch.setattr("uae.commands.train.report_stages", lambda *a: "")
    cli.run(["train", "v3-tiny", "--long-captions.cache", "kept", "--seed", "3"])
    pipeline, args = ran[0]
    assert pipeline.stages["long_captions"].settings.cache == "kept" and args.seed == 3
    assert list(pipeline.stages) == list(world.RECIPES["v3-tiny"].stages)
    for option in ("model", "run-dir", "dry-run", "self-contained"):  # the whole run's
        with pytest.raises(SystemExit):
            cli.run(["train", "v3-tiny", f"--generation-for-understanding.{option}", "other"])
    assert len(ran) == 1


@pytest.mark.parametrize(
    ("recipe", "given", "option"),
    [("decoder-tiny", {"data": ("photos",)}, "--data"), ("v5-tiny", {"captions": ("c",)}, "--cap")],
)
def test_what_no_stage_would_learn_from_is_refused(recipe, given: dict, option, tmp_path: Path):
    with pytest.raises(ValueError, match=f"^{option}.*: expected none, as no stage"):
        run_pipeline(world.RECIPES[recipe], PipelineSettings(tmp_path / "run", **given))
    assert not (tmp_path / "run").exists()


def test_what_is_missing_is_said_before_any_work(files: Path):
    stages, args = pipeline(files)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        run_pipeline(stages, replace(args, captions=(str(files / "nowhere"),)))
    with pytest.raises(FileNotFoundError, match="nowhere"):
        run_pipeline(stages, replace(args, data=(str(files / "nowhere"),)))
    alone = replace(args, run_dir=files / "alone", data=(), only="cold_start", captions=())
    with pytest.raises(ValueError, match="expected images to learn from"):  # but no captions
        run_pipeline(stages, alone)
    with pytest.raises(ValueError, match=r"expected captioned images .* --captions"):
        run_pipeline(stages, replace(args, captions=()))
    with pytest.raises(ValueError, match="expected images to learn from: give --data"):
        run_pipeline(stages, replace(args, data=()))
    with pytest.raises(
        ValueError, match="unknown stage 'coldstart': expected one of long_captions"
    ):
        run_pipeline(stages, replace(args, only="coldstart"))
    with pytest.raises(ValueError, match="--redo begins one stage anew: name it by --only"):
        run_pipeline(stages, replace(args, redo=True))
    with pytest.raises(
        ValueError, match="expected stage long_captions to be finished before cold_start"
    ):
        run_pipeline(stages, replace(args, run_dir=files / "empty", only="cold_start"))


def test_published_versions_have_their_stages():
    kinds = {
        name: [type(stage) for stage in recipe.stages.values()]
        for name, recipe in (RECIPES | world.RECIPES).items()
    }
    rl = [UnifiedGRPO, UnifiedGRPO]
    assert kinds["v1"] == [LongCaptions, ColdStart, *rl]
    assert kinds["v1-tiny"] == [world.SceneCaptions, ColdStart, *rl]
    assert kinds["v3"] == [LongCaptions, *rl]
    assert kinds["v3-tiny"] == [world.SceneCaptions, *rl]
    assert kinds["v3-tiny-ar"] == rl
    for one, alone in (("v5", "paper"), ("v5-ar", "janus")):
        assert RECIPES[one].stage == RECIPES[alone].stage
    for one, alone in (("v5-tiny", "tiny"), ("v5-tiny-ar", "tiny-ar")):
        assert world.RECIPES[one].stage == world.RECIPES[alone].stage


def test_the_list_names_all_recipes():
    assert list(catalog.REAL) == list(RECIPES) and list(catalog.TINY) == list(world.RECIPES)
    assert all(
        isinstance(s, Stage) for r in (RECIPES | world.RECIPES).values() for s in r.stages.values()
    )
