"""How the tiny UMM-2 is made: its VQ model and its three losses learn, and dead codes come back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from tests.rl.tiny_run import build_model
from uae.stages.fit import Fittable
from uae.utils.weights import stored_dtype
from uae.world.build.janus import JanusOnTask, JanusTask, inherit_language_model
from uae.world.build.vq import REVIVE_EVERY, VqDecoderTask, VqTask, measure_vq, training_scenes
from uae.world.data import pictures
from uae.world.models import build_captioner, build_janus


def losses_on_one_batch(task: Fittable, num_steps: int, learning_rate: float) -> list[float]:
    parameters = [
        p for module in task.modules.values() for p in module.parameters() if p.requires_grad
    ]
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate)
    losses = []
    for _ in range(num_steps):
        loss, metrics = task.loss(0)
        assert all(isinstance(value, float) for value in metrics.values())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
    return losses


def test_the_vq_model_learns():
    task = VqTask(compiled=False)
    task.fit_settings = replace(task.fit_settings, batch_size=2)
    losses = losses_on_one_batch(task, 15, 2e-3)
    assert losses[-1] < 0.6 * losses[0]


def test_its_decoder_learns_while_tokens_stay(tmp_path: Path):
    torch.manual_seed(0)
    build_janus().save_pretrained(tmp_path)
    task = VqDecoderTask(tmp_path, compiled=False)
    task.fit_settings = replace(task.fit_settings, batch_size=2)
    images = pictures(training_scenes(0, task.fit_settings))
    tokens = task.janus.image_tokens(images)
    losses = losses_on_one_batch(task, 15, 2e-3)
    assert losses[-1] < 0.8 * losses[0]
    assert torch.equal(task.janus.image_tokens(images), tokens)
    task.export(tmp_path / "shipped")
    assert stored_dtype(tmp_path / "shipped") == torch.bfloat16


def test_dead_codes_are_put_to_use():
    task = VqTask(compiled=False)
    task.fit_settings = replace(task.fit_settings, batch_size=4)
    codes = task.vq.quantize.embedding.weight
    with torch.no_grad():
        codes.copy_(
            torch.nn.functional.normalize(
                torch.ones_like(codes) + 1e-3 * torch.randn_like(codes), dim=-1
            )
        )
    scenes = training_scenes(7, task.fit_settings)
    before = measure_vq(task.janus, scenes)["codebook_used"]
    task.after_step(REVIVE_EVERY - 2)
    assert measure_vq(task.janus, scenes)["codebook_used"] == before
    task.after_step(REVIVE_EVERY - 1)
    assert measure_vq(task.janus, scenes)["codebook_used"] > before + 0.05
    torch.testing.assert_close(codes.norm(dim=-1), torch.ones(len(codes)))


def test_the_inherited_language_model_says_the_same():
    torch.manual_seed(0)
    qwen, janus = build_captioner(), build_janus()
    inherit_language_model(janus, qwen)
    words = ["a", "small", "red", "ring", "top-left", "."]
    logits = []
    for captioner in (qwen, janus):
        ids = torch.tensor([captioner.tokenize(" ".join(words))])
        states = captioner.language_model(
            inputs_embeds=captioner.language_model.embed_tokens(ids)
        ).last_hidden_state
        rows = captioner.tokenizer.convert_tokens_to_ids(words)
        logits.append(captioner.model.lm_head(states)[..., rows])
    torch.testing.assert_close(*logits, atol=1e-5, rtol=1e-5)


def test_captions_answers_and_pictures_are_learnt_together(tmp_path: Path):
    torch.manual_seed(0)
    build_janus().save_pretrained(tmp_path / "umm2")
    build_model().save_pretrained(tmp_path / "umm1")
    task = JanusTask(tmp_path / "umm2", tmp_path / "umm1", compiled=False)
    task.fit_settings = replace(task.fit_settings, batch_size=2)
    vq = {name: p.clone() for name, p in task.model.model.model.vqmodel.named_parameters()}
    _, start = task.loss(0)
    losses_on_one_batch(task, 12, 2e-3)
    _, end = task.loss(0)
    assert start.keys() == end.keys() == {"paint_loss", "bound", "caption_loss", "answer_loss"}
    assert all(end[name] < 0.7 * start[name] for name in start)
    assert all(
        torch.equal(p, vq[name]) for name, p in task.model.model.model.vqmodel.named_parameters()
    )


def test_the_whole_is_trained_on_with_its_tokens_resting(tmp_path: Path):
    torch.manual_seed(0)
    build_janus().save_pretrained(tmp_path)
    task = JanusOnTask(tmp_path, compiled=False)
    task.fit_settings = replace(task.fit_settings, batch_size=2)
    vq = {name: p.clone() for name, p in task.model.model.model.vqmodel.named_parameters()}
    _, start = task.loss(0)
    losses_on_one_batch(task, 12, 2e-3)
    _, end = task.loss(0)
    assert start.keys() == end.keys() == {"paint_loss", "caption_loss", "answer_loss"}
    assert all(end[name] < 0.7 * start[name] for name in start)
    assert all(
        torch.equal(p, vq[name]) for name, p in task.model.model.model.vqmodel.named_parameters()
    )
