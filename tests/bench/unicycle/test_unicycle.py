"""UniCycle: the loop and its captions, similarity of texts, and exact attributes in the world."""

from __future__ import annotations

import json
from itertools import permutations
from pathlib import Path

import pytest
import torch

from tests.rl.tiny_run import build_model
from uae.bench.api import Benchmark, Task
from uae.bench.run import run_benchmark
from uae.bench.unicycle.benchmark import UniCycle, match_captions, read_captions
from uae.bench.unicycle.score import attribute_scores, cosines, similarity_scores
from uae.config import CaptionOptions, DecodeOptions
from uae.similarity.backbones import Backbone
from uae.world.agreement import Agreement, agreement, best_match
from uae.world.language import read_caption
from uae.world.unicycle import texts

TEXT = "a small red circle left , a large blue ring top on white"


class Letters(Backbone):
    """In the place of a backbone's weights: a text's vector counts three letters."""

    def __init__(self) -> None:
        torch.nn.Module.__init__(self)

    def embed_text(self, texts: list[str]) -> torch.Tensor:
        rows = torch.tensor([[text.count(letter) for letter in "abc"] for text in texts])
        return torch.nn.functional.normalize(rows.float(), dim=-1)


def test_cosines_by_hand_and_those_of_other_texts():
    cycles = {"0": ("a", ["a", "b"]), "1": ("b", ["ab"]), "2": ("c", ["c"])}
    found, shuffled = cosines(Letters(), cycles)
    half = 0.5**0.5
    assert found == {
        "0": pytest.approx([1, 0]),
        "1": pytest.approx([half]),
        "2": pytest.approx([1]),
    }
    # a (twice) with ab and c; b with a, b and c; c with a, b and ab
    assert shuffled == pytest.approx(100 * (2 * (half + 0) + (0 + 1 + 0) + 0) / 10)
    scores = similarity_scores({"x": found}, {"x": shuffled}, 20, seed=0)
    mean = 100 * (2 + half) / 4
    assert scores["similarity"]["overall"].value == pytest.approx(mean)
    assert scores["similarity"]["x"].count == 4
    rescaled = 100 * (mean - shuffled) / (100 - shuffled)
    assert scores["rescaled"]["x"].value == pytest.approx(rescaled)
    assert cosines(Letters(), {"0": ("a", ["a"])})[1] is None


def test_overall_is_the_plain_mean_of_backbones():
    found = {"one": {"0": [0.5], "1": [0.7]}, "two": {"0": [0.1], "1": [0.3]}}
    scores = similarity_scores(found, {"one": None, "two": 10.0}, 50, seed=0)["similarity"]
    assert scores["overall"].value == pytest.approx(40)
    assert scores["overall"].interval.low <= 40 <= scores["overall"].interval.high


# --- the world -----------------------------------------------------------------------------------


def test_attributes_by_hand():
    whole = agreement(TEXT, TEXT)
    assert whole.is_exact and whole.asked == whole.said
    nothing = agreement(TEXT, "")
    assert (nothing.right, nothing.said) == (0, 0) and not nothing.is_exact
    less = agreement(TEXT, "a blue ring")
    assert (less.right, less.said) == (2, 2) and not less.is_exact
    swapped = agreement(TEXT, "a small blue circle , a large red ring")
    assert (swapped.right, swapped.said) == (4, 6)
    more = agreement("a red circle", "a red circle , a blue ring")
    assert more == Agreement(right=2, asked=2, said=4) and not more.is_exact


def test_the_best_match_is_that_of_all_permutations():
    for text, other in zip(texts(12), texts(24)[12:], strict=True):
        asked, said = read_caption(text).mentions, read_caption(other).mentions
        few, many = sorted((asked, said), key=len)
        agreements = (
            sum(
                sum(
                    x is not None and x == y
                    for x, y in zip(vars(a).values(), vars(b).values(), strict=True)
                )
                for a, b in zip(few, chosen, strict=True)
            )
            for chosen in permutations(many, len(few))
        )
        assert best_match(asked, said) == max(agreements)


def test_attribute_scores_pool_texts():
    cycles = {"0": ("a red circle", ["a red circle"]), "1": ("a blue ring", ["a red ring", ""])}
    scores = attribute_scores(cycles, 20, seed=0)
    assert {n: (s.value, s.count) for n, s in scores.items()} == {
        "recall": (50.0, 6),
        "precision": (75.0, 4),
        "captions exactly right": (pytest.approx(100 / 3), 3),
    }


