"""``uae bench NAME``: a benchmark of ``bench/api.py``, of a model or of answers made elsewhere."""

from __future__ import annotations

import tyro
from rich.console import Console

from uae.bench.api import find_benchmark
from uae.bench.run import run_benchmark
from uae.commands.group import ALL, choose
from uae.commands.show import load_for_photos, show_round_trips
from uae.utils.importing import import_named
from uae.utils.processes import wait
from uae.utils.quiet import quiet_libraries

COMPARE = "uae.commands.compare:main"  # it needs the embedded world, which no benchmark imports


def main(arguments: list[str]) -> None:
    """``uae bench unified …``"""
    name = choose("bench", arguments)
    if name == ALL:
        import_named(COMPARE, "command")(arguments[1:])
        return
    quiet_libraries()
    benchmark = tyro.cli(find_benchmark(name), args=arguments[1:], prog=f"uae bench {name}")
    result = run_benchmark(benchmark, load_for_photos, show_round_trips)
    Console().print(benchmark.table(result))
    print(f"numbers: {benchmark.out}")
    wait()  # a process that ends by its code ends the others
    if result.partial:
        raise SystemExit(3)
