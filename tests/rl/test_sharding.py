"""Models that are spread over processes, block by block; that they learn as others do:
``test_processes.py``."""

from __future__ import annotations

import pytest
from torch import nn

from tests.rl import tiny_run
from tests.torchrun import printed_by, torchrun
from uae.config import DecodeSettings
from uae.rl.config import TrainConfig
from uae.rl.learning import shards_of
from uae.utils.sharding import blocks_of


def test_blocks_of_both_halves_are_spread_and_gathered():
    assert printed_by(torchrun("tests.rl.spread")).count("as it should be") == 2


def test_one_process_spreads_nothing():
    model = tiny_run.build_model()
    assert not shards_of(model, TrainConfig(shard="all"))


def test_a_network_without_blocks_is_refused():
    with pytest.raises(ValueError, match="names its blocks in _no_split_modules, got Linear"):
        blocks_of(nn.Linear(2, 2))


def test_what_cannot_be_spread_is_refused(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(ValueError, match="compile-decoder: expected shard nothing beside it"):
        TrainConfig(shard="all", compile_decoder=True)
    model = tiny_run.build_model()
    config = TrainConfig(
        shard="all", decoding=DecodeSettings(), decoder_update="awm", reconstructions_per_caption=2
    )
    model.begin_training(0, captions=False, decoding=config.decoding_at(0))
    monkeypatch.setattr("uae.rl.learning.num_processes", lambda: 2)
    with pytest.raises(ValueError, match=r"expected nothing, or LoRA .* got all and full training"):
        shards_of(model, config)
