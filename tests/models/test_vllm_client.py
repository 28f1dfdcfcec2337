"""What is sent to a vLLM server, and what is said where it does not do as it should: a real HTTP
server without vLLM. With it: ``test_vllm_server.py``."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from tests.http_server import JsonServer, Response
from uae.config import CaptionSettings, VLLMSettings
from uae.models.encoders.qwen_vl import QwenVL
from uae.models.vllm import server as module
from uae.models.vllm.server import Server
from uae.rl.config import TrainConfig
from uae.stages.grpo_settings import UnifiedGRPOSettings
from uae.stages.unified_grpo import UnifiedGRPO
from uae.world.models import build_captioner

MODELS = {"data": [{"id": "model", "max_model_len": 1024}]}
INFO = {"vllm_config": {"model_config": {"logprobs_mode": "processed_logprobs"}}}


class Recorded(JsonServer):
    """Answers as vLLM does, each caption with the end, or as it is told; keeps what it was sent."""

    def __init__(self, captioner: QwenVL) -> None:
        super().__init__()
        self.url = self.url.removesuffix("/v1")
        self.captioner = captioner
        self.instead: dict[str, Response] = {}
        self.asked: list[tuple[str, Any]] = []
        self.weights: list[dict[str, Tensor]] = []
        self.folder = Path()
        self.version, self.is_shared = "", False

    def respond(self, path: str, body: dict[str, Any]) -> Response:
        path = path.partition("?")[0]
        self.asked.append((path, body))
        return self.instead.get(path) or Response(200, self.answer(path, body))

    def answer(self, path: str, body: dict[str, Any]) -> Any:
        if path == "/v1/chat/completions/render":
            image, text = body["messages"][0]["content"]
            num = len(read(image["image_embeds"]["image_embeds"]))
            features = {"mm_hashes": {"image": [f"of {num}"]}}
            return {
                "token_ids": self.captioner.prompt(text["text"], num),
                "features": features,
            }
        if path == "/collective_rpc":
            self.folder = Path(body["kwargs"]["weights_path"])
            self.weights = [load_file(file) for file in sorted(self.folder.iterdir())]
        if path == "/update_weight_version":
            self.version = "another's" if self.is_shared else body["new_version"]
        if path == "/inference/v1/generate":
            end = self.captioner.tokenizer.eos_token_id
            choice = {
                "token_ids": [end],
                "logprobs": {"content": [{"logprob": -0.5}]},
                "weight_versions": [{"version": self.version}],
            }
            return {"prompt_token_ids": body["token_ids"], "choices": [choice]}
        known = {"/v1/models": MODELS, "/server_info": INFO}
        return known.get(path, {"success": True})

    def bodies(self, path: str) -> list[Any]:
        return [body for asked, body in self.asked if asked == path]


def read(text: str) -> Tensor:
    return torch.load(io.BytesIO(base64.b64decode(text)), weights_only=True)


@pytest.fixture
def captioner() -> QwenVL:
    return build_captioner().eval()


@pytest.fixture
def server(captioner: QwenVL) -> Iterator[Recorded]:
    server = Recorded(captioner)
    yield server
    server.close()


def settings_of(server: Recorded, folder: Path) -> VLLMSettings:
    return VLLMSettings(max_length=1024, server=server.url, folder=str(folder))


def caption(captioner: QwenVL, settings: VLLMSettings, **options: Any) -> Any:
    with captioner.sampled_by_vllm(settings):
        images = list(torch.rand(2, 3, 48, 48, generator=torch.Generator().manual_seed(0)))
        return captioner.caption(images, CaptionSettings(temperature=0.5), **options)


def test_each_caption_is_asked_for_once_and_each_image_rendered_once(
    captioner: QwenVL, server: Recorded, tmp_path: Path
):
    captions = caption(captioner, settings_of(server, tmp_path), group_size=3)
    assert captions.texts == [""] * 6 and captions.rollout.log_probs.tolist() == [[-0.5]] * 6
    rendered = server.bodies("/v1/chat/completions/render")
    assert len(rendered) == 1 + 2  # of them one to compare prompts
    context = captions.rollout.context
    sent = [body["messages"][0]["content"][0]["image_embeds"] for body in rendered[1:]]
    for features, grid in zip(context.features, context.grids, strict=True):
        assert any(torch.equal(read(each["image_embeds"]), features) for each in sent)
        assert all(read(each["image_grid_thw"]).tolist() == grid.tolist() for each in sent)
    asked = server.bodies("/inference/v1/generate")
    assert len({body["sampling_params"]["seed"] for body in asked}) == 6
    for body in asked:
        assert tuple(body["token_ids"]) == context.prompts[0]
        place = body["features"]["mm_placeholders"]["image"]
        assert place == [{"offset": body["token_ids"].index(captioner.image_pad_id), "length": 9}]
        assert body["features"]["mm_hashes"] == {"image": ["of 9"]}
        assert body["sampling_params"]["temperature"] == 0.5
        assert body["sampling_params"]["stop_token_ids"] == list(captioner.end_ids)


def test_the_merged_weights_are_handed_over_and_removed(
    captioner: QwenVL, server: Recorded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(module, "BYTES_OF_A_FILE", 2**20)  # so that there are several
    captioner.learn(2)
    for parameter in captioner.named_trainable_parameters().values():
        parameter.data += torch.randn_like(parameter) * 0.1
    caption(captioner, settings_of(server, tmp_path))
    assert len(server.weights) > 2 and not list(tmp_path.iterdir())
    handed = {name: tensor for part in server.weights for name, tensor in part.items()}
    assert sum(map(len, server.weights)) == len(handed)
    with torch.no_grad():
        expected = dict(captioner.adapters.merged_tensors())
    assert set(handed) == {name for name in expected if not name.startswith("model.visual.")}
    assert all(torch.equal(tensor, expected[name]) for name, tensor in handed.items())
    pushed = ["/collective_rpc", "/reset_encoder_cache", "/reset_prefix_cache"]
    order = [path for path, _ in server.asked]
    at = order.index("/collective_rpc")
    assert order[at : at + 4] == [*pushed, "/update_weight_version"]


def test_what_a_killed_run_left_is_removed(captioner: QwenVL, server: Recorded, tmp_path: Path):
    caption(captioner, settings_of(server, tmp_path))
    server.folder.mkdir()
    (server.folder / "model-00000.safetensors").write_bytes(b"half of")
    (server.folder / "model-00009.safetensors").write_bytes(b"of another")
    caption(captioner, settings_of(server, tmp_path))
    assert len(server.weights) == 1 and not list(tmp_path.iterdir())


# --- refusals ------------------------------------------------------------------------------------

DEV = "expected a vLLM server whose weights may be set, .* VLLM_SERVER_DEV_MODE=1"
REFUSALS = {
    "no vLLM": ("/v1/models", Response(404, {}), "expected the address of a vLLM server"),
    "no JSON": ("/v1/models", Response(200, b"<html>"), "got an answer that is no JSON"),
    "cut off": ("/v1/models", Response(200, MODELS, cut=5), "does not answer .IncompleteRead"),
    "other form": ("/v1/models", Response(200, {"data": []}), "expected the answers of vLLM 0.32"),
    "dev mode off": ("/server_info", Response(404, {"detail": "Not Found"}), DEV),
    "raw log-probabilities": (
        "/server_info",
        Response(200, {"vllm_config": {"model_config": {"logprobs_mode": "raw_logprobs"}}}),
        "expected log-probabilities at the temperature.*--logprobs-mode processed_logprobs",
    ),
    "little room": (
        "/v1/models",
        Response(200, {"data": [{"max_model_len": 512}]}),
        "expected room for vllm.max-length, 1024 tokens, it has 512",
    ),
    "another tokenizer": (
        "/v1/chat/completions/render",
        Response(200, {"token_ids": [1, 2, 3]}),
        "expected the tokenizer and chat template of the model that is trained",
    ),
    "an option is missing": (
        "/v1/chat/completions/render",
        Response(403, {"error": {"message": "Restart with\n--enable-scale-out"}}),
        "answered /v1/chat/completions/render by 403: Restart with --enable-scale-out$",
    ),
    "weights refused": (
        "/collective_rpc",
        Response(500, {"error": {"message": "Cannot find any model weights"}}),
        "expected it to take the weights in /.*; start it again, with the model.*any model weights",
    ),
    "answers of another form": (
        "/inference/v1/generate",
        Response(200, {"choices": [{"token_ids": [1]}], "prompt_token_ids": [1]}),
        "expected the answer of vLLM 0.32 or later to /inference/v1/generate",
    ),
    "not idle": (
        "/reset_prefix_cache",
        Response(200, {"success": False}),
        "expected it to be idle",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_a_server_that_will_not_do_is_refused_in_a_line(
    captioner: QwenVL, server: Recorded, tmp_path: Path, case: str
):
    path, response, message = REFUSALS[case]
    server.instead[path] = response
    with pytest.raises(ValueError, match=message) as refusal:
        caption(captioner, settings_of(server, tmp_path))
    text = str(refusal.value)
    assert text.startswith(f"vllm.server {server.url}: ") and "\n" not in text
    assert not list(tmp_path.iterdir()) and captioner.sampler is None


def test_answers_by_other_weights_are_refused(captioner: QwenVL, server: Recorded, tmp_path: Path):
    server.is_shared = True
    with pytest.raises(ValueError, match="expected answers by the weights that were pushed"):
        caption(captioner, settings_of(server, tmp_path))


@pytest.mark.parametrize("text", ["localhost:8000", "http://", "ftp://host"])
def test_what_is_no_address_is_refused(captioner: QwenVL, text: str):
    with pytest.raises(ValueError, match=r"vllm\.server: expected an address such as"):
        Server(captioner, VLLMSettings(server=text))


def test_a_server_that_is_not_there_is_named_before_a_model_is_loaded(
    captioner: QwenVL, tmp_path: Path
):
    server = Recorded(captioner)
    server.close()
    Image.new("RGB", (48, 48)).save(tmp_path / "image.png")
    run = TrainConfig(caption_sampler="vllm", vllm=VLLMSettings(server=server.url))
    wanted = "does not answer .*refused.; start it, and the same command goes on"
    with pytest.raises(ValueError, match=wanted):
        UnifiedGRPO(UnifiedGRPOSettings(data=(str(tmp_path),), train=run)).check()


def test_a_server_that_dies_in_between_is_named(
    captioner: QwenVL, server: Recorded, tmp_path: Path
):
    server.instead["/inference/v1/generate"] = Response(200, {"choices": []}, cut=4)
    with pytest.raises(ValueError, match=r"does not answer .*; start it"):
        caption(captioner, settings_of(server, tmp_path), group_size=40)
