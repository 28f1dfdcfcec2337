"""Backbones against ``transformers``' own processors and classes, at the published width and
preprocessing."""

import json

import numpy as np
import pytest
import torch
from einops import rearrange
from PIL import Image
from torch import Tensor, nn
from transformers import (
    CLIPConfig,
    CLIPModel,
    Dinov2Config,
    Dinov2Model,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    PreTrainedTokenizerFast,
)
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.utils import is_torchvision_available

from uae.similarity.backbones import (
    BackboneError,
    EmbeddingCache,
    check_backbone_source,
    load_backbone,
)
from uae.similarity.longclip import save_longclip

SIZES = [(240, 320), (320, 240), (224, 224), (256, 256), (130, 90), (500, 777)]
IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
DINOV3_PROCESSOR = {
    "image_processor_type": "DINOv3ViTImageProcessorFast",
    "do_resize": True,
    "size": {"height": 224, "width": 224},
    "resample": 2,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "do_center_crop": None,
    "crop_size": None,
    **IMAGENET,
}


def photographs() -> list[np.ndarray]:
    """Smooth shapes with noise and hard edges, in several sizes and aspect ratios."""
    rng = np.random.default_rng(0)
    images = []
    for height, width in SIZES:
        y, x = np.mgrid[0:height, 0:width] / 40
        waves = np.stack([np.sin(x + k) * np.cos(y * (k + 1)) for k in range(3)], axis=-1)
        pixels = 127 + 100 * waves + rng.normal(0, 20, (height, width, 3))
        pixels[height // 3 : height // 2, width // 4 : width // 2] = rng.integers(0, 256, 3)
        images.append(pixels.clip(0, 255).astype(np.uint8))
    return images


def to_tensor(pixels: np.ndarray) -> Tensor:
    return rearrange(torch.tensor(pixels), "h w c -> c h w").float() / 255


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    """CLIP ViT-L/14's widths, depth 2, saved as the published checkpoint is."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("clip")
    text = {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_attention_heads": 12,
        "num_hidden_layers": 1,
    }
    vision = {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_attention_heads": 16,
        "num_hidden_layers": 2,
    }
    text |= {"vocab_size": 64, "projection_dim": 768, "bos_token_id": 62, "eos_token_id": 63}
    vision |= {"patch_size": 14, "image_size": 224, "projection_dim": 768}
    CLIPModel(
        CLIPConfig(text_config=text, vision_config=vision, projection_dim=768)
    ).save_pretrained(folder)
    CLIPImageProcessorPil().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def dinov2_folder(tmp_path_factory):
    torch.manual_seed(1)
    folder = tmp_path_factory.mktemp("dinov2")
    config = Dinov2Config(
        hidden_size=1024,
        num_hidden_layers=2,
        num_attention_heads=16,
        patch_size=14,
        image_size=518,
        mlp_ratio=4,
    )
    Dinov2Model(config).save_pretrained(folder)
    BitImageProcessorPil(size={"shortest_edge": 256}, crop_size=224, **IMAGENET).save_pretrained(
        folder
    )
    return folder


@pytest.fixture(scope="module")
def dinov3_folder(tmp_path_factory):
    torch.manual_seed(2)
    folder = tmp_path_factory.mktemp("dinov3")
    config = DINOv3ViTConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=2,
        num_attention_heads=16,
        patch_size=16,
        image_size=224,
        num_register_tokens=4,
    )
    DINOv3ViTModel(config).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(DINOV3_PROCESSOR))
    return folder


def assert_same_direction(ours: Tensor, features: Tensor) -> None:
    """Cosine within 1e-5 of 1, for unit vectors that differ from image to image (so that the test
    can fail)."""
    torch.testing.assert_close(ours.norm(dim=-1), torch.ones(len(ours)))
    cosines = nn.functional.cosine_similarity(ours.double(), features.double(), dim=-1)
    assert (1 - cosines).abs().max() <= 1e-5
    others = nn.functional.cosine_similarity(ours.double(), features.double().roll(1, 0), dim=-1)
    assert (1 - others).min() > 1e-4


@torch.no_grad()
def test_clip_equals_transformers(clip_folder):
    images = photographs()
    pixels = CLIPImageProcessorPil.from_pretrained(clip_folder)(
        [Image.fromarray(x) for x in images], return_tensors="pt"
    )
    expected = (
        CLIPModel.from_pretrained(clip_folder).eval().get_image_features(**pixels).pooler_output
    )
    assert expected.shape == (len(images), 768)
    assert_same_direction(
        load_backbone("clip", clip_folder).embed([to_tensor(x) for x in images]), expected
    )


@torch.no_grad()
def test_dinov2_equals_transformers(dinov2_folder):
    images = photographs()
    pixels = BitImageProcessorPil.from_pretrained(dinov2_folder)(
        [Image.fromarray(x) for x in images], return_tensors="pt"
    )
    expected = Dinov2Model.from_pretrained(dinov2_folder).eval()(**pixels).last_hidden_state[:, 0]
    assert expected.shape == (len(images), 1024)
    assert_same_direction(
        load_backbone("dinov2", dinov2_folder).embed([to_tensor(x) for x in images]), expected
    )


def dinov3_pixels(folder, images: list[np.ndarray]) -> Tensor:
    """The class's own processor where torchvision is installed, else its documented arithmetic."""
    if is_torchvision_available():
        from transformers import DINOv3ViTImageProcessor

        processor = DINOv3ViTImageProcessor.from_pretrained(folder)
        return processor([Image.fromarray(x) for x in images], return_tensors="pt")["pixel_values"]
    mean, std = (torch.tensor(IMAGENET[key])[:, None, None] for key in ("image_mean", "image_std"))
    rescaled = [torch.tensor(x).permute(2, 0, 1)[None] * (1 / 255) for x in images]
    resized = [
        nn.functional.interpolate(x, (224, 224), mode="bilinear", antialias=True) for x in rescaled
    ]
    return (torch.cat(resized) - mean) / std


@torch.no_grad()
def test_dinov3_equals_transformers(dinov3_folder):
    images = photographs()
    model = DINOv3ViTModel.from_pretrained(dinov3_folder).eval()
    expected = model(pixel_values=dinov3_pixels(dinov3_folder, images)).last_hidden_state[:, 0]
    assert_same_direction(
        load_backbone("dinov3", dinov3_folder).embed([to_tensor(x) for x in images]), expected
    )


# --- LongCLIP ------------------------------------------------------------------------------------


def openai_state_dict(layers: int = 2) -> dict[str, Tensor]:
    """Random LongCLIP-L weights in their published layout (fp16, joint projections), small
    vocabulary."""
    torch.manual_seed(3)
    text, vision, projection, vocabulary = 768, 1024, 768, 64
    state = {
        "positional_embedding": torch.randn(248, text) * 0.1,
        "positional_embedding_res": torch.randn(248, text) * 0.1,
        "text_projection": torch.randn(text, projection) * text**-0.5,
        "logit_scale": torch.tensor(4.6),
        "token_embedding.weight": torch.randn(vocabulary, text) * 0.1,
        "ln_final.weight": 1 + 0.1 * torch.randn(text),
        "ln_final.bias": 0.1 * torch.randn(text),
        "visual.class_embedding": torch.randn(vision) * 0.1,
        "visual.positional_embedding": torch.randn(257, vision) * 0.1,
        "visual.proj": torch.randn(vision, projection) * vision**-0.5,
        "visual.conv1.weight": torch.randn(vision, 3, 14, 14) * 0.05,
        "visual.ln_pre.weight": 1 + 0.1 * torch.randn(vision),
        "visual.ln_pre.bias": 0.1 * torch.randn(vision),
        "visual.ln_post.weight": 1 + 0.1 * torch.randn(vision),
        "visual.ln_post.bias": 0.1 * torch.randn(vision),
    }
    for prefix, width in (("transformer.", text), ("visual.transformer.", vision)):
        for layer in range(layers):
            block = f"{prefix}resblocks.{layer}."
            shapes = {
                "attn.in_proj_weight": (3 * width, width),
                "attn.in_proj_bias": (3 * width,),
                "attn.out_proj.weight": (width, width),
                "attn.out_proj.bias": (width,),
                "mlp.c_fc.weight": (4 * width, width),
                "mlp.c_fc.bias": (4 * width,),
                "mlp.c_proj.weight": (width, 4 * width),
                "mlp.c_proj.bias": (width,),
                "ln_2.bias": (width,),
                "ln_1.bias": (width,),
            }
            state |= {
                block + name: torch.randn(shape) * 1.5 * width**-0.5
                for name, shape in shapes.items()
            }
            state |= {block + f"ln_{i}.weight": 1 + 0.1 * torch.randn(width) for i in (1, 2)}
    return {name: value.half() for name, value in state.items()}


def reference_blocks(state: dict[str, Tensor], prefix: str, x: Tensor, causal: bool) -> Tensor:
    """OpenAI CLIP's residual attention blocks, written from their description."""
    heads, layer = x.shape[-1] // 64, 0
    while f"{prefix}resblocks.{layer}.ln_1.weight" in state:
        w = {
            k.split(f"resblocks.{layer}.")[1]: v
            for k, v in state.items()
            if k.startswith(f"{prefix}resblocks.{layer}.")
        }
        h = nn.functional.layer_norm(x, x.shape[-1:], w["ln_1.weight"], w["ln_1.bias"])
        q, k, v = rearrange(
            h @ w["attn.in_proj_weight"].T + w["attn.in_proj_bias"],
            "b t (n h d) -> n b h t d",
            n=3,
            h=heads,
        )
        logits = q @ k.mT / 8
        if causal:
            logits = logits + torch.full(logits.shape[-2:], -torch.inf).triu(1)
        h = rearrange(logits.softmax(-1) @ v, "b h t d -> b t (h d)")
        x = x + h @ w["attn.out_proj.weight"].T + w["attn.out_proj.bias"]
        h = nn.functional.layer_norm(x, x.shape[-1:], w["ln_2.weight"], w["ln_2.bias"])
        h = h @ w["mlp.c_fc.weight"].T + w["mlp.c_fc.bias"]
        x = x + (h * torch.sigmoid(1.702 * h)) @ w["mlp.c_proj.weight"].T + w["mlp.c_proj.bias"]
        layer += 1
    return x


def reference_image(state: dict[str, Tensor], pixels: Tensor) -> Tensor:
    x = nn.functional.conv2d(pixels, state["visual.conv1.weight"], stride=14)
    x = torch.cat(
        [
            state["visual.class_embedding"].expand(len(x), 1, -1),
            rearrange(x, "b d h w -> b (h w) d"),
        ],
        1,
    )
    x = x + state["visual.positional_embedding"]
    x = nn.functional.layer_norm(
        x, (1024,), state["visual.ln_pre.weight"], state["visual.ln_pre.bias"]
    )
    x = reference_blocks(state, "visual.transformer.", x, causal=False)[:, 0]
    x = nn.functional.layer_norm(
        x, (1024,), state["visual.ln_post.weight"], state["visual.ln_post.bias"]
    )
    return x @ state["visual.proj"]


def reference_text(state: dict[str, Tensor], tokens: Tensor) -> Tensor:
    """Positions: 20 rows of the first table, then the second; the feature sits on the highest token
    id."""
    positions = torch.where(
        torch.arange(248)[:, None] < 20,
        state["positional_embedding"],
        state["positional_embedding_res"],
    )
    x = state["token_embedding.weight"][tokens] + positions[: tokens.shape[1]]
    x = reference_blocks(state, "transformer.", x, causal=True)
    x = nn.functional.layer_norm(x, (768,), state["ln_final.weight"], state["ln_final.bias"])
    return x[torch.arange(len(x)), tokens.argmax(-1)] @ state["text_projection"]


@pytest.fixture(scope="module")
def longclip_file(tmp_path_factory):
    file = tmp_path_factory.mktemp("longclip") / "longclip-L.pt"
    torch.save(openai_state_dict(), file)
    return file


@torch.no_grad()
def test_longclip_file_equals_an_independent_forward(longclip_file):
    state = {name: value.float() for name, value in openai_state_dict().items()}
    images = photographs()
    pixels = CLIPImageProcessorPil()([Image.fromarray(x) for x in images], return_tensors="pt")[
        "pixel_values"
    ]
    backbone = load_backbone("longclip", longclip_file)
    assert_same_direction(
        backbone.embed([to_tensor(x) for x in images]), reference_image(state, pixels)
    )

    tokens = torch.randint(0, 62, (3, 100))
    tokens[:, -1] = 63  # the end token, the highest
    backbone.model.text_model.eos_token_id = 63
    features = backbone.model.get_text_features(input_ids=tokens).pooler_output
    torch.testing.assert_close(features, reference_text(state, tokens), atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_longclip_folder_equals_its_file(longclip_file, tmp_path):
    save_longclip(longclip_file, tmp_path / "folder")
    images = [to_tensor(photographs()[0])]
    from_file, from_folder = (
        load_backbone("longclip", s) for s in (longclip_file, tmp_path / "folder")
    )
    assert from_file.preprocess == from_folder.preprocess
    assert from_file.model.config.text_config.max_position_embeddings == 248
    torch.testing.assert_close(from_file.embed(images), from_folder.embed(images))


@pytest.mark.parametrize(
    "damage",
    [
        lambda file: file.write_bytes(b"not a checkpoint"),
        lambda file: torch.save({"state": 1}, file),
        lambda file: torch.save({"model.weight": torch.zeros(2)}, file),
        lambda file: torch.save(nn.Linear(1, 1), file),  # a pickled object must not be run
    ],
)
def test_other_pt_files_are_refused(tmp_path, damage):
    damage(tmp_path / "longclip-L.pt")
    with pytest.raises(ValueError, match="expected LongCLIP's state dict"):
        load_backbone("longclip", tmp_path / "longclip-L.pt")


# --- small backbones: gradients, caching, provenance ---------------------------------------------


@pytest.fixture(scope="module")
def small_folder(tmp_path_factory):
    """A CLIP of the embedded world's kind: 48 pixels, with a word-level tokenizer."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    torch.manual_seed(4)
    folder = tmp_path_factory.mktemp("small")
    tower = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    text = tower | {
        "vocab_size": 8,
        "bos_token_id": 6,
        "eos_token_id": 7,
        "max_position_embeddings": 12,
    }
    vision = tower | {"patch_size": 8, "image_size": 48}
    CLIPModel(
        CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)
    ).save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": 48}, crop_size=48).save_pretrained(folder)
    words = {"red": 0, "blue": 1, "dot": 2, "a": 3, "<unk>": 4, "<pad>": 5, "<s>": 6, "</s>": 7}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        "<s> $A </s>", special_tokens=[("<s>", 6), ("</s>", 7)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
    ).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("size", [48, 64])
def test_gradient_reaches_the_pixels(small_folder, size):
    backbone = load_backbone("clip", small_folder)
    target = backbone.embed(torch.rand(1, 3, size, size))
    images = (torch.randint(60, 200, (1, 3, size, size)) / 255).requires_grad_()
    similarity = (backbone.embed(images) * target).sum()
    similarity.backward()
    assert images.grad is not None
    assert images.grad.isfinite().all()
    assert all(parameter.grad is None for parameter in backbone.parameters())

    ascent = (
        images.detach() + images.grad.sign() / 255
    )  # one level up or down, which rounding keeps
    assert (backbone.embed(ascent) * target).sum() > similarity + 1e-4
    if size == 48:  # no rounding on the way: finite differences give the same slope
        step = 1e-2 * images.grad / images.grad.norm()
        slope = (
            (backbone.embed(images.detach() + step) - backbone.embed(images.detach() - step))
            * target
        ).sum() / 2e-2
        assert slope.item() == pytest.approx(images.grad.norm().item(), rel=0.05)


def test_stays_frozen_inside_a_training_model(small_folder):
    parent = nn.ModuleList([load_backbone("clip", small_folder), nn.Dropout()]).train()
    assert parent[1].training
    assert not any(module.training for module in parent[0].modules())
    assert not any(parameter.requires_grad for parameter in parent[0].parameters())


@torch.no_grad()
def test_texts(small_folder):
    backbone = load_backbone("clip", small_folder)
    embeddings = backbone.embed_text(
        ["a red dot", "a blue dot", "a red dot", "", " ".join(["red"] * 50)]
    )
    torch.testing.assert_close(embeddings[0], embeddings[2])
    assert (embeddings[0] @ embeddings[1]) < 1 - 1e-4
    alone = backbone.embed_text(["a red dot"])  # padding changes nothing
    torch.testing.assert_close(alone[0], embeddings[0])


def test_no_tokenizer_is_named(clip_folder):
    with pytest.raises(BackboneError, match="tokenizer"):
        load_backbone("clip", clip_folder).embed_text(["a dot"])


def test_cache_computes_each_image_once(small_folder, tmp_path, monkeypatch):
    backbone = load_backbone("clip", small_folder)
    images = torch.rand(3, 3, 48, 48)
    calls = []
    embed = backbone.embed
    monkeypatch.setattr(backbone, "embed", lambda x: calls.append(len(x)) or embed(x))
    cache = EmbeddingCache(tmp_path)
    expected = embed(images)
    torch.testing.assert_close(cache.embed(backbone, images), expected)
    torch.testing.assert_close(cache.embed(backbone, images.flip(0)), expected.flip(0))
    cache.embed(backbone, torch.cat([images, images[:1] * 0.5]))
    assert calls == [3, 1]

    again = EmbeddingCache(tmp_path)
    torch.testing.assert_close(again.embed(backbone, images), expected)
    assert calls == [3, 1]
    assert not list(tmp_path.glob("*.part"))
    for file in tmp_path.glob("*.npy"):
        file.write_bytes(file.read_bytes()[:100])
    torch.testing.assert_close(EmbeddingCache(tmp_path).embed(backbone, images), expected)
    assert calls == [3, 1, 3]


def test_cache_tells_backbones_apart(small_folder, tmp_path):
    images = torch.rand(1, 3, 48, 48)
    half, full = (
        load_backbone("clip", small_folder, dtype=dtype)
        for dtype in (torch.bfloat16, torch.float32)
    )
    cache = EmbeddingCache()
    assert not torch.equal(cache.embed(half, images), cache.embed(full, images))


def test_provenance_names_the_weights(small_folder, dinov2_folder):
    import hashlib

    provenance = load_backbone("clip", small_folder).provenance
    file = hashlib.sha256((small_folder / "model.safetensors").read_bytes()).digest()
    assert provenance.weights == f"sha256:{hashlib.sha256(file).hexdigest()}"
    assert provenance.source == str(small_folder)
    assert set(provenance.versions) == {"torch", "transformers"}


# --- sources that can't be used ------------------------------------------------------------------


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
    wanted = load_backbone("clip", small_folder)
    backbone = load_backbone("clip", folder)
    library, _ = CLIPModel.from_pretrained(folder, output_loading_info=True)
    for name, tensor in wanted.model.state_dict().items():
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
    extra = {
        "classifier.weight": torch.zeros(2, 2),
        "text_model.embeddings.position_ids": torch.arange(8)[None],
    }
    save_file(tensors | extra, folder / "model.safetensors", metadata={"format": "pt"})
    state = load_backbone("clip", folder).model.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in tensors.items())


def test_names_of_control_tokens_in_a_caption_are_text(small_folder):
    backbone = load_backbone("clip", small_folder)
    end = backbone.tokenizer.eos_token
    texts = [f"a red circle {end} a blue square", "a red circle", ""]
    tokens = backbone._tokenize(texts, 20)["input_ids"]
    assert (tokens[0] == backbone.tokenizer.eos_token_id).nonzero()[0] > (
        tokens[1] != tokens[1, -1]
    ).sum()
    torch.testing.assert_close(backbone.embed_text(texts[1:]), backbone.embed_text(texts)[1:])
    assert (backbone.embed_text(texts)[0] - backbone.embed_text(texts[1:])[0]).abs().max() > 1e-3
