"""Commands that are groups of others, as ``uae tiny build``, and ``uae train``, whose runs have
names.

What they list is known here, so that it is answered at once, before a command's own module loads
torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from uae import catalog
from uae.bench.api import BENCHMARKS
from uae.utils.suggest import did_you_mean

ALL = "all"
GROUPS = {
    "bench": {
        **{name: benchmark.about for name, benchmark in BENCHMARKS.items()},
        ALL: "two models side by side: understanding, generation and unification in one table",
    },
    "data": {"longcap": "long captions for folders of images, by an endpoint or a local model"},
    "tiny": {
        "build": "train the tiny models from nothing",
        "measure": "what a tiny model can do, on held-out scenes",
    },
}
HELP = ("-h", "--help")
DEFAULT_RUN = "tiny"

TRAIN_USAGE = f"""usage: uae train [NAME] [--run-dir DIR] [OPTIONS]        uae train NAME --help

Unified-GRPO on the embedded world or a folder of images. The same command resumes a run.
Without NAME: {DEFAULT_RUN}.

real checkpoints, on --data FOLDER:
{{real}}

tiny models, in the embedded world or on --data FOLDER:
{{tiny}}

v1, v3, v5 and their like run stage after stage, each in a folder of its own.

examples:
  uae train                                              the tiny model, in the embedded world
  uae train --data my_images/ --run-dir runs/mine        the same, on your own images
  uae train paper --data my_images/                      Qwen2.5-VL-3B + SD3.5-large
  uae train tiny --help                                  the options of a run, with their defaults
"""


def choose(group: str, arguments: Sequence[str]) -> str:
    """The command of the group that is named first; without any, or asked for help, they are
    listed.

    Raises:
        ValueError: for an unknown one.
    """
    name, commands = arguments[0] if arguments else HELP[0], GROUPS[group]
    if name in HELP:
        print(
            f"usage: uae {group} COMMAND [OPTIONS]        uae {group} COMMAND "
            f"--help\n\n{_listing(commands)}"
        )
        raise SystemExit(0)
    if name not in commands:
        raise ValueError(
            f"expected uae {group} {' or '.join(commands)}, got "
            f"{name!r}{did_you_mean(name, commands)}"
        )
    return name


def choose_run(arguments: list[str]) -> tuple[str, list[str]]:
    """The recipe that is named first, or ``DEFAULT_RUN``, and its options; asked for
    help, all are listed.

    Raises:
        ValueError: for an unknown one, with the list.
    """
    if arguments and arguments[0] in HELP:
        print(
            TRAIN_USAGE.format(real=_listing(catalog.REAL), tiny=_listing(catalog.TINY)),
            end="",
        )
        raise SystemExit(0)
    if not arguments or arguments[0].startswith("-"):
        return DEFAULT_RUN, arguments
    name, known = arguments[0], catalog.RECIPES
    if name not in known:
        raise ValueError(
            f"expected a recipe, got {name!r}{did_you_mean(name, known)}\n\n{_listing(known)}"
        )
    return name, arguments[1:]


CHOICES: dict[str, Callable[[list[str]], object]] = {
    "train": choose_run,
    **{group: lambda arguments, group=group: choose(group, arguments) for group in GROUPS},
}
"""Of each command that goes on with a name: what looks it up."""


def _listing(commands: Mapping[str, str]) -> str:
    return "\n".join(f"  {command:<13} {text}" for command, text in commands.items())
