"""Sources of weights: which are taken, and what is said of those that can't be used."""

import json

import pytest
import torch
from transformers import (
    CLIPModel,
)

from uae.similarity.backbones import load_backbone
from uae.similarity.checkpoints import BackboneError, check_backbone_source


def test_provenance_names_the_weights(small_folder, dinov2_folder):
    import hashlib

    provenance = load_backbone("clip", small_folder).provenance
    file = hashlib.sha256((small_folder / "model.safetensors").read_bytes()).digest()
    assert provenance.weights == f"sha256:{hashlib.sha256(file).hexdigest()}"
    assert provenance.source == str(small_folder)
    assert set(provenance.versions) == {"torch", "transformers"}


def copy_of(folder, target, **changes):
    """A copy whose files are replaced by these texts (None: removed)."""
    import shutil

    shutil.copytree(folder, target)
    for name, text in changes.items():
        file = target / name.replace("__", ".")
        file.unlink(missing_ok=True)
        if text is not None:
            file.write_text(text)
    return target


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("dinov2", {}, "model_type dinov2"),
        ("longclip", {}, "248 text positions"),
        (
            "clip",
            {"model__safetensors": None},
            r"model\.safetensors: expected a file, found nothing there",
        ),
        ("clip", {"model__safetensors": "short"}, "cut short"),
        ("clip", {"config__json": None}, r"no config\.json"),
        ("clip", {"config__json": "{"}, "not JSON"),
        ("clip", {"preprocessor_config__json": None}, r"preprocessor_config\.json"),
        (
            "clip",
            {
                "model__safetensors": None,
                "model__safetensors__index__json": '{"weight_map": {"a": "part-1.safetensors"}}',
            },
            r"part-1\.safetensors",
        ),
        ("clop", {}, "did you mean clip"),
    ],
)
def test_unusable_folders_are_named_before_loading(small_folder, tmp_path, name, changes, message):
    folder = copy_of(small_folder, tmp_path / "copy", **changes)
    with pytest.raises(BackboneError, match=message):
        check_backbone_source(name, folder)


def test_missing_weights_are_not_random(small_folder, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = copy_of(small_folder, tmp_path / "copy")
    tensors = load_file(folder / "model.safetensors")
    del tensors["visual_projection.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BackboneError, match=r"visual_projection\.weight"):
        load_backbone("clip", folder)


def test_truncated_weights_are_named(small_folder, tmp_path):
    folder = copy_of(small_folder, tmp_path / "copy")
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(BackboneError, match="download or copy it again"):
        check_backbone_source("clip", folder)


@pytest.mark.parametrize("source", ["./no/such/folder", "/no/such/folder", "a/b/c"])
def test_missing_folders_are_named(source):
    with pytest.raises(BackboneError, match="does not exist"):
        check_backbone_source("clip", source)


def test_missing_tiny_weights_are_named(monkeypatch, tmp_path):
    monkeypatch.setattr("uae.similarity.checkpoints.ASSETS", tmp_path)
    with pytest.raises(BackboneError, match="make tiny"):
        check_backbone_source("clip", "tiny")


def test_tiny_weights_load(small_folder, monkeypatch, tmp_path):
    copy_of(small_folder, tmp_path / "clip")
    monkeypatch.setattr("uae.similarity.checkpoints.ASSETS", tmp_path)
    assert load_backbone("clip", "tiny").embed(torch.rand(2, 3, 48, 48)).shape == (2, 16)


def http_error(error_class):
    import huggingface_hub.errors as errors

    error = getattr(errors, error_class)
    return error.__new__(error)  # without the response that its constructor asks for


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            http_error("GatedRepoError"),
            r"gated.*https://huggingface\.co/facebook/dinov3.*accept the terms.*hf auth login",
        ),
        (
            http_error("RepositoryNotFoundError"),
            "neither a folder here nor a repository on the hub",
        ),
        (http_error("RemoteEntryNotFoundError"), r"has no config\.json"),
        (
            ConnectionError("Name or service not known"),
            "can't be reached.*Name or service not known.*give a folder",
        ),
    ],
)
def test_hub_failures_say_what_to_do(monkeypatch, tmp_path, error, message):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *args: None)
    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", fail)
    with pytest.raises(BackboneError, match=message):
        check_backbone_source("dinov3")
    with pytest.raises(BackboneError, match=message):
        load_backbone("dinov3")


