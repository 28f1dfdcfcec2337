"""The world's measurements of a perfect model, and of models broken on purpose."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from tests.world.perfect import Perfect, recolored
from uae.bench.result import Share
from uae.bench.unified import BACKBONES
from uae.config import DecodeSettings
from uae.similarity.backbones import Backbone
from uae.similarity.checkpoints import Provenance
from uae.similarity.preprocess import Preprocess
from uae.world.data import pictures
from uae.world.detector import detect
from uae.world.fidelity import decoder_fidelity, decoder_report, fidelity, scenes_with
from uae.world.language import (
    exhaustive_caption,
    read_caption,
)
from uae.world.measure import (
    WorldSettings,
    at_world_size,
    delta,
    geneval,
    measure_ceiling,
    measure_model,
    split_gain,
)
from uae.world.prompts import (
    TAGS,
    Verdict,
    geneval_rows,
    judge,
    make_prompts,
    mean_over_tags,
    shares_by_tag,
)
from uae.world.scene import (
    BACKGROUNDS,
    CELLS,
    HELD_OUT_PAIRS,
    SHAPES,
    Object,
    Scene,
    Word,
    first_scenes,
    scene_at,
)


class Pixels(nn.Module):
    """In the place of a backbone: the feature is the picture itself."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, pixel_values: Tensor) -> SimpleNamespace:
        return SimpleNamespace(last_hidden_state=self.scale * pixel_values.flatten(1)[:, None])

    def get_image_features(self, pixel_values: Tensor) -> SimpleNamespace:
        return SimpleNamespace(pooler_output=self.scale * pixel_values.flatten(1))


@pytest.fixture
def four() -> dict[str, Backbone]:
    preprocess = Preprocess(48, 48, "exact", "bilinear", False, (0.0,) * 3, (1.0,) * 3)
    origins = {name: Provenance(name, "folder", "sha256:0", "float32", {}) for name in BACKBONES}
    return {name: Backbone(name, Pixels(), preprocess, origins[name]) for name in BACKBONES}


# --- everything right ----------------------------------------------------------------------------


def test_a_perfect_model_is_right_everywhere(four):
    result = measure_model(
        Perfect(), four, WorldSettings(num_scenes=30, prompts_per_tag=6, num_bootstrap=50)
    )
    tokens = [len(exhaustive_caption(scene_at("test", i)).split()) for i in range(30)]
    numbers = dict(result.numbers)
    assert numbers.pop("caption_tokens") == pytest.approx(sum(tokens) / 30)
    assert numbers == pytest.approx(dict.fromkeys(numbers, 100.0), abs=1e-3)
    assert set(numbers) == {
        "unified_score",
        *BACKBONES,
        "rescaled_score",
        "unified_score_if_true",
        "caption_complete",
        "geneval",
        "perception",
        "perception_small",
        "caption_precision",
        "caption_recall",
        "small_recall",
        "reconstruction_objects_exact",
    }
    objects = result.details["objects"]
    assert objects["hallucinated_per_image"] == 0 and objects["unsure_cells"]["percent"] == 0
    assert objects["scenes_exact"]["percent"] == objects["words_exact"]["percent"] == 100
    assert len(result.geneval_rows) == 36 and all(row["correct"] for row in result.geneval_rows)
    assert len(result.samples) == 12 and torch.equal(
        result.samples[0].source, result.samples[0].reconstruction
    )
    json.dumps(result.to_json(), allow_nan=False)


def test_the_ceiling_is_what_true_captions_give(four):
    result = measure_ceiling(
        Perfect(say=lambda scene: ""),
        four,
        WorldSettings(num_scenes=10, prompts_per_tag=3, num_bootstrap=50),
    )
    numbers = {name: value for name, value in result.numbers.items() if name != "caption_tokens"}
    assert numbers == pytest.approx(dict.fromkeys(numbers, 100.0), abs=1e-3)


def test_the_result_does_not_depend_on_who_asks_again(four):
    first, second = (
        measure_model(
            Perfect(), four, WorldSettings(num_scenes=6, prompts_per_tag=2, num_bootstrap=20)
        )
        for _ in range(2)
    )
    assert first.to_json() == second.to_json() and first.geneval_rows == second.geneval_rows


# --- broken on purpose ---------------------------------------------------------------------------


def without_small(scene: Scene) -> Scene:
    return replace(scene, objects=tuple(o for o in scene.objects if o.size != "small"))


