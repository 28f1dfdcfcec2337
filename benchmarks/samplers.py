"""Captions by vLLM beside the built-in sampler, of the same weights, in one run.

    python benchmarks/samplers.py                    # the tiny model
    python benchmarks/samplers.py --size 300M        # 24 layers of width 1024, 196 image tokens
    python benchmarks/samplers.py --size 300M --dtype bfloat16

Weights are random and no caption ends early, so both sample equal numbers of tokens. A push is what
each rollout costs beside its tokens: adapters of rank 8 are merged, and all weights of the language
model handed over. The gap is the mean difference of vLLM's log-probabilities to those computed
again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, logging

from uae.config import CaptionSettings, VLLMSettings
from uae.models.encoders.qwen_vl import ImageSettings, QwenVL
from uae.world.models import build_captioner

LORA_RANK = 8


class Shape(NamedTuple):
    """Of a rollout: P images, G captions each, and the tokens of each caption."""

    num_images: int
    group_size: int
    num_tokens: int
    pixels: int


SHAPES = {"tiny": Shape(8, 8, 32, 48), "300M": Shape(4, 8, 48, 224)}


def main() -> None:
    """Print JSON of tokens per second, seconds a push, and the gap."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=list(SHAPES), default="tiny")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    logging.set_verbosity_error()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    shape = SHAPES[args.size]
    captioner = build(args.size).to(getattr(torch, args.dtype)).eval()
    captioner.end_ids = []  # every caption to its cap
    captioner.learn(LORA_RANK)
    captioner.requires_grad_(False)
    num_parameters = sum(p.numel() for p in captioner.language_model.parameters())
    print(
        json.dumps(vars(args) | {"parameters": num_parameters} | measured(captioner, shape, args))
    )


def build(size: str) -> QwenVL:
    """A captioner from nothing, with the world's words."""
    small = build_captioner()
    if size == "tiny":
        return small
    values = small.model.config.to_dict()
    values["text_config"] |= {
        "hidden_size": 1024,
        "intermediate_size": 2816,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
        "layer_types": ["full_attention"] * 24,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10000.0,
            "mrope_section": [8, 12, 12],
        },
    }
    values["vision_config"] |= {"out_hidden_size": 1024}
    model = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(**values))
    model.generation_config = small.model.generation_config
    pixels = SHAPES[size].pixels ** 2
    limits = ImageSettings(pixels, pixels, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    return QwenVL(model, small.tokenizer, limits)


def measured(captioner: QwenVL, shape: Shape, args: Any) -> dict[str, float]:
    images = list(torch.rand(shape.num_images, 3, shape.pixels, shape.pixels))
    settings = CaptionSettings(max_new_tokens=shape.num_tokens)

    def sample() -> Any:
        return captioner.caption(images, settings, group_size=shape.group_size)

    num_tokens = shape.num_images * shape.group_size * shape.num_tokens
    numbers = {"built in, tokens/s": num_tokens / seconds(sample, args.repeats)}
    with captioner.sampled_by_vllm(VLLMSettings(max_length=1024, cache_gb=1.0)):
        captions = sample()  # nothing learns: the only push of its own
        numbers["vLLM, tokens/s"] = num_tokens / seconds(sample, args.repeats)
        sampler: Any = captioner.sampler
        weights = captioner.adapters.merged_tensors
        numbers["push, s"] = seconds(lambda: sampler._engine.push(weights()), args.repeats)
    scored = captioner.evaluate(captions.rollout, with_kl=False).log_probs
    numbers["gap"] = (scored - captions.rollout.log_probs).abs().mean().item()
    return numbers


def seconds(run: Callable[[], Any], repeats: int) -> float:
    """The median, after a warm-up."""
    taken = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        with torch.no_grad():
            run()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken[1:])


if __name__ == "__main__":
    main()
