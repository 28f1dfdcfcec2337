"""The shape of the code: imports run one way, nothing heavy is loaded for help, the loop stays
short."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

SRC = Path(__file__).parents[1] / "src/uae"
DRAWING = Path(__file__).parents[1] / "docs/structure.md"
MODULES = sorted(SRC.rglob("*.py"))


def ranks() -> dict[str, int]:
    """Of each package, from the drawing in the docs: a floor of the house in each line."""
    (drawing,) = re.findall(r"```floors\n(.*?)```", DRAWING.read_text(), re.DOTALL)
    floors = [line.split() for line in drawing.splitlines()]
    return {package: int(floor) for floor, *packages in floors for package in packages}


RANK = ranks()


def imported(path: Path) -> set[str]:
    """Modules of uae that a file imports, wherever in the file."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("uae."):
            names.add(node.module)
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names if alias.name.startswith("uae.")}
    return names


def package(module: str) -> str:
    return module.split(".")[1]


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(SRC)))
def test_imports_run_one_way(path: Path):
    own = path.relative_to(SRC).parts[0].removesuffix(".py")
    if own == "__init__":
        return  # see test_library
    for module in imported(path):
        is_lower = RANK[package(module)] < RANK[own] or package(module) == own
        assert is_lower, f"{path.name} ({own}) imports {module}"


def test_the_drawing_has_all_packages():
    in_tree = {path.relative_to(SRC).parts[0].removesuffix(".py") for path in MODULES}
    assert set(RANK) == in_tree - {"__init__"}


def test_commands_import_no_command():
    helpers = {"uae.commands.group", "uae.commands.recipes", "uae.commands.show"}
    for path in (SRC / "commands").glob("*.py"):
        others = {m for m in imported(path) if m.startswith("uae.commands.")}
        assert {m for m in others if not m.startswith(tuple(helpers))} == set(), path.name


@pytest.fixture(scope="module")
def without_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for Python's path with all of uae but the embedded world."""
    folder = tmp_path_factory.mktemp("without_world")
    (folder / "uae").mkdir()
    for each in SRC.iterdir():
        if each.name not in ("world", "__pycache__"):
            (folder / "uae" / each.name).symlink_to(each)
    return folder


def run_without(folder: Path, code: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(folder)}
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=300
    )


@pytest.mark.slow
def test_everything_else_imports_without_the_world(without_world: Path):
    on_top = ("world", "commands/quickstart.py", "commands/tiny.py")
    of_packages = ("plugins/lmms_eval.py", "plugins/vlmevalkit.py")  # imported by these alone
    paths = [str(path.relative_to(SRC)) for path in MODULES]
    modules = [
        ".".join(("uae", *path.removesuffix(".py").removesuffix("__init__").split("/"))).strip(".")
        for path in paths
        if not path.startswith((*on_top, *of_packages))
    ]
    done = run_without(
        without_world,
        f"import importlib, uae\nassert uae.__file__.startswith({str(without_world)!r})\n"
        f"for name in {modules}: importlib.import_module(name)",
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["train", "paper", "--help"], 0, "--train.objective.kl-coef"),
        (["train", "v3", "--help"], 0, "--long-captions.num-steps"),
        (["train", "tiny"], 2, "the package uae.world, which this installation lacks"),
        (["quickstart"], 2, "the package uae.world, which this installation lacks"),
        (["train", "paper", "--data", ".", "--rewards", "objects", "1"], 2, "uae.world"),
    ],
)
def test_commands_without_the_world(
    without_world: Path, arguments: list[str], code: int, words: str
):
    done = run_without(without_world, f"from uae.cli import run; run({arguments})")
    assert done.returncode == code and words in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("package", ["rl", "bench", "rewards"])
def test_learning_and_measuring_know_no_model(package: str):
    files = [*(SRC / package).rglob("*.py"), SRC / "autoencode.py"]
    models = {m for path in files for m in imported(path) if m.startswith("uae.models")}
    # a benchmark's result says which weights answered
    known = ("uae.models.base", *(["uae.models.origin"] if package == "bench" else []))
    assert {m for m in models if not m.startswith(known)} == set()
    for path in files:
        strings = {
            n.value for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Constant)
        }
        assert not strings & {"umm1", "umm2", "llm_diffusion", "autoregressive"}, (
            f"{path.name} branches on a family"
        )


def test_help_is_quick_and_loads_no_torch():
    code = (
        "import sys; sys.argv = ['uae', '--help']; from uae.cli import main; main(); assert "
        "'torch' not in sys.modules"
    )
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "quickstart" in done.stdout and "reconstruct" in done.stdout
    assert (
        time.monotonic() - began < 30
    )  # two seconds on an idle machine; this catches an import of torch's kind


def test_pages_a_newcomer_reads_stay_short():
    limits = {"autoencode.py": 60, "rl/losses.py": 240, "rl/train.py": 192}
    for name, limit in limits.items():
        assert len((SRC / name).read_text().splitlines()) <= limit, name


def test_lines_are_at_most_100_columns():
    root = SRC.parents[1]
    paths = [
        p for f in ("src", "tests", "examples", "benchmarks") for p in (root / f).rglob("*.py")
    ]
    long = [
        f"{path.relative_to(root)}:{number}"
        for path in paths
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if len(line) > 100
    ]
    assert long == []
