"""A saved model, loaded, is the trained one: every kind of run, saved as runs save it and loaded as
users load it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch
from diffusers import SD3Transformer2DModel
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import JanusForConditionalGeneration, Qwen2_5_VLForConditionalGeneration

from tests.models.real_layouts import (
    large_like_transformer,
    large_like_vae,
    write_janus,
    write_qwen,
    write_sd3,
)
from tests.rl.tiny_run import config, reward
from uae.config import DecodeSettings
from uae.models.load import load_model
from uae.rl.config import TrainConfig
from uae.rl.train import train
from uae.stages.grpo_settings import Half, learning
from uae.world.data import SceneImages
from uae.world.models import build_captioner, build_decoder, build_llm_diffusion, build_vae

FAMILIES = ("umm1", "umm2")
HALVES: dict[str, Half] = {"encoder": "captions", "decoder": "images", "both": "both"}
TEXTS = ["a red circle", "two small blue squares on grey"]
PROMPTS = ["a green triangle", "three words"]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Either family with random weights that bf16 holds, as published ones are, in a folder."""
    torch.manual_seed(0)
    folders = {family: tmp_path_factory.mktemp(family) for family in FAMILIES}
    build_llm_diffusion(build_captioner(), build_decoder(build_vae())).bfloat16().save_pretrained(
        folders["umm1"]
    )
    write_janus(folders["umm2"])
    return folders


def run_settings(model: Any, half: Half, rate: float, average: float) -> TrainConfig:
    """A step of a few tokens, which moves each weight by about the rate; in fp32, as what is saved
    is compared in."""
    settings = config(
        1, images_per_step=1, learning_rate=rate, ema_decay=average, ema_every=1, use_bf16=False
    )
    size = model.decoding.height
    settings = replace(
        settings, group_size=2, decoding=DecodeSettings(num_steps=2, height=size, width=size)
    )
    settings = learning(settings, half)
    return replace(settings, reconstructions_per_caption=2 if half == "images" else 1)


def trained(
    model: Any, half: Half, lora_rank: int, rate: float, average: float, folder: Path
) -> Any:
    settings = run_settings(model, half, rate, average)
    decoding = settings.decoding if settings.image_weight else None
    model.begin_training(lora_rank, captions=settings.caption_weight > 0, decoding=decoding)
    train(model, reward(), SceneImages(), settings, folder, {})
    return model


@torch.no_grad()
def answers(model: Any) -> list[Tensor]:
    """Log-probabilities of fixed captions, pixels of fixed prompts, and probabilities of fixed
    image tokens."""
    said = model.encoder.log_likelihood(SceneImages().probe(2), TEXTS, "describe the image")
    painted = model.generate(
        PROMPTS, replace(model.decoding, num_steps=2, guidance_scale=1.0, temperature=0.0), seed=3
    )
    if painted.rollout is None:
        return [said, painted.images]
    return [said, painted.images, model.decoder.evaluate(painted.rollout, with_kl=False).log_probs]


def learnt(model: Any) -> dict[str, Tensor]:
    """All that may have been learnt, under names that do not tell which adapter learns: factors and
    full weights."""
    found: dict[str, Tensor] = {}
    for half in (model.encoder, model.decoder):
        adapters = getattr(half, "adapters", None)
        lora = adapters.read(adapters.active) if adapters is not None else None
        for layer, (down, up) in (lora.factors if lora else {}).items():
            found |= {
                f"{type(half).__name__}.{layer}.A": down,
                f"{type(half).__name__}.{layer}.B": up,
            }
    weights = model.state_dict().items()
    found |= {
        n.replace(".base_layer", ""): w
        for n, w in weights
        if "lora_" not in n and "_frozen_copy" not in n
    }
    return {name: tensor.clone() for name, tensor in found.items() if "_text_model" not in name}


def assert_same(model: Any, again: Any, base: Any) -> None:
    """To the bit in weights, to 1e-6 in what is said and painted; and something was learnt."""
    before, wanted, got = learnt(base), learnt(model), learnt(again)
    assert wanted.keys() == got.keys()
    assert all(torch.equal(wanted[name], got[name]) for name in wanted)
    assert any(name not in before or not torch.equal(wanted[name], before[name]) for name in wanted)
    for one, other in zip(answers(model), answers(again), strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=0)


