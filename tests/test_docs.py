"""The docs say what is there: every page is in the index, every file, command, recipe and Python
name exists, headline numbers are those below them, and the blocks of the library's page run."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from pkgutil import resolve_name

import pytest

from uae import catalog
from uae.cli import COMMANDS
from uae.commands.group import GROUPS

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted([*DOCS.glob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"])
HISTORY = DOCS / "log.md"  # names things as they were then
OF_TODAY = [page for page in PAGES if page != HISTORY]
BLOCK = re.compile(r"```python\n(.*?)```", re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")
FILE = re.compile(r"[\w./-]+\.(?:py|md|svg|png|sh|toml|lock)")


def of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def anchors(page: Path) -> set[str]:
    """Of the headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_page_is_in_the_index_once():
    listed = [link for link in LINK.findall((DOCS / "index.md").read_text()) if "/" not in link]
    pages = {page.name for page in DOCS.glob("*.md")} - {"index.md"}
    assert sorted(listed) == sorted(pages)


@pytest.mark.parametrize("page", PAGES, ids=of)
def test_links_lead_somewhere(page: Path):
    for link in LINK.findall(page.read_text()):
        target, _, anchor = link.partition("#")
        if "://" in target:
            continue
        file = page.parent / target if target else page
        assert file.exists(), f"{page.name} links to {link}"
        assert not anchor or anchor in anchors(file), f"{page.name} links to {link}"


@pytest.fixture(scope="module")
def known_files() -> set[str]:
    """Every file of the repository, by its path and by each end of that."""
    listing = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    try:
        done = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs git, in a clone")
    files = [Path(name) for name in done.stdout.split("\n") if (ROOT / name).is_file()]
    return {str(Path(*file.parts[i:])) for file in files for i in range(len(file.parts))}


@pytest.mark.parametrize("page", OF_TODAY, ids=of)
def test_files_that_are_named_exist(page: Path, known_files: set[str]):
    """In backticks, as ``rl/train.py`` or ``src/uae/rl/train.py``."""
    named = {
        name
        for code in re.findall(r"`([^`\n]+)`", page.read_text())
        for name in FILE.findall(code)
        if "/" in name or name.endswith(".py")
    }
    assert sorted(named - known_files) == []


@pytest.mark.parametrize("page", OF_TODAY, ids=of)
def test_commands_that_are_named_exist(page: Path):
    """In backticks, or a line of a block."""
    known = {"train": catalog.RECIPES, "bench": GROUPS["bench"]}
    for command, name in re.findall(
        r"(?:`|^)uae ([a-z]+)(?: ([a-z][\w-]*))?", page.read_text(), re.M
    ):
        assert command in COMMANDS
        assert not name or command not in known or name in known[command], f"uae {command} {name}"


@pytest.mark.parametrize("page", OF_TODAY, ids=of)
def test_python_names_exist(page: Path):
    """In imports, and as dotted names in backticks."""
    text = page.read_text()
    names = re.findall(r"`(uae\.[\w.]+)`", text)
    for module, imported in re.findall(r"^from (uae[\w.]+) import ([\w, ]+)$", text, re.MULTILINE):
        names += [f"{module}.{name}" for name in imported.split(", ")]
    for name in names:
        if name != "uae.json":
            resolve_name(name)


def test_headline_numbers_are_those_below():
    _, headline, *sections = re.split(r"^## ", (DOCS / "results.md").read_text(), flags=re.M)
    assert headline.startswith("In short")
    number = re.compile(r"\d+\.\d+|\d+ min \d+ s")
    assert set(number.findall(headline)) <= set(number.findall("".join(sections)))


@pytest.mark.slow
def test_the_librarys_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    blocks = BLOCK.findall((DOCS / "library.md").read_text())
    assert len(blocks) >= 7
    names: dict[str, object] = {"__name__": "library_page"}
    for number, block in enumerate(blocks, 1):
        exec(compile(block, f"docs/library.md, block {number}", "exec"), names)
    assert (tmp_path / "runs/both/2_decoder/model").is_dir()
