"""The command line: what it teaches, and one clear line when something is wrong."""

from __future__ import annotations

import io
import json
import re
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.rl.tiny_run import build_model
from uae import catalog, cli
from uae.models.load import load_model
from uae.stages.unified_grpo import UnifiedGRPO, load_reward
from uae.world.models import build_janus
from uae.world.scene import render, scene_at


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit code, output and errors of ``uae ARGUMENTS``."""
    code = 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["uae", *arguments])
        try:
            cli.main()
        except SystemExit as exit:
            code = int(exit.code or 0)
    out, err = capsys.readouterr()
    return code, out, err


@pytest.fixture(scope="module", params=["umm1", "umm2"])
def model_folder(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(0)
    model = build_model() if request.param == "umm1" else build_janus()
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Two scenes, a photograph-sized RGBA image, and a file that only looks like an image."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(2):
        Image.fromarray(render(scene_at("test", i))).save(folder / f"{i}.png")
    noise = np.random.default_rng(0).integers(0, 256, (120, 200, 4), dtype=np.uint8)
    Image.fromarray(noise, "RGBA").save(folder / "photo.png")
    (folder / "broken.jpg").write_bytes(b"not a picture")
    return folder


def test_unknown_command_preset_and_part_suggest_the_right_one(capsys: pytest.CaptureFixture[str]):
    for arguments, wanted in (
        (["trainn"], "did you mean 'train'"),
        (["train", "tniy"], "did you mean 'tiny'"),
        (["bench", "unfied"], "did you mean 'unified'"),
        (
            ["bench", "unified", "--source", ".", "--recon", ".", "--backbones", "clpi", "tiny"],
            "did you mean 'clip'",
        ),
        (["data", "lngcap"], "did you mean 'longcap'"),
        (["tiny", "build", "--only", "captoner"], "did you mean 'captioner'"),
    ):
        code, _, err = run(capsys, *arguments)
        assert code == 2 and wanted in err and "Traceback" not in err


def test_an_error_is_one_write(monkeypatch: pytest.MonkeyPatch):
    """Nothing that another process says can then stand within it."""
    written: list[str] = []
    monkeypatch.setattr("sys.stderr", io.StringIO())
    monkeypatch.setattr(sys.stderr, "write", written.append)
    monkeypatch.setattr("sys.argv", ["uae", "trainn"])
    with pytest.raises(SystemExit):
        cli.main()
    (told,) = written
    assert re.fullmatch(r"error: unknown command 'trainn'.*train.*\n", told, re.DOTALL)


@pytest.mark.parametrize("group", ["bench", "data", "tiny"])
def test_a_group_of_commands_lists_them(capsys: pytest.CaptureFixture[str], group: str):
    for arguments in ([group], [group, "--help"]):
        code, out, _ = run(capsys, *arguments)
        assert code == 0 and f"usage: uae {group} COMMAND" in out


def test_train_lists_what_it_runs(capsys: pytest.CaptureFixture[str]):
    code, out, _ = run(capsys, "train", "--help")
    assert code == 0 and "uae train NAME --help" in out
    code, _, err = run(capsys, "train", "tinny")
    assert code == 2 and "did you mean 'tiny'" in err.splitlines()[0]
    for text in (out, err):
        listed = dict(re.findall(r"^  (\S+) +(\S.*)$", text, re.MULTILINE))
        assert catalog.RECIPES.items() <= listed.items()


def test_options_without_a_name_are_those_of_tiny(capsys: pytest.CaptureFixture[str]):
    code, out, _ = run(capsys, "train", "--data", "x", "--help")
    assert code == 0 and "usage: uae train tiny" in out and "--train.num-steps" in out


@pytest.mark.parametrize(
    "arguments", [["train", "--help"], ["train", "tinny"], ["bench"], ["data", "x"], ["tiny", "-h"]]
)
def test_lists_are_answered_without_torch(arguments: list[str]):
    code = (
        f"import sys; from uae import cli\ntry: cli.run({arguments})\nfinally: print('torch' in "
        "sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "False" and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("raised", "wanted", "code"),
    [
        ("KeyError('family')", "KeyError: 'family'", 1),
        ("ValueError('expected a, got b')", "expected a, got b", 2),
        ("MemoryError()", "--batch-size", 2),
        ("KeyboardInterrupt", "what is finished stays", 130),
    ],
)
def test_no_error_is_a_traceback(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    raised: str,
    wanted: str,
    code: int,
):
    def fail(*_: object) -> None:
        raise eval(raised)

    monkeypatch.setattr("uae.commands.reconstruct.reconstruct", fail)
    found, _, err = run(capsys, "reconstruct", "x.png")
    assert found == code and err.startswith("error: ") and wanted in err and "Traceback" not in err
    if code != 130:
        monkeypatch.setenv("UAE_DEBUG", "1")
        with pytest.raises(type(eval(raised))):
            run(capsys, "reconstruct", "x.png")


def test_own_warnings_are_a_line_and_chatter_is_none(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    def warn(*_: object) -> None:
        warnings.warn("left out: x.png", stacklevel=2)
        exec(
            "import warnings; warnings.warn('old way', FutureWarning)",
            {"__name__": "transformers.x"},
        )

    monkeypatch.setattr("uae.commands.reconstruct.reconstruct", warn)
    assert run(capsys, "reconstruct", "x.png") == (0, "", "warning: left out: x.png\n")


@pytest.mark.slow
def test_commands_say_nothing_but_their_own(model_folder: Path, pictures: Path, tmp_path: Path):
    """In processes of their own, where libraries are imported anew."""
    (pictures / "broken.jpg").unlink()
    folder = tmp_path / "run"
    short = [
        "--train.captioning.max-new-tokens",
        "6",
        "--train.decoding.num-steps",
        "1",
        "--train.group-size",
        "2",
    ]
    train = [
        "train",
        "tiny",
        "--model",
        str(model_folder),
        "--run-dir",
        str(folder),
        "--lora-rank",
        "2",
    ]
    look = [
        "reconstruct",
        str(pictures),
        "--model",
        str(folder / "model"),
        "--out",
        str(tmp_path / "out"),
    ]
    for arguments, num_lines in (
        ([*train, "--train.num-steps", "1", "--train.images-per-step", "1", *short], 2),
        ([*look, "--captioning.max-new-tokens", "6"], 4),
    ):
        code = f"from uae.cli import run; run({arguments})"
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=300
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert len(done.stdout.splitlines()) == num_lines, done.stdout


WITH_CTRL_C = (  # which a process in the background ignores
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from uae.cli "
    "import main; main()"
)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code", "word"),
    [(signal.SIGTERM, -15, "terminated"), (signal.SIGINT, 130, "interrupted")],
)
def test_a_signal_ends_a_run_in_a_line(
    model_folder: Path, tmp_path: Path, number: int, code: int, word: str
):
    short = [
        "--train.captioning.max-new-tokens",
        "6",
        "--train.decoding.num-steps",
        "1",
        "--train.group-size",
        "2",
    ]
    options = [
        "--model",
        str(model_folder),
        "--run-dir",
        str(tmp_path),
        "--train.images-per-step",
        "1",
        *short,
    ]
    child = subprocess.Popen(
        [sys.executable, "-c", WITH_CTRL_C, "train", "tiny", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stdout and child.stderr
    while not child.stdout.readline().startswith("Unified-GRPO"):
        assert child.poll() is None, child.stderr.read()
    child.send_signal(number)
    assert child.wait(timeout=60) == code
    assert child.stderr.read().splitlines() == [f"error: {word}; {cli.AFTER_A_STOP}"]
    assert (tmp_path / "metrics.jsonl").read_text().count("\n") >= 1


def test_a_reader_that_has_seen_enough_is_no_error():
    """As in ``uae --help | head -1``: here the pipe is closed before anything is written."""
    script = "import sys; from uae.cli import main; sys.argv = ['uae']; sys.stdin.read(); main()"
    child = subprocess.Popen(
        [sys.executable, "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert child.stdin and child.stdout and child.stderr
    child.stdout.close()
    child.stdin.close()
    assert child.stderr.read() == b"" and child.wait() == 0


def test_unknown_flag_names_the_nearest(capsys: pytest.CaptureFixture[str]):
    code, out, err = run(capsys, "train", "tiny", "--train.num-stpes", "3")
    assert code == 2 and "--train.num-steps" in out + err


def test_dry_run_says_what_it_does_not_know(capsys: pytest.CaptureFixture[str]):
    for preset, wanted in (("decoder", "expected sampler ode"), ("janus", "knows Qwen2.5-VL-3B")):
        code, _, err = run(capsys, "train", preset, "--dry-run")
        assert code == 2 and wanted in err


def test_options_that_the_docs_name_exist(capsys: pytest.CaptureFixture[str]):
    commands = (["train", "paper"], ["reconstruct"], ["bench", "unified"], ["generate"])
    listed = "".join(run(capsys, *command, "--help")[1] for command in commands)
    named = re.findall(
        r"--[a-z][a-z0-9.-]*", (Path(__file__).parents[1] / "docs/real_checkpoints.md").read_text()
    )
    assert set(named) <= set(re.findall(r"--[a-z][a-z0-9.-]*", listed))


def test_missing_model_is_named_before_any_work(
    capsys: pytest.CaptureFixture[str], pictures: Path, tmp_path: Path
):
    out_folder = tmp_path / "out"
    code, _, err = run(
        capsys, "reconstruct", str(pictures), "--model", "no/such/folder", "--out", str(out_folder)
    )
    assert code == 2 and "no/such/folder" in err and "ENCODER+DECODER" in err
    assert not out_folder.exists()


def test_what_stands_in_the_place_of_a_model_is_named(
    capsys: pytest.CaptureFixture[str], pictures: Path
):
    folder = pictures / "a+b" / "janus"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"model_type": "multi_modality"}')
    code, _, err = run(capsys, "reconstruct", str(pictures), "--model", str(folder))
    assert code == 2 and "a+b" in err and "deepseek-community/Janus-Pro" in err
    code, _, err = run(
        capsys, "reconstruct", str(pictures), "--model", "deepseek-community/Janus-Pro-1B"
    )
    assert code == 2 and re.search(
        r"(?i)connect|offline|couldn't|cached", err
    )  # why, in the hub's words


def test_real_models_want_images(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    code, _, err = run(capsys, "train", "janus", "--run-dir", str(tmp_path / "run"))
    assert code == 2 and "--data" in err and not (tmp_path / "run").exists()


def test_backbones_judge_where_they_are_told_to(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    options = ("--run-dir", str(tmp_path / "run"), "--reward-device", "cuda:99")
    code, _, err = run(capsys, "train", "tiny", *options)
    assert code == 2 and "reward-device: expected a device of this machine" in err
    assert not (tmp_path / "run").exists()
    reward = load_reward({"clip": 1.0}, "tiny", load_model("tiny"), "", device="meta")
    (_, judge), *_ = reward.components.values()
    assert {p.device.type for p in judge.backbone.model.parameters()} == {"meta"}


def test_what_is_one_process_refuses_to_be_several(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setenv("WORLD_SIZE", "8")
    code, _, err = run(capsys, "quickstart", "--out", str(tmp_path / "run"))
    assert code == 2 and "uae quickstart is one process, got WORLD_SIZE 8" in err
    assert "train" in err and not (tmp_path / "run").exists()


def test_rewards_of_any_name_as_the_docs_say(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    page = (Path(__file__).parents[1] / "docs/add_a_reward.md").read_text()
    (line,) = re.findall(r"uae train (tiny --rewards .*)", page)
    seen = []
    monkeypatch.setattr(UnifiedGRPO, "check", lambda stage: seen.append(stage.settings))
    monkeypatch.setattr(UnifiedGRPO, "run", lambda stage, work: None)
    assert run(capsys, "train", *line.split())[0] == 0
    assert seen[0].rewards == {"clip": 0.5, "my_rewards:likeness": 0.5, "dinov2": 0.0}
    code, out, err = run(capsys, "train", "tiny", "--rewards", "clip", "0.5", "ssim")
    assert code == 2 and "pair by pair" in out + err


def test_backbones_are_looked_at_before_anything_is_painted(
    capsys: pytest.CaptureFixture[str], model_folder: Path, pictures: Path, tmp_path: Path
):
    out_file = tmp_path / "bench.json"
    code, _, err = run(
        capsys,
        "bench",
        "unified",
        "--images",
        str(pictures),
        "--model",
        str(model_folder),
        "--out",
        str(out_file),
        "--backbones",
        "clip",
        "tiny",
        "longclip",
        "tiny",
        "dinov2",
        "tiny",
        "dinov3",
        str(tmp_path / "none"),
    )
    assert code == 2 and "dinov3" in err and not (tmp_path / "bench_reconstructions").exists()


def test_missing_reward_backbone_is_named_before_any_work(
    capsys: pytest.CaptureFixture[str], model_folder: Path, tmp_path: Path
):
    code, _, err = run(
        capsys,
        "train",
        "tiny",
        "--model",
        str(model_folder),
        "--backbones",
        str(tmp_path / "none"),
        "--run-dir",
        str(tmp_path / "run"),
    )
    assert code == 2 and "backbone clip" in err and not (tmp_path / "run").exists()


def test_missing_tensorboard_is_named_before_any_work(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setattr("uae.utils.metrics.find_spec", lambda name: None)
    code, _, err = run(
        capsys, "train", "tiny", "--train.tensorboard", "--run-dir", str(tmp_path / "run")
    )
    assert code == 2 and "unified-autoencoder[track]" in err and not (tmp_path / "run").exists()


def test_reconstruct_any_images(
    capsys: pytest.CaptureFixture[str], model_folder: Path, pictures: Path, tmp_path: Path
):
    out_folder = tmp_path / "out"
    code, out, err = run(
        capsys,
        "reconstruct",
        str(pictures),
        "--model",
        str(model_folder),
        "--out",
        str(out_folder),
        "--captioning.max-new-tokens",
        "6",
        "--decoding.num-steps",
        "2",
    )
    assert code == 0, err
    assert "broken.jpg" in err and "3 of 4 images" in out
    assert "cut at the cap" in out  # random weights do not stop by themselves
    for name in ("0", "1", "photo"):
        assert Image.open(out_folder / f"recon_{name}.png").size == (48, 48)
        assert (out_folder / f"{name}.txt").read_text().strip()
    assert (out_folder / "report.html").read_text().count("<figure>") == 3


def test_generate_paints_prompts_for_geneval_and_goes_on(
    capsys: pytest.CaptureFixture[str], model_folder: Path, tmp_path: Path
):
    prompts, out_folder = tmp_path / "prompts.jsonl", tmp_path / "out"
    rows = [
        {"tag": "colors", "prompt": "a red circle"},
        {"tag": "counting", "prompt": "two shapes"},
    ]
    prompts.write_text("\n".join(json.dumps(row) for row in rows))
    wanted = [
        str(prompts),
        "--model",
        str(model_folder),
        "--out",
        str(out_folder),
        "--images-per-prompt",
        "2",
    ]
    short = ["--decoding.num-steps", "1", "--decoding.temperature", "1"]
    assert run(capsys, "generate", *wanted, *short)[0] == 0
    files = sorted(out_folder.glob("0000?/samples/*.png"))
    assert [str(f.relative_to(out_folder)) for f in files] == [
        f"0000{i}/samples/0000{k}.png" for i in range(2) for k in range(2)
    ]
    assert [
        json.loads((out_folder / f"0000{i}/metadata.jsonl").read_text()) for i in range(2)
    ] == rows
    before = [file.read_bytes() for file in files]
    assert before[0] != before[1]
    (out_folder / "00001/metadata.jsonl").unlink()  # as if it had been stopped there
    files[3].unlink()
    assert run(capsys, "generate", *wanted, *short)[0] == 0
    assert [file.read_bytes() for file in files] == before
    code, _, err = run(capsys, "generate", *wanted, *short, "--seed", "1")
    assert code == 2 and "seed" in err
    record = json.loads((out_folder / "settings.json").read_text())
    assert record.pop("weights")[0].startswith("sha256:")
    for weights, code in ((None, 0), (["sha256:of another model"], 2)):  # None: begun before
        changed = record | ({"weights": weights} if weights else {})
        (out_folder / "settings.json").write_text(json.dumps(changed))
        found, _, err = run(capsys, "generate", *wanted, *short)
        assert found == code and (code == 0 or "weights" in err)
    prompts.write_text('{"prompt": "a"}\n{"text": "b"}')
    code, _, err = run(capsys, "generate", *wanted)
    assert code == 2 and "line 2" in err


def test_train_and_bench_on_own_images(
    capsys: pytest.CaptureFixture[str], model_folder: Path, pictures: Path, tmp_path: Path
):
    run_dir, results = tmp_path / "run", tmp_path / "bench"
    short = [
        "--train.captioning.max-new-tokens",
        "6",
        "--train.decoding.num-steps",
        "1",
        "--train.group-size",
        "2",
    ]
    code, out, err = run(
        capsys,
        "train",
        "tiny",
        "--model",
        str(model_folder),
        "--data",
        str(pictures),
        "--run-dir",
        str(run_dir),
        "--train.num-steps",
        "1",
        "--train.images-per-step",
        "2",
        *short,
    )
    assert code == 0, err
    assert "trained model" in out
    code, out, err = run(
        capsys,
        "bench",
        "unified",
        "--images",
        str(pictures),
        "--model",
        str(run_dir / "model"),
        "--out",
        str(results),
        "--captioning.max-new-tokens",
        "6",
        "--backbones",
        "clip",
        "tiny",
        "longclip",
        "tiny",
        "dinov2",
        "tiny",
        "dinov3",
        "tiny",
    )
    assert code == 0, err
    assert json.loads(results.read_text())["statistics_by_model"]["clip"]["valid_pairs"] == 3


def test_empty_folder_is_one_clear_line(
    capsys: pytest.CaptureFixture[str], model_folder: Path, tmp_path: Path
):
    (tmp_path / "empty").mkdir()
    code, _, err = run(capsys, "reconstruct", str(tmp_path / "empty"), "--model", str(model_folder))
    assert code == 2 and "empty" in err and "Traceback" not in err


def test_a_model_trained_saved_and_loaded_says_and_paints_the_same(
    model_folder: Path, tmp_path: Path
):
    from uae.autoencode import autoencode
    from uae.config import CaptionSettings, DecodeSettings
    from uae.models.load import load_model

    image = torch.from_numpy(render(scene_at("test", 0))).permute(2, 0, 1) / 255
    model = load_model(str(model_folder))
    model.begin_training(0, captions=True, decoding=None)
    with torch.no_grad():
        for p in model.encoder.named_trainable_parameters().values():
            p.copy_((p + 0.05 * torch.randn_like(p)).bfloat16())  # as it is written
    model.save_pretrained(tmp_path / "moved")
    results = [
        autoencode(m, [image], CaptionSettings(max_new_tokens=5), DecodeSettings(2))
        for m in (model, load_model(str(tmp_path / "moved")), load_model(str(model_folder)))
    ]
    assert results[0].captions.texts == results[1].captions.texts != results[2].captions.texts
    assert torch.equal(results[0].reconstructions.images, results[1].reconstructions.images)
    again = load_model(str(tmp_path / "moved"))
    assert (again.captioning, again.decoding) == (model.captioning, model.decoding)
