"""Agreement object by object, by hand."""

from __future__ import annotations

import pytest
import torch

from uae.world.data import pictures
from uae.world.language import exhaustive_caption
from uae.world.reward import caption_objects, objects
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


def test_described_by_hand():
    texts = [exhaustive_caption(scene) for scene in SCENES]
    first, *others = texts[0].split(" , ")
    phrase = first.split(" on ")[0]
    captions = [texts[0], phrase, f"{phrase} and {phrase}", texts[1], texts[0], ""]
    assert others
    scores = caption_objects(list(IMAGES), captions, torch.zeros(12, 3, 48, 48))
    each = scores[::2]
    assert torch.equal(each, scores[1::2])  # both pictures of a caption
    assert each[[0, 1, 3, 5]].tolist() == pytest.approx([1, 1 / 3, 1, 0])
    assert each[2] <= 1 / 3 and each[4] < 0  # said twice; of another picture
