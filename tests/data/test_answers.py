"""Answers of any endpoint: the caption, a refusal, or no answer with a reason; thoughts are no
caption."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.data.test_longcap import (
    LONG,
    Server,
    completion,
    left_out,
    load,
    options,
    photos,
    row_of,
    run,
    server,
    sha,
)
from uae.data.answers import Answer, AnsweredError, NoAnswer, caption_of, read_completion
from uae.data.longcap.filters import Filters, why_rejected
from uae.data.longcap.local import decoded

__all__ = ["photos", "server"]  # fixtures
USAGE = {"prompt_tokens": 100, "completion_tokens": 300}


def body(message: Any, reason: Any = "stop", usage: Any = USAGE, **choice: Any) -> bytes:
    first = {"index": 0, "message": message, "finish_reason": reason, **choice}
    return json.dumps({"id": "1", "choices": [first], "usage": usage}).encode()


def said(content: Any, **message: Any) -> bytes:
    return body({"role": "assistant", "content": content, **message})


def text(part: Any, kind: Any = "text") -> dict[str, Any]:
    return {"type": kind, "text": part}


# --- chat completions ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (" A square.\n", "A square."),
        ([text("A square.")], "A square."),
        (text("A square."), "A square."),
        ([text("A "), text("square.")], "A square."),
        (["A ", "square."], "A square."),
        ([text("A square.", "output_text")], "A square."),
        ([{"text": "A square."}], "A square."),
        ([text({"value": "A square.", "annotations": []})], "A square."),
        ([], ""),
        (None, ""),
        ("", ""),
        (
            [
                text("Let me see.", "reasoning"),
                {"type": "thinking", "thinking": [text("Hm.")]},
                text("A square."),
            ],
            "A square.",
        ),
        (
            [text("not said", "tool_result"), text(5), text(None), 7, None, {"type": "image_url"}],
            "",
        ),
        ("half \ud83d emoji", "half ? emoji"),
    ],
)
def test_content_of_every_form(content: Any, expected: str):
    assert read_completion(said(content)) == Answer(expected, "stop", 100, 300)


@pytest.mark.parametrize("content", [5, 1.5, True])
def test_content_that_is_no_text_is_no_answer(content: Any):
    with pytest.raises(NoAnswer, match=f"expected a text or parts of one .* got {content}"):
        read_completion(said(content))


def test_thoughts_beside_the_content_and_tools_are_not_said():
    for beside in ("reasoning_content", "reasoning", "thinking"):
        assert read_completion(said("A square.", **{beside: "Let me see."})).text == "A square."
        assert read_completion(said(None, **{beside: "Let me see."})).text == ""
    calls = [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
    assert read_completion(body({"content": None, "tool_calls": calls}, "tool_calls")).text == ""


def test_refusals():
    for refused in (
        said(None, refusal="No."),
        said("No.", refusal="No."),
        said([{"type": "refusal", "refusal": "No."}]),
    ):
        assert read_completion(refused) == Answer("No.", "refusal", 100, 300)
    assert read_completion(said("A square.", refusal=None)).finish_reason == "stop"
    assert read_completion(said("A square.", refusal=False)).finish_reason == "stop"


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        (None, "stop"),
        ("", "stop"),
        (5, "stop"),
        ("eos", "eos"),
        ("length", "length"),
        ("max_tokens", "length"),
        ("MAX_TOKENS", "length"),
        ("model_length", "length"),
        ("content_filter", "content_filter"),
    ],
)
def test_reasons_to_finish(reason: Any, expected: str):
    assert read_completion(body({"content": "A square."}, reason)).finish_reason == expected


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        (None, (0, 0)),
        ({}, (0, 0)),
        ([], (0, 0)),
        (5, (0, 0)),
        ({"prompt_tokens": "100"}, (0, 0)),
        ({"prompt_tokens": None, "completion_tokens": 3}, (0, 3)),
        ({"prompt_tokens": 100.0, "completion_tokens": 3.7}, (100, 3)),
        ({"prompt_tokens": -1, "completion_tokens": True}, (0, 0)),
        ({"prompt_tokens": float("nan")}, (0, 0)),
        ({"prompt_tokens": float("inf"), "completion_tokens": [3]}, (0, 0)),
    ],
)
def test_usage_of_every_form(usage: Any, expected: tuple[int, int]):
    answer = read_completion(body({"content": "A square."}, usage=usage))
    assert (answer.text, answer.prompt_tokens, answer.completion_tokens) == ("A square.", *expected)
    without = {"choices": [{"message": {"content": "A square."}}]}
    assert read_completion(json.dumps(without).encode()) == Answer("A square.", "stop", 0, 0)


def test_other_places_of_the_text():
    assert read_completion(body(None, text="A square.")).text == "A square."
    assert read_completion(b'{"choices": [{"text": "A square."}]}').text == "A square."
    assert (
        read_completion(b'{"choices": [{"delta": {"content": "A square."}}]}').text == "A square."
    )
    several = [{"message": {"content": answer}} for answer in ("A square.", "A circle.")]
    assert read_completion(json.dumps({"choices": several}).encode()).text == "A square."
    assert read_completion(b"\xef\xbb\xbf" + said("A square.")).text == "A square."


def test_a_stream_that_nobody_asked_for_is_put_together():
    deltas: list[dict[str, Any]] = [
        {"role": "assistant", "content": ""},
        {"content": "A "},
        {"content": [text("square.")]},
    ]
    chunks = [{"choices": [{"delta": delta, "finish_reason": None}]} for delta in deltas]
    chunks += [
        {"choices": [{"delta": {}, "finish_reason": "length"}]},
        {"choices": [], "usage": USAGE},
    ]
    for end in ("\n", "\r\n"):
        stream = (
            "".join(f"data: {json.dumps(chunk)}{end}{end}" for chunk in chunks)
            + f"data: [DONE]{end}"
        )
        assert read_completion(f": hello{end}{stream}".encode()) == Answer(
            "A square.", "length", 100, 300
        )
    with pytest.raises(AnsweredError, match="overloaded"):
        read_completion(
            b'data: {"choices": [{"delta": {"content": "A"}}]}\n\n'
            b'data: {"error": {"message": "overloaded"}}'
        )
    with pytest.raises(NoAnswer, match=r"data: \[DONE\]"):
        read_completion(b"data: [DONE]\n")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"  ",
        b"OK",
        b'"A square."',
        b'["A square."]',
        b"5",
        b"null",
        b"<html>\n<body>login</body></html>",
        b"{}",
        b'{"choices": null}',
        b'{"choices": []}',
        b'{"choices": {}}',
        b'{"choices": [null]}',
        b'{"choices": ["A"]}',
        b'{"choices": [{}]}',
        b'{"choices": [{"finish_reason": "stop"}]}',
        b'{"detail": "Not Found"}',
        b"{",
        b'{"choices": [{"message": {"content": "caf\xe9"}}]}',
        b"\xff\xfe\x00",
        b"[" * 100_000,
        b'{"a":' * 100_000,
    ],
)
def test_a_body_that_is_no_completion_says_what_came(content: bytes):
    with pytest.raises(
        NoAnswer, match=r"expected a chat completion, got .*; does the URL end in /v1"
    ) as error:
        read_completion(content)
    assert len(str(error.value)) < 250 and "\n" not in str(error.value)


# --- errors with status 200 ----------------------------------------------------------------------


def error_body(code: Any = None, message: Any = "oops") -> bytes:
    return json.dumps({"error": {"message": message, "code": code}}).encode()


@pytest.mark.parametrize("where", ["body", "choice"])
@pytest.mark.parametrize(
    ("code", "message", "becomes"),
    [
        (502, "upstream", "unanswered"),
        (None, "upstream", "unanswered"),
        ("429", "slow down", "unanswered"),
        (400, "image too large", "failed"),
        ("content_filter", "no", "failed"),
        (None, "flagged by us", "failed"),
        (403, "flagged by moderation", "failed"),
    ],
)
def test_an_error_with_status_200_is_what_it_says(
    capsys: pytest.CaptureFixture[str],
    server: Server,
    photos: Path,
    tmp_path: Path,
    code: Any,
    message: str,
    becomes: str,
    where: str,
):
    out, content = tmp_path / "out", error_body(code, message)
    if where == "choice":
        content = json.dumps({"choices": [{"message": None, **json.loads(content)}]}).encode()
    server.replies[sha(photos / "2.jpg")] = [(200, content)]
    exit_code, printed, err = run(capsys, *options(server, photos, out))
    assert row_of(printed, "captioned") == "2" and "Traceback" not in err
    kind, why = left_out(out)["2.jpg"]
    assert (kind, exit_code) == (becomes, 3 if becomes == "unanswered" else 0) and message in why


@pytest.mark.parametrize("code", [401, "402", "invalid_api_key", "insufficient_quota"])
def test_a_permanent_error_with_status_200_stops(
    capsys: pytest.CaptureFixture[str], server: Server, photos: Path, tmp_path: Path, code: Any
):
    server.default = [(200, error_body(code, "no credit"))]
    exit_code, _, err = run(
        capsys, *options(server, photos, tmp_path / "out", "--concurrency", "1")
    )
    assert (
        exit_code == 2
        and "refuses to work with model 'big-vlm': no credit" in err
        and len(server.bodies) == 1
    )


def test_one_answer_of_each_odd_form_costs_no_run(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    server: Server,
    photos: Path,
    tmp_path: Path,
):
    """Through the client library, which parses bodies by itself unless it is told not to."""
    monkeypatch.setattr("uae.data.longcap.endpoint.MAX_RETRIES", 0)
    odd = [
        said([text(LONG[:50]), text(LONG[50:])]),
        said(5),
        said(None),
        said({}),
        body(None),
        body("text"),
        body(5),
        b'{"choices": null}',
        b'{"choices": [5]}',
        b"",
        b"<html>",
        b'"text"',
        b"[1]",
        b"\xff",
        error_body(None, None),
        b'{"error": "text"}',
        b'{"error": [1]}',
        b'{"error": {"code": {}}}',
        body({"content": LONG}, usage="many"),
    ]
    first = sha(photos / "1.png")
    for number, content in enumerate(odd):
        out = tmp_path / str(number)
        server.asked.clear()
        server.replies = {first: [(200, content)]}
        code, printed, err = run(capsys, *options(server, photos, out, "--attempts", "1"))
        is_caption = number in (0, len(odd) - 1)
        assert row_of(printed, "captioned") == ("3" if is_caption else "2"), (content, err)
        assert (
            code in (0, 3) and "Traceback" not in err and len(load(out)) == (3 if is_caption else 2)
        )
        assert is_caption or left_out(out)["1.png"][1]
    for status in (400, 500):
        server.replies = {first: [(status, b"\xff<html>")]}
        code, printed, err = run(capsys, *options(server, photos, tmp_path / f"s{status}"))
        assert row_of(printed, "captioned") == "2" and "Traceback" not in err


# --- thoughts ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "caption"),
    [
        ("A small square.", "A small square."),
        ("<think>Hm.</think> A small square.", "A small square."),
        ("<think>\n\n</think>\n\nA small square.", "A small square."),
        ("<THINK>Hm.</Think>A small square.", "A small square."),
        ("<thinking>Hm.</thinking>A small square.", "A small square."),
        ("<reasoning>Hm.</reasoning>\nA small square.", "A small square."),
        ("<thought>Hm.</thought>A small square.", "A small square."),
        ("<seed:think>Hm.</seed:think>A small square.", "A small square."),
        ('<think effort="high">Hm.</think>A small square.', "A small square."),
        ("[THINK]Hm.[/THINK]A small square.", "A small square."),
        ("◁think▷Hm.◁/think▷A small square.", "A small square."),
        ("<|begin_of_thought|>Hm.<|end_of_thought|>A small square.", "A small square."),
        ("Hm, what is it?</think>A small square.", "A small square."),
        ("<think>Hm <think> again</think> A small square.", "A small square."),
        ("<think>one</think>A small <think>two</think>square.", "A small square."),
        ("<think>Hm.</think><answer>A small square.</answer>", "A small square."),
        ("<think>Hm, it is a small square.", ""),
        ("A small square. <think>Is it?", ""),
        ("Hm.</think>", ""),
        ("<think>Hm.</think>", ""),
        ("", ""),
        ("A sign says <b>think</b> and 1 < 2.", "A sign says <b>think</b> and 1 < 2."),
        ("A tag <thinker> and <answer>.", "A tag <thinker> and <answer>."),
        ("A note in it reads <think different>.", "A note in it reads <think different>."),
    ],
)
def test_thoughts_are_no_caption(answer: str, caption: str):
    assert caption_of(answer) == caption


def test_thoughts_are_not_counted_as_words():
    def why(text: str) -> str:
        return why_rejected(Answer(text, "stop", 0, 0), Filters(min_words=5, max_repeated=0.2))

    long = " ".join(f"thought{i}" for i in range(300))
    assert why(f"<think>{long}</think> A small square.") == "fewer than 5 words"
    assert why(f"<think>{long}</think>") == why(f"<think>{long}") == "thoughts alone"
    assert why(f"<think>I'm sorry {long}</think> one two three four five") == ""
    assert why(f"<think>{'the same again and ' * 50}</think> one two three four five") == ""
    assert why("<think>Hm.</think> I'm sorry, I can't describe this.") == "refused"


def test_shards_hold_captions_and_the_journal_whole_answers(
    capsys: pytest.CaptureFixture[str], server: Server, photos: Path, tmp_path: Path
):
    thoughts = "<think>" + LONG.replace("word", "thought") + "</think>\n\n"
    server.default = [completion(thoughts + LONG)]
    server.replies[sha(photos / "2.jpg")] = [completion(thoughts + "A small square.")]
    server.replies[sha(photos / "10.png")] = [completion(thoughts[:-20], "length")]
    code, _, err = run(capsys, *options(server, photos, tmp_path / "out"))
    assert code == 0, err
    (row,) = load(tmp_path / "out")
    assert row["caption"] == LONG and row["num_words"] == 260
    assert left_out(tmp_path / "out") == {
        "2.jpg": ("rejected", "fewer than 250 words"),
        "10.png": ("rejected", "cut off by the token limit"),
    }
    answers = [
        json.loads(line)
        for line in (tmp_path / "out" / "journal.jsonl").read_text().splitlines()[1:]
    ]
    assert {answer["text"] for answer in answers if answer["sha256"] == row["sha256"]} == {
        thoughts + LONG
    }


def test_a_journal_of_before_is_judged_without_its_thoughts_and_asks_nothing(
    capsys: pytest.CaptureFixture[str], server: Server, photos: Path, tmp_path: Path
):
    """Its numbers of tokens may be what a server had sent."""
    run(capsys, *options(server, photos, tmp_path / "out"))
    journal = tmp_path / "out" / "journal.jsonl"
    text = (
        journal.read_text()
        .replace(f'"{LONG}"', f'"<think>Hm.</think> {LONG} end"')
        .replace("300}", "300.0}")
    )
    journal.write_text(text)
    code, printed, err = run(capsys, *options(server, photos, tmp_path / "out"))
    assert code == 0 and row_of(printed, "captioned") == "3" and len(server.bodies) == 3, err
    assert {row["caption"] for row in load(tmp_path / "out")} == {f"{LONG} end"} and "300.0" in text


def test_special_tokens_of_a_local_model_go_and_thoughts_stay_marked():
    """A tokenizer that skips ``<think>`` as special would leave the thought as if it were said."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: number for number, word in enumerate(["hm", "a", "square", "[unk]"])}
    inner = Tokenizer(WordLevel(vocabulary, unk_token="[unk]"))
    inner.pre_tokenizer = WhitespaceSplit()  # type: ignore[assignment]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, unk_token="[unk]", eos_token="<|end|>"
    )
    tokenizer.add_tokens(["<think>", "</think>", "<|box|>"], special_tokens=True)
    tokens = tokenizer("<think> hm hm </think> <|box|> a square <|end|>")["input_ids"]
    assert tokenizer.decode(tokens, skip_special_tokens=True) == "hm hm a square"
    assert caption_of(decoded(tokenizer, list(tokens))) == "a square"
