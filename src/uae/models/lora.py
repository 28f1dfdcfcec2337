"""LoRA by ``peft`` on linear layers of a model: what it came with, frozen, and what learns, side by
side.

    y = W x + Σ_a s_a B_a A_x x        s = alpha / rank, alpha twice the rank, Gaussian A, B = 0

Source: arXiv 2509.09666 §4.

Nothing is merged while a model is trained, measured or handed on: rounded to bf16, a weight of 0.02
cannot move by less than 6e-5, and a run at a rate of 1e-6 would be lost. ``uae export`` merges, and
says what survives.
"""

from __future__ import annotations

import copy
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from uae.models.origin import ADAPTER_CONFIG, hub_name
from uae.utils.weights import naming_files, read_json, read_tensors

LEARNING = "default"  # as parameters in checkpoints of runs are called
# the folder beside a model's weights, or in their place; `lora` lay beside merged ones once
ADAPTER = "adapter"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
RANKS = "ranks"  # in the file's metadata
PEFT_PREFIX = "base_model.model."  # of names in peft's files


@dataclass(frozen=True)
class Lora:
    """One adapter, or several as one: ``scale · B A`` is added to each layer's weight.

    The ranks of several lie side by side in A and B, which is exact, and are told apart again when
    loaded.
    """

    scale: float
    """alpha / rank."""
    factors: dict[str, tuple[Tensor, Tensor]]
    """By layer: A ``[r, in]`` and B ``[out, r]``, r the sum of ``ranks``."""
    ranks: tuple[int, ...]
    """Of each adapter."""

    @property
    def rank(self) -> int:
        return sum(self.ranks)

    def apart(self) -> list[Lora]:
        """Each adapter."""
        split = {
            layer: (a.split(self.ranks), b.split(self.ranks, 1))
            for layer, (a, b) in self.factors.items()
        }
        return [
            Lora(self.scale, {layer: (a[i], b[i]) for layer, (a, b) in split.items()}, (rank,))
            for i, rank in enumerate(self.ranks)
        ]

    def config(self, base: Path | None = None) -> LoraConfig:
        """As peft describes it; ``base``: the folder of the model that it lies on."""
        source, revision = (None, None) if base is None else hub_name(base)
        return LoraConfig(
            r=self.rank,
            # a whole number unless a release says otherwise
            lora_alpha=self.scale * self.rank,  # type: ignore[arg-type]
            target_modules=sorted(self.factors),
            base_model_name_or_path=source,
            revision=revision,
            inference_mode=True,
        )

    def save(self, folder: Path, base: Path) -> None:
        """As ``PeftModel.from_pretrained`` loads it onto ``base``."""
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {}
        for layer, (down, up) in self.factors.items():
            tensors[f"{PEFT_PREFIX}{layer}.lora_A.weight"] = down.detach().cpu().contiguous()
            tensors[f"{PEFT_PREFIX}{layer}.lora_B.weight"] = up.detach().cpu().contiguous()
        ranks = " ".join(map(str, self.ranks))
        save_file(tensors, folder / ADAPTER_WEIGHTS, metadata={"format": "pt", RANKS: ranks})
        self.config(base).save_pretrained(str(folder))

    @classmethod
    def load(cls, folder: Path) -> Lora:
        """What ``save`` wrote."""
        with naming_files(folder, "an adapter", ADAPTER_CONFIG, ADAPTER_WEIGHTS):
            return cls._read(folder)

    @classmethod
    def _read(cls, folder: Path) -> Lora:
        config, tensors = read_json(folder / ADAPTER_CONFIG), read_tensors(folder / ADAPTER_WEIGHTS)
        names = [
            name.removesuffix(".lora_A.weight")
            for name in tensors
            if name.endswith(".lora_A.weight")
        ]
        factors = {
            name.removeprefix(PEFT_PREFIX): (
                tensors[f"{name}.lora_A.weight"],
                tensors[f"{name}.lora_B.weight"],
            )
            for name in names
        }
        with safe_open(folder / ADAPTER_WEIGHTS, "pt") as opened:
            ranks = (opened.metadata() or {}).get(RANKS, str(config["r"]))
        lora = cls(config["lora_alpha"] / config["r"], factors, tuple(map(int, ranks.split())))
        if 2 * len(factors) != len(tensors) or any(
            not len(a) == lora.rank == b.shape[1] for a, b in factors.values()
        ):
            raise ValueError(f"expected a pair of matrices of rank {config['r']} for each layer")
        return lora


