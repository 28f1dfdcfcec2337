"""Training images of the world."""

from __future__ import annotations

import torch

from uae.world.data import SceneImages


def test_scenes_are_never_the_same_twice_and_the_probe_is_held_out():
    source = SceneImages()
    first, second = torch.stack(source.batch(0, 8)), torch.stack(source.batch(1, 8))
    assert not torch.equal(first, second)
    assert torch.equal(first, torch.stack(SceneImages().batch(0, 8)))
    assert torch.stack(source.probe(4)).shape == (4, 3, 48, 48)
