"""Libraries' chatter is silent where asked, their errors are not, and neither are our own
warnings."""

import logging
import os
import subprocess
import sys
import types
import warnings

import diffusers.utils.logging as of_diffusers
import huggingface_hub.utils as of_hub
import pytest
import transformers.utils.logging as of_transformers

from uae.models.load import load_model
from uae.utils.progress import show_phases
from uae.utils.quiet import plain_warnings, quiet


def module(name: str, code: str) -> types.ModuleType:
    """A module of this name; nothing is imported."""
    made = types.ModuleType(name)
    exec(compile(code, f"<{name}>", "exec"), made.__dict__)
    return made


WARN = (
    "import warnings\ndef warn(text, category, level=1):\n    warnings.warn(text, category, "
    "stacklevel=level)\n"
)


@pytest.mark.parametrize("category", [FutureWarning, DeprecationWarning, UserWarning])
@pytest.mark.parametrize(
    "name", ["transformers.modeling", "diffusers", "peft.utils", "torch.nn", "huggingface_hub"]
)
def test_chatter_of_libraries_is_not_shown(
    capsys: pytest.CaptureFixture[str], name: str, category: type[Warning]
):
    library = module(name, WARN)
    with plain_warnings():
        warnings.simplefilter("always")
        library.warn("old way", category)
        library.warn("old way of the caller", category, 2)  # names this file as its place
    assert capsys.readouterr().err == ""


def test_what_others_warn_of_is_one_line(capsys: pytest.CaptureFixture[str]):
    with plain_warnings():
        warnings.simplefilter("always")
        module("uae.models.decoders.sd3", WARN).warn(
            "the projector\n  starts untrained", UserWarning
        )
        module("my_rewards", WARN).warn("no text in this picture", UserWarning)
        module("numpy", WARN).warn("overflow", RuntimeWarning)
        module("transformers", WARN).warn("NaN in the loss", RuntimeWarning)  # no chatter
        module("torch.cuda", WARN).warn("the driver is too old", UserWarning)
        module("uae.rl", WARN).warn(
            "Arrays are slow (Triggered internally at /pytorch/x.cpp:1)", UserWarning
        )
    assert capsys.readouterr().err.splitlines() == [
        "warning: the projector starts untrained",
        "warning: no text in this picture",
        "warning: overflow",
        "warning: NaN in the loss",
        "warning: the driver is too old",
    ]


def test_warnings_that_are_asked_for_are_shown(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(sys, "warnoptions", ["default"])
    with plain_warnings():
        warnings.simplefilter("always")
        module("transformers", WARN).warn("old way", FutureWarning)
    assert capsys.readouterr().err == "warning: old way\n"


def test_our_warnings_reach_those_who_record_them():
    with warnings.catch_warnings(record=True) as caught, quiet():
        warnings.simplefilter("always")
        module("uae.models.decoders.sd3", WARN).warn("starts untrained", UserWarning)
        module("transformers", WARN).warn("old way", FutureWarning)
    assert [str(warning.message) for warning in caught] == ["starts untrained"]


def settings() -> tuple:
    """All that quiet changes."""
    hook = of_transformers.set_tqdm_hook(None)
    of_transformers.set_tqdm_hook(hook)
    levels = [
        logging.getLogger(name).level for name in ("transformers", "diffusers", "huggingface_hub")
    ]
    bars = of_diffusers.is_progress_bar_enabled(), of_transformers.is_progress_bar_enabled()
    return (
        hook,
        *levels,
        *bars,
        of_hub.are_progress_bars_disabled(),
        warnings.showwarning,
        warnings.filters[:],
    )


@pytest.fixture
def as_the_user_has_it(monkeypatch: pytest.MonkeyPatch):
    """Bars and warnings on, whatever ran before."""
    for name in ("TRANSFORMERS_VERBOSITY", "DIFFUSERS_VERBOSITY", "HF_HUB_VERBOSITY"):
        monkeypatch.delenv(name, raising=False)
    with quiet():  # which restores all at the end
        of_transformers.set_tqdm_hook(None)
        of_transformers.set_verbosity_info()
        of_diffusers.set_verbosity_warning()
        of_diffusers.enable_progress_bar()
        of_hub.enable_progress_bars()
        yield


@pytest.mark.usefixtures("as_the_user_has_it")
def test_a_users_own_settings_come_back():
    before = settings()
    with quiet():
        assert settings() != before
        assert not of_diffusers.is_progress_bar_enabled() and of_hub.are_progress_bars_disabled()
    assert settings() == before
    with pytest.raises(ValueError, match="no/such/model"):
        load_model("no/such/model")
    assert settings() == before


def test_loading_says_nothing_but_errors():
    """In a fresh process, whose libraries have said nothing yet."""
    code = """
from uae.models.load import load_model
from uae.utils.quiet import quiet
load_model("tiny")
import diffusers.utils.logging, transformers.utils.logging
loggers = [
    transformers.utils.logging.get_logger("transformers.x"),
    diffusers.utils.logging.get_logger("diffusers.x"),
]
with quiet():
    for logger in loggers:
        logger.warning("LOAD REPORT")
        logger.error("this file is broken")
loggers[0].warning("after loading")
"""
    variables = {
        name: value for name, value in os.environ.items() if not name.endswith("_VERBOSITY")
    }
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=variables, timeout=120
    )
    assert done.returncode == 0 and done.stdout == ""
    output = [line.removeprefix("[transformers] ") for line in done.stderr.splitlines()]
    assert output == ["this file is broken", "this file is broken", "after loading"]


@pytest.mark.usefixtures("as_the_user_has_it")
def test_a_verbosity_of_the_environment_stays(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TRANSFORMERS_VERBOSITY", "info")
    with quiet():
        assert of_transformers.get_verbosity() == logging.INFO
        assert of_diffusers.get_verbosity() == logging.ERROR


def test_what_a_library_counts_is_a_phase():
    with quiet(), show_phases() as display:
        bar = iter(of_transformers.tqdm({"a": 1, "b": 2}.items(), desc="Loading weights"))
        assert [next(bar), next(bar)] == [("a", 1), ("b", 2)]
        assert display.text().startswith("loading weights 1/2  ETA 0m")
        assert list(bar) == [] and display.text() == ""
        with of_transformers.tqdm(total=3) as bar:
            bar.update(1)  # not over items: nothing is shown, nothing fails


def test_commands_set_it_up_before_libraries_are_imported():
    """A warning at import is chatter too."""
    code = (
        "import sys, uae.cli; assert not {'torch', 'transformers', 'diffusers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, env=os.environ)
