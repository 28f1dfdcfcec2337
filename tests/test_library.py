"""``uae`` as a library: three functions, loaded when they are asked for."""

from __future__ import annotations

import doctest
import subprocess
import sys

import pytest
import torch

import uae


@pytest.mark.slow
def test_the_docstrings_example_runs():
    assert doctest.testmod(uae, raise_on_error=True).attempted >= 6


@pytest.mark.slow
@pytest.mark.parametrize("name", uae.__all__)
def test_the_example_of_each_function_runs(name: str):
    (example,) = doctest.DocTestFinder().find(getattr(uae, name), name, globs={})
    runner = doctest.DocTestRunner()
    runner.run(example)
    assert runner.tries >= 3 and runner.failures == 0


def test_importing_loads_nothing_heavy():
    code = "import sys, uae; dir(uae); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = done.stdout.split()
    assert not {"torch", "numpy", "tyro"} & set(loaded)
    assert [name for name in loaded if name.startswith("uae.")] == []


def test_a_function_keeps_its_name_beside_the_module():
    import uae.autoencode
    from uae import autoencode, load_model, unified_score

    assert autoencode is sys.modules["uae.autoencode"].autoencode
    assert callable(load_model) and callable(unified_score)
    assert {"autoencode", "load_model", "unified_score"} <= set(dir(uae))
    with pytest.raises(AttributeError, match="no attribute 'load_modle'"):
        uae.load_modle  # noqa: B018


@pytest.mark.slow
def test_a_score_of_the_same_images_is_100():
    images = torch.rand(3, 3, 48, 48)
    assert uae.unified_score(images, images, backbones="tiny") == pytest.approx(100, abs=1e-3)
    with pytest.raises(ValueError, match="as many sources, reconstructions"):
        uae.unified_score(images, images[:2], backbones="tiny")
