"""LoRA as a run leaves it: ``peft`` puts it on the model it was trained on, and that is the merged model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import SD3Transformer2DModel
from peft import PeftModel
from torch import nn
from transformers import JanusForConditionalGeneration, Qwen2_5_VLForConditionalGeneration

from uae.config import DecodeSettings
from uae.models.janus import Janus
from uae.models.llm_diffusion import LLMDiffusion
from uae.models.tiny import build_captioner, build_decoder, build_janus, build_llm_diffusion, build_vae

SDE = DecodeSettings(sampler="sde", num_steps=2)


def umm1() -> LLMDiffusion:
    return build_llm_diffusion(build_captioner(), build_decoder(build_vae()))


PARTS: dict[str, tuple[Callable[[], LLMDiffusion | Janus], type, str, str]] = {
    "captioner": (umm1, Qwen2_5_VLForConditionalGeneration, "encoder", "encoder/lora"),
    "decoder": (umm1, SD3Transformer2DModel, "decoder/transformer", "decoder/lora"),
    "janus": (build_janus, JanusForConditionalGeneration, "", "lora"),
}


@pytest.mark.parametrize("part", PARTS)
def test_the_adapter_on_its_base_is_the_merged_model(part: str, tmp_path: Path):
    build, library, weights, adapter = PARTS[part]
    model = build()
    model.save_pretrained(tmp_path / "base")
    model = type(model).from_pretrained(tmp_path / "base")
    model.begin_training(2, captions=True, decoding=SDE)
    with torch.no_grad():
        for policy in (model.encoder, model.decoder):
            for name, parameter in policy.named_trainable_parameters().items():
                if "lora_B" in name:
                    parameter.normal_(std=0.1)
    model.save_pretrained(tmp_path / "trained")

    base: nn.Module = library.from_pretrained(tmp_path / "base" / weights)
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    put_on = PeftModel.from_pretrained(base, str(tmp_path / "trained" / adapter)).merge_and_unload().state_dict()
    merged = library.from_pretrained(tmp_path / "trained" / weights).state_dict()
    moved = [name for name, tensor in merged.items() if not torch.equal(tensor.float(), before[name].float())]
    assert moved and merged.keys() == put_on.keys()
    for name, tensor in merged.items():
        torch.testing.assert_close(put_on[name].float(), tensor.float(), atol=1e-3, rtol=1e-2, msg=name)  # bf16
