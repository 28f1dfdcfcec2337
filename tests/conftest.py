"""Test set-up: shapes checked at run time, no network, fixed seeds, fast tests first; two threads,
or one where tests run in several processes."""

# first: it says how OpenMP's threads wait, and torch reads that as it is loaded
import uae  # noqa: F401

# isort: split
import os
import random

import numpy as np
import pytest
import torch
from jaxtyping import install_import_hook

os.environ["HF_HUB_OFFLINE"] = "1"
install_import_hook("uae", "beartype.beartype")  # before any test imports uae
torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else 2)

_failed_fast_tests = pytest.StashKey[int]()


@pytest.fixture(autouse=True)
def _fixed_seeds() -> None:
    """Every test starts from the same global random state, whatever ran before it."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - libraries under test still draw from the global state
    torch.manual_seed(0)


def _is_slow(item: pytest.Item) -> bool:
    return item.get_closest_marker("slow") is not None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=_is_slow)  # stable: fast tests first, otherwise in order


def pytest_runtest_setup(item: pytest.Item) -> None:
    """A failed fast test ends the run where the slow tests would begin."""
    session = item.session
    if _is_slow(item) and session.stash.setdefault(_failed_fast_tests, session.testsfailed):
        pytest.exit("a fast test failed, so the slow tests were not run", returncode=1)
