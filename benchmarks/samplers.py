"""Captions by vLLM beside the built-in sampler, of the same weights, in one run.

    python benchmarks/samplers.py                    # the tiny model
    python benchmarks/samplers.py --size 300M        # 24 layers of width 1024, 196 image tokens
    python benchmarks/samplers.py --size 300M --dtype bfloat16
    python benchmarks/samplers.py --save FOLDER      # then vllm serve FOLDER as in the docs, and
    python benchmarks/samplers.py --server http://localhost:8000

Weights are random and no caption ends early, so both sample equal numbers of tokens. A push is what
each rollout costs beside its tokens: adapters of rank 8 are merged, and all weights of the language
model handed over. Where LoRA is served, the adapter is written to a folder and loaded from it, and
vLLM adds it to each layer as it answers. The gap is the mean difference of vLLM's log-probabilities
to those computed again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
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
    parser.add_argument("--server", default="", help="in place of an engine in the process")
    parser.add_argument("--save", type=Path, help="write the model for a server, and end")
    args = parser.parse_args()
    logging.set_verbosity_error()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    shape = SHAPES[args.size]
    captioner = build(args.size).to(getattr(torch, args.dtype)).eval()
    if args.save:
        captioner.save_pretrained(args.save)
        return
    captioner.end_ids = []  # every caption to its cap
    captioner.learn(LORA_RANK)
    for parameter in captioner.named_trainable_parameters().values():
        parameter.data += 0.01 * torch.randn_like(parameter)  # so that they count
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
    served = VLLMSettings(max_length=1024, cache_gb=1.0, server=args.server)
    with captioner.sampled_by_vllm(served):
        captions = sample()  # nothing learns: the only push of its own
        numbers["vLLM, tokens/s"] = num_tokens / seconds(sample, args.repeats)
        engine: Any = captioner.sampler._engine  # type: ignore[union-attr]
        weights = captioner.adapters.merged_tensors
        numbers["push, s"] = seconds(lambda: engine.push(weights()), args.repeats)
    numbers["gap"] = gap(captioner, captions)
    if args.server:
        return numbers
    with serving_lora(), captioner.sampled_by_vllm(served):
        engine = captioner.sampler._engine  # type: ignore[union-attr]
        with captioner.adapters.only(()):
            captioner.sampler.push()  # type: ignore[union-attr]  # the base, once
        captioner.requires_grad_(False)  # which the context has undone
        with tempfile.TemporaryDirectory() as folder:
            push = partial(push_lora, captioner, engine._llm, Path(folder) / "adapter")
            numbers["LoRA: push, s"] = seconds(push, args.repeats)
            captions = sample()
            numbers["LoRA: tokens/s"] = num_tokens / seconds(sample, args.repeats)
    numbers["LoRA: gap"] = gap(captioner, captions)
    return numbers


@contextmanager
def serving_lora() -> Iterator[None]:
    """Engines that are made in this context can have an adapter."""
    import vllm

    plain = vllm.LLM
    vllm.LLM = partial(plain, enable_lora=True, max_lora_rank=LORA_RANK, max_loras=1)
    try:
        yield
    finally:
        vllm.LLM = plain


def push_lora(captioner: QwenVL, llm: Any, folder: Path) -> None:
    """What counts, written and loaded, and from now on asked for."""
    from vllm.lora.request import LoRARequest

    captioner.adapters.save(folder, folder)
    lora = LoRARequest("policy", 1, str(folder), load_inplace=True)
    assert llm.llm_engine.add_lora(lora) and llm.reset_prefix_cache()
    lora = LoRARequest("policy", 1, str(folder))
    llm.generate = partial(type(llm).generate, llm, lora_request=lora)


def gap(captioner: QwenVL, captions: Any) -> float:
    scored = captioner.evaluate(captions.rollout, with_kl=False).log_probs
    return (scored - captions.rollout.log_probs).abs().mean().item()


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
