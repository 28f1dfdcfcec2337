"""``uae reconstruct`` and ``uae bench unified --images`` on folders as people have them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.rl.tiny_run import build_model, build_small_janus
from tests.test_cli import run
from uae.bench import reconstruct as task
from uae.bench.unified.pairing import pair_folders
from uae.world.scene import render, scene_at

SHORT = ("--captioning.max-new-tokens", "5", "--decoding.num-steps", "2")
TINY = tuple(word for name in ("clip", "longclip", "dinov2", "dinov3") for word in (name, "tiny"))
ODD_NAMES = (
    "①",
    "x²",
    "٣",
    "cafe\u0301",
    "🟥👩‍🚀",
    "line\nbreak",
    "-dash",
    "recon_-dash",
    "a b+c%20",
    "<b>&amp;",
    os.fsdecode(b"\xff\xfe"),
    "é" * 120,
)


@pytest.fixture(scope="module", params=["umm1", "umm2"])
def any_model(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> str:
    return saved(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return saved(tmp_path_factory.mktemp("model"), "umm1")


def saved(folder: Path, family: str) -> str:
    (build_model() if family == "umm1" else build_small_janus()).save_pretrained(folder)
    return str(folder)


def draw(number: int, *files: Path) -> None:
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(render(scene_at("test", number))).save(file)


def made(folder: Path) -> dict[str, np.ndarray]:
    """Reconstructions by path inside the folder."""
    return {
        str(f.relative_to(folder)): np.asarray(Image.open(f)).astype(int)
        for f in folder.rglob("recon_*.png")
    }


def reconstruct(capsys, *arguments: object) -> tuple[int, str, str]:
    return run(capsys, "reconstruct", *map(str, arguments), *SHORT)


def assert_same(one: np.ndarray, other: np.ndarray) -> None:
    """8-bit pictures, to one level: products of matrices of another batch may differ in their last
    bits."""
    assert np.abs(one - other).max() <= 1
    assert (one == other).mean() > 0.99


# --- noise belongs to the image ------------------------------------------------------------------


def test_batches_and_other_files_change_nothing(capsys, any_model: str, tmp_path: Path):
    folder = tmp_path / "in"
    for i in range(5):
        draw(i, folder / f"{i}.png")
    sampled = ("--model", any_model, "--captioning.temperature", "1")
    assert reconstruct(capsys, folder, *sampled, "--out", tmp_path / "16")[0] == 0
    (folder / "00_broken.png").write_text("none")
    draw(9, folder / "0_new.png")
    (folder / "3.png").rename(folder / "moved.png")
    for size in (1, 2):
        assert (
            reconstruct(
                capsys, folder, *sampled, "--out", tmp_path / f"{size}", "--batch-size", size
            )[0]
            == 0
        )
    before = made(tmp_path / "16")
    assert len({picture.tobytes() for picture in before.values()}) == 5
    for size in ("1", "2"):
        after = made(tmp_path / size)
        for name, picture in before.items():
            now = name.replace("3", "moved")
            assert_same(picture, after[now])
            captions = [tmp_path / d / f"{n[6:-4]}.txt" for d, n in (("16", name), (size, now))]
            assert captions[0].read_text() == captions[1].read_text()
    other = tmp_path / "other"
    assert reconstruct(capsys, folder, *sampled, "--out", other, "--seed", "1")[0] == 0
    assert (made(other)["recon_0.png"] != before["recon_0.png"]).mean() > 0.2


# --- names ---------------------------------------------------------------------------------------


def test_no_two_images_share_an_output(capsys, model: str, tmp_path: Path):
    folder = tmp_path / "in"
    names = [
        "0001.png",
        "cats/0001.png",
        "dogs/0001.png",
        "dogs/0001.bmp",
        "dogs/recon_x.png",
        "dogs/x.png",
    ]
    for i, name in enumerate(names):
        draw(i, folder / name)
    code, out, err = reconstruct(capsys, folder, "--model", model, "--out", tmp_path / "out")
    assert code == 0, err
    assert "6 of 6 images" in out
    outputs = {
        "recon_0001.png": 0,
        "cats/recon_0001.png": 1,
        "dogs/recon_0001.png.png": 2,
        "dogs/recon_0001.bmp.png": 3,
        "dogs/recon_recon_x.png": 4,
        "dogs/recon_x.png": 5,
    }
    found = made(tmp_path / "out")
    assert found.keys() == outputs.keys()
    for i, name in enumerate(names):
        draw(i, tmp_path / "alone" / Path(name).with_name(f"{i}.png").name)
    assert (
        reconstruct(capsys, tmp_path / "alone", "--model", model, "--out", tmp_path / "by_number")[
            0
        ]
        == 0
    )
    expected = made(tmp_path / "by_number")
    for output, i in outputs.items():
        if not output.endswith(".bmp.png"):  # another file, so another noise
            assert_same(found[output], expected[f"recon_{i}.png"])
    pairs = pair_folders(folder, tmp_path / "out")
    paired = [str(file.relative_to(tmp_path / "out")) for file in pairs.reconstructions]
    assert dict(zip(pairs.names, paired, strict=True)) == {
        names[i]: output for output, i in outputs.items()
    }


def test_equal_names_of_several_paths(capsys, model: str, tmp_path: Path):
    draw(0, tmp_path / "a/x.png")
    draw(1, tmp_path / "b/x.png")
    given = (tmp_path / "a/x.png", tmp_path / "b")
    assert reconstruct(capsys, *given, "--model", model, "--out", tmp_path / "out")[0] == 0
    assert made(tmp_path / "out").keys() == {"a/recon_x.png", "b/recon_x.png"}


def test_any_name(capsys, model: str, tmp_path: Path):
    folder, out = tmp_path / "in", tmp_path / "out"
    for i, name in enumerate(ODD_NAMES):
        draw(i, folder / name / f"{name}.png")
    code, printed, err = reconstruct(capsys, folder, "--model", model, "--out", out)
    assert code == 0, err
    assert f"{len(ODD_NAMES)} of {len(ODD_NAMES)} images" in printed
    pairs = pair_folders(folder, out)
    assert len(pairs.names) == len(ODD_NAMES)
    assert not pairs.unmatched_sources
    page = (out / "report.html").read_text()
    assert page.count("<figure>") == len(ODD_NAMES)
    assert "<b>" not in page
    assert "&lt;b&gt;&amp;amp;" in page


def test_composed_and_decomposed_names_are_one(tmp_path: Path):
    for name in ("caf\u00e9", "A\u030angstro\u0308m 2"):
        draw(0, tmp_path / "source" / f"{name}.png")
    for name in ("cafe\u0301", "\u00c5ngstr\u00f6m 2"):
        draw(0, tmp_path / "recon" / f"recon_{name}.png")
    assert len(pair_folders(tmp_path / "source", tmp_path / "recon").names) == 2
    draw(1, tmp_path / "source" / "cafe\u0301.png")
    draw(1, tmp_path / "recon" / "recon_caf\u00e9.png")
    pairs = pair_folders(tmp_path / "source", tmp_path / "recon")
    assert len(pairs.names) == 3
    for name, file in zip(pairs.names, pairs.reconstructions, strict=True):
        if "caf" in name:
            assert file.name == f"recon_{name}"


def test_a_terminal_of_few_letters_is_no_error():
    script = (
        "import sys; from uae.cli import main; sys.argv = ['uae']; main(); print('caf\\u00e9 "
        "\\udcff')"
    )
    child = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
    )
    assert child.returncode == 0, child.stderr
    assert child.stdout.endswith("caf\\xe9 \\udcff\n")


# --- what is no input ----------------------------------------------------------------------------


def test_its_own_output_is_no_input(capsys, monkeypatch, model: str, tmp_path: Path):
    monkeypatch.chdir(tmp_path)
    draw(0, tmp_path / "a.png")
    draw(1, tmp_path / "sub/b.png")
    for arguments in ((), (), ("--out", "other"), ("--out", "."), ("--out", ".")):
        code, out, err = reconstruct(capsys, ".", "--model", model, *arguments)
        assert code == 0, err
        assert "2 of 2 images" in out
    assert (tmp_path / "reconstructions/sub/recon_b.png").is_file()
    draw(2, tmp_path / "reconstructions/mine.png")
    assert "3 of 3 images" in reconstruct(capsys, ".", "--model", model, "--out", "third")[1]


@pytest.mark.parametrize("taken", ["a.txt", "recon_a.png"])
def test_what_lies_among_the_images_is_not_written_over(
    capsys, monkeypatch, model: str, tmp_path: Path, taken: str
):
    monkeypatch.chdir(tmp_path)
    draw(0, tmp_path / "a.png", tmp_path / taken) if taken.endswith("png") else draw(
        0, tmp_path / "a.png"
    )
    if taken.endswith("txt"):
        (tmp_path / taken).write_text("a caption by hand")
    before = (tmp_path / taken).read_bytes()
    code, _, err = reconstruct(capsys, "a.png", "--model", model, "--out", ".")
    assert code == 2
    assert f"would write over {tmp_path / taken}" in err
    assert (tmp_path / taken).read_bytes() == before


def test_what_cannot_be_read_is_left_out_by_name(capsys, model: str, tmp_path: Path):
    folder = tmp_path / "in"
    draw(0, folder / "good.png")
    (folder / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (folder / "loop.png").symlink_to("loop.png")
    (folder / "up").symlink_to(folder)
    (folder / "empty.png").touch()
    (folder / "phone.HEIC").write_bytes(b"\0\0\0\x18ftypheic")
    (folder / "drawing.svg").write_text("<svg/>")
    os.mkfifo(folder / "pipe.png")
    (folder / "notes.md").touch()
    code, out, err = reconstruct(capsys, folder, "--model", model, "--out", tmp_path / "out")
    assert code == 0, err
    assert "1 of 7 images" in out
    assert "1 other files ignored" in err
    for name in (
        "gone.png",
        "loop.png",
        "empty.png",
        "phone.HEIC",
        "drawing.svg",
        "pipe.png",
        "up",
    ):
        assert f"left out: {folder / name}: " in err
    assert (tmp_path / "out/report.html").read_text().count("<figure>") == 1


# --- what is finished stays ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("failure", "exit_code"), [(RuntimeError("out of memory"), 2), (KeyboardInterrupt(), 130)]
)
def test_what_is_finished_stays(
    capsys, monkeypatch, model: str, tmp_path: Path, failure, exit_code: int
):
    for i in range(3):
        draw(i, tmp_path / f"in/{i}.png")
    calls, autoencode = [], task.autoencode

    def fails_later(*arguments, **options):
        calls.append(1)
        if len(calls) == 3:
            raise failure
        return autoencode(*arguments, **options)

    monkeypatch.setattr(task, "autoencode", fails_later)
    code, out, _ = reconstruct(
        capsys, tmp_path / "in", "--model", model, "--out", tmp_path / "out", "--batch-size", 1
    )
    assert code == exit_code
    assert "2 of 3 images" in out
    assert made(tmp_path / "out").keys() == {"recon_0.png", "recon_1.png"}
    assert (tmp_path / "out/report.html").read_text().count("<figure>") == 2


# --- checked before any work ---------------------------------------------------------------------


def test_a_place_that_cannot_be_written_is_told_before_any_work(capsys, tmp_path: Path):
    """Before the model is loaded: there is none."""
    draw(0, tmp_path / "in/a.png")
    (tmp_path / "file").touch()
    (tmp_path / "x_reconstructions").touch()
    (tmp_path / "prompts.txt").write_text("a red circle")
    images, missing = str(tmp_path / "in"), ("--model", "no/such/model")
    bench = ("bench", "unified", "--backbones", *TINY)
    for arguments in (
        ("reconstruct", images, *missing, "--out", str(tmp_path / "file")),
        ("reconstruct", images, *missing, "--out", str(tmp_path / "file/deep")),
        ("generate", str(tmp_path / "prompts.txt"), *missing, "--out", str(tmp_path / "file")),
        ("tiny", "measure", *missing, "--out", str(tmp_path)),
        ("tiny", "measure", *missing, "--out", str(tmp_path / "file/x.json")),
        ("train", "tiny", *missing, "--run-dir", str(tmp_path / "file")),
        ("train", "v1-tiny", "--run-dir", str(tmp_path / "file/run")),
        ("quickstart", "--out", str(tmp_path / "file")),
        ("export", "no/such/model", str(tmp_path / "file/deep")),
        ("data", "longcap", images, "--local", "no/such/model", "--out", str(tmp_path / "file")),
        (*bench, "--images", images, *missing, "--out", str(tmp_path)),
        (*bench, "--images", images, *missing, "--out", str(tmp_path / "file/x.json")),
        (*bench, "--images", images, *missing, "--out", str(tmp_path / "x.json")),
        (*bench, "--source", images, "--recon", images, "--out", str(tmp_path)),
    ):
        code, _, err = run(capsys, *arguments)
        assert code == 2
        assert "expected a f" in err, (arguments, err)
        assert " to write" in err, (arguments, err)
    assert sorted(os.listdir(tmp_path)) == ["file", "in", "prompts.txt", "x_reconstructions"]


def test_nothing_at_a_time_is_refused(capsys, tmp_path: Path):
    draw(0, tmp_path / "a.png")
    code, _, err = reconstruct(capsys, tmp_path / "a.png", "--batch-size", 0)
    assert code == 2
    assert "--batch-size must be at least 1, got 0" in err


# --- the benchmark -------------------------------------------------------------------------------


def test_bench_goes_on_where_it_was_stopped(capsys, monkeypatch, tmp_path: Path):
    """Painted again is only what is not there, or no longer as it was; another model or other
    settings are refused."""
    monkeypatch.chdir(tmp_path)
    model = saved(tmp_path / "model", "umm1")
    for i in range(3):
        draw(i, tmp_path / f"in/{i}.png")
    painted = []

    def counted(model, images, *arguments, autoencode=task.autoencode, **options):
        painted.append(len(images))
        if painted == [3]:
            raise KeyboardInterrupt
        return autoencode(model, images, *arguments, **options)

    monkeypatch.setattr(task, "autoencode", counted)
    bench = ("bench", "unified", "--images", "in", *SHORT, "--backbones", *TINY, "--model", model)
    recon = tmp_path / "unified_bench_reconstructions"
    assert run(capsys, *bench)[0] == 130
    assert run(capsys, *bench)[0] == 0
    result = Path("unified_bench.json").read_text()
    pictures, page = made(recon), (recon / "report.html").read_text()
    assert painted == [3, 3]
    code, out, err = run(capsys, *bench)
    assert code == 0, err
    assert painted == [3, 3]
    assert "3 of 3 images" in out
    assert Path("unified_bench.json").read_text() == result
    assert (recon / "report.html").read_text() == page

    (recon / "recon_1.png").unlink()
    (recon / "2.txt").write_text("other words\n")
    assert run(capsys, *bench)[0] == 0
    assert painted == [3, 3, 2]
    for name, picture in made(recon).items():
        assert_same(picture, pictures[name])
    draw(7, tmp_path / "in/0.png")
    assert run(capsys, *bench)[0] == 0
    assert painted == [3, 3, 2, 1]
    assert (made(recon)["recon_0.png"] != pictures["recon_0.png"]).any()

    code, _, err = run(capsys, *bench, "--seed", "3")
    assert code == 2
    assert "seed: was 0, now 3" in err
    code, _, err = run(capsys, *bench[:-1], "tiny")
    assert code == 2
    assert f"model.source: was {model!r}, now 'tiny'" in err
    for file in Path(model).rglob("*.safetensors"):
        weights = load_file(file)
        save_file({name: weight + 1e-3 for name, weight in weights.items()}, file)
    code, _, err = run(capsys, *bench)
    assert code == 2
    assert "model.weights: was" in err
    assert painted == [3, 3, 2, 1]


def test_the_result_says_which_model_and_versions(capsys, monkeypatch, model: str, tmp_path: Path):
    monkeypatch.chdir(tmp_path)
    draw(0, tmp_path / "in/0.png")
    draw(1, tmp_path / "in/1.png")
    bench = ("bench", "unified", "--images", "in", *SHORT, "--backbones", *TINY, "--model", model)
    assert run(capsys, *bench)[0] == 0
    details = json.loads(Path("unified_bench.json").read_text())["uae"]
    assert details["model"]["source"] == details["settings"]["model"] == model
    assert details["model"]["weights"][0].startswith("sha256:")
    assert details["versions"]["torch"] == torch.__version__
    assert details["settings"]["captioning"]["max_new_tokens"] == 5


def test_bench_of_a_folder_scores_each_image_with_its_own_picture(
    capsys, monkeypatch, model: str, tmp_path: Path
):
    monkeypatch.chdir(tmp_path)
    for i, name in enumerate(("0001.png", "cats/0001.png", "cats/0001.bmp")):
        draw(i, tmp_path / name)
    (tmp_path / "broken.jfif").write_text("none")
    for _ in range(2):
        code, out, err = run(
            capsys,
            "bench",
            "unified",
            "--images",
            ".",
            "--model",
            model,
            *SHORT,
            "--backbones",
            *TINY,
        )
        assert code == 0, err
        assert "3 of 4 images scored" in out
        report = json.loads(Path("unified_bench.json").read_text())
        assert set(report["similarities_by_model"]["clip"]) == {
            "0001.png",
            "cats/0001.png",
            "cats/0001.bmp",
        }
        assert "broken.jfif: expected an image" in report["uae"]["unscored"]["broken.jfif"]
    options = ("--source", ".", "--recon", "unified_bench_reconstructions", "--out", "again.json")
    code, out, err = run(capsys, "bench", "unified", *options, "--backbones", *TINY)
    assert code == 0, err
    again = json.loads(Path("again.json").read_text())
    assert again["similarities_by_model"] == report["similarities_by_model"]
    assert again["uae"]["unscored"] == {"broken.jfif": "no reconstruction"}
