"""Any captioner with any painter: what each half makes is what it makes alone, and what one cannot
do of an image leaves the others as they are."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.bench.ask.server import Response, failure, said
from uae.bench.loop.api import Loop
from uae.bench.loop.halves import EndpointCaptions, EndpointPictures, read_captions
from uae.bench.loop.load import load_loop
from uae.bench.reconstruct import ReconstructImages, content_key
from uae.bench.run import answer_items, run_benchmark
from uae.bench.unified.benchmark import UnifiedBench
from uae.images.read import read_image
from uae.models.load import load_model
from uae.world.scene import render, scene_at


@pytest.fixture
def scenes(tmp_path: Path) -> Path:
    folder = tmp_path / "scenes"
    folder.mkdir()
    for i in range(3):
        Image.fromarray(render(scene_at("test", i))).save(folder / f"{i}.png")
    return folder


def captions_in(folder: Path) -> dict[str, str]:
    return {file.stem: file.read_text().strip() for file in sorted(folder.glob("*.txt"))}


def test_each_half_does_what_it_does_alone(scenes, tmp_path):
    whole, swapped = (
        ReconstructImages((str(scenes),), model=model, out=tmp_path / name)
        for model, name in (("tiny", "whole"), ("tiny -> tiny-ar", "swapped"))
    )
    answer_items(whole, load_loop)
    answer_items(swapped, load_loop)
    captions = captions_in(tmp_path / "whole")
    assert captions_in(tmp_path / "swapped") == captions and len(captions) == 3
    painter = load_model("tiny-ar")
    keys = [content_key(scenes / f"{i}.png") for i in range(3)]
    expected = painter.generate(list(captions.values()), painter.decoding, keys=keys).images
    for i, image in enumerate(expected):
        painted = read_image(tmp_path / "swapped" / f"recon_{i}.png")
        torch.testing.assert_close(painted, image, atol=0.5 / 255 + 1e-6, rtol=0)


def test_a_loop_of_one_model_is_the_model(scenes, tmp_path):
    for model, name in (("tiny", "whole"), ("tiny -> tiny", "loop")):
        answer_items(ReconstructImages((str(scenes),), model=model, out=tmp_path / name), load_loop)
    for i in range(3):
        whole, loop = (tmp_path / name / f"recon_{i}.png" for name in ("whole", "loop"))
        assert whole.read_bytes() == loop.read_bytes()


def test_captions_made_elsewhere_are_painted(scenes, tmp_path):
    file = tmp_path / "captions.jsonl"
    rows = [
        {"image": "0.png", "caption": "a large red circle center on black"},
        {"file_name": "2", "caption": "a small blue ring left on gray"},
    ]
    file.write_text("\n".join(map(json.dumps, rows)))
    task = ReconstructImages(
        (str(scenes),), model=f"{file} -> tiny", out=tmp_path / "out", keeps_record=True
    )
    answers = answer_items(task, load_loop)
    assert captions_in(tmp_path / "out") == {"0": rows[0]["caption"], "2": rows[1]["caption"]}
    assert [str(photo.name) for photo in answers.left_out] == ["1.png"]
    assert "captions.jsonl has no caption of it" in next(iter(answers.left_out.values()))
    assert answers.settings["model"]["captioner"]["captions"] == str(file)
    assert answers.settings["model"]["painter"]["source"] == "tiny"


def picture_body(color: tuple[int, int, int]) -> Response:
    content = io.BytesIO()
    Image.new("RGB", (64, 64), color).save(content, "PNG")
    encoded = base64.b64encode(content.getvalue()).decode()
    return Response(200, {"created": 1, "data": [{"b64_json": encoded}]})


def test_both_halves_behind_endpoints(server, scenes, tmp_path):
    """One caption is refused and one picture; the third image is measured."""
    refused = base64.b64encode((scenes / "0.png").read_bytes()).decode()

    def respond(body, times):
        if "messages" in body:
            if refused in json.dumps(body):
                return failure(400, "blocked", "content_policy_violation")
            is_first = "1.png" if json.dumps(body).count(first) else "2.png"
            return said(f"a picture\n of {is_first}")
        if "response_format" in body:
            return failure(400, "Unknown parameter: 'response_format'.", "unknown_parameter")
        if "1.png" in body["prompt"]:
            return failure(400, "blocked", "moderation_blocked")
        return picture_body((255, 0, 0))

    first = base64.b64encode((scenes / "1.png").read_bytes()).decode()
    server.on_request = respond
    bench = UnifiedBench(
        images=scenes,
        model=f"{server.url}#seer -> {server.url}#painter",
        backbones=dict.fromkeys(("clip", "longclip", "dinov2", "dinov3"), "tiny"),
        out=tmp_path / "result.json",
    )
    result = run_benchmark(bench, load_loop, lambda task, answers: None)
    assert (result.total_images, result.valid_pairs) == (3, 1)
    assert "blocked" in result.unscored["0.png"] and "blocked" in result.unscored["1.png"]
    folder = tmp_path / "result_reconstructions"
    assert captions_in(folder) == {"2": "a picture of 2.png"}
    assert read_image(folder / "recon_2.png")[:, 0, 0].tolist() == [1.0, 0.0, 0.0]
    report = json.loads((tmp_path / "result.json").read_text())["uae"]
    assert report["model"] == {
        "captioner": {"url": server.url, "model": "seer"},
        "painter": {"url": server.url, "model": "painter"},
    }
    assert {body["size"] for body in server.bodies if "prompt" in body} == {"1024x1024"}

    num_asked = len(server.bodies)  # again: only what was left out, and what the painter takes
    run_benchmark(bench, load_loop, lambda task, answers: None)
    assert len(server.bodies) - num_asked == 2 + 2


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("tiny ->", "expected CAPTIONER -> PAINTER"),
        ("tiny -> tiny -> tiny", "expected CAPTIONER -> PAINTER"),
        ("http://localhost:1/v1 -> tiny", "expected URL#MODEL of an endpoint"),
        ("nowhere.jsonl -> tiny", "nowhere.jsonl: expected captions of images"),
    ],
)
def test_what_is_no_loop_is_named(source, message):
    with pytest.raises(ValueError, match=message):
        load_loop(source)


def test_files_of_captions(tmp_path):
    good, bad = tmp_path / "a.json", tmp_path / "b.json"
    good.write_text('{"0.png": "a ring"}')
    bad.write_text('{"0.png": 3}')
    assert read_captions(good) == {"0.png": "a ring"}
    with pytest.raises(ValueError, match="no JSON object of texts by image"):
        read_captions(bad)
    odd = tmp_path / "d.jsonl"
    odd.write_text('{"name": "0.png", "text": "a ring\u2028and a dot"}\r\n', encoding="utf-8")
    assert read_captions(odd) == {"0.png": "a ring\u2028and a dot"}
    rows = tmp_path / "c.jsonl"
    rows.write_text('{"image": "0.png", "caption": "a ring"}\n\n{"image": "1.png"}\n')
    with pytest.raises(ValueError, match="line 3 without an image and a caption"):
        read_captions(rows)


def test_halves_of_endpoints_are_named_before_work():
    loop = load_loop("http://localhost:1/v1#a -> https://b.example/v1#c")
    assert isinstance(loop, Loop)
    assert isinstance(loop.captioner, EndpointCaptions) and loop.captioner.model == "a"
    assert isinstance(loop.painter, EndpointPictures) and loop.painter.url == "https://b.example/v1"