def test_wrong_colours(four):
    result = measure_model(
        Perfect(see=recolored),
        four,
        WorldSettings(num_scenes=20, prompts_per_tag=2, num_bootstrap=20),
    )
    assert (
        result.numbers["reconstruction_objects_exact"] == result.numbers["caption_precision"] == 0
    )
    by_attribute = {
        name: s["percent"] for name, s in result.details["objects"]["by_attribute"].items()
    }
    assert by_attribute == {"cell": 100, "shape": 100, "color": 0, "size": 100}
    assert result.details["objects"]["words_exact"]["percent"] == 100
    # only captions are wrong
    assert result.numbers["perception"] == result.numbers["geneval"] == 100
    unified = result.numbers["unified_score"]
    assert unified is not None and unified < 100
    assert result.numbers["unified_score_if_true"] == pytest.approx(100, abs=1e-3)


def test_dropped_small_objects(four):
    result = measure_model(
        Perfect(see=without_small),
        four,
        WorldSettings(num_scenes=40, prompts_per_tag=2, num_bootstrap=20),
    )
    objects = [o for i in range(40) for o in scene_at("test", i).objects]
    share = 100 * sum(o.size != "small" for o in objects) / len(objects)
    assert result.numbers["reconstruction_objects_exact"] == pytest.approx(share)
    assert result.numbers["caption_recall"] == pytest.approx(share)
    assert result.numbers["caption_precision"] == 100 and result.numbers["small_recall"] == 0
    by_size = {size: s["percent"] for size, s in result.details["objects"]["by_size"].items()}
    assert by_size == {"small": 0, "medium": 100, "large": 100}


def test_empty_captions(four):
    result = measure_model(
        Perfect(say=lambda scene: ""),
        four,
        WorldSettings(num_scenes=10, prompts_per_tag=2, num_bootstrap=20),
    )
    assert result.numbers["caption_tokens"] == result.numbers["caption_recall"] == 0
    assert result.numbers["caption_precision"] is None  # nothing was said, so nothing was wrong
    assert result.details["captions"]["empty"] == 100
    assert result.numbers["reconstruction_objects_exact"] == 0


def test_a_decoder_that_adds_one():
    def one_more(scene: Scene) -> Scene:
        extra = Object(scene.contents.index(None), "circle", "red", "small")
        return replace(scene, objects=tuple(sorted((*scene.objects, extra))))

    result = decoder_fidelity(Perfect(draw=one_more), min_objects=30, with_word=None)
    assert result.objects_exact.percent == 100 and result.hallucinated_per_image == 1
    assert result.scenes_exact.percent == 0
    verdicts = geneval(Perfect(draw=one_more), make_prompts(3))
    assert mean_over_tags(shares_by_tag(verdicts)) == 0  # strict under every tag


def test_blurred_away_is_unsure_not_wrong():
    scenes = first_scenes("test", 5, with_word=False)
    faint = 0.5 * pictures(scenes) + 0.5 * pictures([replace(s, objects=()) for s in scenes])
    result = fidelity(scenes, faint)
    assert result.objects_exact.percent == 0 and result.hallucinated_per_image == 0
    assert result.unsure_cells == Share(sum(len(s.objects) for s in scenes), 45)


# --- parts ---------------------------------------------------------------------------------------


def test_the_decoder_is_measured_on_every_kind_of_scene():
    report = decoder_report(Perfect(), min_objects=40)
    exact = {name: f.objects_exact.percent for name, f in report.items()}
    assert exact == dict.fromkeys(report, 100)
    assert list(report) == ["test", "five_objects", "unseen", "words"]
    assert (
        report["five_objects"].objects_exact.total == 40 and report["words"].words_exact.total > 5
    )
    assert report["test"].words_exact.total == 0
    assert sum(len(s.objects) for s in scenes_with(100, "unseen")) >= 100


def test_prompts_say_what_the_tag_asks():
    prompts = make_prompts(20)
    assert [sum(p.tag == tag for p in prompts) for tag in TAGS] == [20] * 6
    assert len({(p.tag, p.text) for p in prompts}) == 120
    for p in prompts:
        pairs = [(m.shape, m.color) for m in read_caption(p.text).mentions]
        assert not HELD_OUT_PAIRS & set(pairs)
        assert p.tag == "counting" or sorted(pairs) == sorted(
            (o.shape, o.color) for o in p.scene.objects
        )
    unseen = make_prompts(5, split="unseen")
    colored = [p for p in unseen if p.tag == "color_attr"]
    assert all(HELD_OUT_PAIRS & {(o.shape, o.color) for o in p.scene.objects} for p in colored)
    with pytest.raises(ValueError, match="different prompts"):
        make_prompts(11, split="unseen")  # 5 pairs, with and without an article


