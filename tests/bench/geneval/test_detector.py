"""Mask2Former's outputs as objects, and checkpoints that do not do."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.bench.geneval.checkpoints import save_clip, save_detector
from uae.bench.geneval.classes import COLORS, OBJECTS
from uae.bench.geneval.colors import ColorClassifier
from uae.bench.geneval.detector import Detector, bounds, check_detector, find
from uae.similarity.backbones import load_backbone

LABELS = {"dog": 0, "cat": 1}
SMALL = {"shortest_edge": 64, "longest_edge": 96}  # for speed


def noisy(seed: int, size: tuple[int, int]) -> Image.Image:
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.NEAREST)


# --- outputs by hand -----------------------------------------------------------------------------


def test_objects_by_hand():
    """Three queries: a dog in the left half, perhaps a cat below, and nothing."""
    masks = torch.full((3, 4, 4), -8.0)
    masks[0, :, :2] = 8.0
    masks[1, 3, 1:] = 2.0
    masks[2] = 8.0
    classes = torch.tensor([[4.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 9.0]])
    found = find(classes, masks, (4, 4), LABELS)
    assert found.boxes["dog"][:, :4].tolist() == [[0, 0, 2, 4]]
    assert found.boxes["cat"][:, :4].tolist() == [[1, 3, 4, 4]]
    shares = classes.softmax(-1)
    assert found.boxes["dog"][0, 4] == pytest.approx(
        float(shares[0, 0] * torch.sigmoid(masks[0, 0, 0]))
    )
    assert found.boxes["cat"][0, 4] == pytest.approx(
        float(shares[1, 1] * torch.sigmoid(torch.tensor(2.0)))
    )
    assert found.boxes["dog"].dtype == np.float32
    assert found.masks["dog"].tolist() == [[[True, True, False, False]] * 4]


def test_one_query_may_be_two_things():
    """As officially, where pairs of query and class are ranked."""
    classes = torch.tensor([[5.0, 5.0, 0.0]])
    found = find(classes, torch.full((1, 2, 2), 8.0), (8, 6), LABELS)
    assert set(found.boxes) == {"dog", "cat"}
    assert found.boxes["dog"][0, :4].tolist() == [0, 0, 6, 8]
    assert found.masks["cat"].shape == (1, 8, 6)


def test_nothing_is_found():
    classes = torch.tensor([[0.0, 0.0, 9.0]])
    assert find(classes, torch.full((1, 2, 2), 8.0), (4, 4), LABELS).boxes == {}


def test_an_empty_mask_is_no_object():
    classes = torch.tensor([[9.0, 0.0, 0.0]])
    assert find(classes, torch.full((1, 2, 2), -8.0), (4, 4), LABELS).boxes == {}
    assert bounds(torch.zeros(1, 3, 3, dtype=torch.bool)).tolist() == [[0, 0, 0, 0]]


def test_at_most_100_pairs():
    classes = torch.zeros(300, 3)
    classes[:, 0] = torch.linspace(4, 8, 300)
    found = find(classes, torch.full((300, 1, 1), 8.0), (2, 2), LABELS)
    assert found.boxes["dog"].shape == (100, 5)
    lowest = classes[200].softmax(-1)[0] * torch.sigmoid(torch.tensor(8.0))
    assert found.boxes["dog"][:, 4].min() == pytest.approx(float(lowest))


# --- a checkpoint --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_detector(tmp_path_factory.mktemp("detector"))


@pytest.mark.parametrize(
    ("size", "seen"),
    [((512, 512), (800, 800)), ((1200, 600), (672, 1344)), ((90, 120), (1088, 800))],
)
def test_images_are_scaled_as_officially(folder: Path, size, seen, monkeypatch):
    """Whatever the checkpoint's processor would do; then on to multiples of 32."""
    found = Detector(folder, "cpu")
    inputs = []
    monkeypatch.setattr(
        found.model.model.pixel_level_module,
        "forward",
        lambda pixel_values, **options: inputs.append(pixel_values) or 1 / 0,
    )
    with pytest.raises(ZeroDivisionError):
        found.detect([noisy(0, size)])
    assert inputs[0].shape[2:] == seen


