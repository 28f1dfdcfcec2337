"""Long captions for folders of images, asked of a real HTTP server that speaks chat completions."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
import json
import os
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.bench import several
from tests.http_server import JsonServer, Response
from uae import cli
from uae.data.answers import Answer
from uae.data.longcap.endpoint import Pace, data_url
from uae.data.longcap.filters import Filters, repeated_run_share, why_rejected
from uae.data.longcap.pictures import Picture, find_duplicates, look

LONG = " ".join(f"word{i}" for i in range(260))
REFUSAL = "I'm sorry, but I can't describe this image."
Reply = tuple[int, Any]  # a status, and a value for JSON or the body itself


def completion(text: str, finish_reason: str = "stop") -> Reply:
    """As endpoints answer: 100 prompt tokens and 300 completion tokens."""
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": text},
        "finish_reason": finish_reason,
    }
    usage = {"prompt_tokens": 100, "completion_tokens": 300, "total_tokens": 400}
    return 200, {
        "id": "1",
        "object": "chat.completion",
        "created": 0,
        "model": "m",
        "choices": [choice],
        "usage": usage,
    }


def failure(status: int, message: str, code: str | None = None) -> Reply:
    return status, {"error": {"message": message, "type": "error", "param": None, "code": code}}


class Server(JsonServer):
    """Answers by the sha256 of the image it is sent: the replies given for it in turn, the last one
    for ever."""

    def __init__(self) -> None:
        self.replies: dict[str, list[Reply]] = {}
        self.default: list[Reply] = [completion(LONG)]
        self.asked: Counter[str] = Counter()
        self.bodies: list[dict[str, Any]] = []
        self.times: list[float] = []
        self.on_request: Callable[[dict[str, Any]], Reply | None] = lambda body: None
        self._lock = threading.Lock()
        super().__init__()

    def respond(self, path: str, body: dict[str, Any]) -> Response:
        assert path == "/v1/chat/completions"
        return Response(*self.reply(body), headers={"retry-after-ms": "5"})

    def reply(self, body: dict[str, Any]) -> Reply:
        with self._lock:
            url = body["messages"][0]["content"][0]["image_url"]["url"]
            image = hashlib.sha256(base64.b64decode(url.split(",", 1)[1])).hexdigest()
            replies = self.replies.get(image, self.default)
            answer = self.on_request(body) or replies[min(self.asked[image], len(replies) - 1)]
            self.asked[image] += 1
            self.bodies.append(body)
            self.times.append(time.monotonic())
            return answer


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server()
    yield running
    running.close()


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """1.png, 2.jpg and 10.png, of different sizes and all unlike."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for seed, name in enumerate(("1.png", "2.jpg", "10.png")):
        draw(seed).save(folder / name)
    return folder


def draw(seed: int) -> Image.Image:
    cells = np.random.default_rng(seed).integers(0, 256, (8, 9, 3), dtype=np.uint8)
    return Image.fromarray(cells).resize((36 + seed, 32), Image.Resampling.NEAREST)


