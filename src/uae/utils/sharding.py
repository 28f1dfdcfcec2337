"""Networks that are spread over processes, by FSDP2: of each block a process keeps some rows, and
has it whole while it runs it.

A step makes as many passes as captions are long and texts differ in length, so processes make
different numbers of them. Blocks are thus not gathered for each pass, where all would have to meet,
but for a phase of the step: sampling, or an update. What learns is changed where its rows are kept:
there lie its moments and averages, too. Its gradient is summed over processes onto these rows.

Adapters, embeddings and what else lies outside of blocks are whole in each process.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Shard

from uae.utils.processes import (
    add_gradients,
    gradients_somewhere,
    noticing_outages,
    num_processes,
    process_rank,
)

OF_ADAPTERS = ".lora_"
"""In names of parameters that are whole everywhere."""


@dataclass
class Unit:
    """One block, spread: a module of FSDP2, but while it is whole as it was before."""

    block: Any
    plain: type
    spread: type
    added: dict[str, Any]
    """What FSDP2 keeps in the module."""

    @classmethod
    def of(cls, block: Any) -> Unit:
        plain, before = type(block), set(vars(block))
        adapters = {p for name, p in block.named_parameters() if OF_ADAPTERS in name}
        device = next(block.parameters()).device
        mesh = init_device_mesh(device.type, (num_processes(),))
        fully_shard(block, mesh=mesh, ignored_params=adapters)
        state = block._get_fsdp_state()
        for handle in (state._pre_forward_hook_handle, state._post_forward_hook_handle):
            handle.remove()  # a pass neither gathers nor sends
        added = {name: value for name, value in vars(block).items() if name not in before}
        return cls(block, plain, type(block), added)

    def gather(self) -> None:
        with noticing_outages():
            self.block.unshard()
        for name in self.added:
            del vars(self.block)[name]
        self.block.__class__ = self.plain
        for module in self.block.modules():  # a state dict, too, has it as it is
            for key, hook in list(module._state_dict_pre_hooks.items()):
                if hook.__name__ == "to_sharded_hook":
                    del module._state_dict_pre_hooks[key]

    def release(self) -> None:
        vars(self.block).update(self.added)
        self.block.__class__ = self.spread
        self.block.reshard()


class Shards:
    """The blocks of some networks. Without networks nothing is spread, and all of this does
    nothing."""

    def __init__(
        self, run_by_updates: Sequence[nn.Module] = (), others: Sequence[nn.Module] = ()
    ) -> None:
        """Both are spread; whatever learns is among the first."""
        self._run_by_updates, self._others = _spread(run_by_updates), _spread(others)
        self._rows: dict[int, nn.Parameter] = {}  # by the identity of a whole parameter
        self._wholes: dict[int, nn.Parameter] = {}  # by that of its rows
        self._layouts: dict[int, DTensor] = {}  # as well
        kept = [_trainable(unit.block) for unit in self._run_by_updates]
        with self.whole():
            for unit, spread in zip(self._run_by_updates, kept, strict=True):
                for name, parameter in _trainable(unit.block).items():
                    self._pair(parameter, spread[name])

    def __bool__(self) -> bool:
        return bool(self._run_by_updates or self._others)

    def _pair(self, whole: nn.Parameter, spread: nn.Parameter) -> None:
        if isinstance(spread, DTensor):
            rows = nn.Parameter(spread.to_local().detach())  # of the same memory
            self._add(whole, rows, spread)

    def _add(self, whole: nn.Parameter, rows: nn.Parameter, layout: DTensor) -> None:
        self._rows[id(whole)], self._wholes[id(rows)] = rows, whole
        self._layouts[id(rows)] = layout

    def own(self, parameter: nn.Parameter) -> nn.Parameter:
        """What this process keeps of a whole parameter, for an optimiser."""
        return self._rows.get(id(parameter), parameter)

    def twin(self, parameter: nn.Parameter, twin: nn.Parameter) -> None:
        """The rows of ``twin``, which shares the memory of ``parameter``."""
        if (rows := self._rows.get(id(parameter))) is not None:
            self._add(twin, nn.Parameter(rows.data), self._layouts[id(rows)])

    @contextmanager
    def whole(self) -> Iterator[None]:
        """In this context all blocks are whole. All processes enter it."""
        with self._gathered([*self._run_by_updates, *self._others]):
            yield

    @contextmanager
    def whole_for_updates(self) -> Iterator[None]:
        """In this context those are that an update runs."""
        with self._gathered(self._run_by_updates):
            yield

    def end(self) -> None:
        """All blocks are whole from now on."""
        for unit in (*self._run_by_updates, *self._others):
            unit.gather()

    @contextmanager
    def _gathered(self, units: Sequence[Unit]) -> Iterator[None]:
        gathered: list[Unit] = []
        try:
            for unit in units:
                unit.gather()
                gathered.append(unit)
            yield
        finally:
            for unit in gathered:
                unit.release()

    @torch.no_grad()
    def add_gradients(self, own: Sequence[nn.Parameter]) -> None:
        """Sum gradients over processes. Rows get theirs of that of the whole parameter."""
        add_gradients([p for p in own if id(p) not in self._wholes])
        spread = [self._wholes[id(p)] for p in own if id(p) in self._wholes]
        for whole in gradients_somewhere(spread):
            rows = self._rows[id(whole)]
            layout = self._layouts[id(rows)]
            grad = whole.grad
            if grad is None:
                grad = torch.zeros(layout.shape, dtype=rows.dtype, device=rows.device)
            with noticing_outages():
                part = DTensor.from_local(grad, layout.device_mesh, [Partial()], run_check=False)
                rows.grad = part.redistribute(placements=[Shard(0)]).to_local()
            whole.grad = None

    @torch.no_grad()
    def clip(self, own: Sequence[nn.Parameter], max_norm: float) -> Tensor:
        """Clip gradients, together over processes, to a norm; the norm before that."""
        if not self._rows:
            return nn.utils.clip_grad_norm_(own, max_norm)
        grads = {id(p): p.grad for p in own if p.grad is not None}
        of_rows = [grad for key, grad in grads.items() if key in self._layouts]
        others = [grad for key, grad in grads.items() if key not in self._layouts]
        of_all = nn.utils.get_total_norm(of_rows).to(own[0].device) ** 2
        with noticing_outages():
            dist.all_reduce(of_all)
        norm = (of_all + nn.utils.get_total_norm(others).to(of_all) ** 2).sqrt()
        nn.utils.clip_grads_with_norm_(own, max_norm, norm)
        return norm

    # --- for files -------------------------------------------------------------------------------

    def labelled(self, own: nn.Parameter, tensor: Tensor) -> Tensor:
        """A tensor of one value for each of ``own``'s, such as a moment, as a part of a whole."""
        layout = self._layouts.get(id(own))
        if layout is None or tensor.shape != own.shape:
            return tensor
        return DTensor.from_local(
            tensor.detach(),
            layout.device_mesh,
            layout.placements,
            run_check=False,
            shape=layout.shape,
            stride=layout.stride(),
        )

    def cut(self, own: nn.Parameter, whole: Tensor) -> Tensor:
        """The part of such a whole that this process keeps."""
        layout = self._layouts.get(id(own))
        if layout is None or whole.shape != layout.shape:
            return whole
        num = -(-len(whole) // num_processes())  # as torch.chunk has them
        return whole[process_rank() * num :][:num].clone()


def blocks_of(network: nn.Module) -> list[nn.Module]:
    """What the network's class says must not be split.

    Raises:
        ValueError: it names none.
    """
    names = {
        name
        for module in network.modules()
        for name in (getattr(module, "_no_split_modules", None) or ())
    }
    blocks = [each for each in network.modules() if type(each).__name__ in names]
    if not blocks:
        raise ValueError(
            "shard: expected a network whose class names its blocks in _no_split_modules, "
            f"got {type(network).__name__}; leave it at nothing"
        )
    return blocks


def _spread(networks: Sequence[nn.Module]) -> list[Unit]:
    return [Unit.of(block) for network in networks for block in blocks_of(network)]


def _trainable(block: Any) -> dict[str, nn.Parameter]:
    return {name: p for name, p in block.named_parameters() if p.requires_grad}


WHOLE = Shards()
"""Of a model that is not spread."""
