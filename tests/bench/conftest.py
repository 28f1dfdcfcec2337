from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.bench.ask.server import Server


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A running one, for a client without a key."""
    pytest.importorskip("openai")
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    running = Server()
    yield running
    running.close()
