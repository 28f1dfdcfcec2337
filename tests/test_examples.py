"""The examples learn, and the one page's loss is the project's."""

import importlib.util
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from uae import cli
from uae.bench.unified import BACKBONES
from uae.config import CaptionSettings
from uae.images.write import save_png
from uae.models.base import UnifiedModel
from uae.models.encoders.tokens import k3_kl
from uae.models.load import load_model
from uae.rl.advantages import group_advantages
from uae.rl.losses import Objective, grpo_loss
from uae.similarity.backbones import load_backbone
from uae.types import Evaluation, Policy
from uae.world.measure import WorldSettings, measure_model

EXAMPLES = Path(__file__).parents[1] / "examples"
PAGE = EXAMPLES / "grpo_loop.py"


def load_example(name: str):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def grpo_loop():
    return load_example("grpo_loop")


def test_a_third_family_is_one_file_and_learns(tmp_path: Path):
    example = load_example("third_family")
    images = example.PlainColors().batch(0, len(example.NAMES))
    before, after = example.ColorNamer(), example.learn(tmp_path)
    assert isinstance(after, UnifiedModel) and isinstance(after.encoder, Policy)
    greedy = CaptionSettings(temperature=0.0)
    assert (
        after.caption(images, greedy).texts == example.NAMES != before.caption(images, greedy).texts
    )
    rollout = after.caption(images, CaptionSettings(), group_size=4).rollout
    evaluation = after.evaluate(rollout, with_kl=True)
    torch.testing.assert_close(evaluation.log_probs, rollout.log_probs)
    assert evaluation.kl.mean() > 0.1  # it moved


def test_a_third_family_is_taken_by_every_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Nothing in the package names it: a module that Python finds is enough."""
    monkeypatch.syspath_prepend(EXAMPLES)
    example = load_example("third_family")
    images, folder = example.PlainColors().batch(0, len(example.NAMES)), tmp_path / "model"
    learnt = example.learn(tmp_path / "run")
    learnt.save_pretrained(folder)
    (tmp_path / "photos").mkdir()
    for name, image in zip(example.NAMES, images, strict=True):
        save_png(tmp_path / "photos" / f"{name}.png", image)
    cli.run(
        [
            "reconstruct",
            str(tmp_path / "photos"),
            "--model",
            str(folder),
            "--out",
            str(tmp_path / "out"),
        ]
    )
    for name in example.NAMES:
        assert (tmp_path / "out" / f"{name}.txt").read_text().strip() == name
    tiny = [word for name in BACKBONES for word in (name, "tiny")]
    numbers = tmp_path / "bench.json"
    cli.run(
        [
            "bench",
            "unified",
            "--images",
            str(tmp_path / "photos"),
            "--model",
            str(folder),
            "--out",
            str(numbers),
            "--backbones",
            *tiny,
        ]
    )
    found = json.loads(numbers.read_text())
    assert found["statistics_by_model"]["clip"]["average_similarity"] > 0.99
    settings = found["uae"]["settings"]
    assert settings["model"] == str(folder) and settings["decoding"]["height"] == 48
    world = {"clip": load_backbone("clip", "tiny")}
    again = measure_model(
        load_model(str(folder)),
        world,
        WorldSettings(num_scenes=4, prompts_per_tag=1, num_bootstrap=5),
    )
    assert again.numbers["geneval"] == 0


def test_it_learns(grpo_loop):
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    start = time.process_time()
    history = grpo_loop.train(log_every=0)
    seconds = time.process_time() - start
    torch.set_num_threads(num_threads)
    first_reward, first_words = history[0]
    last_reward, last_words = (sum(values) / 10 for values in zip(*history[-10:], strict=True))
    assert abs(first_reward) < 0.1
    assert last_reward > 0.9
    assert first_words < 1.6
    assert last_words > 3.8
    assert seconds < 15  # of processor time: other work on the machine does not count


def test_its_loss_is_the_projects(grpo_loop):
    log_probs = -torch.rand(8, 5)
    old, ref = log_probs + 0.4 * torch.randn(8, 5), log_probs + 0.4 * torch.randn(8, 5)
    advantages, mask = torch.randn(8), torch.arange(5) < torch.randint(0, 6, (8, 1))
    theirs, ours = (log_probs.clone().requires_grad_() for _ in range(2))
    loss = grpo_loop.grpo_loss(theirs, old, ref, advantages, mask)
    loss.backward()
    objective = Objective(grpo_loop.CLIP_EPS, grpo_loop.CLIP_EPS, grpo_loop.KL_COEF)
    expected, metrics = grpo_loss(
        Evaluation(ours, torch.zeros(8, 5), k3_kl(ours, ref)), old, advantages, mask, objective
    )
    expected.backward()
    assert metrics["clip_frac"] > 0.1  # the comparison does cover clipped actions
    assert loss.item() == pytest.approx(expected.item(), abs=1e-6)
    torch.testing.assert_close(theirs.grad, ours.grad)


def test_its_advantages_are_the_projects(grpo_loop):
    rewards = torch.rand(6, 4)
    torch.testing.assert_close(
        grpo_loop.group_advantages(rewards), group_advantages(rewards).flatten()
    )


def test_its_log_probs_are_those_sampled_from(grpo_loop):
    """Scoring a whole caption at once equals the distribution each word was drawn from."""
    encoder, images = grpo_loop.Encoder(), grpo_loop.sample_images(64)
    captions, mask = encoder.sample(images)
    scored = encoder.log_probs(images, captions)
    for t in range(grpo_loop.MAX_WORDS):
        prefix = captions.clone()
        prefix[:, t:] = grpo_loop.END  # what the sampler had in front of it
        step = encoder(images, prefix)[:, t].log_softmax(1).gather(1, captions[:, t : t + 1])[:, 0]
        torch.testing.assert_close(scored[mask[:, t], t], step[mask[:, t]])


def test_it_stands_alone_on_one_page():
    source = PAGE.read_text()
    assert len(source.splitlines()) < 150
    assert "import uae" not in source
    assert "from uae" not in source
    code = (
        f"import sys; sys.path.insert(0, {str(PAGE.parent)!r}); import grpo_loop; "
        "grpo_loop.train(2, log_every=1)"
    )
    result = subprocess.run(
        [sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.startswith("step   0  reward ")
