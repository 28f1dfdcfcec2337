"""The judge of pictures: right on what is drawn, unsure (never wrong) about what is damaged."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from uae.world.data import pictures
from uae.world.detector import MIN_CONFIDENCE, Detection, detect
from uae.world.scene import (
    BACKGROUNDS,
    COLORS,
    SHAPES,
    SIZES,
    SPLITS,
    WORDS,
    Object,
    Scene,
    Word,
    first_scenes,
)

MAX_WRONG = 0.005  # of the cells it is sure of

SCENES = first_scenes("test", 100) + first_scenes("unseen", 100)


def noise(std: float) -> Callable[[Tensor], Tensor]:
    return lambda x: x + std * torch.randn(x.shape, generator=torch.Generator().manual_seed(1))


def blur(std: float) -> Callable[[Tensor], Tensor]:
    reach = int(4 * std + 0.5)
    kernel = torch.exp(-torch.arange(-reach, reach + 1).square() / (2 * std * std))
    rows = (kernel / kernel.sum()).view(1, 1, -1, 1).expand(3, 1, -1, 1)

    def apply(x: Tensor) -> Tensor:
        x = torch.nn.functional.pad(x, (reach,) * 4, mode="reflect")
        x = torch.nn.functional.conv2d(x, rows, groups=3)
        return torch.nn.functional.conv2d(x, rows.transpose(2, 3), groups=3)

    return apply


def count(scenes: list[Scene], detections: list[Detection]) -> tuple[int, int]:
    """Cells the detector is sure of, and those of them that it reads wrongly."""
    sure = wrong = 0
    for scene, detection in zip(scenes, detections, strict=True):
        sure_cells = [cell for cell in detection.cells if cell.is_sure]
        sure += len(sure_cells)
        wrong += sum(cell.content != scene.contents[cell.cell] for cell in sure_cells)
    return sure, wrong


def test_it_reads_what_is_drawn():
    scenes = [scene for split in SPLITS for scene in first_scenes(split, 100)]
    detections = zip(scenes, detect(pictures(scenes)), strict=True)
    is_read = [d.scene == scene and not d.unsure_cells for scene, d in detections]
    assert sum(is_read) / len(is_read) >= 0.995


def test_it_reads_every_content_on_every_background():
    objects = [
        Object(4, shape, color, size) for shape in SHAPES for color in COLORS for size in SIZES
    ]
    for background in BACKGROUNDS:
        scenes = [Scene(background, (o,)) for o in objects] + [
            Scene(background, (), Word(7, w)) for w in WORDS
        ]
        detections = detect(pictures(scenes))
        assert [d.scene for d in detections] == scenes
        assert min(c.confidence for d in detections for c in d.cells) > 0.95  # 1 but for rounding


DAMAGE = {
    **{f"noise {s}": noise(s) for s in (0.05, 0.1, 0.2, 0.3)},
    **{f"blur {s}": blur(s) for s in (0.4, 0.7, 1.0, 1.3, 2.0, 3.0)},
    **{
        f"blur {b}, noise {s}": (lambda x, b=b, s=s: noise(s)(blur(b)(x)))
        for b, s in ((0.7, 0.1), (1.3, 0.05), (3, 0.1))
    },
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_it_is_unsure_rather_than_wrong(kind):
    sure, wrong = count(SCENES, detect(DAMAGE[kind](pictures(SCENES)).clamp(0, 1)))
    assert wrong <= MAX_WRONG * max(sure, 1), f"{wrong} wrong of {sure}"


def test_it_bears_slight_damage():
    total = 9 * len(SCENES)
    for damage, share in ((noise(0.02), 0.995), (noise(0.04), 0.98), (blur(0.4), 0.995)):
        sure, wrong = count(SCENES, detect(damage(pictures(SCENES)).clamp(0, 1)))
        assert sure - wrong >= share * total


@pytest.mark.parametrize("share", [0.25, 0.4, 0.5, 0.6])
def test_faded_objects_are_neither_there_nor_not(share):
    scenes = [replace(s, word=None) for s in SCENES]
    empty = pictures([Scene(s.background, ()) for s in scenes])
    faded = share * pictures(scenes) + (1 - share) * empty
    for scene, detection in zip(scenes, detect(faded), strict=True):
        assert set(detection.unsure_cells) == {o.cell for o in scene.objects}


@pytest.mark.parametrize("shift", [(1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1)])
def test_a_moved_object_is_no_other_object(shift):
    plain = [replace(s, background="gray", word=None) for s in SCENES]
    sure, wrong = count(plain, detect(pictures(plain).roll(shift, dims=(2, 3))))
    assert wrong <= MAX_WRONG * sure, f"{wrong} wrong of {sure}"


def test_a_mixture_of_two_objects_is_unsure():
    objects = [Object(4, shape, "red", "large") for shape in ("circle", "square")]
    mixture = pictures([Scene("white", (o,)) for o in objects]).mean(0, keepdim=True)
    detection = detect(mixture)[0]
    assert detection.unsure_cells == (4,) and detection.objects == ()


def test_half_and_half_is_zero_confidence():
    circle = pictures([Scene("white", (Object(0, "circle", "red", "large"),))])
    ring = pictures([Scene("white", (Object(0, "ring", "red", "large"),))])
    half, most = (detect(s * circle + (1 - s) * ring)[0].cells[0] for s in (0.5, 0.7))
    assert half.confidence == pytest.approx(0, abs=1e-3)
    assert most.confidence <= 0.4 + 1e-3 < MIN_CONFIDENCE
    assert most.content == Object(0, "circle", "red", "large")


def test_what_it_is_unsure_of_does_not_count():
    static = torch.rand(20, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    for detection in detect(static):
        assert (
            detection.objects == () and detection.word is None and len(detection.unsure_cells) == 9
        )


def test_batches_do_not_matter():
    images = noise(0.1)(pictures(SCENES[:30])).clamp(0, 1)
    together, alone = detect(images), [detect(image[None])[0] for image in images]
    for a, b in zip(together, alone, strict=True):
        assert a.scene == b.scene and a.unsure_cells == b.unsure_cells
    assert detect(images[:0]) == []
