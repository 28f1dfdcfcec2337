"""What of a model that is spread lies where: started by ``torchrun``, each process asserts it."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule

from tests.torchrun import say
from uae.config import DecodeSettings
from uae.models.load import load_model
from uae.rl.config import TrainConfig
from uae.rl.learning import shards_of, trainable_parameters
from uae.utils.processes import join, leave, num_processes
from uae.utils.sharding import Shards, blocks_of

SDE = DecodeSettings(num_steps=3, sampler="sde", window_size=2)


def ready(name: str, rank: int) -> Any:
    model: Any = load_model(name)
    model.begin_training(rank, captions=True, decoding=SDE if name == "tiny" else DecodeSettings())
    return model


def size(module: nn.Module) -> int:
    """Numbers that lie in this process."""
    local = (getattr(p, "_local_tensor", p) for p in module.parameters())
    return sum(tensor.numel() for tensor in local)


def check_units() -> None:
    """The blocks of both halves, and nothing else, are units of their own."""
    model = ready("tiny", 0)
    encoder, transformer = model.encoder.model, model.decoder.transformer
    before = copy.deepcopy(transformer.state_dict())
    blocks = blocks_of(transformer)
    of_blocks = sum(map(size, blocks))
    shards = shards_of(model, TrainConfig(shard="all", decoding=SDE))
    wanted = {
        id(encoder): [*encoder.model.language_model.layers, *encoder.model.visual.blocks],
        id(transformer): list(transformer.transformer_blocks),
    }
    for network in (encoder, transformer):
        units = [module for module in network.modules() if isinstance(module, FSDPModule)]
        assert set(units) == set(wanted[id(network)]) and len(units) > 1
    assert sum(map(size, blocks)) <= of_blocks / num_processes() * 1.02
    with shards.whole():
        assert sum(map(size, blocks)) == of_blocks
        copy.deepcopy(transformer)  # as it is saved
        for name, value in transformer.state_dict().items():
            assert torch.equal(value, before[name]), name
        encoder_parameters, decoder_parameters = trainable_parameters(model)
        rows = [shards.own(p) for p in (encoder_parameters | decoder_parameters).values()]
    assert size(nn.ParameterList(rows)) < 0.8 * sum(
        p.numel() for p in (encoder_parameters | decoder_parameters).values()
    )


def check_adapters() -> None:
    """LoRA is whole in each process, beside a base that is spread."""
    model = ready("tiny-ar", 4)
    shards = shards_of(model, TrainConfig(shard="learning", decoding=DecodeSettings()))
    for name, parameter in model.encoder.model.named_parameters():
        if ".lora_" in name:
            assert shards.own(parameter) is parameter


def check_gradients(rank: int) -> None:
    """Sums over processes that made different numbers of passes, clipped by the norm of all."""
    torch.manual_seed(0)
    network = Blocks()
    plain = copy.deepcopy(network)
    images = torch.randn(2, 3) * (rank + 1)
    shards = Shards([network])
    with shards.whole():
        own = {name: shards.own(p) for name, p in network.named_parameters()}
        for _ in range(1 + rank):
            network(images).square().sum().backward()
    for _ in range(1 + rank):
        plain(images).square().sum().backward()
    shards.add_gradients(list(own.values()))
    Shards().add_gradients(list(plain.parameters()))
    norm = shards.clip(list(own.values()), 0.1)
    assert torch.allclose(norm, nn.utils.clip_grad_norm_(plain.parameters(), 0.1))
    for name, parameter in plain.named_parameters():
        expected = shards.cut(own[name], parameter.grad)
        assert torch.allclose(own[name].grad, expected, atol=1e-7), name
    torch.optim.SGD(own.values(), lr=1.0).step()
    torch.optim.SGD(plain.parameters(), lr=1.0).step()
    with shards.whole():
        for name, value in network.state_dict().items():
            assert torch.allclose(value, plain.state_dict()[name], atol=1e-6), name


class Blocks(nn.Module):
    """Two blocks of five rows, which two processes cannot share evenly, between two layers."""

    _no_split_modules = ("Sequential",)

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 3), nn.Linear(3, 1)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 3)) for _ in range(2)
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        hidden = self.first(images)
        for block in self.blocks:
            hidden = block(hidden)
        return self.last(hidden)


if __name__ == "__main__":
    torch.set_num_threads(1)
    join()
    assert num_processes() == 2
    check_units()
    check_adapters()
    check_gradients(torch.distributed.get_rank())
    say("as it should be")
    leave()
