"""The world's similarity backbones: training resumes exactly, shipped weights do their work."""

import itertools
import random
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import normalize

from uae.similarity.backbones import load_backbone
from uae.similarity.checkpoints import ARCHITECTURES
from uae.similarity.preprocess import parse_preprocess
from uae.stages.fit import FitSettings, fit
from uae.utils.assets import ASSETS
from uae.utils.weights import STEM, weight_files
from uae.world.backbones import (
    build_clip,
    build_clip_tokenizer,
    build_dinov2,
    processor_config,
    stretch_positions,
)
from uae.world.build import backbones
from uae.world.data import pictures
from uae.world.edits import EDIT_KINDS, wrong_scene, wrong_scenes
from uae.world.language import exhaustive_caption
from uae.world.quality import measure_retrieval, measure_similarity, wrong_cosines
from uae.world.scene import HELD_OUT_PAIRS, scene_at, split_of

TEXTS = ["a large red circle top on white", "blue ring"]


# --- wrong attributes ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["color", "shape", "size", "position"])
def test_an_edit_changes_one_attribute_of_one_object(kind):
    for i in range(50):
        scene = scene_at("test", i)
        wrong = wrong_scene(scene, kind, random.Random(i))
        assert (
            wrong is not None and wrong.background == scene.background and wrong.word == scene.word
        )
        (before,) = set(scene.objects) - set(wrong.objects)
        (after,) = set(wrong.objects) - set(scene.objects)
        field = "cell" if kind == "position" else kind
        assert replace(after, **{field: getattr(before, field)}) == before != after


def test_dropping_adding_background_and_word():
    scene = scene_at("test", 0, num_objects=4, with_word=True)
    rng = random.Random(0)
    dropped, added = wrong_scene(scene, "drop", rng), wrong_scene(scene, "add", rng)
    assert dropped and set(dropped.objects) < set(scene.objects) and len(dropped.objects) == 3
    assert added and set(added.objects) > set(scene.objects) and len(added.objects) == 5
    word = wrong_scene(scene, "word", rng)
    assert word and scene.word and word.word and word.word.text != scene.word.text
    assert wrong_scene(scene_at("test", 0, num_objects=1), "drop", rng) is None
    assert wrong_scene(scene_at("test", 0, with_word=False), "word", rng) is None
    with pytest.raises(ValueError, match="unknown kind of edit 'colour'"):
        wrong_scene(scene, "colour", rng)


def test_a_chain_of_wrong_scenes_adds_one_at_a_time():
    for i in range(100):
        scene = scene_at("test", i)
        chain = [scene, *wrong_scenes(scene, 5, random.Random(i))]
        assert len(set(chain)) == 6
        for earlier, later in itertools.pairwise(chain):
            assert len(set(earlier.objects) ^ set(later.objects)) in (1, 2)
        assert not any((o.shape, o.color) in HELD_OUT_PAIRS for s in chain for o in s.objects)
        assert all(len({o.cell for o in s.objects}) == len(s.objects) for s in chain)


def test_training_groups_stay_in_the_training_split():
    scenes = backbones.scene_groups(3, 32)
    assert len(scenes) == 32 and {split_of(s) for s in scenes} == {"train"}
    assert scenes == backbones.scene_groups(3, 32)
    assert all(scenes[i] != scenes[i - i % 4] for i in range(32) if i % 4)


# --- models --------------------------------------------------------------------------------------


def test_clip_texts_start_and_end_as_clips_do():
    tokens = build_clip_tokenizer()(TEXTS, padding=True)["input_ids"]
    config = build_clip().config.text_config
    assert [row[0] for row in tokens] == [config.bos_token_id] * 2
    assert tokens[0].count(config.eos_token_id) == 1 and tokens[1][3:] == [config.eos_token_id] * 6


def test_stretching_keeps_the_first_twenty_positions_and_the_answer():
    torch.manual_seed(0)
    clip = build_clip().eval()
    longclip = stretch_positions(clip).eval()
    old, new = (m.text_model.embeddings.position_embedding.weight for m in (clip, longclip))
    assert new.shape == (248, 96) and torch.equal(new[:20], old[:20])
    # centres of quarters
    assert torch.allclose(new[20 + 4 * 10 + 2], 0.875 * old[30] + 0.125 * old[31])
    tokens = build_clip_tokenizer()(TEXTS, padding=True, return_tensors="pt")
    ids = {"input_ids": tokens["input_ids"], "attention_mask": tokens["attention_mask"]}
    assert torch.equal(
        clip.get_text_features(**ids).pooler_output, longclip.get_text_features(**ids).pooler_output
    )


# --- losses --------------------------------------------------------------------------------------


def test_contrastive_loss_by_hand():
    logits = torch.tensor([[2.0, 0.0], [1.0, 1.0]])
    rows = (torch.log(1 + torch.tensor(-2.0).exp()) + torch.tensor(2.0).log()) / 2
    columns = (
        torch.log(1 + torch.tensor(-1.0).exp()) + torch.log(1 + torch.tensor(-1.0).exp())
    ) / 2
    assert torch.allclose(backbones.contrastive_loss(logits), (rows + columns) / 2)


