"""The commands as a user gives them, answered by a real server."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from tests.bench.ask.server import Server, failure, said, text_of
from tests.bench.dpg.test_rules import write_csv
from tests.bench.scripted import paint
from uae.commands.bench import main


def run(folder: Path, server: Server, name: str, *options: str) -> dict:
    """The result file of ``uae bench NAME``."""
    out = folder / f"{name}.json"
    answerer = ["--answerer.model", "m", "--answerer.endpoint", server.url]
    arguments = [name, "--images", str(folder / "pictures"), "--out", str(out), *options]
    main([*arguments, "--num-bootstrap", "20", *answerer])
    return json.loads(out.read_text())


def test_dpg(tmp_path: Path, server: Server):
    questions = [
        {"proposition_id": n, "dependency": d, "tuple": "entity - whole (x)", "question": q}
        for n, d, q in ((1, "0", "a dog?"), (2, "1", "a cat?"), (3, "2", "a cow?"))
    ]
    path = write_csv(tmp_path / "dpg.csv", [{"item_id": "a", "questions": questions}])
    paint(tmp_path / "pictures/a.png", "red")
    server.on_request = lambda body, times: (
        failure(500) if times == 0 else said("no" if "cat" in text_of(body) else "yes")
    )
    result = run(tmp_path, server, "dpg", "--questions", str(path), "--answerer.retries", "1")
    assert result["images"]["a"]["answered"] == [[1, 0, 1]]
    assert result["scores"]["overall"]["overall"]["value"] == pytest.approx(100 / 3)
    assert result["answerer"]["url"] == server.url
    assert text_of(server.bodies[0]).endswith(
        'Answer "yes" or "no" in lower case, and nothing else.'
    )


def test_geneval2(tmp_path: Path, server: Server):
    row = {"prompt": "a dog", "vqa_list": [["Is it a dog?", "Yes"]], "skills": ["object"]}
    (tmp_path / "p.jsonl").write_text(json.dumps(row))
    paint(tmp_path / "pictures/0.png", "red")
    top = [{"token": t, "logprob": math.log(p)} for t, p in (("Yes", 0.5), ("yes", 0.25))]
    logprobs = {"content": [{**top[0], "top_logprobs": top}]}
    server.on_request = lambda body, times: said("Yes", logprobs=logprobs)
    result = run(tmp_path, server, "geneval2", "--prompts", str(tmp_path / "p.jsonl"))
    assert result["images"]["00000"][0]["atoms"] == pytest.approx([0.75])
    assert server.bodies[0]["max_tokens"] == 1
    server.on_request = lambda body, times: said("yes")
    hard = run(tmp_path, server, "geneval2", "--prompts", str(tmp_path / "p.jsonl"), "--hard")
    assert hard["scores"]["overall"]["tifa"]["value"] == 100


def test_genevalpp(tmp_path: Path, server: Server, capsys):
    row = {"tag": "t", "include": [{"class": "cup", "count": 1}], "prompt": "a cup"}
    (tmp_path / "p.jsonl").write_text(f"{json.dumps(row)}\n{json.dumps(row | {'prompt': 'x'})}")
    paint(tmp_path / "pictures/1.jpg", "red")
    server.on_request = lambda body, times: said(
        "I cannot say" if len(server.bodies) < 3 else 'So: {"correct": true, "reason": "r"}'
    )
    with pytest.raises(SystemExit) as left:  # the second picture is missing
        run(tmp_path, server, "genevalpp", "--prompts", str(tmp_path / "p.jsonl"))
    assert left.value.code == 3
    result = json.loads((tmp_path / "genevalpp.json").read_text())
    assert result["images"]["1"][0]["num_calls"] == 3
    assert result["scores"]["overall"]["mean over tags"]["value"] == 50
    assert "2: no picture; counts as wrong" in capsys.readouterr().out
    assert [body["temperature"] for body in server.bodies] == [0, 1, 1]
