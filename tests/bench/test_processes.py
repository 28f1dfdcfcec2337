"""Commands in two processes: the files and the numbers of one, byte for byte."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch

from tests.bench.ask.server import Server, said, text_of
from tests.bench.several import by_two, check_same, files_below, run, run_by_two
from uae.utils.processes import is_main
from uae.utils.shares import by_main, in_order
from uae.world.data import write_pictures

NUM_PROMPTS = 12  # so that some are left when a process is killed
NUM_PHOTOS = 17  # more than a batch of Unified-Bench, with the two below
TINY = [each for name in ("clip", "longclip", "dinov2", "dinov3") for each in (name, "tiny")]
UNIFIED = ["bench", "unified", "--images", "../photos", "--backbones", *TINY, "--out"]
GENEVAL = ["bench", "geneval", "--prompts", "world", "--detector", "world"]
RECONSTRUCT = ["reconstruct", "../photos", "--batch-size", "2", "--out", "recon"]
GENERATE = ["generate", "../prompts.txt", "--images-per-prompt", "2", "--out", "painted"]
DPG = ["bench", "dpg", "--questions", "../dpg.csv", "--crops", "2", "--out", "dpg.json"]
JUDGE = ["bench", "judge", "--source", "../photos", "--judges", "exact", "--num-images", "3"]
COMPARE = ["bench", "all", "--before", "tiny", "--after", "tiny-ar", "--out", "compared"]
COMMANDS = [
    RECONSTRUCT,
    ["reconstruct", "../photos/0001.png", "--out", "single"],  # one item for two processes
    GENERATE,
    [*UNIFIED, "unified.json"],
    ["bench", "choice", "--num-scenes", "5", "--out", "choice.json"],
    ["bench", "choice", "--num-scenes", "2", "--answerer.model", "tiny", "--out", "asked.json"],
    [*GENEVAL, "--prompts-per-tag", "1", "--out", "geneval.json"],
    ["bench", "unicycle", "--num-texts", "3", "--out", "unicycle.json"],
    [*DPG, "--answerer.model", "tiny", "--answerer.batch-size", "2"],
    [*JUDGE, "--captions-a", "recon", "--captions-b", "recon", "--out", "judge.json"],
    [*COMPARE, "--num-images", "2", "--prompts-per-tag", "1"],
]
DPG_COLUMNS = (
    "item_id,text,keywords,proposition_id,dependency,category_broad,category_detailed,tuple,"
    "question_natural_language"
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With pictures, of which one is broken and one there twice, prompts and questions."""
    write_pictures(tmp_path / "photos", NUM_PHOTOS)
    (tmp_path / "photos/broken.png").write_bytes(b"\x89PNG")
    shutil.copy(tmp_path / "photos/0000.png", tmp_path / "photos/zz.png")
    (tmp_path / "prompts.txt").write_text("a red circle\na blue square\na green triangle\n")
    rows = (
        f"p{item},a red circle,,{number},0,entity,whole,entity - whole (circle),is there a circle?"
        for item in range(3)
        for number in (1, 2)
    )
    (tmp_path / "dpg.csv").write_text("\n".join([DPG_COLUMNS, *rows]) + "\n")
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    return tmp_path


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """As each of the two has, since rounding depends on their number."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_two_processes_write_what_one_writes(folder: Path, monkeypatch: pytest.MonkeyPatch):
    _, err = run_by_two(folder / "two", COMMANDS)
    assert err.count("left out: ../photos/broken.png") == 2  # once by each command
    monkeypatch.chdir(folder / "one")
    run(COMMANDS)
    check_same(folder / "one", folder / "two")
    result = json.loads((folder / "two/unified.json").read_text())["uae"]
    assert result["total_images"] == NUM_PHOTOS + 2 and list(result["unscored"]) == ["broken.png"]
    asked = (folder / "two/dpg_answers.jsonl").read_text().splitlines()
    assert len({json.loads(line)["key"] for line in asked}) == len(asked) > 2


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_processes_go_on_where_one_stopped(folder: Path, monkeypatch: pytest.MonkeyPatch):
    geneval = [*GENEVAL, "--images", "geneval_images", "--out", "judged.json"]
    commands = [
        GENERATE,
        [*UNIFIED, "unified.json"],
        ["bench", "choice", "--num-scenes", "5", "--out", "choice.json"],
        [*GENEVAL, "--prompts-per-tag", "1", "--out", "geneval.json"],
        geneval,
    ]
    monkeypatch.chdir(folder / "one")
    run(commands)
    painted = files_below(folder / "one/painted")
    (folder / "one/painted/00001/metadata.jsonl").unlink()
    (folder / "one/painted/00002/samples/00001.png").unlink()
    for journal in (
        "unified_reconstructions/.uae_bench/answered.jsonl",
        "choice_answers/answers.jsonl",
        "judged_scored.jsonl",
    ):
        lines = Path(journal).read_text().splitlines(keepends=True)
        # the last line is of a process that was killed as it wrote
        Path(journal).write_text("".join(lines[:3]) + lines[3][:9])
    shutil.copytree(folder / "one", folder / "two", dirs_exist_ok=True)
    before = (folder / "two/painted/00000/samples/00000.png").stat().st_mtime_ns
    run_by_two(folder / "two", commands)
    run(commands)
    check_same(folder / "one", folder / "two")
    assert painted == files_below(folder / "two/painted")
    assert (folder / "two/painted/00000/samples/00000.png").stat().st_mtime_ns == before


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_an_endpoint_is_asked_by_one_process(
    folder: Path, server: Server, monkeypatch: pytest.MonkeyPatch
):
    server.on_request = lambda body, times: said(f"{text_of(body).splitlines()[-1]}, large")
    rewriter = ["--rewriter.model", "m", "--rewriter.endpoint", server.url]
    commands = [
        [*GENERATE, *rewriter, "--rewriter.concurrency", "1"],
        [*DPG, "--answerer.model", "m", "--answerer.endpoint", server.url, "--images", "dpg"],
    ]
    for name in ("one", "two"):
        write_pictures(folder / name / "dpg", 2)
        for i in range(2):
            (folder / name / f"dpg/000{i}.png").rename(folder / name / f"dpg/p{i}.png")
    commands[1] += ["--answerer.concurrency", "1"]
    out, _ = run_by_two(folder / "two", commands)
    assert "exit 3" in out  # one of three items has no picture
    assert len(server.bodies) == 3 + 4  # prompts; a question about two crops of two pictures
    monkeypatch.chdir(folder / "one")
    run(commands)
    check_same(folder / "one", folder / "two")


# --- the command line ----------------------------------------------------------------------------


def children(process: int, rank: int) -> Iterator[psutil.Process]:
    """Those that ``torchrun`` started as this rank."""
    for each in psutil.Process(process).children(recursive=True):
        if each.environ().get("RANK") == str(rank):
            yield each


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("rank", [0, 1])
def test_what_is_made_stays_when_a_process_is_killed(
    folder: Path, monkeypatch: pytest.MonkeyPatch, rank: int
):
    painting = ["../prompts.txt", "--images-per-prompt", "2", "--decoding.num-steps", "40"]
    (folder / "prompts.txt").write_text("a red circle\n" * NUM_PROMPTS)
    started = by_two(folder / "two", "uae", "generate", *painting, "--out", "painted")
    while started.poll() is None and not (folder / "two/painted/00001/metadata.jsonl").exists():
        time.sleep(0.02)
    for each in children(started.pid, rank):
        each.kill()
    _, err = started.communicate(timeout=120)
    assert started.returncode != 0
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and f"process {rank} of 2 died" in errors[0], err
    made = list((folder / "two/painted").glob("*/metadata.jsonl"))
    assert 1 <= len(made) < NUM_PROMPTS
    times = {file: file.stat().st_mtime_ns for file in made}
    for name in ("two", "one"):
        monkeypatch.chdir(folder / name)
        run([["generate", *painting, "--out", "painted"]])
    check_same(folder / "one", folder / "two")
    assert {file: file.stat().st_mtime_ns for file in made} == times


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_partial_result_is_written_and_a_refusal_is_one_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(folder / "one")
    run([[*GENEVAL, "--prompts-per-tag", "1", "--out", "geneval.json"]])
    broken = folder / "one/geneval_images/00002/samples/00000.png"
    broken.write_bytes(b"\x89PNG")
    images = ["--images", str(folder / "one/geneval_images"), "--detector", "world"]
    run([["bench", "geneval", *images, "--out", "judged.json"]])
    started = by_two(folder / "two", "uae", "bench", "geneval", *images, "--out", "judged.json")
    out, err = started.communicate()
    assert started.returncode != 0 and "Traceback" not in err.split("torch/distributed")[0]
    assert "partial" in out
    for name in ("judged.json", "judged_rows.jsonl", "judged_scored.jsonl"):
        assert (folder / "two" / name).read_bytes() == (folder / "one" / name).read_bytes()
    _, err = by_two(folder / "two", "uae", "reconstruct", "nowhere").communicate()
    assert [line for line in err.splitlines() if line.startswith("error: ")] == [
        "error: nowhere: expected an image file or a folder of images, found nothing there"
    ]


# --- one process ---------------------------------------------------------------------------------


def test_one_process_waits_for_no_batch():
    begun = []

    def work(batch: list[int]) -> Iterator[int]:
        for each in batch:
            begun.append(each)
            yield 10 * each

    made = in_order([[1, 2], [3]], work)
    assert next(made) == 10 and begun == [1]
    assert list(made) == [20, 30] and begun == [1, 2, 3]
    assert is_main() and list(by_main(lambda: work([4]))) == [40]