def test_crops_of_the_whole_area_change_nothing():
    images = torch.rand(2, 3, 48, 48)
    assert torch.allclose(backbones.crop_views(images, min_area=1.0), images, atol=1e-5)


# --- training ------------------------------------------------------------------------------------


class Killed(Exception):
    """Stands for the end of a process."""


def _small(name: str):
    torch.manual_seed(0)
    fit_settings = FitSettings(
        num_steps=6, batch_size=8, learning_rate=1e-3, warmup_steps=2, ema_decay=0.5
    )
    if name == "dinov2":
        task = backbones.SelfDistillationTask(name, fit_settings, build_dinov2())
    else:
        task = backbones.ContrastiveTask(name, fit_settings, build_clip(), backbones.short_caption)
    task.evaluate = dict
    return task


@pytest.mark.parametrize("name", ["clip", "dinov2"])
def test_resumed_equals_uninterrupted(name, tmp_path):
    whole, cut = _small(name), _small(name)
    fit(whole, tmp_path / "whole", save_every=3)
    loss = cut.loss

    def killed(step):
        if step == 4:
            raise Killed
        return loss(step)

    cut.loss = killed
    with pytest.raises(Killed):
        fit(cut, tmp_path / "cut", save_every=3)
    resumed = _small(name)
    fit(resumed, tmp_path / "cut", save_every=3)
    for module in whole.modules:
        ours, theirs = whole.modules[module].state_dict(), resumed.modules[module].state_dict()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    exported = [
        load_backbone(name, tmp_path / run / "export").model.state_dict()
        for run in ("whole", "cut")
    ]
    assert all(torch.equal(exported[0][key], exported[1][key]) for key in exported[0])


@pytest.mark.parametrize("name", ["clip", "dinov2"])
def test_the_loss_falls_on_a_repeated_batch(name):
    task = _small(name)
    parameters = [p for m in task.modules.values() for p in m.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3)
    losses = []
    for step in range(12):
        torch.manual_seed(0)
        loss, _ = task.loss(0)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        task.after_step(step)
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.1


# --- the shipped weights -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shipped():
    return {name: load_backbone(name, "tiny") for name in ARCHITECTURES}


def test_shipped_sizes(shipped):
    assert sum(p.numel() for b in shipped.values() for p in b.model.parameters()) <= 5_000_000
    num_bytes = sum(
        file.stat().st_size for name in ARCHITECTURES for file in weight_files(ASSETS / name, STEM)
    )
    assert num_bytes < 10_500_000  # bf16
    assert all(
        b.preprocess == parse_preprocess(processor_config(name)) for name, b in shipped.items()
    )
    assert shipped["longclip"].model.config.text_config.max_position_embeddings == 248


def test_shipped_similarity_falls_with_each_wrong_attribute(shipped):
    scenes = [scene_at("test", i) for i in range(100)]
    for name, backbone in shipped.items():
        with torch.no_grad():
            means = wrong_cosines(backbone.embed, scenes, backbone.embed(pictures(scenes))).mean(0)
        assert means[0] > 0.999, name
        assert (means[:-1] - means[1:] > 0.02).all(), f"{name}: {means.tolist()}"


def test_shipped_embeddings_are_spread_and_see_small_objects(shipped):
    scenes = [scene_at("test", i) for i in range(48)]
    for name, backbone in shipped.items():
        results = measure_similarity(backbone.embed, scenes)
        assert results["unrelated"] < 0.4, name
        assert min(results[f"sensitivity/{kind}"] for kind in EDIT_KINDS) > 0, name
        assert results["sensitivity/drop_small"] > 1 - results["noise"], name


@pytest.mark.parametrize("name", ["clip", "longclip"])
def test_shipped_retrieval(shipped, name):
    scenes = [scene_at("test", i) for i in range(128)]
    results = measure_retrieval(shipped[name].embed, shipped[name].embed_text, scenes)
    assert min(results.values()) > 0.9, results


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_features_are_the_classes_own(shipped, name):
    backbone, images = shipped[name], pictures([scene_at("test", i) for i in range(4)])
    pixels = (images - torch.tensor(backbone.preprocess.mean)[:, None, None]) / torch.tensor(
        backbone.preprocess.std
    )[:, None, None]
    with torch.no_grad():
        output = backbone.model.vision_model(pixels) if "clip" in name else backbone.model(pixels)
        feature = output.last_hidden_state[:, 0]
        if "clip" in name:
            feature = backbone.model.visual_projection(output.pooler_output)
        assert torch.allclose(backbone.embed(images), normalize(feature, dim=-1), atol=1e-5)


def test_captions_past_77_tokens_still_count_for_longclip(shipped):
    scene = scene_at("test", 0)
    filler = " . ".join(["a picture of some shapes on a background"] * 12)  # 107 tokens
    texts = [f"{filler} . {exhaustive_caption(s)}" for s in (scene, scene_at("test", 1))]
    clip, longclip = shipped["clip"].embed_text(texts), shipped["longclip"].embed_text(texts)
    assert torch.allclose(clip[0], clip[1], atol=1e-5)  # cut before they differ
    assert (longclip[0] - longclip[1]).norm() > 0.1
