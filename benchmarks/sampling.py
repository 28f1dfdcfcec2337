"""Sampling beside the library that defines the models, on the same small models, in one run.

    python benchmarks/sampling.py   # 8 images, 8 samples each; medians of 5 interleaved repetitions

Captions: ``generate(num_return_sequences=8)`` against ours, for UMM-1 (Qwen2.5-VL) and UMM-2
(Janus), equal tokens. Image tokens: ``generate(generation_mode="image")`` against ours, guidance 3.
Weights are random: nothing ends early. Both give tokens: the VQ decoder is left out.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from transformers import logging
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from uae.config import CaptionSettings
from uae.models.encoders.causal import CausalCaptioner
from uae.models.janus import Janus, PaintContext
from uae.world.language import exhaustive_caption
from uae.world.models import build_captioner, build_janus
from uae.world.scene import render_batch, scene_at

NUM_IMAGES, GROUP_SIZE, CAPTION_TOKENS, GUIDANCE = 8, 8, 32, 3.0
INSTRUCTION = CaptionSettings().instruction


def main() -> None:
    """Print a table and JSON of tokens per second and their ratios."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    logging.set_verbosity_error()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    scenes = [scene_at("test", i) for i in range(NUM_IMAGES)]
    images = torch.from_numpy(render_batch(scenes))
    qwen, janus = build_captioner(), build_janus()
    for model in (qwen, janus):
        model.eval()
        model.end_ids = []  # every caption to its cap
    texts = [exhaustive_caption(scene) for scene in scenes]
    num_captions = NUM_IMAGES * GROUP_SIZE
    num_image_tokens = num_captions * janus.model.config.vision_config.num_image_tokens
    cases: dict[str, tuple[int, Callable, Callable]] = {
        "UMM-1 captions": (
            num_captions * CAPTION_TOKENS,
            ours(qwen, images),
            theirs(qwen, qwen_inputs(qwen, images)),
        ),
        "UMM-2 captions": (
            num_captions * CAPTION_TOKENS,
            ours(janus, images),
            theirs(janus, janus_inputs(janus, images)),
        ),
        "UMM-2 image tokens": (
            num_image_tokens,
            our_pictures(janus, texts),
            their_pictures(janus, texts),
        ),
    }
    results = {}
    for name, (num_tokens, mine, library) in cases.items():
        seconds = interleaved((mine, library), args.repeats)
        speeds = [num_tokens / s for s in seconds]
        results[name] = {"ours": speeds[0], "library": speeds[1], "ratio": speeds[0] / speeds[1]}
        print(
            f"{name:20}  ours {speeds[0]:8.0f} tokens/s   library {speeds[1]:8.0f}   "
            f"{speeds[0] / speeds[1]:.2f}x"
        )
    print(json.dumps({"threads": args.threads, "repeats": args.repeats, **results}))


def interleaved(runs: tuple[Callable, ...], repeats: int) -> list[float]:
    """Median seconds of each, taken in turn after a warm-up."""
    seconds: list[list[float]] = [[] for _ in runs]
    for repeat in range(repeats + 1):
        for taken, run in zip(seconds, runs, strict=True):
            start = time.perf_counter()
            with torch.no_grad():
                run()
            if repeat:
                taken.append(time.perf_counter() - start)
    return [statistics.median(taken) for taken in seconds]


def ours(model: CausalCaptioner, images: torch.Tensor) -> Callable:
    settings = CaptionSettings(max_new_tokens=CAPTION_TOKENS)
    return lambda: model.caption(list(images), settings, group_size=GROUP_SIZE)


def theirs(model: CausalCaptioner, inputs: dict[str, Any]) -> Callable:
    length = {"max_new_tokens": CAPTION_TOKENS, "min_new_tokens": CAPTION_TOKENS}
    return lambda: model.model.generate(
        **inputs, **length, do_sample=True, num_return_sequences=GROUP_SIZE, top_k=0
    )


def our_pictures(janus: Janus, texts: list[str]) -> Callable:
    prompts = tuple(janus.paint_prompt(text) for text in texts)
    of_prompt = torch.arange(len(texts)).repeat_interleave(GROUP_SIZE)
    context = PaintContext(prompts, of_prompt, 1.0)
    return lambda: janus.decoder.sample(context, GUIDANCE, torch.arange(len(of_prompt)))


def their_pictures(janus: Janus, texts: list[str]) -> Callable:
    chats = [[{"role": "user", "content": [{"type": "text", "text": text}]}] for text in texts]
    prompts = [
        janus.processor.apply_chat_template(chat, add_generation_prompt=True) for chat in chats
    ]
    inputs: Any = janus.processor(
        text=prompts, generation_mode="image", padding=True, return_tensors="pt"
    )

    def run() -> None:
        janus.model.generate(
            **inputs,
            generation_mode="image",
            do_sample=True,
            guidance_scale=GUIDANCE,
            num_return_sequences=GROUP_SIZE,
            top_k=0,
        )

    return run


def janus_inputs(janus: Janus, images: torch.Tensor) -> dict[str, Any]:
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": INSTRUCTION}]}]
    text = janus.processor.apply_chat_template(chat, add_generation_prompt=True)
    pixels = [(image * 255).round().byte().permute(1, 2, 0).numpy() for image in images]
    return dict(janus.processor(images=pixels, text=[text] * len(pixels), return_tensors="pt"))


def qwen_inputs(qwen: Any, images: torch.Tensor) -> dict[str, Any]:
    limits = {"shortest_edge": 48 * 48, "longest_edge": 48 * 48}
    vision = qwen.model.config.vision_config
    processor: Any = Qwen2VLImageProcessorPil(
        size=limits, patch_size=vision.patch_size, merge_size=vision.spatial_merge_size
    )
    pixels = [(image * 255).round().byte().permute(1, 2, 0).numpy() for image in images]
    seen = processor(pixels, return_tensors="pt")
    num_tokens = int(seen["image_grid_thw"][0].prod()) // vision.spatial_merge_size**2
    ids = torch.tensor([qwen.prompt(INSTRUCTION, num_tokens)] * len(pixels))
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "mm_token_type_ids": (ids == qwen.image_pad_id).int(),
        **seen,
    }


if __name__ == "__main__":
    main()
