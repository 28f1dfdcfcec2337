"""Soft-TIFA: against the official scorer's answers, and by hand."""

from __future__ import annotations

import math

import pytest

from tests.bench.oracles import oracle
from uae.bench.geneval2.rules import Atom, AtomScores, Prompt2, by_atom_count, by_skill, percent


def prompt_of(row: dict) -> Prompt2:
    pairs = zip(row["vqa_list"], row["skills"], strict=True)
    atoms = tuple(Atom(question, answer, skill) for (question, answer), skill in pairs)
    return Prompt2(row["prompt"], atoms, row["atom_count"])


def test_the_official_table():
    table = oracle("geneval2_tifa.json.gz")["table"]
    rows, official = table["input"]["rows"], table["official"]
    images = [AtomScores(prompt_of(row), tuple(row["probabilities"])) for row in rows]
    for row, image, expected in zip(rows, images, official["per_prompt"], strict=True):
        assert 100 * image.arithmetic == pytest.approx(expected["am"], abs=1e-9)
        assert 100 * image.geometric == pytest.approx(expected["gm"], abs=1e-9)
        pairs = zip(image.prompt.atoms, row["most_likely_tokens"], strict=True)
        hard = tuple(int(atom.is_form(token)) for atom, token in pairs)
        assert hard == tuple(expected["tifa_atoms"])
        assert 100 * sum(hard) / len(hard) == pytest.approx(expected["tifa"], abs=1e-9)
    arithmetic = percent([image.arithmetic for image in images])
    assert arithmetic == pytest.approx(official["soft_tifa_am"], abs=1e-9)
    geometric = percent([image.geometric for image in images])
    assert geometric == pytest.approx(official["soft_tifa_gm"], abs=1e-9)
    skills = {name: percent(values) for name, values in by_skill(images).items()}
    assert skills == pytest.approx(official["by_skill_am"], abs=1e-9)
    counts = {str(n): percent(values) for n, values in by_atom_count(images).items()}
    expected = {n: each["score"] for n, each in official["by_atom_count_gm"].items()}
    assert counts == pytest.approx(expected, abs=1e-9)


def first_token(form: str, vocabulary: list[str]) -> int:
    """Greedy, longest piece first: the toy tokenizer of the official runs."""
    pieces = [piece for piece in vocabulary if form.startswith(piece)]
    return vocabulary.index(max(pieces, key=len))


def test_the_official_token_stage():
    for row in oracle("geneval2_tifa.json.gz")["token_stage"]:
        given, official = row["input"], row["official"]
        atom = Atom(given["question"], given["answer"], "any")
        assert atom.text == official["text_sent"]
        assert list(atom.forms) == official["forms"]
        tokens = [first_token(form, given["vocabulary"]) for form in atom.forms]
        assert tokens == official["first_token_of_each_form"]
        total = sum(math.exp(logit) for logit in given["logits"])
        found = sum(math.exp(given["logits"][token]) / total for token in tokens)
        assert found == pytest.approx(official["probability"], abs=1e-6)
        likeliest = given["logits"].index(max(given["logits"]))
        assert int(atom.is_form(given["vocabulary"][likeliest])) == official["tifa"]


def test_means_by_hand():
    atoms = (Atom("Is it red?", "Yes", "attribute"), Atom("How many?", "two", "count"))
    one = AtomScores(Prompt2("a", atoms, 3), (0.25, 1.0))
    two = AtomScores(Prompt2("b", atoms, 3), (0.0, 0.5))
    assert (one.arithmetic, one.geometric) == (0.625, 0.5)
    assert (two.arithmetic, two.geometric) == (0.25, 0.0)
    assert by_skill([one, two]) == {"attribute": [0.25, 0.0], "count": [1.0, 0.5]}
    assert by_atom_count([one, two]) == {3: [0.5, 0.0]}
    assert percent([]) is None


def test_forms_by_hand():
    assert Atom("Is it?", "No", "x").forms == ("Yes", "yes", " yes", " Yes")
    assert Atom("How many cups?", "ten", "x").forms == ("ten", "Ten", " ten", " Ten", "10", " 10")
    assert Atom("How many cups?", "zero", "x").forms[4:] == ("other", " other")
    assert Atom("how many cups?", "two", "x").forms[0] == "Yes"