# --- the loop ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model():
    return build_model()


def cycle_of(tmp_path: Path, **options) -> UniCycle:
    defaults = {
        "num_texts": 3,
        "decoding": DecodeOptions(num_steps=1),
        "captioning": CaptionOptions(max_new_tokens=5),
        "num_bootstrap": 20,
        "out": tmp_path / "u.json",
        "device": "cpu",
    }
    return UniCycle(**(defaults | options))


def test_a_model_paints_captions_and_goes_on_where_it_was_stopped(tmp_path: Path, model):
    benchmark = cycle_of(tmp_path)
    assert isinstance(benchmark, Benchmark) and isinstance(benchmark.task(), Task)
    first = run_benchmark(benchmark, lambda source: model, lambda *shown: None)
    assert [row["text"] for row in first.images.values()] == texts(3)
    assert list(first.scores) == [
        "attributes",
        "similarity",
        "captions of other texts",
        "rescaled",
    ]
    assert set(first.settings["backbones"]) == {"clip", "longclip"}
    files = sorted((tmp_path / "u_images").rglob("*.png"))
    made = [file.stat().st_mtime_ns for file in files]
    assert len(files) == 3
    (tmp_path / "u_images/00001/captions.json").unlink()
    (tmp_path / "u_images/00002/captions.json").write_text('["cut')
    again = run_benchmark(cycle_of(tmp_path), lambda source: model, lambda *shown: None)
    assert again.images == first.images and again.scores == first.scores
    assert [file.stat().st_mtime_ns for file in files] == made
    written = json.loads((tmp_path / "u.json").read_text())
    assert written["settings"]["model"] == "tiny" and written["partial"] is False


def test_a_broken_picture_leaves_its_text_out(tmp_path: Path, model):
    run_benchmark(cycle_of(tmp_path), lambda source: model, lambda *shown: None)
    (tmp_path / "u_images/00001/captions.json").unlink()
    (tmp_path / "u_images/00001/samples/00000.png").write_bytes(b"broken")
    result = run_benchmark(cycle_of(tmp_path), lambda source: model, lambda *shown: None)
    assert set(result.images) == {"00000", "00002"} and result.partial
    assert result.unscored["00001"].endswith("remove it, and it is painted again")


def test_captions_made_elsewhere_in_another_order(tmp_path: Path):
    rows = [{"prompt": text, "caption": text} for text in texts(3)[:2]]
    rows += [rows[0], {"prompt": "of no text", "caption": "x"}]
    (tmp_path / "c.jsonl").write_text("\n".join(json.dumps(row) for row in rows[::-1]))
    benchmark = cycle_of(tmp_path, captions=tmp_path / "c.jsonl")
    result = run_benchmark(benchmark, lambda source: None, lambda *shown: None)
    assert {n: s.value for n, s in result.scores["attributes"].items()} == {
        "recall": 100,
        "precision": 100,
        "captions exactly right": 100,
    }
    assert result.scores["attributes"]["captions exactly right"].count == 2
    assert result.scores["similarity"]["overall"].value == pytest.approx(100)
    assert result.unscored == {"00002": "no caption"} and result.partial
    assert result.remarks == ["a caption of no text: 'of no text'"]


def test_bad_input_is_one_clear_line(tmp_path: Path):
    (tmp_path / "c.jsonl").write_text('{"prompt": "a"}')
    with pytest.raises(ValueError, match="caption 1: expected a prompt and a caption"):
        read_captions(tmp_path / "c.jsonl")
    assert match_captions([{"prompt": "a"}], {}) == ({}, {"00000": "no caption"}, [])
    (tmp_path / "c.jsonl").write_text('{"prompt": "a", "caption": "b"}')
    with pytest.raises(ValueError, match="expected a caption of one of 3 texts: no caption"):
        cycle_of(tmp_path, captions=tmp_path / "c.jsonl").score(None)
    for options, words in (
        ({"backbones": {"dinov2": "tiny"}}, "unknown backbone 'dinov2': expected clip, longclip"),
        ({"num_texts": 0}, "--num-texts must be at least 1, got 0"),
        ({"prompts": str(tmp_path / "nowhere.txt")}, "nowhere.txt"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=words):
            cycle_of(
                tmp_path, **({"backbones": {"clip": "tiny", "longclip": "tiny"}} | options)
            ).check()