def shards(folder, num=2, stem="model", suffix="safetensors"):
    """The folder's weights in several files and an index."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = [f"{stem}-{i + 1:05d}-of-{num:05d}.{suffix}" for i in range(num)]
    weight_map = {}
    for i, file in enumerate(names):
        part = {name: tensors[name] for name in sorted(tensors)[i::num]}
        weight_map |= dict.fromkeys(part, file)
        if suffix == "bin":
            torch.save(part, folder / file)
        else:
            save_file(part, folder / file, metadata={"format": "pt"})
    (folder / f"{stem}.{suffix}.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": weight_map})
    )


def bin_only(folder):
    from safetensors.torch import load_file

    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def stray(name):
    index = {"metadata": {}, "weight_map": {"logit_scale": "gone-00001-of-00002.bin"}}
    return lambda folder: (folder / name).write_text(json.dumps(index))


@pytest.mark.parametrize(
    "change",
    [
        stray("pytorch_model.bin.index.json"),
        stray("model.safetensors.index.json"),
        stray("flax_model.msgpack.index.json"),
        lambda folder: (folder / "pytorch_model.bin").write_bytes(b"not read"),
        shards,
        lambda folder: (shards(folder), (folder / "pytorch_model.bin").write_bytes(b"not read")),
        lambda folder: (shards(folder), stray("pytorch_model.bin.index.json")(folder)),
        bin_only,
        lambda folder: (bin_only(folder), stray("pytorch_model.bin.index.json")(folder)),
        lambda folder: shards(folder, stem="pytorch_model", suffix="bin"),
    ],
    ids=[
        "bin index",
        "index",
        "other index",
        "bin",
        "sharded",
        "sharded, bin",
        "sharded, bin index",
        "bin only",
        "bin only, index",
        "sharded bin",
    ],
)
def test_weights_are_found_where_the_library_finds_them(small_folder, tmp_path, change):
    folder = copy_of(small_folder, tmp_path / "copy")
    change(folder)
    expected = load_backbone("clip", small_folder)
    backbone = load_backbone("clip", folder)
    library, _ = CLIPModel.from_pretrained(folder, output_loading_info=True)
    for name, tensor in expected.model.state_dict().items():
        assert torch.equal(backbone.model.state_dict()[name], tensor), name
        assert torch.equal(library.state_dict()[name], tensor), name


def test_a_shard_that_is_missing_is_named(small_folder, tmp_path):
    folder = copy_of(small_folder, tmp_path / "copy")
    shards(folder)
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(
        BackboneError, match=r"model-00002-of-00002\.safetensors: expected a file, found nothing"
    ):
        check_backbone_source("clip", folder)


def test_only_a_variant_is_named(small_folder, tmp_path):
    folder = copy_of(small_folder, tmp_path / "copy")
    (folder / "model.safetensors").rename(folder / "model.fp16.safetensors")
    with pytest.raises(BackboneError, match=r"\(model\.fp16\.safetensors is there: rename it\)"):
        check_backbone_source("clip", folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_no_number_is_named(small_folder, tmp_path, value):
    from safetensors.torch import load_file, save_file

    folder = copy_of(small_folder, tmp_path / "copy")
    tensors = load_file(folder / "model.safetensors")
    tensors["visual_projection.weight"][0, 1] = value
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        BackboneError, match=r"NaN or infinity in 1 of \d+ tensors \(visual_projection\.weight\)"
    ):
        load_backbone("clip", folder)


def test_weights_beside_the_model_are_passed_over(small_folder, tmp_path):
    """A head for classification, and the positions that older releases stored."""
    from safetensors.torch import load_file, save_file

    folder = copy_of(small_folder, tmp_path / "copy")
    tensors = load_file(folder / "model.safetensors")
    surplus = {
        "classifier.weight": torch.zeros(2, 2),
        "text_model.embeddings.position_ids": torch.arange(8)[None],
    }
    save_file(tensors | surplus, folder / "model.safetensors", metadata={"format": "pt"})
    state = load_backbone("clip", folder).model.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in tensors.items())
