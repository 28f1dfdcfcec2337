"""Embeddings that are kept: by whatever they depend on, whole after a kill, shared by processes."""

from __future__ import annotations

import sqlite3
from dataclasses import replace
from pathlib import Path
from threading import Thread

import torch

from tests.bench.test_unified import fake_backbone
from uae.similarity.cache import EmbeddingCache, key_of


def test_keys_tell_apart_what_embeddings_depend_on():
    backbone = fake_backbone("clip")
    other_weights, other_preprocess = fake_backbone("clip"), fake_backbone("clip")
    other_weights.provenance = replace(backbone.provenance, weights="sha256:1")
    other_preprocess.preprocess = replace(backbone.preprocess, resample="bicubic")
    keys = {
        key_of(backbone, b"one"),
        key_of(backbone, b"two"),
        key_of(fake_backbone("dinov2"), b"one"),
        key_of(other_weights, b"one"),
        key_of(other_preprocess, b"one"),
    }
    assert len(keys) == 5
    assert key_of(fake_backbone("clip", source="elsewhere"), b"one") in keys  # the same weights


def test_what_is_put_comes_back_in_another_process_of_work(tmp_path: Path):
    file = tmp_path / "deep" / "kept.sqlite"
    values = {bytes([i, j]): torch.randn(7) for i in range(4) for j in range(200)}
    first = EmbeddingCache(file)
    first.put(values)
    second = EmbeddingCache(file)  # while the first is open
    found = second.get([*values, b"unknown"])
    assert found.keys() == values.keys()
    assert all(torch.equal(found[key], value) for key, value in values.items())
    first.close()
    second.close()
    assert second.get(list(values)) == {}


def test_threads_share_it(tmp_path: Path):
    cache = EmbeddingCache(tmp_path / "kept.sqlite")

    def work(i: int) -> None:
        for j in range(20):
            cache.put({bytes([i, j]): torch.full((3,), float(i))})
            assert cache.get([bytes([i, j])])[bytes([i, j])].tolist() == [i] * 3

    threads = [Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(cache.get([bytes([i, j]) for i in range(4) for j in range(20)])) == 80


def test_a_full_disk_costs_time_alone(tmp_path: Path, capsys):
    cache = EmbeddingCache(tmp_path / "kept.sqlite")
    assert cache._database is not None
    cache._database.execute("PRAGMA max_page_count = 3")
    cache.put({bytes([i]): torch.zeros(4000) for i in range(9)})
    assert "database or disk is full; the work goes on without it" in capsys.readouterr().err
    assert not cache.is_open
    with sqlite3.connect(tmp_path / "kept.sqlite") as database:
        assert database.execute("SELECT count(*) FROM embeddings").fetchone() == (0,)
