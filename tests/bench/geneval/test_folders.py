"""Folders of images: what the official code would evaluate, and a line for whatever is odd."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.bench.oracles import SHARED
from uae.bench.geneval.folders import ImageTree, read_tree
from uae.bench.geneval.metadata import check_metadata


def metadata(name: str = "dog", tag: str = "single_object") -> dict:
    return {"tag": tag, "include": [{"class": name, "count": 1}], "prompt": f"a photo of a {name}"}


def lay(root: Path, folder: str, names: list[str], about: dict | str) -> None:
    samples = root / folder / "samples"
    samples.mkdir(parents=True)
    for name in names:
        if name.endswith("/"):
            (samples / name).mkdir()
        else:
            (samples / name).write_bytes(b"x")
    text = about if isinstance(about, str) else json.dumps(about)
    (root / folder / "metadata.jsonl").write_text(text)


def read(root: Path, **options) -> ImageTree:
    return read_tree(root, check_metadata, **options)


def names_of(tree: ImageTree) -> list[str]:
    return [sample.name for sample in tree.samples]


def test_the_images_are_those_that_are_officially_evaluated(tmp_path: Path):
    path = SHARED / "oracles/geneval_folders.jsonl"
    if not path.exists():
        pytest.skip(f"needs {path.name}, published with the task and not part of the project")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    wrong = []
    for row in rows:
        root = tmp_path / str(row["id"])
        root.mkdir()
        for folder, names in row["input"]["tree"].items():
            if names is None:
                (root / folder).write_text("")
            else:
                lay(root, folder, names, metadata())
        try:
            evaluated = sorted(names_of(read(root)))
        except ValueError:  # none at all is an error of ours
            evaluated = []
        if evaluated != row["official"]["evaluated"]:
            wrong.append(row["id"])
    assert len(rows) >= 20 and wrong == []


def test_each_oddity_is_a_line_and_costs_no_other_image(tmp_path: Path):
    lay(tmp_path, "00000", ["0000.png", "0001.png"], metadata("dog"))
    lay(tmp_path, "00001", ["0000.png"], metadata("cat"))
    lay(tmp_path, "00002", ["0000.png", "0001.png", "0002.png", "grid.png"], metadata("cow"))
    lay(tmp_path, "00004", ["0000.png", "0001.png"], metadata("dog"))
    lay(tmp_path, "00005", ["0000.png", "0001.png"], '{"tag": "x"')
    lay(tmp_path, "00006", ["0000.png", "0001.png"], {"tag": "x", "prompt": "y", "include": [3]})
    lay(tmp_path, "00007", ["0000.png", "0001.png"], metadata("cup"))
    (tmp_path / "00007/metadata.jsonl").unlink()
    lay(tmp_path, "00008", [], metadata("car"))
    lay(tmp_path, "notes", [], metadata())
    tree = read(tmp_path)
    counts = {"00000": 2, "00001": 1, "00002": 3, "00004": 2}
    assert names_of(tree) == [
        f"{folder}/samples/{i:04}.png" for folder, n in counts.items() for i in range(n)
    ]
    problem = "Expecting ',' delimiter: line 1 column 12 (char 11)"
    assert tree.missing == [
        f"00005/metadata.jsonl: expected one JSON object in UTF-8 ({problem}); images of its "
        "folder are not scored",
        '00006/metadata.jsonl, include 0: expected {"class": "…", "count": …}, perhaps with a '
        "color, got 3; images of its folder are not scored",
        "00007/metadata.jsonl: No such file or directory; images of its folder are not scored",
        "00003: no folder of this number",
        "00001: 1 images, expected 2",
        "00008: 0 images, expected 2",
    ]
    assert tree.remarks == [
        "notes: passed over, expected a folder whose name is digits",
        "00002/samples/grid.png: passed over, expected a file called <digits>.png",
        "00002: 3 images, expected 2; all are scored",
        "00004: the prompt of 00000 again; they count as one prompt",
    ]


def test_prompts_are_found_in_any_order(tmp_path: Path):
    lay(tmp_path, "0", ["0.png"], metadata("cat"))
    lay(tmp_path, "1", ["0.png"], {**dict(reversed(metadata("dog").items()))})
    lay(tmp_path, "7", ["0.png"], metadata("cow"))
    asked = [metadata("dog"), metadata("bird"), metadata("cat")]
    tree = read(tmp_path, prompts=asked, per_prompt=1)
    assert names_of(tree) == ["0/samples/0.png", "1/samples/0.png"]
    assert tree.missing == ["no image of 'a photo of a bird'"]
    assert tree.remarks == ["7: not scored, its prompt is not asked for"]


@pytest.mark.parametrize("make", [lambda root: None, lambda root: (root / "0").mkdir(parents=True)])
def test_a_folder_without_images_is_refused(tmp_path: Path, make):
    make(tmp_path / "images")
    with pytest.raises(ValueError, match=r"images: expected .*found no"):
        read(tmp_path / "images")


@pytest.mark.parametrize(
    ("about", "message"),
    [
        ([], "x: expected an object, got []"),
        ({"prompt": "p"}, "x: expected GenEval's metadata with a tag"),
        ({"tag": "t", "prompt": "p", "include": {}}, "x: expected a list as include, got {}"),
        (
            {"tag": "t", "prompt": "p", "exclude": [{"class": "a", "count": -1}]},
            "x, exclude 0: expected a count of 0 or more, got -1",
        ),
        (
            {
                "tag": "t",
                "prompt": "p",
                "include": [{"class": "a", "count": 1, "position": ["above", 0]}],
            },
            'x, include 0: expected a position as ["left of", 0], of a clause before it',
        ),
    ],
)
def test_metadata_that_cannot_be_judged_by(about, message: str):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        check_metadata(about, "x")


def test_the_published_prompts_are_sound():
    path = SHARED / "geneval/evaluation_metadata.jsonl"
    if not path.exists():
        pytest.skip("needs evaluation_metadata.jsonl, published with the benchmark")
    lines = path.read_text().splitlines()
    for number, line in enumerate(lines):
        check_metadata(json.loads(line), f"line {number}")
    assert len(lines) == 553