def sha(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit code, output and errors of ``uae data longcap ARGUMENTS``."""
    code = 0
    try:
        cli.run(["data", "longcap", *arguments])
    except SystemExit as exit:
        code = int(exit.code or 0)
    out, err = capsys.readouterr()
    return code, out, err


def options(server: Server, photos: Path, out: Path, *more: str) -> list[str]:
    return [str(photos), "--out", str(out), "--endpoint", server.url, "--model", "big-vlm", *more]


def row_of(table: str, name: str) -> str:
    """The value that the printed table gives to ``name``."""
    return (
        next(line for line in table.splitlines() if name in line and "│" in line)
        .split("│")[2]
        .strip()
    )


def left_out(out: Path) -> dict[str, tuple[str, str]]:
    rows = map(json.loads, (out / "left_out.jsonl").read_text().splitlines())
    return {Path(row["file"]).name: (row["what"], row["why"]) for row in rows}


def load(out: Path) -> list[dict[str, Any]]:
    from datasets import load_dataset

    files = str(out / "shards" / "*.parquet")
    return list(load_dataset("parquet", data_files=files, split="train", streaming=True))


# --- the whole way -------------------------------------------------------------------------------


def test_captions_and_shards_load_back(
    capsys: pytest.CaptureFixture[str], server: Server, photos: Path, tmp_path: Path
):
    out = tmp_path / "out"
    second = " ".join(["other", *LONG.split()])
    server.replies[sha(photos / "2.jpg")] = [completion(second)]
    prices = ("--price-in", "2", "--price-out", "10")
    code, printed, err = run(capsys, *options(server, photos, out, "--shard-size", "2", *prices))
    assert code == 0, err
    names = sorted(path.name for path in (out / "shards").iterdir())
    assert names == ["train-00000-of-00002.parquet", "train-00001-of-00002.parquet"]
    rows, files = load(out), [photos / "1.png", photos / "2.jpg", photos / "10.png"]
    assert [row["sha256"] for row in rows] == [sha(file) for file in files]
    assert [row["caption"] for row in rows] == [LONG, second, LONG]
    assert [row["num_words"] for row in rows] == [260, 261, 260]
    assert [(row["width"], row["height"]) for row in rows] == [(36, 32), (37, 32), (38, 32)]
    assert {row["model"] for row in rows} == {"big-vlm"}
    for row, file in zip(rows, files, strict=True):
        assert np.array_equal(np.asarray(row["image"]), np.asarray(Image.open(file)))
    assert row_of(printed, "images") == "3" and row_of(printed, "captioned") == "3"
    assert row_of(printed, "median words") == "260" and row_of(printed, "shards") == "2"
    assert row_of(printed, "tokens") == "300 in, 900 out"
    assert row_of(printed, "cost") == "0.01"  # 300 x 2 + 900 x 10 = 9600 millionths
    assert {body["model"] for body in server.bodies} == {"big-vlm"} and left_out(out) == {}


def test_original_bytes_are_in_the_shards_and_the_same_journal_gives_the_same_shards(
    capsys: pytest.CaptureFixture[str], server: Server, photos: Path, tmp_path: Path
):
    import pyarrow.parquet as pq

    out = tmp_path / "out"
    run(capsys, *options(server, photos, out))
    shard = out / "shards" / "train-00000-of-00001.parquet"
    first = shard.read_bytes()
    images = pq.read_table(shard).column("image").to_pylist()
    assert [image["path"] for image in images] == ["1.png", "2.jpg", "10.png"]
    assert images[1]["bytes"] == (photos / "2.jpg").read_bytes()
    code, _, _ = run(capsys, *options(server, photos, out))
    assert code == 0 and shard.read_bytes() == first and len(server.bodies) == 3
    run(capsys, *options(server, photos, out, "--shard-size", "1"))
    assert (
        sorted(p.name[-13:] for p in shard.parent.iterdir()) == ["00003.parquet"] * 3
        and len(load(out)) == 3
    )


# --- what goes wrong -----------------------------------------------------------------------------


def test_busy_and_broken_servers_are_asked_again(
    capsys: pytest.CaptureFixture[str], server: Server, photos: Path, tmp_path: Path
):
    server.default = [failure(429, "slow down"), failure(503, "overloaded"), completion(LONG)]
    code, printed, err = run(capsys, *options(server, photos, tmp_path / "out"))
    assert code == 0, err
    assert set(server.asked.values()) == {3} and row_of(printed, "captioned") == "3"


def test_an_image_without_answer_waits_for_the_next_run(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    server: Server,
    photos: Path,
    tmp_path: Path,
):
    monkeypatch.setattr("uae.data.longcap.endpoint.MAX_RETRIES", 1)
    out, unlucky = tmp_path / "out", sha(photos / "2.jpg")
    server.replies[unlucky] = [failure(500, "oops")]
    code, printed, _ = run(capsys, *options(server, photos, out))
    assert code == 3 and row_of(printed, "no answer") == "1" and server.asked[unlucky] == 2
    assert left_out(out)["2.jpg"][0] == "unanswered"
    monkeypatch.setenv("OPENAI_API_KEY", "with a line break, as keys read from files have\n")
    server.replies.clear()
    code, printed, _ = run(capsys, *options(server, photos, out))
    assert code == 0 and row_of(printed, "captioned") == "3" and len(server.bodies) == 2 + 2 + 1


@pytest.mark.parametrize(
    ("reply", "wanted"),
    [
        (failure(401, "bad key"), "OPENAI_API_KEY"),
        (failure(404, "no such model", "model_not_found"), "Check --model"),
        (failure(400, "no such option", "unsupported_parameter"), "no such option"),
    ],
)
def test_a_permanent_error_stops_at_once(
    capsys: pytest.CaptureFixture[str],
    server: Server,
    photos: Path,
    tmp_path: Path,
    reply: Reply,
    wanted: str,
):
    first = sha(photos / "1.png")
    server.default, server.replies[first] = [reply], [completion(LONG)]
    code, _, err = run(capsys, *options(server, photos, tmp_path / "out", "--concurrency", "1"))
    assert code == 2 and wanted in err and "big-vlm" in err and "Traceback" not in err
    assert "Nothing done is lost (1 captions)" in err
    assert len(server.bodies) == 2
    server.default = [completion(LONG)]
    code, printed, _ = run(capsys, *options(server, photos, tmp_path / "out"))
    assert code == 0 and server.asked[first] == 1 and row_of(printed, "captioned") == "3"


def test_a_model_that_never_answered_does_not_bind_the_folder(
    capsys: pytest.CaptureFixture[str], server: Server, photos: Path, tmp_path: Path
):
    server.on_request = lambda body: (
        None if body["model"] == "big-vlm" else failure(404, "no such model")
    )
    code, _, err = run(capsys, *options(server, photos, tmp_path / "out"), "--model", "bgi-vlm")
    assert code == 2 and "bgi-vlm" in err
    code, printed, _ = run(capsys, *options(server, photos, tmp_path / "out"))
    assert code == 0 and row_of(printed, "captioned") == "3"


def test_a_refused_image_is_recorded_and_not_asked_again(
    capsys: pytest.CaptureFixture[str], server: Server, photos: Path, tmp_path: Path
):
    out = tmp_path / "out"
    server.replies[sha(photos / "1.png")] = [
        failure(400, "rejected by our content policy", "content_policy_violation")
    ]
    for _ in range(2):
        code, printed, _ = run(capsys, *options(server, photos, out))
        assert (
            code == 0 and row_of(printed, "failed") == "1" and row_of(printed, "captioned") == "2"
        )
    assert server.asked[sha(photos / "1.png")] == 1
    kind, why = left_out(out)["1.png"]
    assert kind == "failed" and "content policy" in why


@pytest.mark.parametrize("was_answered_before", [False, True])
def test_when_every_image_is_refused_none_is_recorded(
    capsys: pytest.CaptureFixture[str],
    server: Server,
    photos: Path,
    tmp_path: Path,
    was_answered_before: bool,
):
    """Whatever an earlier run was answered: now the server, or an option, may be wrong."""
    if was_answered_before:
        server.replies[sha(photos / "1.png")] = [completion(LONG)]
        server.default = [failure(503, "starting")]
        run(capsys, *options(server, photos, tmp_path / "out"))
    server.default = [failure(400, "images are not understood here")]
    code, _, err = run(capsys, *options(server, photos, tmp_path / "out"))
    assert code == 2 and "images are not understood here" in err
    server.default = [completion(LONG)]
    _, printed, _ = run(capsys, *options(server, photos, tmp_path / "out"))
    assert row_of(printed, "captioned") == "3"


def test_later_attempts_ask_for_another_draw(
    capsys: pytest.CaptureFixture[str], server: Server, photos: Path, tmp_path: Path
):
    server.default = [completion(REFUSAL), completion(LONG)]
    run(capsys, *options(server, photos, tmp_path / "out"))
    assert Counter(body.get("temperature") for body in server.bodies) == {None: 3, 1.0: 3}


def test_a_file_name_need_not_be_text(
    capsys: pytest.CaptureFixture[str], server: Server, photos: Path, tmp_path: Path
):
    odd = os.fsencode(photos) + b"/caf\xe9.png"
    draw(7).save(tmp_path / "odd.png")
    os.rename(tmp_path / "odd.png", odd)
    (photos / "copy.png").write_bytes(Path(os.fsdecode(odd)).read_bytes())
    for _ in range(2):
        code, printed, err = run(capsys, *options(server, photos, tmp_path / "out"))
        assert code == 0 and row_of(printed, "captioned") == "4", err
    assert len(load(tmp_path / "out")) == 4


def test_ten_failures_in_a_row_stop(
    capsys: pytest.CaptureFixture[str], server: Server, tmp_path: Path
):
    for seed in range(20):
        (tmp_path / "photos").mkdir(exist_ok=True)
        draw(seed).save(tmp_path / "photos" / f"{seed}.png")
    server.default = [failure(400, "nothing works")]
    code, _, err = run(
        capsys, *options(server, tmp_path / "photos", tmp_path / "out", "--concurrency", "1")
    )
    assert (
        code == 2
        and "10 images in a row" in err
        and "nothing works" in err
        and len(server.bodies) == 10
    )


def test_rejected_captions_are_asked_again_then_recorded(
    capsys: pytest.CaptureFixture[str], server: Server, photos: Path, tmp_path: Path
):
    out = tmp_path / "out"
    server.replies[sha(photos / "1.png")] = [completion(REFUSAL)]
    server.replies[sha(photos / "2.jpg")] = [completion("a short caption")]
    server.replies[sha(photos / "10.png")] = [completion(LONG, "length"), completion(LONG)]
    code, printed, err = run(capsys, *options(server, photos, out))
    assert code == 0, err
    assert set(server.asked.values()) == {2}
    assert left_out(out) == {
        "1.png": ("rejected", "refused"),
        "2.jpg": ("rejected", "fewer than 250 words"),
    }
    assert row_of(printed, "rejected: refused") == "1" and row_of(printed, "rejected: fewer") == "1"
    assert row_of(printed, "captioned") == "1" and row_of(printed, "tokens") == "600 in, 1,800 out"
    run(capsys, *options(server, photos, out))
    assert len(server.bodies) == 6  # nobody is asked a third time
    _, printed, _ = run(
        capsys, *options(server, photos, out, "--min-words", "3")
    )  # judged anew, not asked anew
    assert len(server.bodies) == 6 and row_of(printed, "captioned") == "2"


def test_a_corrupt_file_is_recorded(
    capsys: pytest.CaptureFixture[str], server: Server, photos: Path, tmp_path: Path
):
    (photos / "3.png").write_bytes((photos / "1.png").read_bytes()[:60])
    (photos / "4.png").write_bytes(b"")
    code, printed, _ = run(capsys, *options(server, photos, tmp_path / "out"))
    assert code == 0 and row_of(printed, "failed") == "2" and row_of(printed, "captioned") == "3"
    reasons = left_out(tmp_path / "out")
    assert (
        reasons["3.png"][0] == "failed"
        and "unreadable" in reasons["3.png"][1]
        and "empty" in reasons["4.png"][1]
    )
    draw(7).save(photos / "3.png")  # mended
    _, printed, _ = run(capsys, *options(server, photos, tmp_path / "out"))
    assert (
        row_of(printed, "failed") == "1"
        and row_of(printed, "captioned") == "4"
        and len(server.bodies) == 4
    )


# --- resuming ------------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", [1, 40, 200])
def test_a_torn_journal_is_resumed_and_only_what_is_missing_asked(
    capsys: pytest.CaptureFixture[str], server: Server, photos: Path, tmp_path: Path, cut: int
):
    out = tmp_path / "out"
    run(capsys, *options(server, photos, out, "--concurrency", "1"))
    journal, shards = out / "journal.jsonl", load(out)
    complete = journal.read_bytes()
    journal.write_bytes(complete[:-cut])  # killed in the middle of the last line
    code, printed, err = run(capsys, *options(server, photos, out, "--concurrency", "1"))
    assert code == 0, err
    assert server.asked == {
        sha(photos / "1.png"): 1,
        sha(photos / "2.jpg"): 1,
        sha(photos / "10.png"): 2,
    }
    assert journal.read_bytes() == complete and row_of(printed, "tokens") == "300 in, 900 out"
    assert [row["caption"] for row in load(out)] == [row["caption"] for row in shards]


def test_an_attempt_before_the_kill_counts(
    capsys: pytest.CaptureFixture[str], server: Server, photos: Path, tmp_path: Path
):
    out = tmp_path / "out"
    server.default = [completion("short")]
    run(capsys, *options(server, photos, out, "--attempts", "1"))
    run(capsys, *options(server, photos, out, "--attempts", "2"))
    assert set(server.asked.values()) == {2}


def test_another_model_or_prompt_is_refused(
    capsys: pytest.CaptureFixture[str], server: Server, photos: Path, tmp_path: Path
):
    out = tmp_path / "out"
    run(capsys, *options(server, photos, out))
    before = (out / "journal.jsonl").read_bytes()
    for change in (("--model", "small-vlm"), ("--prompt", "Say something.")):
        code, _, err = run(capsys, *options(server, photos, out), *change)
        assert (
            code == 2
            and change[0][2:] in err
            and change[1] in err
            and "another output folder" in err
        )
    assert len(server.bodies) == 3 and (out / "journal.jsonl").read_bytes() == before


def test_a_damaged_line_and_a_second_process_are_named(
    capsys: pytest.CaptureFixture[str], server: Server, photos: Path, tmp_path: Path
):
    from uae.utils.json_lines import JsonLines

    out = tmp_path / "out"
    run(capsys, *options(server, photos, out))
    journal = JsonLines(out / "journal.jsonl")
    code, _, err = run(capsys, *options(server, photos, out))
    journal.close()
    assert code == 2 and "in use" in err
    lines = (out / "journal.jsonl").read_bytes().splitlines(keepends=True)
    (out / "journal.jsonl").write_bytes(b"".join([lines[0], b"{half\n", *lines[1:]]))
    code, _, err = run(capsys, *options(server, photos, out))
    assert code == 2 and "line 2 is damaged" in err


@pytest.mark.parametrize("name", ["journal.jsonl", "images.jsonl"])
@pytest.mark.parametrize(
    "line", [b"{half", b"{}", b"5", b"null", b'{"sha256": 5}', b"\xff", b"[" * 100_000]
)
def test_removing_the_damaged_line_helps_as_the_message_says(
    capsys: pytest.CaptureFixture[str],
    server: Server,
    photos: Path,
    tmp_path: Path,
    name: str,
    line: bytes,
):
    out = tmp_path / "out"
    run(capsys, *options(server, photos, out))
    lines = (out / name).read_bytes().splitlines(keepends=True)
    (out / name).write_bytes(b"".join([*lines[:2], line + b"\n", *lines[2:]]))
    code, _, err = run(capsys, *options(server, photos, out))
    assert code == 2 and f"{name}: line 3 is damaged; remove that line" in err
    (out / name).write_bytes(b"".join(lines))
    code, printed, err = run(capsys, *options(server, photos, out))
    assert code == 0 and row_of(printed, "captioned") == "3" and len(server.bodies) == 3, err


def test_a_journal_whose_first_line_is_gone_says_what_to_put_there(
    capsys: pytest.CaptureFixture[str], server: Server, photos: Path, tmp_path: Path
):
    journal = tmp_path / "out" / "journal.jsonl"
    run(capsys, *options(server, photos, journal.parent))
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[1:]))
    code, _, err = run(capsys, *options(server, photos, journal.parent))
    assert (
        code == 2 and "the line of model and prompt is missing; put this before all others: " in err
    )
    header = next(line for line in err.splitlines() if "before all others: " in line).split(
        "before all others: "
    )[1]
    assert header.encode() + b"\n" == lines[0]
    journal.write_bytes(header.encode() + b"\n" + b"".join(lines[1:]))
    code, printed, _ = run(capsys, *options(server, photos, journal.parent))
    assert code == 0 and row_of(printed, "captioned") == "3" and len(server.bodies) == 3


def test_a_full_disk_is_one_clear_error(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    server: Server,
    photos: Path,
    tmp_path: Path,
):
    """The disk takes half a line, then no more; what came before is complete."""
    import os

    out, write = tmp_path / "out", os.write

    def write_some(descriptor: int, data: bytes) -> int:
        return write(descriptor, data[: len(data) // 2] if b"word9" in data else data)

    with monkeypatch.context() as patch:
        patch.setattr("uae.utils.json_lines.os.write", write_some)
        code, _, err = run(capsys, *options(server, photos, out, "--concurrency", "1"))
    assert (
        code == 2
        and "could not write journal.jsonl" in err
        and "No space left" in err
        and "MB free" in err
    )
    assert len(server.bodies) == 1 and (out / "journal.jsonl").read_text().count("\n") == 1
    code, printed, _ = run(capsys, *options(server, photos, out))
    assert code == 0 and row_of(printed, "captioned") == "3"


# --- duplicates ----------------------------------------------------------------------------------


def test_duplicates_are_asked_once(
    capsys: pytest.CaptureFixture[str], server: Server, photos: Path, tmp_path: Path
):
    (photos / "11.png").write_bytes((photos / "1.png").read_bytes())
    draw(2).resize((76, 64), Image.Resampling.NEAREST).save(photos / "12.jpg", quality=95)
    code, printed, err = run(capsys, *options(server, photos, tmp_path / "out"))
    assert code == 0, err
    assert len(server.bodies) == 3 and row_of(printed, "duplicates") == "1 equal, 1 nearly"
    assert row_of(printed, "captioned") == "3" and len(load(tmp_path / "out")) == 3
    reasons = left_out(tmp_path / "out")
    assert reasons["11.png"] == ("duplicate", f"the same as {photos / '1.png'}")
    assert reasons["12.jpg"] == ("near-duplicate", f"nearly the same as {photos / '10.png'}")


def test_near_duplicates_by_bits_and_colour():
    def picture(name: str, dhash: int, color: tuple[int, ...] = (100, 100, 100)) -> Picture:
        return Picture(Path(name), name, 8, 8, dhash, color)

    pictures = [
        picture("a", 0),
        picture("two bits", 1 << 63 | 1),
        picture("three bits", 0b111 << 30),
        picture("other colour", 0, (100, 100, 109)),
        picture("like three bits", 0b1110 << 30),
    ]
    assert find_duplicates(pictures, 2).near == {
        Path("two bits"): Path("a"),
        Path("like three bits"): Path("three bits"),
    }
    assert find_duplicates(pictures, -1).near == {}
    assert len(find_duplicates(pictures, 3).near) == 2 + 1


def test_every_pair_within_the_distance_is_found():
    """Against all pairs, for hashes that differ from the first in random bits."""
    rng = np.random.default_rng(0)
    for near_bits in range(5):
        for num_flips in range(near_bits + 3):
            flips = sum(1 << int(bit) for bit in rng.choice(64, num_flips, replace=False))
            pictures = [
                Picture(Path(n), n, 1, 1, h, (0, 0, 0))
                for n, h in (("a", 12345), ("b", 12345 ^ flips))
            ]
            assert bool(find_duplicates(pictures, near_bits).near) == (num_flips <= near_bits)


def test_difference_hash_of_a_ramp(tmp_path: Path):
    """Falling brightness sets every bit, rising none; the mean colour is the pixels'."""
    ramp = np.repeat(np.arange(0, 180, 20, dtype=np.uint8)[None], 8, 0)
    for name, cells, expected in (("up", ramp, "0" * 16), ("down", ramp[:, ::-1], "f" * 16)):
        Image.fromarray(np.ascontiguousarray(cells)).save(tmp_path / f"{name}.png")
        row = look(tmp_path / f"{name}.png", {})
        assert row["dhash"] == expected and row["color"] == (80, 80, 80)


# --- parts ---------------------------------------------------------------------------------------


def test_filters():
    def why(text: str, finish_reason: str = "stop") -> str:
        return why_rejected(Answer(text, finish_reason, 0, 0), Filters())

    assert why(LONG) == "" and why(LONG, "length") == "cut off by the token limit"
    assert (
        why(" ".join(LONG.split()[:249])) == "fewer than 250 words"
        and why(" ".join(LONG.split()[:250])) == ""
    )
    for beginning in (
        "I'm sorry, I can't",
        "I’m sorry",
        "I am unable to",
        "As an AI language model",
        "Sorry, but",
        "I cannot assist",
        "Unfortunately, I can not",
        "**I apologize",
        "I can't help",
        "My apologies",
    ):
        assert why(f"{beginning} help with this.") == "refused", beginning
        assert why(f"{beginning} {LONG}") == "", f"{beginning} and goes on"
    for beginning in (
        "In this image I can see",
        "As an aid to the eye",
        "I see",
        "The sign says I'm sorry",
    ):
        assert why(f"{beginning} {LONG}") == "", beginning
    assert why("a red ball on a table and then " * 50) == "repeats itself"
    assert why(LONG, "content_filter") == why(LONG, "SAFETY") == "refused"
    assert (
        why("")
        == why(" \n")
        == why_rejected(Answer("", "stop", 0, 0), Filters(min_words=0))
        == "empty"
    )


def test_repeated_run_share_by_hand():
    assert repeated_run_share("a b c d a b c d") == pytest.approx(1 / 5)  # abcd bcda cdab dabc abcd
    assert repeated_run_share("A, b c; d. E f") == 0 and repeated_run_share("too short") == 0


def test_pace_with_a_clock_of_its_own():
    """30 a minute: one every two seconds, with no credit for idle time."""
    now, waited = 0.0, []

    async def sleep(seconds: float) -> None:
        waited.append(seconds)

    async def ask(pace: Pace) -> None:
        nonlocal now
        for _ in range(3):
            await pace.wait()
        now = 100.0
        for _ in range(2):
            await pace.wait()

    asyncio.run(ask(Pace(30.0, now=lambda: now, sleep=sleep)))
    assert waited == [2, 4, 2]
    waited.clear()
    asyncio.run(ask(Pace(None, now=lambda: now, sleep=sleep)))
    assert waited == []


def test_retries_keep_the_pace_too(
    capsys: pytest.CaptureFixture[str], server: Server, photos: Path, tmp_path: Path
):
    server.default = [failure(429, "slow down"), completion(LONG)]
    code, _, _ = run(
        capsys, *options(server, photos, tmp_path / "out", "--requests-per-minute", "600")
    )
    assert code == 0 and len(server.times) == 6
    assert server.times[-1] - server.times[0] > 0.3  # five gaps of 0.1 s; 0.05 s without a limit


def test_newer_models_get_the_token_limit_by_its_new_name(
    capsys: pytest.CaptureFixture[str], server: Server, photos: Path, tmp_path: Path
):
    message = "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."
    server.on_request = lambda body: (
        failure(400, message, "unsupported_parameter") if "max_tokens" in body else None
    )
    code, printed, err = run(
        capsys, *options(server, photos, tmp_path / "out", "--max-tokens", "900")
    )
    assert code == 0, err
    assert row_of(printed, "captioned") == "3" and server.bodies[-1]["max_completion_tokens"] == 900


def test_what_is_sent(tmp_path: Path):
    """Plain JPEG and PNG as they are; rotated, transparent or odd ones as a PNG of what people
    see."""
    image = draw(0)
    image.save(tmp_path / "plain.jpg")
    assert data_url(tmp_path / "plain.jpg").startswith("data:image/jpeg;base64,")
    assert (
        base64.b64decode(data_url(tmp_path / "plain.jpg").split(",")[1])
        == (tmp_path / "plain.jpg").read_bytes()
    )
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "rotated.png", exif=exif)
    image.save(tmp_path / "odd.bmp")
    for name, size in (("rotated.png", (32, 36)), ("odd.bmp", (36, 32))):
        kind, data = data_url(tmp_path / name).split(",")
        sent = Image.open(io.BytesIO(base64.b64decode(data)))
        assert kind == "data:image/png;base64" and sent.size == size
    assert np.array_equal(np.asarray(sent), np.asarray(image))