TABLE = [
    ("umm1", *rest)
    for rest in product((0, 2), HALVES, ("policy", "reference"), (0.0, 0.9), (1e-3, 1e-6))
] + [
    ("umm2", rank, half, "policy", *rest)
    for rank, half, *rest in product((0, 2), HALVES, (0.0, 0.9), (1e-3, 1e-6))
]


@pytest.mark.slow
@pytest.mark.parametrize(("family", "rank", "half", "text_encoder", "average", "rate"), TABLE)
def test_saved_is_trained(
    bases: dict[str, Path],
    family: str,
    rank: int,
    half: str,
    text_encoder: str,
    average: float,
    rate: float,
    tmp_path: Path,
):
    source = str(bases[family])
    model: Any = load_model(source)
    if family == "umm1":
        model.text_encoder = text_encoder
    trained(model, HALVES[half], rank, rate, average, tmp_path / "run")
    model.save_pretrained(tmp_path / "model")
    assert_same(model, load_model(str(tmp_path / "model")), load_model(source))
    is_adapter = json.loads((tmp_path / "model" / "uae.json").read_text())["weights"] == "adapters"
    assert is_adapter == (rank > 0)
    if rank and family == "umm1":
        assert not list((tmp_path / "model").rglob("model.safetensors"))  # no copy of the base


# --- one stage after another ---------------------------------------------------------------------


def disturb(model: Any, scale: float = 0.02) -> None:
    """Move all that learns, as training would."""
    torch.manual_seed(1)
    with torch.no_grad():
        for half in (model.encoder, model.decoder):
            for parameter in half.named_trainable_parameters().values():
                parameter.add_(scale * torch.randn_like(parameter))


def stage(
    source: Path, folder: Path, half: Half, rank: int, text_encoder: str | None = None
) -> Any:
    """A stage as the pipeline runs it: from a folder to a folder."""
    model: Any = load_model(str(source))
    if text_encoder:
        model.text_encoder = text_encoder
    decoding = run_settings(model, half, 1e-3, 0.0).decoding
    model.begin_training(
        rank, captions=half != "images", decoding=None if half == "captions" else decoding
    )
    before = answers(model)
    disturb(model)
    with model.encoder.reference(), torch.no_grad():  # what the stage began with
        said = model.encoder.log_likelihood(SceneImages().probe(2), TEXTS, "describe the image")
        torch.testing.assert_close(said, before[0], atol=1e-5, rtol=0)
    model.save_pretrained(folder)
    return model


def test_adapters_of_stages_lie_side_by_side_on_the_first_base(
    bases: dict[str, Path], tmp_path: Path
):
    one, two, three = (tmp_path / name for name in ("one", "two", "three"))
    stage(bases["umm1"], one, "images", 2)
    stage(one, two, "both", 3)
    shutil.rmtree(one)  # the second needs it no more
    again = load_model(str(two))
    assert again.encoder.adapters.read(again.encoder.adapters.active).rank == 3
    assert again.decoder.adapters.read(again.decoder.adapters.active).rank == 2 + 3
    last = stage(two, three, "captions", 2)
    assert_same(last, load_model(str(three)), load_model(str(bases["umm1"])))


def test_full_training_after_lora_is_whole(bases: dict[str, Path], tmp_path: Path):
    stage(bases["umm2"], tmp_path / "one", "both", 2)
    model = stage(tmp_path / "one", tmp_path / "two", "both", 0)
    shutil.rmtree(tmp_path / "one")
    assert_same(model, load_model(str(tmp_path / "two")), load_model(str(bases["umm2"])))


