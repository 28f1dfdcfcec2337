"""vLLM in the process that trains, on the same device.

Weights are handed over as tensors, in the names of the checkpoint's files, and vLLM lays them out
as it does when it loads a file. The prefix cache is emptied: what it holds was computed by other
weights. Features of images are kept by nobody but the trainer.

Where several processes train, each has an engine of its own, for its share of the images.
"""

from __future__ import annotations

import gc
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from uae.config import VLLMSettings
from uae.models.encoders.qwen_vl import IMAGE_CONFIG, QwenVL
from uae.models.vllm.sampler import Answer, Request, Sampling
from uae.utils.checkpoint import capture_rng, restore_rng
from uae.utils.files import atomic_write_json
from uae.utils.importing import require_library

SWITCHES = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine sees our tensors
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # its threads are the trainer's too
    "VLLM_LOGGING_LEVEL": "ERROR",
}
MIN_BATCHED_TOKENS = 4096
"""Of prompts that are read at a time; none is split."""


class InProcess:
    """An engine with a copy of the language model, in the dtype of the trainer's weights."""

    def __init__(self, captioner: QwenVL, settings: VLLMSettings) -> None:
        require_library("vllm", "vllm")
        self._device = captioner.device
        self._has_own_group = not dist.is_initialized()
        for name, value in SWITCHES.items():
            os.environ.setdefault(name, value)
        with _process_as_it_is(), tempfile.TemporaryDirectory() as folder:
            _describe(captioner, Path(folder))
            self._llm = _engine(folder, captioner, settings)

    def push(self, tensors: Iterable[tuple[str, Tensor]]) -> None:
        self._llm.collective_rpc("reload_weights", kwargs={"weights_iterator": iter(tensors)})
        assert self._llm.reset_prefix_cache(), "nothing is being answered"
        self._llm.llm_engine.reset_encoder_cache()  # the worker forgot, and the scheduler must

    def answer(self, requests: Sequence[Request], sampling: Sampling) -> list[Answer]:
        # the trainer's autocast is not for the engine
        with torch.autocast(self._device.type, enabled=False):
            outputs = self._llm.generate(
                [_prompt(request) for request in requests],
                [_parameters(sampling, request.seed) for request in requests],
                use_tqdm=False,
            )
        return [_answer(output) for output in outputs]

    def close(self) -> None:
        """Free its memory, and its own process group; a group that was there stays."""
        engine = self._llm.llm_engine
        if self._has_own_group:
            engine.engine_core.shutdown()
        else:
            _shut_down_within_a_group(engine)
        del self._llm


def _shut_down_within_a_group(engine: Any) -> None:
    """Its own shutdown, now or when it is collected, would destroy the group of the trainer."""
    from vllm.distributed import destroy_model_parallel  # type: ignore[import-not-found]

    engine.engine_core._finalizer.detach()
    engine.model_executor.shutdown()
    destroy_model_parallel()
    gc.unfreeze()  # what the engine froze as it started


def _describe(captioner: QwenVL, folder: Path) -> None:
    """All of a checkpoint but its weights."""
    config = captioner.model.config
    config.save_pretrained(folder)
    captioner.tokenizer.save_pretrained(folder)
    atomic_write_json(folder / IMAGE_CONFIG, captioner.image_settings.to_config(config))


def _engine(folder: str, captioner: QwenVL, settings: VLLMSettings) -> Any:
    from vllm import LLM  # type: ignore[import-not-found]

    max_length = settings.max_length
    is_one_of_several = dist.is_initialized() and dist.get_world_size() > 1
    return LLM(
        model=folder,
        hf_overrides={"architectures": [type(captioner.model).__name__]},
        dtype=str(captioner.model.dtype).removeprefix("torch."),
        load_format="dummy",  # the first push brings the weights
        max_model_len=max_length,
        max_num_batched_tokens=max(max_length, MIN_BATCHED_TOKENS),
        enable_chunked_prefill=False,  # which takes draws back, and on a CPU cannot
        kv_cache_memory_bytes=int(settings.cache_gb * 2**30),
        gpu_memory_utilization=0.01,  # not counted, as the cache has its size
        limit_mm_per_prompt={"image": 0, "video": 0},  # no vision tower: features are given
        enable_mm_embeds=True,
        logprobs_mode="processed_logprobs",  # temperature included
        generation_config="vllm",  # no penalties: the policy's own distribution
        enforce_eager=captioner.device.type == "cpu",  # compiling there takes minutes
        disable_log_stats=True,
        distributed_executor_backend="external_launcher" if is_one_of_several else None,
    )


def _prompt(request: Request) -> dict[str, Any]:
    image = {"image_embeds": request.features, "image_grid_thw": request.grid}
    return {"prompt_token_ids": request.prompt, "multi_modal_data": {"image": image}}


def _parameters(sampling: Sampling, seed: int) -> Any:
    from vllm import SamplingParams  # type: ignore[import-not-found]

    return SamplingParams(
        temperature=sampling.temperature,
        max_tokens=sampling.max_new_tokens,
        seed=seed,
        stop_token_ids=sampling.end_ids,
        ignore_eos=True,  # ends are those above alone
        logprobs=0,  # of the token that was drawn
        detokenize=False,
    )


def _answer(output: Any) -> Answer:
    (drawn,) = output.outputs
    tokens = list(drawn.token_ids)
    pairs = zip(tokens, drawn.logprobs, strict=True)
    log_probs = [at_token[token].logprob for token, at_token in pairs]
    return Answer(list(output.prompt_token_ids), tokens, log_probs)


@contextmanager
def _process_as_it_is() -> Iterator[None]:
    """As it starts, vLLM seeds the global generators, and on a CPU takes ``set_num_threads``
    away."""
    states, num_threads = capture_rng(), torch.get_num_threads()
    set_num_threads = torch.set_num_threads
    try:
        yield
    finally:
        torch.set_num_threads = set_num_threads
        torch.set_num_threads(num_threads)
        restore_rng(states)
