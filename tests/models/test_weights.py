"""Every file of every kind of model folder, damaged in every way: one line that names it, never
another model."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import replace as replace_settings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.models.real_layouts import (
    QWEN_WIDTH,
    large_like_transformer,
    large_like_vae,
    write_janus,
    write_qwen,
    write_sd3,
)
from uae import cli
from uae.models.connectors import Projector
from uae.models.decoders.sd3 import SD3Decoder
from uae.models.encoders.qwen_vl import QwenVL
from uae.models.load import SHIPPED, load_model
from uae.utils.weights import ModelFileError, check_finite, read_tensors


def _release(root: Path) -> None:
    """The released layout, small."""
    write_sd3(root / "SD3", large_like_transformer(), large_like_vae())
    shutil.rmtree(root / "SD3" / "transformer")
    transformer = large_like_transformer()
    transformer.save_pretrained(root / "dit")
    get_peft_model(transformer, LoraConfig(r=2, target_modules=["to_q"])).save_pretrained(
        root / "dit_lora"
    )
    write_qwen(root / "llm_model")
    save_file(
        {
            f"base_model.model.model.layers.0.self_attn.q_proj.lora_{half}.weight": torch.zeros(
                shape
            )
            for half, shape in (("A", (2, QWEN_WIDTH)), ("B", (QWEN_WIDTH, 2)))
        },
        _made(root / "llm_lora") / "adapter_model.safetensors",
    )
    LoraConfig(r=2, target_modules=["q_proj"]).save_pretrained(str(root / "llm_lora"))
    Projector(QWEN_WIDTH, 40, 20).save_pretrained(root / "projector")


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


LAYOUTS: dict[str, Callable[[Path], object]] = {
    "tiny": lambda root: shutil.copytree(SHIPPED["tiny"], root, dirs_exist_ok=True),
    "tiny-ar": lambda root: shutil.copytree(SHIPPED["tiny-ar"], root, dirs_exist_ok=True),
    "qwen": lambda root: write_qwen(root),
    "sd3": lambda root: write_sd3(root, large_like_transformer(), large_like_vae()),
    "janus": lambda root: write_janus(root),
    "release": _release,
}
NOT_READ = {
    "qwen": {"merges.txt", "vocab.json"},  # as tokenizer.json is there
    "sd3": {"model_index.json", "text_encoder_3/model-00001-of-00002.safetensors"},
    "release": {"dit_lora/README.md"},
}
CHECKED_ELSEWHERE = ("SD3/", "llm_model/")  # of the release: the files of the layouts sd3 and qwen


@pytest.fixture(scope="module")
def layouts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("layouts")
    for name, write in LAYOUTS.items():
        write(_made(root / name))
    return {name: root / name for name in LAYOUTS}


def load(layout: str, folder: Path) -> object:
    if layout == "sd3":
        return SD3Decoder.from_pretrained(folder, llm_width=QWEN_WIDTH)
    return QwenVL.from_pretrained(folder) if layout == "qwen" else load_model(str(folder))


def copy(folder: Path, target: Path) -> Path:
    """Hard links, which ``replace`` breaks."""
    return Path(shutil.copytree(folder, target, copy_function=os.link))


def replace(file: Path, content: bytes | None) -> None:
    """None: a folder in its place."""
    file.unlink()
    file.mkdir() if content is None else file.write_bytes(content)


def refusal(layout: str, folder: Path) -> str | None:
    try:
        load(layout, folder)
    except ValueError as error:
        return str(error)
    return None


DAMAGES: dict[str, Callable[[bytes], bytes | None]] = {
    "half": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
    "garbage": lambda content: bytes(range(256)) * 4,
    "a folder": lambda content: None,
    "a list": lambda content: b"[1, 2]",
    "an empty object": lambda content: b"{}",
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_damaged_file_is_named_in_one_line(
    layouts: dict[str, Path], tmp_path: Path, layout: str, damage: str
):
    folder = layouts[layout]
    files = sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())
    files = [
        name for name in files if layout != "release" or not name.startswith(CHECKED_ELSEWHERE)
    ]
    assert len(files) >= 8
    read = set()
    for i, name in enumerate(files):
        damaged = copy(folder, tmp_path / str(i))
        replace(damaged / name, DAMAGES[damage]((folder / name).read_bytes()))
        if (message := refusal(layout, damaged)) is not None:
            assert Path(name).name in message, f"{name}: {message}"
            assert "\n" not in message, f"{name}: {message}"
            read.add(name)
    assert set(files) - read == NOT_READ.get(layout, set())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_whole_ones_load(layouts: dict[str, Path], layout: str):
    assert load(layout, layouts[layout]) is not None


@pytest.mark.parametrize(
    ("layout", "gone", "message"),
    [
        ("tiny", "encoder/config.json", r"encoder: expected config\.json of Qwen2_5_VL"),
        ("tiny", "encoder/tokenizer.json", r"expected tokenizer\.json or vocab\.json"),
        (
            "tiny",
            "encoder/chat_template.jinja",
            r"chat_template\.jinja or .* can't be read as a chat template",
        ),
        (
            "tiny",
            "decoder/scheduler/scheduler_config.json",
            r"missing scheduler/scheduler_config\.json",
        ),
        (
            "sd3",
            "tokenizer_2/tokenizer_config.json",
            r"in its place tokenizer_2/tokenizer_config\.json",
        ),
        ("sd3", "tokenizer/tokenizer.json", r"tokenizer: expected tokenizer\.json or vocab\.json"),
        ("qwen", "model.safetensors.index.json", r"but not model\.safetensors\.index\.json"),
        (
            "qwen",
            "model-00002-of-00002.safetensors",
            r"model-00002-of-00002\.safetensors: expected a file, found nothing",
        ),
        ("janus", "config.json", r"no config\.json"),
    ],
)
def test_a_file_that_is_gone_is_not_made_up(
    layouts: dict[str, Path], tmp_path: Path, layout: str, gone: str, message: str
):
    """The library would take a model of 75B for a missing configuration, and no words for a missing
    vocabulary."""
    folder = copy(layouts[layout], tmp_path / "copy")
    (folder / gone).unlink()
    with pytest.raises(ValueError, match=message):
        load(layout, folder)


@pytest.mark.parametrize(
    "change",
    [
        {"captioning": "x"},
        {"captioning": None},
        {"decoding": {"steps": 1}},
        {"decoding": {"num_steps": "20"}},
        {"conditioning": "pictures"},
        {"text_encoder": 7},
        {"negative_prompt": ["blurry"]},
        {"family": None},
        {"weights": "adapters"},
        {"weights": "adapters", "base": 5},
        {"weights": "adapters", "base": []},
        {"weights": "adapters", "base": [{"place": "tiny"}]},
    ],
    ids=str,
)
def test_settings_that_mean_nothing_are_named(
    layouts: dict[str, Path], tmp_path: Path, change: dict
):
    folder = copy(layouts["tiny"], tmp_path / "copy")
    file = folder / "uae.json"
    described = json.loads(file.read_text())
    replace(file, json.dumps(described | change).encode())
    with pytest.raises(ValueError, match=r"uae\.json") as error:
        load_model(str(folder))
    assert "\n" not in str(error.value)


def test_a_configuration_of_a_larger_model_takes_no_memory(
    layouts: dict[str, Path], tmp_path: Path
):
    folder = copy(layouts["tiny"], tmp_path / "copy")
    config = {
        "model_type": "qwen2_5_vl"
    }  # and nothing else: the library's default has 75 billion weights
    replace(folder / "encoder" / "config.json", json.dumps(config).encode())
    with pytest.raises(
        ModelFileError,
        match=r"config\.json: expected the configuration of the .* got one of \d+,\d{3},",
    ):
        load_model(str(folder))


# --- weights -------------------------------------------------------------------------------------

PARTS = {
    "language model": ("tiny", "encoder/model.safetensors", "model.layers.2.mlp.up_proj.weight"),
    "vision tower": ("tiny", "encoder/model.safetensors", "visual.blocks.1.attn.qkv.bias"),
    "transformer": (
        "tiny",
        "decoder/transformer/diffusion_pytorch_model.safetensors",
        "transformer_blocks.1.attn.to_q.weight",
    ),
    "vae": ("tiny", "decoder/vae/diffusion_pytorch_model.safetensors", "decoder.conv_out.weight"),
    "projector": ("tiny", "decoder/projector/diffusion_pytorch_model.safetensors", "layers.0.bias"),
    "janus": ("tiny-ar", "model.safetensors", "model.vqmodel.decoder.conv_out.bias"),
    "shard": ("qwen", "model-00001-of-00002.safetensors", "model.layers.0.mlp.up_proj.weight"),
    "text encoder": ("sd3", "text_encoder_2/model.safetensors", "text_projection.weight"),
}


def lost(tensors: dict, name: str) -> None:
    del tensors[name]


def renamed(tensors: dict, name: str) -> None:
    for each in list(tensors):
        tensors[f"module.{each}"] = tensors.pop(each)


def another_shape(tensors: dict, name: str) -> None:
    tensors[name] = torch.cat([tensors[name], tensors[name]])


def another_layer(tensors: dict, name: str) -> None:
    tensors[f"{name.split('.')[0]}.77.weight"] = torch.zeros(2)


def not_a_number(tensors: dict, name: str) -> None:
    tensors[name].view(-1)[-1] = float("nan")


def infinite(tensors: dict, name: str) -> None:
    tensors[name].view(-1)[0] = -float("inf")


WRONG = {
    lost: r"1 are missing \(.*{last}\)",
    renamed: r"\d+ are missing \(.*, …\)",
    another_shape: r"1 have another shape \(.*{last} \(\d+.*\) in place of \(",
    another_layer: r"1 belong to no part of it \(.*77\.weight\)",
    not_a_number: r"NaN or infinity in 1 of \d+ tensors \(.*{last}\)",
    infinite: r"NaN or infinity in 1 of \d+ tensors \(.*{last}\)",
}


@pytest.mark.parametrize("change", WRONG, ids=lambda change: change.__name__)
@pytest.mark.parametrize("part", PARTS)
def test_weights_that_do_not_do_are_named(
    layouts: dict[str, Path], tmp_path: Path, part: str, change: Callable
):
    layout, file, name = PARTS[part]
    folder = copy(layouts[layout], tmp_path / "copy")
    tensors = load_file(folder / file)
    change(tensors, name)
    (folder / file).unlink()
    save_file(tensors, folder / file, metadata={"format": "pt"})
    last = name.partition(".")[2]  # the class names what is before it in another way
    with pytest.raises(ValueError, match=WRONG[change].format(last=re.escape(last))) as error:
        load(layout, folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("change", [lost, another_shape])
def test_a_weight_that_an_index_promises_is_missed(
    layouts: dict[str, Path], tmp_path: Path, change: Callable
):
    """``diffusers`` counts the names in the index, and leaves what no file has without memory."""
    folder = copy(layouts["sd3"], tmp_path / "copy")
    file = min((folder / "transformer").glob("*-of-*.safetensors"))
    tensors = load_file(file)
    change(tensors, name := min(tensors))
    file.unlink()
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(
        ValueError, match=rf"1 (are missing|have another shape) \({re.escape(name)}"
    ):
        load("sd3", folder)


def test_a_tied_head_is_not_missed(layouts: dict[str, Path]):
    files = [load_file(file) for file in layouts["qwen"].glob("*.safetensors")]
    assert not any("lm_head.weight" in tensors for tensors in files)
    head = QwenVL.from_pretrained(layouts["qwen"]).model.lm_head.weight
    embeddings = next(
        tensors["model.embed_tokens.weight"]
        for tensors in files
        if "model.embed_tokens.weight" in tensors
    )
    assert torch.equal(head, embeddings.float())


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".bin"])
def test_tensors_are_read_from_files_of_both_kinds(tmp_path: Path, suffix: str):
    file = tmp_path / f"projector{suffix}"
    write = save_file if suffix == ".safetensors" else torch.save
    write({"weight": torch.arange(6.0)}, file)
    assert torch.equal(read_tensors(file)["weight"], torch.arange(6.0))
    write({"weight": torch.tensor([1.0, float("nan")])}, file)
    with pytest.raises(ModelFileError, match=f"projector{suffix}: expected finite weights"):
        read_tensors(file)
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(ModelFileError, match=f"projector{suffix} is cut short"):
        read_tensors(file)


def test_nothing_but_tensors_is_unpickled(tmp_path: Path):
    torch.save({"weight": Path("/")}, tmp_path / "projector.pt")
    with pytest.raises(
        ModelFileError, match=r"projector\.pt is cut short or not what its name says"
    ):
        read_tensors(tmp_path / "projector.pt")
    torch.save([torch.zeros(2)], tmp_path / "projector.pt")
    with pytest.raises(ModelFileError, match="expected tensors by name, got list"):
        read_tensors(tmp_path / "projector.pt")


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64]
)
def test_finite_weights_of_any_kind_pass(dtype: torch.dtype):
    check_finite(
        {"a": torch.tensor([1, -2], dtype=dtype), "b": torch.zeros(0, 3, dtype=dtype)}, Path("file")
    )


# --- what a model computes -----------------------------------------------------------------------


@torch.no_grad()
def overflow(weight: torch.Tensor) -> None:
    """Finite, but no sum over it is."""
    weight.fill_(torch.finfo(weight.dtype).max)


def test_pictures_that_overflow_are_not_painted_black():
    model: Any = load_model("tiny")
    overflow(model.decoder.vae.decoder.conv_out.weight)
    with pytest.raises(ValueError, match="expected finite pixels"):
        model.generate(["a red circle"], replace_settings(model.decoding, num_steps=1))
    with pytest.raises(ValueError, match="expected finite pixels"):
        model.decoder.round_trip(torch.rand(1, 3, 48, 48))


def test_image_tokens_that_overflow_are_not_painted():
    model: Any = load_model("tiny-ar")
    tokens = model.image_tokens(torch.rand(1, 3, 48, 48))
    overflow(model.model.model.vqmodel.decoder.conv_out.weight)
    with pytest.raises(ValueError, match="expected finite pixels"):
        model.pixels(tokens)
    overflow(model.model.model.generation_head.proj_out.weight)
    with pytest.raises(ValueError, match="expected finite log-probabilities of an image's tokens"):
        model.generate(["a red circle"], model.decoding)


@pytest.mark.parametrize("name", ["tiny", "tiny-ar"])
def test_captions_that_overflow_are_not_gibberish(name: str):
    model: Any = load_model(name)
    overflow(model.encoder.language_model.norm.weight)
    with pytest.raises(ValueError, match="expected finite log-probabilities of a caption's tokens"):
        model.caption([torch.rand(3, 48, 48)], model.captioning)


@pytest.mark.parametrize(
    "command", [["generate", "prompts.txt", "--model"], ["reconstruct", "picture.png", "--model"]]
)
def test_commands_say_it_in_one_line(
    layouts: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys,
    command: list[str],
):
    folder = copy(layouts["tiny"], tmp_path / "copy")
    file = folder / "encoder" / "model.safetensors"
    replace(file, file.read_bytes()[: file.stat().st_size // 2])
    (tmp_path / "prompts.txt").write_text("a red circle\n")
    Image.new("RGB", (48, 48)).save(tmp_path / "picture.png")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as exit:
        cli.run([*command, str(folder), "--out", "made"])
    assert exit.value.code == 2
    said = capsys.readouterr().err
    assert f"error: {file} is cut short or not safetensors" in said and "Traceback" not in said