def test_options_that_do_not_fit_are_named_before_any_work(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    photos: Path,
    tmp_path: Path,
):
    out, endpoint = tmp_path / "out", ("--endpoint", "http://x/v1", "--model", "m")
    for more, message in (
        ((), "either --endpoint"),
        ((*endpoint, "--local", "m"), "either --endpoint"),
        (("--endpoint", "http://x/v1"), "go together"),
        (
            ("--endpoint", "localhost:8000/v1", "--model", "m"),
            "expected a URL such as http://localhost:8000/v1",
        ),
        (("--endpoint", "http://[x/v1", "--model", "m"), "expected a URL"),
        (("--endpoint", "http://x:port/v1", "--model", "m"), "expected a URL"),
        (("--endpoint", "http:///v1", "--model", "m"), "expected a URL"),
        ((*endpoint, "--concurrency", "0"), "--concurrency must be at least 1, got 0"),
        ((*endpoint, "--requests-per-minute", "0"), "--requests-per-minute"),
    ):
        code, _, err = run(capsys, str(photos), "--out", str(out), *more)
        assert code == 2 and message in err
    for key in ("sk-\xe9", "two\nlines"):
        monkeypatch.setenv("OPENAI_API_KEY", key)
        code, _, err = run(capsys, str(photos), "--out", str(tmp_path / "other"), *endpoint)
        assert code == 2 and "OPENAI_API_KEY: expected a key of plain letters" in err
    monkeypatch.setattr("uae.utils.importing.find_spec", lambda name: None)
    code, _, err = run(capsys, str(photos), "--out", str(out), *endpoint)
    assert code == 2 and "unified-autoencoder[data]" in err and not out.exists()


