"""The world's language: captions are true, answers are right, each word is one token."""

import random
from collections import Counter

import pytest

from uae.world.language import (
    INSTRUCTIONS,
    LEVELS,
    NUMBERS,
    QUESTION_KINDS,
    VOCABULARY,
    Mention,
    any_question,
    caption,
    exhaustive_caption,
    question,
    read_caption,
    score_caption,
)
from uae.world.scene import CELLS, COLORS, SHAPES, SIZES, SPLITS, Object, Scene, Word, scene_at
from uae.world.tokenizer import build_qwen_tokenizer

SCENES = [scene_at(split, i) for split in SPLITS for i in range(100)]
SCENE = Scene(
    "gray",
    (
        Object(0, "circle", "red", "small"),
        Object(4, "square", "blue", "large"),
        Object(5, "circle", "red", "large"),
    ),
    Word(8, "cat"),
)


def rng(*key: object) -> random.Random:
    return random.Random(str(key))


# --- captions ------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", LEVELS)
def test_captions_are_true(level):
    for i, scene in enumerate(SCENES):
        text = caption(scene, level, rng(level, i))
        score, reading = score_caption(text, scene), read_caption(text)
        assert score.correct == score.mentions, (text, scene)
        assert reading.word in (None, scene.word and scene.word.text)
        assert reading.background in (None, scene.background)
        for number in set(text.split()) & set(NUMBERS):
            assert NUMBERS.index(number) == len(scene.objects)


def test_levels_say_what_they_should():
    for i, scene in enumerate(SCENES):
        readings = {level: read_caption(caption(scene, level, rng(i))) for level in LEVELS}
        assert not readings["gist"].mentions and not readings["count"].mentions
        assert readings["count"].background == readings["exhaustive"].background == scene.background
        assert 1 <= len(readings["salient"].mentions) <= 2
        pairs = Counter((o.shape, o.color) for o in scene.objects)
        for level in ("objects", "layout", "exhaustive"):
            assert Counter((m.shape, m.color) for m in readings[level].mentions) == pairs
            assert readings[level].word == (scene.word and scene.word.text)
        assert all(m.cell is None and m.size is None for m in readings["objects"].mentions)
        assert all(m.cell is not None and m.size is None for m in readings["layout"].mentions)


def test_exhaustive_captions_determine_the_scene():
    for i, scene in enumerate(SCENES):
        for text in (exhaustive_caption(scene), caption(scene, "exhaustive", rng(i))):
            reading = read_caption(text)
            objects = [Object(m.cell, m.shape, m.color, m.size) for m in reading.mentions]
            assert tuple(sorted(objects)) == scene.objects
            assert reading.background == scene.background
            if scene.word:
                assert f"word {scene.word.text} {CELLS[scene.word.cell]}" in text


def test_wording_varies():
    for level in LEVELS:
        assert len({caption(SCENE, level, rng(i)) for i in range(200)}) >= 2
    texts = " ".join(caption(SCENE, "exhaustive", rng(i)) for i in range(200)).split()
    assert {"small", "tiny", "large", "big", "a", "and", ",", "background", "on"} <= set(texts)


def test_the_fixed_wording():
    assert exhaustive_caption(SCENE) == (
        "a small red circle top-left , a large blue square center , a large red circle right , "
        "the word cat bottom-right on gray"
    )


def test_unknown_levels_and_kinds_are_named():
    with pytest.raises(ValueError, match="unknown caption level 'poem': expected one of gist"):
        caption(SCENE, "poem", rng())
    with pytest.raises(ValueError, match="unknown question kind 'why'"):
        question(SCENE, "why", rng())


# --- reading and scoring -------------------------------------------------------------------------


def test_reading_by_hand():
    reading = read_caption(
        "black background , a tiny red circle left and square , word up top-left"
    )
    assert reading.mentions == [
        Mention("circle", "red", "small", CELLS.index("left")),
        Mention("square"),
    ]
    assert reading.word == "up" and reading.background == "black"
    assert read_caption("").mentions == [] and read_caption("moon cat 17").word is None


def score(text: str) -> tuple[int, int, int, int]:
    s = score_caption(text, SCENE)
    return s.mentions, s.correct, s.complete, s.small_complete


def test_scores_by_hand():
    assert score("a red circle") == (1, 1, 0, 0)
    three_circles = "a red circle and a red circle and a red circle"
    assert score(three_circles) == (3, 2, 0, 0)  # the scene has only two
    assert score("a small red circle top-left , a green ring") == (2, 1, 1, 1)
    assert score("a large red circle top-left") == (1, 0, 0, 0)
    fuller_later = "red circle and a large red circle right"
    assert score(fuller_later) == (2, 2, 1, 0)  # the fuller mention chooses first
    assert score("some shapes") == (0, 0, 0, 0)
    whole = score_caption(exhaustive_caption(SCENE), SCENE)
    assert (whole.objects, whole.complete) == (3, 3)
    assert (whole.small_objects, whole.small_complete) == (1, 1)