@pytest.mark.parametrize("ranks", [(2, 2, 2), (2, 0, 2), (0, 0, 0), (0, 2, 0)])
def test_the_reference_that_encodes_texts_is_never_lost(
    bases: dict[str, Path], ranks: tuple[int, ...], tmp_path: Path
):
    texts, source = ["a red circle", "x"], bases["umm1"]
    with torch.no_grad():
        wanted = load_model(str(source)).text_states(texts)[0]
        for number, rank in enumerate(ranks):
            with torch.enable_grad():
                model = stage(source, tmp_path / str(number), "captions", rank, "reference")
            source = tmp_path / str(number)
            again: Any = load_model(str(source))
            for each in (model, again):
                torch.testing.assert_close(each.text_states(texts)[0], wanted, atol=1e-5, rtol=0)
            again.text_encoder = "policy"
            assert (again.text_states(texts)[0] - wanted).abs().max() > 1e-2


def test_a_model_without_its_reference_is_refused(bases: dict[str, Path], tmp_path: Path):
    folder = shutil.copytree(bases["umm1"], tmp_path / "old")
    described = json.loads((folder / "uae.json").read_text())
    (folder / "uae.json").write_text(json.dumps({**described, "text_encoder": "reference"}))
    with pytest.raises(ValueError, match="weights were not saved"):
        load_model(str(folder))


# --- the base ------------------------------------------------------------------------------------


@pytest.fixture
def adapted(bases: dict[str, Path], tmp_path: Path) -> tuple[Path, Path]:
    """A base, and a model of adapters on it."""
    base = shutil.copytree(bases["umm1"], tmp_path / "here" / "base")
    stage(base, tmp_path / "here" / "run" / "model", "both", 2)
    return base, tmp_path / "here" / "run" / "model"


def test_a_base_that_moved_is_named_and_found_beside(adapted: tuple[Path, Path], tmp_path: Path):
    base, model = adapted
    wanted = answers(load_model(str(model)))
    (tmp_path / "here").rename(tmp_path / "there")  # both
    model = tmp_path / "there" / "run" / "model"
    assert all(map(torch.equal, answers(load_model(str(model))), wanted))
    (tmp_path / "there" / "base").rename(tmp_path / "away")
    with pytest.raises(ValueError, match=rf"its base, .* at {base}, found nothing there"):
        load_model(str(model))
    described = json.loads((model / "uae.json").read_text())
    described["base"][0]["source"] = str(tmp_path / "away")  # as the message says
    (model / "uae.json").write_text(json.dumps(described))
    assert all(map(torch.equal, answers(load_model(str(model))), wanted))


def test_a_base_that_changed_is_named(adapted: tuple[Path, Path]):
    base, model = adapted
    file = base / "decoder" / "vae" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    first = next(iter(tensors))
    save_file({**tensors, first: tensors[first] + 1}, file, metadata={"format": "pt"})
    with pytest.raises(
        ValueError,
        match=rf"its base at {base} as it was, weights sha256:\w+…, but they are sha256:",
    ):
        load_model(str(model))


@pytest.mark.parametrize("part", ["encoder/adapter", "decoder/adapter"])
def test_an_adapter_that_is_gone_or_lacks_a_matrix_is_named(adapted: tuple[Path, Path], part: str):
    file = adapted[1] / part / "adapter_model.safetensors"
    tensors = load_file(file)
    first = next(iter(tensors))
    save_file({name: tensor for name, tensor in tensors.items() if name != first}, file)
    with pytest.raises(ValueError, match=part):
        load_model(str(adapted[1]))
    shutil.rmtree(file.parent)
    with pytest.raises(ValueError, match=f"the adapters that learnt, {part} is gone"):
        load_model(str(adapted[1]))


def test_what_is_saved_again_holds_no_adapter_of_before(bases: dict[str, Path], tmp_path: Path):
    stage(bases["umm2"], tmp_path / "model", "both", 2)
    full = stage(bases["umm2"], tmp_path / "model", "both", 0)
    assert not (tmp_path / "model" / "adapter").exists()
    assert_same(full, load_model(str(tmp_path / "model")), load_model(str(bases["umm2"])))


def test_self_contained_needs_no_base(bases: dict[str, Path], tmp_path: Path):
    base = shutil.copytree(bases["umm2"], tmp_path / "base")
    model = stage(base, tmp_path / "small", "both", 2)
    model.is_self_contained = True
    model.save_pretrained(tmp_path / "whole")
    shutil.rmtree(base)
    assert_same(model, load_model(str(tmp_path / "whole")), load_model(str(bases["umm2"])))
    size = {
        name: sum(f.stat().st_size for f in (tmp_path / name).rglob("*"))
        for name in ("small", "whole")
    }
    assert size["small"] < size["whole"] / 10