@pytest.mark.slow
def test_a_local_model(capsys: pytest.CaptureFixture[str], photos: Path, tmp_path: Path):
    """Random weights of Janus-Pro's layout, through the auto classes: each answer is cut, the
    second is drawn."""
    from tests.models.real_layouts import write_janus

    model, out = write_janus(tmp_path / "janus"), tmp_path / "out"
    arguments = [
        str(photos),
        "--out",
        str(out),
        "--local",
        str(model),
        "--max-tokens",
        "6",
        "--prompt",
        "describe",
    ]
    code, printed, err = run(capsys, *arguments)
    assert code == 0, err
    assert row_of(printed, "rejected: cut off") == "3"
    answers = [json.loads(line) for line in (out / "journal.jsonl").read_text().splitlines()[1:]]
    assert len(answers) == 6 and {answer["completion_tokens"] for answer in answers} == {6}
    assert all(
        answer["prompt_tokens"] > 16 and answer["finish_reason"] == "length" for answer in answers
    )


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_processes_caption_as_one(
    server: Server, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from tests.models.real_layouts import write_janus

    (photos / "broken.png").write_bytes(b"\x89PNG")
    model = str(write_janus(tmp_path / "janus"))
    local = ["--local", model, "--max-tokens", "6", "--prompt", "describe"]
    endpoint = ["--endpoint", server.url, "--model", "m", "--concurrency", "1"]
    commands = [
        ["data", "longcap", "../photos", *local, "--out", "local"],
        ["data", "longcap", "../photos", *local, "--out", "resumed"],
        ["data", "longcap", "../photos", *endpoint, "--shard-size", "2", "--out", "asked"],
    ]
    (tmp_path / "one").mkdir()
    monkeypatch.chdir(tmp_path / "one")
    several.run(commands)
    journal = Path("resumed/journal.jsonl").read_text().splitlines(keepends=True)
    assert len(journal) == 1 + 2 * 3  # each answer was cut, so that a second was drawn
    assert len(set(journal)) == len(journal)
    shutil.copytree("resumed", tmp_path / "two/resumed")
    (tmp_path / "two/resumed/journal.jsonl").write_text("".join(journal[:4]))
    out, _ = several.run_by_two(tmp_path / "two", commands)
    several.check_same(tmp_path / "one", tmp_path / "two")
    assert server.asked.total() == 2 * 3
    assert len(list((tmp_path / "two/asked/shards").iterdir())) == 2
    assert out.count("shards: ") == 3


def test_a_local_model_that_cannot_be_read_is_named(
    capsys: pytest.CaptureFixture[str], photos: Path, tmp_path: Path
):
    from safetensors.torch import load_file, save_file

    from tests.models.real_layouts import write_janus

    model = write_janus(tmp_path / "janus")
    arguments = [str(photos), "--out", str(tmp_path / "out"), "--local", str(model)]
    code, _, err = run(capsys, *arguments, "--prompt", "<image_placeholder> describe")
    assert (
        code == 2
        and "got one with <image_placeholder>, which this captioner reads as control tokens" in err
    )
    shard = model / "model-00001-of-00002.safetensors"
    tensors = load_file(shard)
    next(tensor for tensor in tensors.values() if tensor.is_floating_point()).view(-1)[0] = float(
        "nan"
    )
    save_file(tensors, shard, metadata={"format": "pt"})
    code, _, err = run(capsys, *arguments, "--prompt", "describe")
    assert code == 2 and "expected finite weights, got NaN or infinity in 1 of" in err
    shard.write_bytes(shard.read_bytes()[:1000])
    code, _, err = run(capsys, *arguments, "--prompt", "describe")
    assert code == 2 and f"{shard} is cut short" in err and len(err.splitlines()) <= 2