class Adapters:
    """The adapters that lie on one model, put on by peft in place. ``active`` names those that
    count."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._peft: Any = None  # peft's view of the model, which it shares
        self.active: tuple[str, ...] = ()

    @property
    def before(self) -> tuple[str, ...]:
        """Those that count without what learns."""
        return tuple(name for name in self.active if name != LEARNING)

    def learn(self, rank: int, target_modules: Sequence[str]) -> None:
        """Put on one that learns; what counted until now is frozen."""
        self.freeze()
        config = LoraConfig(
            r=rank,
            lora_alpha=2 * rank,
            init_lora_weights="gaussian",
            target_modules=list(target_modules),
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(len(self.active))  # so that equal runs have equal weights
            self._add(LEARNING, config)
        self._activate((*self.active, LEARNING))

    def put(self, lora: Lora | None) -> None:
        """From now on this one counts, frozen, and no other; without one, none does."""
        self._activate(self.lay(lora))

    def lay(self, lora: Lora | None) -> tuple[str, ...]:
        """Put one on that does not count until ``only`` names it by what is answered.

        Raises:
            ValueError: when it fits no such model.
        """
        return tuple(self._lay(part) for part in lora.apart()) if lora else ()

    @torch.no_grad()
    def _lay(self, lora: Lora) -> str:
        name = f"frozen_{len(self._peft.peft_config) if self._peft is not None else 0}"
        layers = dict(self._model.named_modules())
        for layer, (down, up) in lora.factors.items():
            weight = getattr(layers.get(layer), "weight", None)
            if weight is None or tuple(weight.shape) != (len(up), down.shape[1]):
                raise ValueError(
                    f"expected an adapter of this model, but its layer {layer} ({len(up)} x "
                    f"{down.shape[1]}) fits none; give it the base it was trained on"
                )
        self._add(name, lora.config())
        self._activate(self.active)
        for layer, module in self._layers():
            if layer in lora.factors:
                module.lora_A[name].weight.copy_(lora.factors[layer][0])
                module.lora_B[name].weight.copy_(lora.factors[layer][1])
        return name

    def read(self, names: Sequence[str]) -> Lora | None:
        """The sum of these as one adapter: their ranks side by side, which is exact. None of
        none."""
        if not names:
            return None
        configs = [self._peft.peft_config[name] for name in names]
        scale = configs[0].lora_alpha / configs[0].r
        factors = {}
        for layer, module in self._layers():
            if not any(name in module.lora_A for name in names):
                continue
            pairs = [
                _factors(module, name, config.r, scale)
                for name, config in zip(names, configs, strict=True)
            ]
            factors[layer] = (
                torch.cat([down for down, _ in pairs]),
                torch.cat([up for _, up in pairs], 1),
            )
        return Lora(scale, factors, tuple(config.r for config in configs))

    def freeze(self) -> tuple[str, ...]:
        """What counts until now no longer learns; its names."""
        if LEARNING in self.active:
            self._activate(self.before + self.lay(self.read((LEARNING,))))
            self._peft.delete_adapter(LEARNING)
        return self.active

    @contextmanager
    def only(self, names: Sequence[str]) -> Iterator[None]:
        """In this context these count and no others."""
        active = self.active
        self._activate(tuple(names))
        try:
            yield
        finally:
            self._activate(active)

    def save(self, folder: Path, base: Path) -> None:
        """What counts, if anything does; an adapter of an earlier save gives way."""
        shutil.rmtree(folder, ignore_errors=True)
        lora = self.read(self.active)
        if lora is not None:
            lora.save(folder, base)

    def load(self, folder: Path) -> None:
        """What ``save`` wrote, in place of whatever counted."""
        self.put(Lora.load(folder) if folder.is_dir() else None)

    def merge(self) -> None:
        """Add what counts to the weights, in their dtype, and take all adapters off."""
        if self._peft is not None:
            self._peft.merge_and_unload(
                adapter_names=list(self.active)
            ) if self.active else self._peft.unload()
        self._peft, self.active = None, ()

    def merged(self, names: Sequence[str]) -> Any:
        """A copy of the model with these added to its weights, and no others."""
        return (
            copy.deepcopy(self._peft).merge_and_unload(adapter_names=list(names))
            if names
            else self.without(True)
        )

    def without(self, as_copy: bool = False) -> Any:
        """The model as its own library knows it: itself, or a copy that has no adapters."""
        if self._peft is not None:
            return copy.deepcopy(self._peft).unload()
        return copy.deepcopy(self._model) if as_copy else self._model

    def merged_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Each weight with what counts added to it, in its dtype, by its name without adapters, one
        at a time; tied ones under each name, sharded ones whole."""
        layers = dict(self._layers())
        for name, weight in self._model.named_parameters(remove_duplicate=False):
            if ".lora_" in name:
                continue
            layer = layers.get(name.removesuffix(".base_layer.weight"))
            merged = _whole(weight) if layer is None else self._merged(layer)
            yield name.replace(".base_layer.", "."), merged

    def _merged(self, layer: Any) -> Tensor:
        """The weight of one layer."""
        weight = _whole(layer.base_layer.weight)
        merged = weight.float()
        for name in self.active:
            if name in layer.lora_A:
                down, up = (_whole(half[name].weight) for half in (layer.lora_A, layer.lora_B))
                merged = merged + layer.scaling[name] * (up.float() @ down.float())
        return merged.to(weight.dtype)

    def _layers(self) -> list[tuple[str, Any]]:
        return [
            (name, module)
            for name, module in self._model.named_modules()
            if isinstance(module, LoraLayer)
        ]

    def _add(self, name: str, config: LoraConfig) -> None:
        if self._peft is None:
            self._peft = get_peft_model(self._model, config, adapter_name=name)  # type: ignore
        else:
            self._peft.add_adapter(name, config)

    def _activate(self, names: tuple[str, ...]) -> None:
        """These count; of them ``LEARNING`` alone learns."""
        self.active = names
        for _, module in self._layers():
            module.set_adapter(list(names), inference_mode=True)
            if LEARNING in names and LEARNING in module.lora_A:
                module.lora_A[LEARNING].requires_grad_(True)
                module.lora_B[LEARNING].requires_grad_(True)


def linear_layers(model: nn.Module) -> list[str]:
    """Names of all linear layers, as they are without adapters."""
    return [
        name.removesuffix(".base_layer")
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and ".lora_" not in name
    ]


def _factors(module: Any, name: str, rank: int, scale: float) -> tuple[Tensor, Tensor]:
    """A and B of one layer, B such that ``scale`` is theirs; zeros where the adapter leaves the
    layer alone."""
    if name not in module.lora_A:
        (width_out, width_in), device = module.weight.shape, module.weight.device
        return torch.zeros(rank, width_in, device=device), torch.zeros(
            width_out, rank, device=device
        )
    down, up = module.lora_A[name].weight.detach(), module.lora_B[name].weight.detach()
    return down, up * (module.scaling[name] / scale)


def _whole(tensor: Tensor) -> Tensor:
    """Without its gradient; gathered, where each process has a part of it."""
    tensor = tensor.detach()
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
