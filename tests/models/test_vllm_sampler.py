"""What surrounds an engine of vLLM, without one: requests, captions, merged weights, refusals."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from uae.config import CaptionSettings, VLLMSettings
from uae.models.encoders.qwen_vl import QwenVL
from uae.models.vllm.sampler import Answer, Request, Sampling, VLLMSampler
from uae.rl.config import TrainConfig
from uae.rl.sampler import check_sampler
from uae.stages.grpo_settings import UnifiedGRPOSettings
from uae.stages.unified_grpo import UnifiedGRPO
from uae.utils.seed import sequence_seeds
from uae.world.models import build_captioner, build_janus


@dataclass
class Scripted:
    """An engine that says what it is told to, in turn."""

    tokens: list[list[int]]
    pad_id: int
    pushed: list[dict[str, Tensor]] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)

    def push(self, tensors: Iterable[tuple[str, Tensor]]) -> None:
        self.pushed.append(dict(tensors))

    def answer(self, requests: Sequence[Request], sampling: Sampling) -> list[Answer]:
        self.requests = list(requests)
        answers = []
        for request, tokens in zip(requests, self.tokens, strict=True):
            at = request.prompt.index(self.pad_id)
            pads = [self.pad_id] * len(request.features)
            prompt = [*request.prompt[:at], *pads, *request.prompt[at + 1 :]]
            answers.append(Answer(prompt, tokens, [-0.5 * (i + 1) for i in range(len(tokens))]))
        return answers


@pytest.fixture
def captioner() -> QwenVL:
    return build_captioner().eval()


def served(captioner: QwenVL, tokens: list[list[int]], max_length: int = 1024) -> Scripted:
    engine = Scripted(tokens, captioner.image_pad_id)
    captioner.sampler = VLLMSampler(captioner, engine, max_length)
    return engine


def pictures(num: int) -> list[Tensor]:
    return list(torch.rand(num, 3, 48, 48))


def merged(captioner: QwenVL, layer: str, name: str) -> Tensor:
    """W + alpha / rank · B A of each adapter: alpha is twice the rank."""
    module = captioner.model.get_submodule(layer)
    weight = getattr(getattr(module, "base_layer", module), name.split(".")[-1]).double()
    if hasattr(module, "lora_A") and name.endswith(".weight"):
        for adapter in module.lora_A:
            down, up = (half[adapter].weight.double() for half in (module.lora_A, module.lora_B))
            weight = weight + 2 * (up @ down)
    return weight.detach()


def words(captioner: QwenVL, text: str) -> list[int]:
    return captioner.tokenize(text)


def test_captions_are_as_the_built_in_sampler_gives_them(captioner: QwenVL):
    end, (red, ring) = captioner.tokenizer.eos_token_id, words(captioner, "red ring")
    served(captioner, [[red, ring, end], [end], [red, red, red], [red, ring, end]])
    settings = CaptionSettings(max_new_tokens=3)
    captions = captioner.caption(pictures(2), settings, group_size=2)
    assert captions.texts == ["red ring", "", "red red red", "red ring"]
    assert captions.truncated.tolist() == [False, False, True, False]
    assert captions.group_size == 2
    rollout, pad = captions.rollout, captioner.pad_id
    assert rollout.actions.tolist()[:2] == [[red, ring, end], [end, pad, pad]]
    assert rollout.mask.tolist()[:2] == [[True] * 3, [True, False, False]]
    assert rollout.log_probs.tolist()[:2] == [[-0.5, -1.0, -1.5], [-0.5, 0.0, 0.0]]
    scored = captioner.evaluate(rollout, with_kl=False).log_probs
    assert scored.shape == (4, 3)
    assert rollout.context.image_of.tolist() == [0, 0, 1, 1]


def test_a_request_has_the_image_once_and_its_own_seed(captioner: QwenVL):
    end = captioner.tokenizer.eos_token_id
    engine = served(captioner, [[end]] * 4)
    images = pictures(2)
    captioner.caption(images, CaptionSettings(), group_size=2, seed=3, step=5, keys=[7, 9])
    assert [r.prompt.count(captioner.image_pad_id) for r in engine.requests] == [1] * 4
    features, grids = captioner.see(images)
    for request, image in zip(engine.requests, [0, 0, 1, 1], strict=True):
        assert torch.equal(request.features, features[image])
        assert request.grid.tolist() == [grids[image].tolist()]
        assert not request.features.requires_grad
    seeds = [request.seed for request in engine.requests]
    assert seeds == sequence_seeds(3, 5, [14, 15, 18, 19], "caption")


def test_seeds_belong_to_sequences():
    seeds = sequence_seeds(0, 1, range(100), "caption")
    assert len(set(seeds)) == 100 and all(0 <= seed < 2**63 for seed in seeds)
    assert sequence_seeds(0, 1, [42], "caption") == [seeds[42]]
    others = ((1, 1, "caption"), (0, 2, "caption"), (0, 1, "other"))
    assert all(sequence_seeds(s, t, [42], name) != [seeds[42]] for s, t, name in others)


def test_weights_are_pushed_before_each_rollout_and_once_where_none_learns(captioner: QwenVL):
    end = captioner.tokenizer.eos_token_id
    engine = served(captioner, [[end]])
    one = pictures(1)
    for _ in range(2):
        captioner.caption(one, CaptionSettings())
    assert len(engine.pushed) == 2  # all weights learn
    captioner.requires_grad_(False)
    for _ in range(2):
        captioner.caption(one, CaptionSettings())
    assert len(engine.pushed) == 2
    captioner.learn(2)
    captioner.caption(one, CaptionSettings())
    assert len(engine.pushed) == 3


def test_answers_of_the_reference_never_reach_the_engine(captioner: QwenVL):
    engine = served(captioner, [[0]])
    captioner.answer(pictures(1), ["what?"])
    captioner.answer_drift(pictures(1), ["what?"])
    assert engine.requests == [] and engine.pushed == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_pushed_is_the_merged_model(captioner: QwenVL, dtype: torch.dtype):
    captioner.to(dtype)
    names = {name for name, _ in captioner.model.named_parameters(remove_duplicate=False)}
    engine = served(captioner, [])
    for _ in range(2):  # one frozen, one that learns
        captioner.learn(2)
        for parameter in captioner.named_trainable_parameters().values():
            parameter.data += torch.randn_like(parameter) * 0.1
    assert len(captioner.adapters.active) == 2
    captioner.sampler.push()  # type: ignore[union-attr]
    (pushed,) = engine.pushed
    assert set(pushed) == {name for name in names if not name.startswith("model.visual.")}
    assert "lm_head.weight" in pushed  # tied to the embeddings, and named all the same
    bits = torch.finfo(dtype).eps
    for name, tensor in pushed.items():
        assert tensor.dtype == dtype and not tensor.requires_grad
        expected = merged(captioner, name.removesuffix(".weight").removesuffix(".bias"), name)
        torch.testing.assert_close(tensor.double(), expected, rtol=bits, atol=1e-6)
    moved = "model.language_model.layers.0.mlp.up_proj"
    base = captioner.model.get_submodule(moved).base_layer.weight
    assert not torch.equal(pushed[f"{moved}.weight"], base)


def test_a_caption_that_may_be_too_long_is_refused(captioner: QwenVL):
    served(captioner, [], max_length=64)
    num_prompt = len(captioner.prompt(CaptionSettings().instruction, 9))
    with pytest.raises(ValueError, match=f"max-length: expected at least {num_prompt + 60}, as"):
        captioner.caption(pictures(1), CaptionSettings(max_new_tokens=60))


def test_a_prompt_that_was_read_otherwise_is_refused(captioner: QwenVL):
    engine = served(captioner, [[0]])
    engine.pad_id = captioner.tokenizer.eos_token_id  # which the prompt has elsewhere
    with pytest.raises(ValueError, match="expected vLLM to read the prompt"):
        captioner.caption(pictures(1), CaptionSettings())


# --- refusals ------------------------------------------------------------------------------------


def test_other_models_are_refused():
    with pytest.raises(ValueError, match=r"any but Qwen2\.5-VL, got vllm and Janus \(umm2\)"):
        check_sampler(build_janus(), TrainConfig(caption_sampler="vllm"))


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is installed")
def test_without_vllm_the_extra_is_named(tmp_path: Path):
    Image.new("RGB", (48, 48)).save(tmp_path / "image.png")
    wanted = r"needs the library 'vllm': pip install 'unified-autoencoder\[vllm\]'"
    run = TrainConfig(caption_sampler="vllm")
    with pytest.raises(ValueError, match=wanted):  # before a model is loaded
        UnifiedGRPO(UnifiedGRPOSettings(data=(str(tmp_path),), train=run)).check()


def test_settings_are_checked():
    with pytest.raises(ValueError, match="cache-gb: expected above 0"):
        VLLMSettings(cache_gb=0.0)
