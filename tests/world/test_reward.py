"""Agreement object by object, by hand."""

from __future__ import annotations

import pytest
import torch

from uae.world.data import pictures
from uae.world.reward import objects
from uae.world.scene import Scene, scene_at

SCENES = [scene_at("test", i, with_word=False, num_objects=3) for i in range(2)]
IMAGES = pictures(SCENES)


def test_objects_by_hand():
    two = Scene(SCENES[0].background, SCENES[0].objects[:2])
    reconstructions = torch.cat([IMAGES[:1], pictures([two]), IMAGES[1:], IMAGES[:1]])
    scores = objects(IMAGES, ["a", "b"], reconstructions)
    assert scores[:3].tolist() == pytest.approx([1, 2 * 2 / (3 + 2), 1])
    assert scores[3] < 0.5
    with pytest.raises(ValueError, match="48x48"):
        objects([torch.rand(3, 64, 64)], ["a"], reconstructions)
