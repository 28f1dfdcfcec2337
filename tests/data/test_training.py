"""Training images: batches depend on the step alone, bad files are left out, sizes fit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from uae import cli
from uae.config import DecodeSettings
from uae.data.training import FilePrompts, FolderImages, check_same_files
from uae.images.read import ImageError
from uae.stages.base import Assignment
from uae.stages.cold_start import ColdStart, ColdStartConfig
from uae.stages.sources import image_source
from uae.world.data import SceneImages


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i in range(7):
        Image.fromarray(np.full((20 + i, 30, 3), 10 * i, dtype=np.uint8)).save(
            tmp_path / f"{i}.png"
        )
    return tmp_path


def levels(images: list[torch.Tensor]) -> list[int]:
    """Which file each constant image came from."""
    return [round(float(image[0, 8, 8]) * 255) // 10 for image in images]


def test_each_pass_shows_every_image_once_in_a_new_order(folder: Path):
    source = FolderImages([str(folder)], (16, 16))
    num_files = len(source.files)
    passes = [levels(source.batch(step, num_files)) for step in range(3)]
    assert all(sorted(p) == sorted(passes[0]) and len(set(p)) == num_files for p in passes)
    assert passes[0] != passes[1] or passes[1] != passes[2]
    assert not set(levels(source.probe(16))) & set(passes[0])
    assert levels(FolderImages([str(folder)], (16, 16)).batch(1, num_files)) == passes[1]


def test_an_unreadable_file_is_replaced_by_the_next_and_named_once(folder: Path):
    (folder / "3.png").write_bytes(b"broken")
    source = FolderImages([str(folder)], (16, 16))
    with pytest.warns(
        UserWarning, match=r"3\.png.* \(before a new run: this one needs its files as they are\)$"
    ) as warned:
        images = levels(source.batch(0, 12))
    assert len(images) == 12 and 3 not in images
    assert len(warned) == 1


def test_a_link_that_leads_nowhere_is_replaced_by_the_next_and_named(folder: Path):
    (folder / "3.png").unlink()
    (folder / "3.png").symlink_to("nowhere.png")
    source = FolderImages([str(folder)], (16, 16))
    with pytest.warns(UserWarning, match="3.png"):
        images = levels(source.batch(0, 12))
    assert len(images) == 12 and 3 not in images


def test_a_run_is_not_resumed_on_other_images(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, capsys
):
    """Neither by the command nor in a stage of a pipeline that sees images."""
    run = tmp_path_factory.mktemp("run")
    check_same_files(FolderImages([str(folder)], None), run)
    (run / "checkpoints" / "step_00000001").mkdir(parents=True)
    Image.new("RGB", (20, 30)).save(folder / "late.png")
    with pytest.raises(SystemExit):
        cli.run(["train", "tiny", "--data", str(folder), "--run-dir", str(run)])
    assert (
        "cannot resume, the images are not those" in (err := capsys.readouterr().err)
        and "added: late.png." in err
    )
    with pytest.raises(ValueError, match=r"added: late\.png\."):
        ColdStart(ColdStartConfig(data=(str(folder),))).run(Assignment("tiny", run, "tiny"))


def test_nothing_readable_is_an_error(tmp_path: Path):
    for i in range(3):
        (tmp_path / f"{i}.png").write_bytes(b"broken")
    with pytest.warns(UserWarning, match="left out"), pytest.raises(ImageError, match="none of"):
        FolderImages([str(tmp_path)], (16, 16)).batch(0, 1)


def test_a_source_gives_images_of_the_size_that_is_painted(tmp_path):
    Image.new("RGB", (90, 70), "red").save(tmp_path / "0.png")
    (image,) = image_source((str(tmp_path),), DecodeSettings(height=64, width=32), seed=0).batch(
        0, 1
    )
    assert image.shape == (3, 64, 32)
    assert image_source((), DecodeSettings(), 3, SceneImages).batch(0, 1)[0].shape == (3, 48, 48)


def prompts_file(folder: Path, number: int) -> Path:
    file = folder / "prompts.jsonl"
    file.write_text("".join(f'{{"prompt": "{i} dogs", "count": {i}}}\n' for i in range(number)))
    return file


def test_each_pass_paints_every_prompt_once_in_a_new_order(tmp_path: Path):
    source = FilePrompts(prompts_file(tmp_path, 23), seed=1)
    passes = [[prompt.row["count"] for prompt in source.batch(step, 21)] for step in range(2)]
    assert sorted(passes[0]) == sorted(passes[1]) == list(range(21)) and passes[0] != passes[1]
    assert [prompt.text for prompt in source.probe(16)] == ["21 dogs", "22 dogs"]
    (third,) = FilePrompts(source.path, seed=1).batch(2, 1)
    assert third.text == f"{passes[0][2]} dogs"  # a function of the step, not of what was drawn
    assert FilePrompts(source.path, seed=2).batch(0, 21) != source.batch(0, 21)


def test_of_few_prompts_none_is_kept_back(tmp_path: Path):
    source = FilePrompts(prompts_file(tmp_path, 2))
    assert {prompt.text for prompt in source.batch(0, 3)} == {"0 dogs", "1 dogs"}
    assert [prompt.text for prompt in source.probe(16)] == ["0 dogs", "1 dogs"]


def test_a_run_is_not_resumed_on_other_prompts(tmp_path: Path):
    file, run = prompts_file(tmp_path, 2), tmp_path / "run"
    check_same_files(FilePrompts(file), run)
    (run / "checkpoints" / "step_00000001").mkdir(parents=True)
    check_same_files(FilePrompts(file), run)
    prompts_file(tmp_path, 3)
    with pytest.raises(ValueError, match=r"the prompts are not those .*changed: prompts\.jsonl"):
        check_same_files(FilePrompts(file), run)


def test_images_and_prompts_of_one_run_are_kept_apart(tmp_path: Path):
    file, run = prompts_file(tmp_path, 3), tmp_path / "run"
    photos = tmp_path / "photos"
    photos.mkdir()
    Image.new("RGB", (8, 8)).save(photos / "a.png")
    images = FolderImages([photos], None)
    sources = [images, FilePrompts(file), FilePrompts(file, kind="anchor-texts")]
    for source in sources:
        check_same_files(source, run)
    (run / "checkpoints/step_000001").mkdir(parents=True)
    for source in sources:
        check_same_files(source, run)
    file.write_text("another\n")
    check_same_files(images, run)
    for source in sources[1:]:
        with pytest.raises(ValueError, match=f"the {source.kind} are not those"):
            check_same_files(source, run)