def test_judgement_by_tag():
    scene = Scene(
        "white", (Object(0, "circle", "red", "small"), Object(5, "square", "blue", "large"))
    )
    swapped = Scene(
        "white", (Object(0, "circle", "blue", "small"), Object(5, "square", "red", "large"))
    )
    moved = Scene(
        "white", (Object(1, "circle", "red", "small"), Object(5, "square", "blue", "large"))
    )
    with_word = replace(scene, word=Word(8, "cat"))
    prompts = {p.tag: replace(p, scene=scene) for p in make_prompts(1)}

    def verdict(tag: str, scene: Scene) -> Verdict:
        return judge(prompts[tag], detect(pictures([scene]))[0])

    assert all(verdict(tag, scene).correct for tag in TAGS)
    assert verdict("two_object", swapped).correct and not verdict("color_attr", swapped).correct
    assert verdict("color_attr", moved).correct and not verdict("position", moved).correct
    assert verdict("position", moved).reason == (
        "expected circle top-left and square right, found circle top and square right"
    )
    assert verdict("counting", with_word).reason == "shows the word cat"
    assert (
        verdict("counting", replace(scene, objects=scene.objects[:1])).reason
        == "expected 2 objects, found 1"
    )


def test_rows_are_those_of_geneval():
    verdicts = geneval(Perfect(), make_prompts(2))
    row = geneval_rows(verdicts)[9]
    assert set(row) == {"filename", "tag", "prompt", "correct", "reason", "metadata", "details"}
    assert (
        row["filename"] == "00009/samples/0000.png"
        and row["tag"] == "position"
        and row["correct"] is True
    )
    metadata = json.loads(row["metadata"])
    assert metadata["tag"] == "position" and metadata["prompt"] == row["prompt"]
    shapes = {o["class"] for o in metadata["include"]}
    assert shapes <= set(SHAPES)
    assert {o["position"] for o in metadata["include"]} <= set(CELLS)
    assert set(json.loads(row["details"])) == shapes
    counting = json.loads(geneval_rows(verdicts)[4]["metadata"])["include"]
    assert counting == [{"class": "shape", "count": len(verdicts[4].prompt.scene.objects)}]


def test_wilson_interval():
    low, high = Share(45, 50).interval  # type: ignore[misc]
    assert low == pytest.approx(78.64, abs=0.01) and high == pytest.approx(95.65, abs=0.01)
    assert Share(0, 0).percent is None and Share(0, 0).interval is None
    assert Share(20, 20).interval[0] == pytest.approx(83.89, abs=0.01)  # type: ignore[index]


def test_more_detail_and_more_truth_are_told_apart():
    before = {"unified_score": 20.0, "unified_score_if_true": 30.0}
    after = {"unified_score": 85.0, "unified_score_if_true": 90.0}
    assert split_gain(before, after) == {"detail": 60, "correctness": 5}
    without_score = {"unified_score": None, "unified_score_if_true": 90.0}
    assert split_gain(before, without_score)["correctness"] is None


def test_delta_keeps_what_is_missing():
    assert delta({"a": 1.0, "b": None, "c": 2.0}, {"a": 3.5, "b": 1.0, "c": None}) == {
        "a": 2.5,
        "b": None,
        "c": None,
    }


def test_other_sizes_are_refused():
    assert at_world_size(DecodeSettings()).height == 48
    with pytest.raises(ValueError, match="48x48"):
        at_world_size(DecodeSettings(height=64, width=64))


def test_a_background_is_part_of_a_scene():
    scenes = [Scene(name, (Object(4, "ring", "red", "medium"),)) for name in BACKGROUNDS]
    shifted = [replace(s, background=list(BACKGROUNDS)[i - 1]) for i, s in enumerate(scenes)]
    result = fidelity(scenes, pictures(shifted))
    assert result.objects_exact.percent == 100
    assert result.backgrounds_exact.percent == result.scenes_exact.percent == 0
