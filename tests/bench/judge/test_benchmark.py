"""``uae bench judge``, from folders to the result file."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.bench.ask.server import Response, Server, failure, said, text_of
from uae import cli
from uae.bench.judge.benchmark import JudgeBench
from uae.bench.judge.judges import PAPER
from uae.bench.judge.prompts import CAPTION_CRITERIA, IMAGE_CRITERIA
from uae.world.language import exhaustive_caption
from uae.world.scene import Scene, render, scene_at

NUM_SCENES = 6
SCENES = [scene_at("test", i) for i in range(NUM_SCENES)]


def save(scene: Scene, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(render(scene)).save(file)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Side a describes all; side b describes half of the scenes and says nothing of the others."""
    lines: dict[str, list[str]] = {"a": [], "b": []}
    for i, scene in enumerate(SCENES):
        save(scene, tmp_path / "source" / f"{i}.png")
        full = exhaustive_caption(scene)
        for side, caption in (("a", full), ("b", full if i % 2 else "a thing")):
            lines[side].append(json.dumps({"image": f"{i}.png", "caption": caption}))
    for side, rows in lines.items():
        (tmp_path / f"{side}.jsonl").write_text("\n".join(rows))
    return tmp_path


def run(capsys: pytest.CaptureFixture[str], folder: Path, *more: str) -> tuple[int, str, str]:
    sides = [f"--captions-{side}={folder / side}.jsonl" for side in "ab"]
    code = 0
    try:
        where = ("--source", str(folder / "source"), "--out", str(folder / "judge.json"))
        quick = ("--endpoint.first-wait-sec", "0.001")
        cli.run(["bench", "judge", *where, *sides, *quick, *more])
    except SystemExit as exit:
        code = int(exit.code or 0)
    out, err = capsys.readouterr()
    return code, out, err


def result_of(folder: Path, name: str = "judge.json") -> dict[str, Any]:
    return json.loads((folder / name).read_text())


def reply(letter: str) -> Response:
    """8 points for the better one, 4 for the other."""
    scores = {side: dict.fromkeys(CAPTION_CRITERIA, 8 if side == letter else 4) for side in "AB"}
    return said(json.dumps({"scores": scores, "verdict": letter}))


def longer(body: dict[str, Any], times: int) -> Response:
    """A judge that prefers the longer caption, and the first of equal ones."""
    captions = dict(re.findall(r"^Caption of ([AB]): (.*)$", text_of(body), re.MULTILINE))
    return reply("B" if len(captions["B"]) > len(captions["A"]) else "A")


def test_judges_and_the_exact_one(capsys, server: Server, folder: Path):
    def on_request(body: dict[str, Any], times: int) -> Response:
        return longer(body, times) if body["model"] == "good" else reply("A")

    server.on_request = on_request
    code, out, err = run(
        capsys, folder, "--judges", "good", "first", "exact", "--endpoint.url", server.url,
        "--prices", "good", "2", "10",
    )  # fmt: skip
    assert code == 0, err
    result = result_of(folder)
    good, first, exact = (result["judges"][name] for name in ("good", "first", "exact"))
    assert good["win_rate"]["percent"] == pytest.approx(75)  # 3 wins, 3 ties
    assert (good["win"]["right"], good["tie"]["right"], good["loss"]["right"]) == (3, 3, 0)
    assert first["tie"]["right"] == 6 and first["first_chosen"]["percent"] == 100
    assert exact["win"]["right"] == 3 and exact["tie"]["right"] == 3
    assert result["calibration"]["good"] == {
        **good["win"] | {"percent": 100, "right": 6, "total": 6, "high": 100},
        "low": result["calibration"]["good"]["low"],
        "kappa": 1.0,
    }
    assert result["calibration"]["first"]["percent"] == 50
    assert result["calibration"]["first"]["kappa"] == 0
    assert [row["judges"] for row in result["agreement"]] == [["good", "first"]]
    assert result["pooled_win_rate"]["percent"] == pytest.approx(100 * (3 * 0.75 + 3 * 0.5) / 6)
    # both orders of equal captions are one question
    assert good["usage"]["tokens_in"] == 900 and good["usage"]["requests"] == 9
    assert good["usage"]["cost"] == pytest.approx(900 * 2e-6 + 90 * 10e-6)
    assert first["usage"]["cost"] is None and result["cost"] is None
    assert len(result["images"]) == 6 and set(result["images"][0]["outcomes"]) == {
        "good",
        "first",
        "exact",
    }
    assert good["scores"]["redrawable"] == {"a": 7.0, "b": 5.0}  # 8 and 4 thrice, 6 and 6 thrice
    assert "75.0" in out and "all judges" in out and "good / exact" in out
    before = len(server.bodies)
    assert run(capsys, folder, "--judges", "good", "--endpoint.url", server.url)[0] == 0
    assert len(server.bodies) == before  # kept


def test_what_is_asked_for_pictures_and_captions(capsys, server: Server, folder: Path):
    """The original first, then A's and B's picture, with the criteria of both."""
    for side in ("a", "b"):
        for i, scene in enumerate(SCENES):
            save(scene if side == "a" else SCENES[0], folder / side / f"recon_{i}.png")
    sides = [f"--images-{side}={folder / side}" for side in "ab"]
    server.on_request = lambda body, times: said("VERDICT: A")
    code, _, err = run(
        capsys, folder, "--judges", "j", "--endpoint.url", server.url, "--reply", "letter", *sides
    )
    assert code == 0, err
    parts = server.bodies[0]["messages"][0]["content"]
    assert [part["type"] for part in parts] == [*["image_url"] * 3, "text"]
    assert all(f"- {name}:" in parts[-1]["text"] for name in CAPTION_CRITERIA | IMAGE_CRITERIA)
    assert len({json.dumps(body["messages"]) for body in server.bodies}) == 12