def test_detections_do_not_depend_on_the_batch(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("uae.bench.geneval.detector.SIDES", SMALL)
    detector = Detector(folder, "cpu")
    images = [noisy(0, (80, 60)), noisy(1, (60, 60)), noisy(2, (80, 60)), noisy(3, (50, 90))]
    together = detector.detect(images)
    assert sum(len(boxes) for found in together for boxes in found.boxes.values()) >= 4
    for image, found in zip(images, together, strict=True):
        (alone,) = detector.detect([image])
        assert alone.boxes.keys() == found.boxes.keys() <= set(OBJECTS)
        for name, boxes in found.boxes.items():
            np.testing.assert_allclose(alone.boxes[name], boxes, rtol=1e-5)
            assert found.masks[name].shape == (len(boxes), image.height, image.width)


def test_the_weights_of_the_published_loss_are_passed_over(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("uae.bench.geneval.detector.SIDES", SMALL)
    other = copied(folder, tmp_path / "other")
    weights = load_file(other / "model.safetensors")
    weights["criterion.empty_weight"] = torch.ones(81)
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    a, b = (Detector(path, "cpu").detect([noisy(0, (80, 60))])[0].boxes for path in (folder, other))
    assert a.keys() == b.keys() and all((a[name] == b[name]).all() for name in a)


def copied(folder: Path, to: Path) -> Path:
    to.mkdir()
    for file in folder.iterdir():
        (to / file.name).write_bytes(file.read_bytes())
    return to


def test_checkpoints_that_do_not_do(folder: Path, tmp_path: Path):
    config = json.loads((folder / "config.json").read_text())
    labels = {k: v for k, v in config["id2label"].items() if v not in ("cow", "tv")}
    cases = {
        "model_type mask2former, got clip": ("config.json", json.dumps({"model_type": "clip"})),
        r"lacks 2 \(cow, tv\)": ("config.json", json.dumps(config | {"id2label": labels})),
        "cut short or not safetensors": ("model.safetensors", "short"),
        "expected a file, found nothing": ("model.safetensors", None),
        "preprocessor_config.json: expected a file": ("preprocessor_config.json", None),
        "config.json is cut short": ("config.json", "{"),
    }
    for number, (message, (name, content)) in enumerate(cases.items()):
        broken = copied(folder, tmp_path / str(number))
        (broken / name).unlink()
        if content is not None:
            (broken / name).write_text(content)
        with pytest.raises(ValueError, match=message) as error:
            check_detector(broken)
        assert "\n" not in str(error.value)


def test_weights_that_are_missing_are_named(folder: Path, tmp_path: Path):
    partial = copied(folder, tmp_path / "partial")
    weights = load_file(partial / "model.safetensors")
    del weights["class_predictor.bias"]
    save_file(weights, partial / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"1 are missing \(class_predictor.bias\)"):
        Detector(partial, "cpu")


# --- colours -------------------------------------------------------------------------------------


def test_colors_are_the_nearest_of_averaged_texts(tmp_path: Path):
    clip = load_backbone("clip", save_clip(tmp_path / "clip"))
    classifier = ColorClassifier(clip)
    crops = [noisy(seed, (20 + seed, 30)) for seed in range(20)]
    found = classifier.colors("dog", crops)
    pixels = [torch.from_numpy(np.array(crop)).permute(2, 0, 1) / 255 for crop in crops]
    with torch.no_grad():
        vectors = []
        for color in COLORS:
            texts = [f"a photo of a {color} dog", f"a photo of a {color}-colored dog"]
            mean = clip.embed_text([*texts, f"a photo of a {color} object"]).mean(0)
            vectors.append(mean / mean.norm())
        nearest = [
            int((torch.stack(vectors) @ clip.embed([image])[0]).argmax()) for image in pixels
        ]
    assert found == [COLORS[place] for place in nearest]
    assert classifier.colors("dog", []) == []


def test_a_clip_without_texts_is_refused_before_any_crop(tmp_path: Path):
    folder = save_clip(tmp_path / "clip")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    with pytest.raises(ValueError, match="expected a text side with a tokenizer"):
        ColorClassifier(load_backbone("clip", folder))
