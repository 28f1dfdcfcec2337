"""The shape of the code: imports run one way, nothing heavy is loaded for help, the loop stays
short."""

from __future__ import annotations

import ast
import subprocess
import sys
import time
from pathlib import Path

import pytest

SRC = Path(__file__).parents[1] / "src/uae"
RANK = {  # a package may import from its own rank and from lower ones
    "types": 0,
    "catalog": 0,
    "utils": 0,
    "config": 1,
    "images": 1,
    "diffusion": 2,
    "similarity": 2,
    "data": 2,
    "models": 3,
    "rewards": 3,
    "autoencode": 4,
    "bench": 4,
    "rl": 5,
    "report": 5,
    "presets": 6,
    "pipelines": 6,
    "stages": 6,
    "world": 6,
    "commands": 8,
    "cli": 9,
}
MODULES = sorted(SRC.rglob("*.py"))


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
        assert not imported(path)
        return
    for module in imported(path):
        assert RANK[package(module)] <= RANK[own], f"{path.name} ({own}) imports {module}"


@pytest.mark.parametrize("package", ["rl", "bench", "rewards"])
def test_learning_and_measuring_know_no_model(package: str):
    files = [*(SRC / package).rglob("*.py"), SRC / "autoencode.py"]
    models = {m for path in files for m in imported(path) if m.startswith("uae.models")}
    assert {
        m for m in models if not m.startswith(("uae.models.base", "uae.world.backbones"))
    } == set()
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