def test_a_false_caption_does_not_pass():
    for i, scene in enumerate(SCENES[:100]):
        other = SCENES[i + 1]
        counts = score_caption(exhaustive_caption(other), scene)
        shared = set(scene.objects) & set(other.objects)
        assert counts.correct == counts.complete == len(shared)


# --- questions -----------------------------------------------------------------------------------


def facts(scene: Scene) -> dict[str, str]:
    """Every question about a scene and its answer, enumerated instead of drawn."""
    answers = {
        "how many shapes ?": NUMBERS[len(scene.objects)],
        "is there a word ?": "yes" if scene.word else "no",
    }
    if scene.word:
        answers["what is the word ?"] = scene.word.text
    for color in COLORS:
        answers[f"how many {color} shapes ?"] = NUMBERS[
            [o.color for o in scene.objects].count(color)
        ]
        for shape in SHAPES:
            number = sum((o.color, o.shape) == (color, shape) for o in scene.objects)
            answers[f"is there a {color} {shape} ?"] = "yes" if number else "no"
    for size in SIZES:
        answers[f"how many {size} shapes ?"] = NUMBERS[[o.size for o in scene.objects].count(size)]
    for o in scene.objects:
        place = CELLS[o.cell]
        answers[f"what color is the shape {place} ?"] = o.color
        answers[f"what shape is {place} ?"] = o.shape
        answers[f"what size is the shape {place} ?"] = o.size
        if [p.shape for p in scene.objects].count(o.shape) == 1:
            answers[f"what color is the {o.shape} ?"] = o.color
        if unique(o, scene):
            answers[f"where is the {o.color} {o.shape} ?"] = place
    for a in scene.objects:
        for b in scene.objects:
            if a != b and unique(a, scene) and unique(b, scene):
                pair = f"is the {a.color} {a.shape} {{}} the {b.color} {b.shape} ?"
                answers[pair.format("above")] = "yes" if a.cell // 3 < b.cell // 3 else "no"
                answers[pair.format("left of")] = "yes" if a.cell % 3 < b.cell % 3 else "no"
    return answers


def unique(o: Object, scene: Scene) -> bool:
    return [(p.color, p.shape) for p in scene.objects].count((o.color, o.shape)) == 1


def test_answers_are_right():
    kinds: Counter[str] = Counter()
    for i, scene in enumerate(SCENES):
        answers = facts(scene)
        for k in range(10):
            q = any_question(scene, rng(i, k))
            assert answers[q.text] == q.answer, (q, scene)
            kinds[q.kind] += 1
    assert set(kinds) == set(QUESTION_KINDS)


def test_small_questions_are_about_small_objects():
    only_small = Scene(
        "gray", (Object(0, "circle", "red", "small"), Object(8, "ring", "blue", "small"))
    )
    only_large = Scene(
        "gray", (Object(0, "circle", "red", "large"), Object(8, "ring", "blue", "large"))
    )
    for kind in ("color", "shape", "size", "position", "relation"):
        for i in range(30):
            about_small = question(only_small, kind, rng(i))
            about_large = question(only_large, kind, rng(i))
            assert about_small is None or about_small.small
            assert about_large is None or not about_large.small


def test_answers_cannot_be_guessed():
    answers = [
        q for i, s in enumerate(SCENES) for k in range(20) if (q := any_question(s, rng(i, k)))
    ]
    for kind in ("existence", "relation"):
        yes = [q.answer == "yes" for q in answers if q.kind == kind]
        assert 0.42 < sum(yes) / len(yes) < 0.58
    assert max(Counter(q.answer for q in answers).values()) < 0.25 * len(answers)


# --- tokens --------------------------------------------------------------------------------------


def test_each_word_is_one_token():
    tokenizer = build_qwen_tokenizer()
    texts = [caption(s, level, rng(i, level)) for i, s in enumerate(SCENES) for level in LEVELS]
    texts += [exhaustive_caption(s) for s in SCENES] + list(INSTRUCTIONS.values())
    for i, s in enumerate(SCENES):
        q = any_question(s, rng(i))
        texts += [q.text, q.answer]
    vocabulary = set(VOCABULARY)
    assert {word for text in texts for word in text.split()} <= vocabulary
    assert len(vocabulary) == len(VOCABULARY)
    for text in texts[:200]:
        ids = tokenizer(text)["input_ids"]
        assert len(ids) == len(text.split()) and tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids) == text
