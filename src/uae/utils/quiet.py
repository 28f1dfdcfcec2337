"""Libraries keep quiet: no bars, reports or chatty warnings of theirs. Their errors stay, and so do
our own warnings.

A command is quiet as a whole; ``load_model`` is while it loads, and leaves its caller's settings as
they were. What is asked for is shown: a verbosity that the environment names, and warnings under
``python -W`` or ``PYTHONWARNINGS``.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from itertools import dropwhile
from typing import Any

from uae.utils.progress import track

LIBRARIES = {
    "accelerate",
    "diffusers",
    "huggingface_hub",
    "peft",
    "tokenizers",
    "torch",
    "transformers",
}
CHATTER = (FutureWarning, DeprecationWarning, PendingDeprecationWarning, UserWarning)
NEWS = ("torch.cuda", "torch.backends")  # no chatter: that a GPU can't be used, say
# between one who warns and what is shown
MACHINERY = ("warnings", "_py_warnings", "typing_extensions")


@contextmanager
def quiet() -> Iterator[None]:
    """Quiet for as long as the context lasts; then as it was."""
    import diffusers.utils.logging as of_diffusers
    import huggingface_hub.utils as of_hub
    import transformers.utils.logging as of_transformers

    libraries = _loggers().values()
    levels = [library.get_verbosity() for library in libraries]
    had_bars = of_diffusers.is_progress_bar_enabled()
    hub_had_none = of_hub.are_progress_bars_disabled()
    hook = of_transformers.set_tqdm_hook(None)
    with without_chatter(warnings.showwarning):
        quiet_libraries()
        try:
            yield
        finally:
            of_transformers.set_tqdm_hook(hook)
            if had_bars:
                of_diffusers.enable_progress_bar()
            if not hub_had_none:
                of_hub.enable_progress_bars()
            for library, level in zip(libraries, levels, strict=True):
                library.set_verbosity(level)


def quiet_libraries() -> None:
    """No bars and reports from now on: for a process that is a command's own."""
    import diffusers.utils.logging as of_diffusers
    import huggingface_hub.utils as of_hub
    import transformers.utils.logging as of_transformers

    of_transformers.set_tqdm_hook(_as_phase)
    of_diffusers.disable_progress_bar()
    of_hub.disable_progress_bars()
    for variable, library in _loggers().items():
        if variable not in os.environ:
            library.set_verbosity_error()


@contextmanager
def plain_warnings() -> Iterator[None]:
    """In a command: a warning is one line, without the place in the code, and libraries' chatter is
    none."""
    with without_chatter(_show_in_a_line):
        yield


@contextmanager
def without_chatter(show: Callable[..., None]) -> Iterator[None]:
    """Warnings go to ``show``, as ``warnings.showwarning`` gets them, but for chatter of
    libraries."""
    with warnings.catch_warnings():

        def shown(message: Warning | str, category: type[Warning], *place: Any) -> None:
            is_chatter = issubclass(category, CHATTER) and _is_by_library(str(message))
            if sys.warnoptions or not is_chatter:
                show(message, category, *place)

        warnings.showwarning = shown
        yield


def _is_by_library(message: str) -> bool:
    """By the module that warns: the place a warning names is often that of its caller."""
    modules = _modules_outwards()
    inside = dropwhile(lambda name: name not in MACHINERY, modules)
    name = next(dropwhile(lambda name: name in MACHINERY, inside), "")
    is_news = name.startswith(NEWS)
    is_by_torch = "Triggered internally at" in message  # of its C++ code, which has no module
    return not is_news and (is_by_torch or name.partition(".")[0] in LIBRARIES)


def _modules_outwards() -> Iterator[str]:
    """Of each function under way, the last called first."""
    frame = sys._getframe(1)
    while frame is not None:
        yield frame.f_globals.get("__name__", "")
        frame = frame.f_back


def _show_in_a_line(message: Warning | str, category: type[Warning], *place: Any) -> None:
    print(f"warning: {' '.join(str(message).split())}", file=sys.stderr)


def _loggers() -> dict[str, Any]:
    """Modules that set how much a library says, by the environment's variable that does."""
    import diffusers.utils.logging
    import huggingface_hub.utils.logging
    import transformers.utils.logging

    return {
        "DIFFUSERS_VERBOSITY": diffusers.utils.logging,
        "HF_HUB_VERBOSITY": huggingface_hub.utils.logging,
        "TRANSFORMERS_VERBOSITY": transformers.utils.logging,
    }


def _as_phase(bar: Callable[..., Any], arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
    """In place of a library's bar over items."""
    items = arguments[0] if arguments else options.get("iterable")
    if isinstance(items, Collection):
        return track(items, str(options.get("desc") or "loading").lower())
    return bar(*arguments, **{**options, "disable": True})
