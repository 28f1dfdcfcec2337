"""Full-size architectures on the meta device: published totals, names and shapes; memory adds
up."""

from __future__ import annotations

import pytest
from torch import nn

from uae.models.footprint import (
    StepShape,
    count,
    count_lora,
    meta_projector,
    meta_qwen,
    meta_transformer,
    meta_vae,
    peak_bytes,
    print_footprint,
    step_lines,
)

PUBLISHED = [  # name, how it is built, published number of parameters
    ("Qwen2.5-VL-3B", meta_qwen, 3.755e9),  # 7.51 GB of bf16 weights
    ("SD3.5-large", meta_transformer, 8.06e9),
    (
        "SD3.5-medium",
        lambda: meta_transformer("medium"),
        2.243e9,
    ),  # 2.47e9 with its table of positions, a buffer
    ("SD3.5 autoencoder", meta_vae, 83.8e6),
]


@pytest.mark.parametrize(
    ("build", "published"), [row[1:] for row in PUBLISHED], ids=[row[0] for row in PUBLISHED]
)
def test_parameters_are_as_many_as_published(build, published):
    assert count(build()) == pytest.approx(published, rel=0.01)


def shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def published_name(name: str) -> str:
    """A parameter of the class as the checkpoint's index file names it."""
    return name.replace("model.language_model.", "model.").replace("model.visual.", "visual.")


def test_names_and_shapes_of_qwen_as_its_index_file_has_them():
    named = {published_name(name): shape for name, shape in shapes(meta_qwen()).items()}
    expected = {
        "model.embed_tokens.weight": (151936, 2048),
        "model.layers.0.self_attn.q_proj.weight": (2048, 2048),
        "model.layers.0.self_attn.q_proj.bias": (2048,),
        "model.layers.0.self_attn.k_proj.weight": (256, 2048),
        "model.layers.35.mlp.gate_proj.weight": (11008, 2048),
        "model.layers.35.mlp.down_proj.weight": (2048, 11008),
        "model.norm.weight": (2048,),
        "visual.patch_embed.proj.weight": (1280, 3, 2, 14, 14),
        "visual.blocks.0.attn.qkv.weight": (3840, 1280),
        "visual.blocks.31.mlp.gate_proj.weight": (3420, 1280),
        "visual.merger.mlp.0.weight": (5120, 5120),
        "visual.merger.mlp.2.weight": (2048, 5120),
    }
    assert {name: named.get(name) for name in expected} == expected
    assert "lm_head.weight" not in named and "model.layers.36.input_layernorm.weight" not in named
    assert len(named) == 824  # tensors in the published index


def test_names_and_shapes_of_the_decoders():
    large, medium = shapes(meta_transformer("large")), shapes(meta_transformer("medium"))
    expected = {
        "transformer_blocks.0.attn.to_q.weight": (2432, 2432),
        "transformer_blocks.0.attn.add_k_proj.weight": (2432, 2432),
        "transformer_blocks.0.attn.norm_q.weight": (64,),
        "transformer_blocks.0.norm1.linear.weight": (6 * 2432, 2432),
        "transformer_blocks.36.ff_context.net.0.proj.weight": (4 * 2432, 2432),
        "transformer_blocks.37.norm1_context.linear.weight": (2 * 2432, 2432),
        "context_embedder.weight": (2432, 4096),
        "pos_embed.proj.weight": (2432, 16, 2, 2),
        "time_text_embed.text_embedder.linear_1.weight": (2432, 2048),
        "proj_out.weight": (64, 2432),
    }
    assert {name: large.get(name) for name in expected} == expected
    assert not any("attn2" in name for name in large)
    assert medium["transformer_blocks.12.attn2.to_q.weight"] == (1536, 1536)
    assert medium["transformer_blocks.0.norm1.linear.weight"] == (9 * 1536, 1536)
    assert meta_transformer("medium").pos_embed.pos_embed.numel() + 2.243e9 == pytest.approx(
        2.47e9, rel=0.01
    )
    assert "transformer_blocks.13.attn2.to_q.weight" not in medium
    vae = shapes(meta_vae())
    assert vae["decoder.conv_in.weight"] == (512, 16, 3, 3) and vae["encoder.conv_out.weight"] == (
        32,
        512,
        3,
        3,
    )
    projector = shapes(meta_projector())
    assert projector["layers.0.weight"] == (8192, 2048) and projector["layers.2.weight"] == (
        4096,
        8192,
    )


def test_lora_counts():
    model = nn.Sequential(nn.Linear(5, 7), nn.GELU(), nn.Linear(7, 3, bias=False))
    assert count_lora(model, 2) == 2 * (5 + 7) + 2 * (7 + 3)


def test_memory_adds_up(capsys):
    lines = step_lines(StepShape())
    by_part = {line.part: line for line in lines}
    lora = by_part["LoRA, rank 32"]
    assert lora.num_parameters == 36 * 32 * (2 * 4096 + 2 * 2304 + 3 * (2048 + 11008))
    assert by_part["AdamW state"].num_bytes == 8 * lora.num_parameters
    cache = by_part["key-value cache"]
    assert cache.num_bytes == 2 * 36 * 2 * 128 * 2 * 4 * (18 * 18 + 32 + 512)
    always = sum(line.num_bytes for line in lines if line.phase == "always")
    assert 24e9 < always < peak_bytes(lines) < 80e9
    assert peak_bytes(step_lines(StepShape(decoder="medium"))) < peak_bytes(lines) - 10e9
    assert peak_bytes(step_lines(StepShape(score_batch=1))) < peak_bytes(lines)
    whole = step_lines(
        StepShape(lora_rank=0)
    )  # without LoRA all is loaded in fp32, and a copy is kept as the reference
    language = [line for line in whole if "language model" in line.part]
    assert [line.num_bytes for line in language] == [
        4 * line.num_parameters for line in language
    ] and len(language) == 2
    assert 110e9 < peak_bytes(whole) < 120e9
    print_footprint(StepShape())
    assert "fits" in capsys.readouterr().out
    with pytest.raises(ValueError, match="large, medium"):
        meta_transformer("huge")
