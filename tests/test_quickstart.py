"""What the quickstart is held against."""

from __future__ import annotations

from dataclasses import replace

import torch

from tests.rl.tiny_run import build_model
from uae.presets import PRESETS
from uae.scenes.scene import scene_at
from uae.stages.tiny.imitation import imitate, imitation_loss


def test_the_control_learns_by_imitation():
    model, preset = build_model(), PRESETS["tiny"][1].train
    config = replace(preset, num_steps=12, images_per_step=4, group_size=2, learning_rate=3e-3)
    held_out = [scene_at("validation", i) for i in range(8)]
    with torch.no_grad():
        before = imitation_loss(model.encoder, held_out, config.captioning.instruction).item()
    vision = [p.clone() for p in model.encoder.model.model.visual.parameters()]
    imitate(model.encoder, config)
    with torch.no_grad():
        after = imitation_loss(model.encoder, held_out, config.captioning.instruction).item()
    assert after < before - 0.5
    assert all(torch.equal(a, b) for a, b in zip(vision, model.encoder.model.model.visual.parameters(), strict=True))