def test_folders_of_before_load_as_before(
    bases: dict[str, Path], adapted: tuple[Path, Path], tmp_path: Path
):
    """Merged weights with the adapter beside them in ``lora``, and no word of a base."""
    old = shutil.copytree(bases["umm1"], tmp_path / "old")
    shutil.copytree(adapted[1] / "encoder" / "adapter", old / "encoder" / "lora")
    described = json.loads((old / "uae.json").read_text())
    (old / "uae.json").write_text(
        json.dumps({k: v for k, v in described.items() if k not in ("weights", "base")})
    )
    assert all(
        map(torch.equal, answers(load_model(str(old))), answers(load_model(str(bases["umm1"]))))
    )


def hub_cache(root: Path, repository: str, revision: str) -> Path:
    """Where the hub's cache keeps this revision, now its newest."""
    folder = root / f"models--{repository.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True, exist_ok=True)
    (folder / "refs" / "main").write_text(revision)
    return folder / "snapshots" / revision


def test_a_base_of_the_hub_is_named_by_its_revision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    write_qwen(hub_cache(tmp_path, "org/encoder", "a" * 40))
    write_sd3(
        hub_cache(tmp_path, "org/decoder", "b" * 40), large_like_transformer(), large_like_vae()
    )
    model: Any = load_model("org/encoder+org/decoder")
    model.begin_training(2, captions=True, decoding=DecodeSettings(sampler="sde", num_steps=2))
    disturb(model)
    model.save_pretrained(tmp_path / "model")
    named = [
        base["source"] for base in json.loads((tmp_path / "model" / "uae.json").read_text())["base"]
    ]
    assert named == [f"org/encoder@{'a' * 40}", f"org/decoder@{'b' * 40}"]
    adapter = json.loads(
        (tmp_path / "model" / "encoder" / "adapter" / "adapter_config.json").read_text()
    )
    assert (adapter["base_model_name_or_path"], adapter["revision"]) == ("org/encoder", "a" * 40)

    torch.manual_seed(5)
    write_qwen(hub_cache(tmp_path, "org/encoder", "c" * 40))  # a newer one is published
    again: Any = load_model(str(tmp_path / "model"))
    assert learnt(again).keys() == learnt(model).keys()
    assert all(torch.equal(weight, learnt(again)[name]) for name, weight in learnt(model).items())


# --- the libraries -------------------------------------------------------------------------------

PARTS: dict[str, tuple[str, type, str, str, Callable[[Any], Any]]] = {
    "captioner": (
        "umm1",
        Qwen2_5_VLForConditionalGeneration,
        "encoder",
        "encoder",
        lambda m: m.encoder.model,
    ),
    "decoder": (
        "umm1",
        SD3Transformer2DModel,
        "decoder/transformer",
        "decoder",
        lambda m: m.decoder.transformer,
    ),
    "janus": ("umm2", JanusForConditionalGeneration, "", "", lambda m: m.model),
}


@pytest.mark.parametrize("part", PARTS)
def test_peft_puts_the_adapter_on_its_base(bases: dict[str, Path], part: str, tmp_path: Path):
    family, library, weights, beside, of = PARTS[part]
    stage(bases[family], tmp_path / "one", "both", 2)
    stage(tmp_path / "one", tmp_path / "two", "both", 3)  # two stages are one adapter
    base: Any = library.from_pretrained(bases[family] / weights, torch_dtype=torch.float32)
    merged = PeftModel.from_pretrained(
        base, str(tmp_path / "two" / beside / "adapter")
    ).merge_and_unload()
    ours: Any = load_model(str(tmp_path / "two"))
    ours.merge_adapters()
    weights_of_ours = of(ours).state_dict()
    assert merged.state_dict().keys() == weights_of_ours.keys()
    for name, tensor in merged.state_dict().items():
        torch.testing.assert_close(weights_of_ours[name], tensor, atol=1e-7, rtol=1e-6, msg=name)
