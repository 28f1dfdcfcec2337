"""A vLLM server of its own, on other devices or another machine (``vllm serve MODEL``).

Weights go through a folder that both see, as safetensors, from which the server reloads: vLLM's own
transfers over process groups want GPUs. An image's features are rendered by the server once into
the form that its token endpoint takes, so nothing of vLLM is needed here. Each answer says by which
weights it was made.

Where several processes train, the main one hands the weights over, and all ask, together: what one
samples alone would wait for the others.
"""

from __future__ import annotations

import base64
import io
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import save_file
from torch import Tensor

from uae.config import VLLMSettings
from uae.data.vllm_server import Refused, check_server
from uae.models.encoders.qwen_vl import QwenVL
from uae.models.vllm.sampler import Answer, Request, Sampling
from uae.utils.messages import one_line
from uae.utils.processes import is_main, of_main

AT_ONCE = 256  # requests on their way, which the server batches
BYTES_OF_A_FILE = 2**30
IN_MEMORY = Path("/dev/shm")
Item = TypeVar("Item")
Value = TypeVar("Value")


class Server:
    """The engine behind an address."""

    def __init__(self, captioner: QwenVL, settings: VLLMSettings) -> None:
        """Raises:
        ValueError: where it has another tokenizer, or too little room.
        """
        self._server, longest = check_server(settings.server)
        if longest < settings.max_length:
            raise self._server.error(
                f"expected room for vllm.max-length, {settings.max_length} tokens, it has "
                f"{longest}; start it with a higher --max-model-len, or lower vllm.max-length"
            )
        self._pad_id = captioner.image_pad_id
        self._folder = _folder(settings)
        self._version = ""
        self._check_prompt(captioner)

    def push(self, tensors: Iterable[tuple[str, Tensor]]) -> None:
        """All processes go through ``tensors``, as shards of them may be gathered."""
        version = secrets.token_hex(8)
        if is_main():
            self._reload(tensors)
            self._server.post("/reset_encoder_cache", {})
            if not self._server.post("/reset_prefix_cache", {})["success"]:
                raise self._server.error("expected it to be idle, it answers others; give it up")
            self._server.post("/update_weight_version", {"new_version": version})
        else:
            for _ in tensors:
                pass
        self._version = of_main(version)

    def answer(self, requests: Sequence[Request], sampling: Sampling) -> list[Answer]:
        images = {id(each.features): each for each in requests}
        rendered = dict(zip(images, _at_once(self._render, list(images.values())), strict=True))

        def draw(request: Request) -> Answer:
            return self._draw(request, rendered[id(request.features)], sampling)

        return _at_once(draw, requests)

    def close(self) -> None:
        """It goes on, for others."""

    # --- captions --------------------------------------------------------------------------------

    def _render(self, request: Request) -> dict[str, Any]:
        """The image in the form that the token endpoint takes."""
        return self._rendered(request.features, request.grid[0], "?")["features"]

    def _rendered(self, features: Tensor, grid: Tensor, question: str) -> dict[str, Any]:
        """A message of an image and a question, as the server's own template lays it out."""
        embeds = {"image_embeds": _base64(features), "image_grid_thw": _base64(grid)}
        image = {"type": "image_embeds", "image_embeds": embeds}
        content = [image, {"type": "text", "text": question}]
        message = {"role": "user", "content": content}
        return self._server.post("/v1/chat/completions/render", {"messages": [message]})

    def _draw(self, request: Request, image: dict[str, Any], sampling: Sampling) -> Answer:
        at, num = request.prompt.index(self._pad_id), len(request.features)
        prompt = [*request.prompt[:at], *[self._pad_id] * num, *request.prompt[at + 1 :]]
        body = {
            "token_ids": prompt,
            "features": image | {"mm_placeholders": {"image": [{"offset": at, "length": num}]}},
            "sampling_params": _parameters(sampling, request.seed),
            "return_token_ids": True,
        }
        answer = self._server.post("/inference/v1/generate", body)
        try:
            drawn = answer["choices"][0]
            tokens, prompt = drawn["token_ids"], answer["prompt_token_ids"]
            log_probs = [each["logprob"] for each in drawn["logprobs"]["content"]]
            versions = {each["version"] for each in drawn["weight_versions"]}
        except (KeyError, IndexError, TypeError) as error:
            raise self._server.error(
                "expected the answer of vLLM 0.32 or later to /inference/v1/generate"
            ) from error
        if versions != {self._version}:
            raise self._server.error(
                "expected answers by the weights that were pushed, got others: it was started "
                "again, or another run pushes to it; give each run a server of its own"
            )
        return Answer(prompt, tokens, log_probs)

    def _check_prompt(self, captioner: QwenVL) -> None:
        """It has this tokenizer and chat template, and takes features of images."""
        config = captioner.model.config
        merge, width = config.vision_config.spatial_merge_size, config.text_config.hidden_size
        grid = torch.tensor([1, merge, merge])
        rendered = self._rendered(torch.zeros(1, width), grid, "?")
        if tuple(rendered["token_ids"]) != captioner.prompt("?", 1):
            raise self._server.error(
                "expected the tokenizer and chat template of the model that is trained, it has "
                "others; start it with that model"
            )

    # --- weights ---------------------------------------------------------------------------------

    def _reload(self, tensors: Iterable[tuple[str, Tensor]]) -> None:
        with self._handed_over(tensors) as folder:
            body = {"method": "reload_weights", "kwargs": {"weights_path": folder}}
            try:
                self._server.post("/collective_rpc", body)
            except Refused as error:
                raise self._server.error(
                    f"expected it to take the weights in {folder}; start it again, with the model "
                    "that is trained, where it sees that folder, or name another one by "
                    f"vllm.folder ({one_line(error):.300})"
                ) from error

    @contextmanager
    def _handed_over(self, tensors: Iterable[tuple[str, Tensor]]) -> Iterator[str]:
        """A folder of these weights, as long as the context lasts; what a run that was killed left
        there is removed."""
        shutil.rmtree(self._folder, ignore_errors=True)
        try:
            self._folder.mkdir(parents=True)
            for number, part in zip(count(), _parts(tensors), strict=False):
                save_file(part, self._folder / f"model-{number:05}.safetensors")
            yield str(self._folder)
        finally:
            shutil.rmtree(self._folder, ignore_errors=True)