def test_missing_and_unread_ones_are_told(capsys, server: Server, folder: Path):
    (folder / "b.jsonl").write_text((folder / "b.jsonl").read_text().replace('"0.png"', '"x.png"'))

    def on_request(body: dict[str, Any], times: int) -> Response:
        caption = json.dumps(exhaustive_caption(SCENES[1]), ensure_ascii=False)
        if f"Caption of A: {caption}" in text_of(body):
            return said("Beide sind gut.")
        return longer(body, times)

    server.on_request = on_request
    code, out, _ = run(
        capsys, folder, "--judges", "j", "--endpoint.url", server.url, "--attempts", "2"
    )
    result = result_of(folder)
    assert code == 3 and result["left_out"] == {"0.png": "no caption of b"}
    judged = result["judges"]["j"]
    assert judged["unread"] == 1 and judged["win"]["total"] == 4
    assert "no single JSON object" in judged["problems"]["1.png"]
    assert "left out: 0.png: no caption of b" in out and "unread: j: 1.png" in out


def test_a_dry_run_asks_nothing_and_writes_over_no_result(capsys, server: Server, folder: Path):
    server.on_request = longer
    options = ("--judges", "j", "--endpoint.url", server.url)
    estimate = ("--dry-run", "--image-tokens", "500", "--prices", "j", "1", "1")
    code, out, err = run(capsys, folder, *options, *estimate)
    assert code == 0 and server.bodies == [], err
    usage = result_of(folder, "judge_estimate.json")["estimate"]["j"]
    assert usage["requests"] == 9 and usage["tokens_out"] == 9 * 200
    assert 9 * 500 < usage["tokens_in"] < 9 * 500 + 9 * 1000
    assert usage["cost"] == pytest.approx((usage["tokens_in"] + 1800) / 1e6)
    assert "nothing was asked" in out and not (folder / "judge.json").exists()
    run(capsys, folder, *options)
    before = (folder / "judge.json").read_bytes()
    code, _, err = run(capsys, folder, *options, *estimate)
    assert code == 0, err
    assert result_of(folder, "judge_estimate.json")["estimate"]["j"]["requests"] == 0
    assert (folder / "judge.json").read_bytes() == before and len(server.bodies) == 9


def test_the_papers_four_over_one_gateway(capsys, server: Server, folder: Path):
    server.on_request = longer
    code, _, err = run(
        capsys, folder, "--endpoint.url", server.url, "--num-images", "2", "--seed", "5"
    )
    assert code == 0, err
    drawn = re.findall(r"  (\d)\.png", (folder / "judge_images.txt").read_text())
    num_questions = sum(1 if int(i) % 2 else 2 for i in drawn)  # those of odd ones are equal
    assert len(drawn) == 2 and {body["model"] for body in server.bodies} == set(PAPER)
    assert len(server.bodies) == 4 * num_questions
    again = run(
        capsys,
        folder,
        "--endpoint.url",
        server.url,
        "--image-list",
        str(folder / "judge_images.txt"),
    )
    assert again[0] == 0 and len(server.bodies) == 4 * num_questions


def test_a_permanent_error_is_one_line_and_nothing_is_lost(capsys, server: Server, folder: Path):
    server.on_request = lambda body, times: (
        failure(404, "no such model", "model_not_found") if body["model"] == "bad" else reply("A")
    )
    code, _, err = run(capsys, folder, "--judges", "good", "bad", "--endpoint.url", server.url)
    assert code == 2 and "Traceback" not in err and "refuses to work with model 'bad'" in err
    kept = (folder / "judge_transcripts" / "good.jsonl").read_text().splitlines()
    assert len(kept) == 9


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--judges", "m"), "judge m: expected the address"),
        (("--judges", "m@nowhere"), "expected a URL"),
        (("--judges", "m@http://x/v1", "m@http://x/v1"), "is there twice"),
        (("--judges", "exact", "--attempts", "0"), "--attempts must be at least 1, got 0"),
        (("--judges", "exact", "--prices", "m", "1", "1"), "--prices: expected names of judges"),
        (("--judges", "exact", "--images-a", "x"), "expected the same of both sides"),
    ],
)
def test_options_that_do_not_fit_are_named(capsys, folder: Path, options, words: str):
    code, _, err = run(capsys, folder, *options)
    assert code == 2 and words in " ".join(err.split()) and "Traceback" not in err


def test_a_judge_on_this_machine(folder: Path):
    """The tiny model answers about one image, in no form that is a verdict."""
    bench = JudgeBench(
        source=folder / "source",
        captions_a=folder / "a.jsonl",
        captions_b=folder / "b.jsonl",
        judges=("local:tiny",),
        num_images=2,
        attempts=1,
        max_new_tokens=4,
        out=folder / "judge.json",
    )
    bench.check()
    result = bench.score(None)
    assert result.partial and result.to_json()["judges"]["local:tiny"]["unread"] == 2
