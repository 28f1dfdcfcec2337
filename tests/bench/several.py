"""Commands of uae in one group of processes: ``torchrun -m tests.bench.several COMMANDS``, a JSON
list of lists of arguments. ``torchrun`` takes long to start, so that one start runs many."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path

from tests.torchrun import say, torchrun
from uae.utils.processes import join, leave, num_processes, speaking_once


def run(commands: list[list[str]]) -> None:
    """One after the other; what a command ends with is printed."""
    for command, *options in commands:
        say(f"== {command} {' '.join(options)}")
        try:
            import_module(f"uae.commands.{command}").main(options)
        except SystemExit as exit:
            say(f"exit {exit.code}")


def by_two(folder: Path, module: str, *arguments: str) -> subprocess.Popen[str]:
    """Two processes of the module, which work in the folder; what they say on stderr stands
    apart."""
    return torchrun(module, *arguments, folder=folder, stderr=subprocess.PIPE)


def files_below(folder: Path) -> dict[str, bytes]:
    files = (file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def check_same(one: Path, two: Path) -> None:
    """All files, byte for byte."""
    first, second = files_below(one), files_below(two)
    assert first.keys() == second.keys() and first
    assert [name for name in first if first[name] != second[name]] == []


def run_by_two(folder: Path, commands: list[list[str]]) -> tuple[str, str]:
    """Output and errors."""
    started = by_two(folder, "tests.bench.several", json.dumps(commands))
    out, err = started.communicate(timeout=800)
    assert out.count("processes 2") == 1, out + err
    assert out.count("== ") == len(commands), out + err
    return out, err


if __name__ == "__main__":
    join()
    with speaking_once():
        say(f"processes {num_processes()}")
        run(json.loads(sys.argv[1]))
    leave()