def _folder(settings: VLLMSettings) -> Path:
    """One for each server."""
    name = "".join(each if each.isalnum() else "-" for each in settings.server)
    if not settings.folder and not IN_MEMORY.is_dir():
        raise ValueError(f"vllm.folder: expected one that {settings.server} sees too, got none")
    return (Path(settings.folder) if settings.folder else IN_MEMORY).absolute() / f"uae-{name}"


def _parts(tensors: Iterable[tuple[str, Tensor]]) -> Iterator[dict[str, Tensor]]:
    """What goes into a file each, on the CPU, so that little of it is held at a time."""
    part: dict[str, Tensor] = {}
    for name, tensor in tensors:
        part[name] = tensor.detach().to("cpu", copy=True).contiguous()
        if sum(each.nbytes for each in part.values()) >= BYTES_OF_A_FILE:
            yield part
            part = {}
    if part:
        yield part


def _parameters(sampling: Sampling, seed: int) -> dict[str, Any]:
    """As those of the engine in the process."""
    return {
        "temperature": sampling.temperature,
        "max_tokens": sampling.max_new_tokens,
        "seed": seed,
        "stop_token_ids": sampling.end_ids,
        "ignore_eos": True,
        "logprobs": 0,
        "detokenize": False,
    }


def _base64(tensor: Tensor) -> str:
    """As vLLM's chat endpoint takes tensors."""
    buffer = io.BytesIO()
    torch.save(tensor.detach().cpu().clone(), buffer)  # a copy: no more than its own memory
    return base64.b64encode(buffer.getvalue()).decode()


def _at_once(function: Callable[[Item], Value], items: Sequence[Item]) -> list[Value]:
    """Of each, in their order."""
    with ThreadPoolExecutor(min(AT_ONCE, max(len(items), 1))) as pool:
        return list(pool.map(function, items))
