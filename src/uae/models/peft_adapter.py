"""Adapters as ``peft`` writes them, put onto a model of today's class: as they are, or merged by
``peft`` itself.

Plain LoRA, pairs of matrices on linear layers, stays beside the weights. What also changes the base
(biases, copies of whole modules, embeddings, rows of tokens, DoRA, starts such as PiSSA) is loaded
and merged by ``peft``, in fp32. What can't be merged, or is no LoRA, is refused by name.

A release of the class may have named its layers otherwise. So names are looked up in the model, and
the configuration is written anew for exactly the layers that the file has: patterns, regular
expressions and short names in it were written for the names of the time.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
from peft.utils.other import get_pattern_key
from torch import Tensor, nn

from uae.models.lora import ADAPTER_WEIGHTS, PEFT_PREFIX, Adapters, Lora
from uae.models.origin import ADAPTER_CONFIG
from uae.utils.weights import AGAIN, ModelFileError, naming_files, read_json, read_tensors

ADAPTER_FILES = (ADAPTER_WEIGHTS, "adapter_model.bin")
REFUSED_OPTIONS = (
    "layer_replication",
    "target_parameters",
    "alora_invocation_tokens",
    "use_qalora",
    "arrow_config",
    "use_bdlora",
    "monteclora_config",
    "kasa_config",
    "megatron_config",
)
"""Options of LoRA that do more than change weights that are there."""
REFUSED_STARTS = ("pissa_niter", "corda", "loftq", "lora_ga")
"""Values of ``init_lora_weights`` that changed the base by chance, or by data that the adapter does
not hold."""
CHANGING = ("use_dora", "lora_bias", "modules_to_save", "trainable_token_indices")
"""Options that do more than add a product to a weight."""
PLAIN_STARTS = (True, False, "gaussian", "eva", "orthogonal")
"""Values of ``init_lora_weights`` that leave the base as it is."""
FACTOR = re.compile(r"lora_(embedding_)?A(\.weight)?")
OF_A_MODULE = re.compile(r"lora_.+|(base_layer\.)?(weight|bias)|token_adapter\..+")
RENAMED = (
    (r"^transformer\.", ""),
    (r"^(model|language_model\.model)\.(?=layers|embed_tokens|norm)", "model.language_model."),
    (r"^language_model\.(?=lm_head)", ""),
    (r"^(?=visual|language_model)", "model."),
    (r"^", "model."),
)
"""How releases named parts of the same class, and how they are named now."""


@dataclass(frozen=True)
class PeftAdapter:
    """One that was read and fits its model."""

    folder: Path
    config: LoraConfig
    """For this model's names: target modules, ranks and alphas one by one."""
    tensors: dict[str, Tensor]
    """By this model's names, behind ``PEFT_PREFIX``."""
    layers: dict[str, float]
    """The layers it adds a product to, and its scale on each."""

    @property
    def is_plain(self) -> bool:
        """Pairs of matrices on linear layers and nothing else."""
        changes = self.config.bias != "none" or any(
            getattr(self.config, option) for option in CHANGING
        )
        pairs = {
            f"{PEFT_PREFIX}{layer}.lora_{half}.weight" for layer in self.layers for half in "AB"
        }
        return (
            not changes
            and self.config.init_lora_weights in PLAIN_STARTS
            and pairs == self.tensors.keys()
        )

    def as_lora(self) -> Lora:
        """A plain one with one scale and rank for all layers: smaller ranks are filled up with
        zeros."""
        assert self.is_plain
        scale = max(self.layers.values())
        pairs = {
            layer: (
                self.tensors[f"{PEFT_PREFIX}{layer}.lora_A.weight"].float(),
                self.tensors[f"{PEFT_PREFIX}{layer}.lora_B.weight"].float() * (own / scale),
            )
            for layer, own in self.layers.items()
        }
        rank = max(len(down) for down, _ in pairs.values())
        factors = {
            layer: (
                nn.functional.pad(down, (0, 0, 0, rank - len(down))),
                nn.functional.pad(up, (0, rank - len(down))),
            )
            for layer, (down, up) in pairs.items()
        }
        return Lora(scale, factors, (rank,))


def put_on(adapters: Adapters, model: nn.Module, folder: Path) -> None:
    """A folder's adapter onto a model: beside its weights if it is plain, else merged into them."""
    adapter = read_adapter(folder, model)
    if adapter.is_plain:
        adapters.put(adapter.as_lora())
    else:
        merge(model, adapter)


# --- reading -------------------------------------------------------------------------------------


def read_adapter(folder: Path, model: nn.Module) -> PeftAdapter:
    """The adapter in a folder, for this model.

    Raises:
        ModelFileError: naming the file that is damaged, the option that can't be merged, or the
            tensor that fits no layer.
    """
    config = _read_config(folder)
    file = _weights_of(folder)
    modules = dict(model.named_modules())
    tensors: dict[str, Tensor] = {}
    scales, ranks, alphas = {}, {}, {}
    for key, tensor in read_tensors(file).items():
        name = key.removeprefix(PEFT_PREFIX)
        layer, rest = _find(name, modules)
        if layer is None:
            raise ModelFileError(
                f"{file}: expected an adapter of this {type(model).__name__}, {key} fits none of "
                "its layers; take model and adapter from one release"
            )
        tensors[f"{PEFT_PREFIX}{layer}.{rest}"] = tensor
        if FACTOR.fullmatch(rest):
            before = name.removesuffix(f".{rest}")
            patterns = config.alpha_pattern or {}  # looked up as peft does
            key = get_pattern_key(list(patterns), before)
            rank, alpha = len(tensor), patterns.get(key, config.lora_alpha)
            ranks[layer], alphas[layer] = rank, alpha
            scales[layer] = alpha / (math.sqrt(rank) if config.use_rslora else rank)
    if not scales:
        raise ModelFileError(f"{file}: expected the pairs of matrices of LoRA, found none; {AGAIN}")
    _check_shapes(file, tensors, scales, modules)
    config.target_modules = set(scales)  # type: ignore[assignment]
    config.rank_pattern, config.alpha_pattern = ranks, alphas  # type: ignore[assignment]
    config.exclude_modules = config.layers_to_transform = config.layers_pattern = None
    return PeftAdapter(folder, config, tensors, scales)


def missing_of_adapter(folder: Path) -> list[str]:
    """Its files that are not there."""
    files = folder / ADAPTER_CONFIG, _weights_of(folder)
    return [file.name for file in files if not file.exists()]


def _weights_of(folder: Path) -> Path:
    """The file that is there, or should be."""
    files = [folder / name for name in ADAPTER_FILES]
    return next((file for file in files if file.exists()), files[0])


def _read_config(folder: Path) -> LoraConfig:
    content = read_json(folder / ADAPTER_CONFIG)
    if content.get("peft_type") != "LORA":
        raise ModelFileError(
            f"{folder / ADAPTER_CONFIG}: expected an adapter of LoRA, got "
            f"{content.get('peft_type')}; merge it with peft where it was trained and give the "
            "merged model"
        )
    if options := [option for option in REFUSED_OPTIONS if content.get(option)]:
        raise ModelFileError(
            f"{folder / ADAPTER_CONFIG}: expected LoRA that can be merged, got "
            f"{', '.join(options)}; merge it with peft where it was trained and give the merged "
            "model"
        )
    if str(content.get("init_lora_weights")).startswith(REFUSED_STARTS):
        raise ModelFileError(
            f"{folder / ADAPTER_CONFIG}: expected a start that the base can be given again, got "
            f"{content['init_lora_weights']}; convert it to plain LoRA by "
            "`save_pretrained(..., path_initial_model_for_weight_conversion=...)`"
        )
    with naming_files(folder, "an adapter's settings", ADAPTER_CONFIG):
        config: Any = LoraConfig.from_pretrained(str(folder))
        config.lora_alpha, config.alpha_pattern = (
            float(config.lora_alpha),
            dict(config.alpha_pattern or {}),
        )
    return config


def _find(name: str, modules: dict[str, nn.Module]) -> tuple[str | None, str]:
    """The module that a tensor belongs to, by its name now, and the tensor's own name in it."""
    parts = name.split(".")
    for end in range(len(parts) - 1, 0, -1):
        module, rest = ".".join(parts[:end]), ".".join(parts[end:])
        name_now = next((each for each in _names_now(module) if each in modules), None)
        if name_now is not None:
            return (name_now, rest) if OF_A_MODULE.fullmatch(rest) else (None, rest)
    return None, name


def _names_now(name: str) -> Iterator[str]:
    yield name
    for pattern, replacement in RENAMED:
        renamed = re.sub(pattern, replacement, name)
        yield renamed
        if pattern == RENAMED[0][0] and renamed != name:
            yield from _names_now(renamed)


def _check_shapes(
    file: Path, tensors: dict[str, Tensor], layers: dict[str, float], modules: dict[str, nn.Module]
) -> None:
    """Both halves of each pair, as wide as their linear layer."""
    for layer in layers:
        weight: Any = modules[layer].weight
        down, up = (tensors.get(f"{PEFT_PREFIX}{layer}.lora_{half}.weight") for half in "AB")
        is_linear = isinstance(modules[layer], nn.Linear)
        if is_linear and (
            down is None or up is None or (len(up), down.shape[1]) != tuple(weight.shape)
        ):
            raise ModelFileError(
                f"{file}: expected an adapter of this model, its pair for {layer} fits none of its "
                "linear layers; take model and adapter from one release"
            )


# --- merging -------------------------------------------------------------------------------------


def merge(model: Any, adapter: PeftAdapter) -> None:
    """Load and merge it by ``peft``, in place: the layers it changes in fp32, then back in their
    dtype."""
    dtypes = {
        name: parameter.dtype for name, parameter in model.named_parameters(remove_duplicate=False)
    }
    _untie(model, adapter)
    for layer in adapter.layers:
        model.get_submodule(layer).float()
    with (
        naming_files(adapter.folder, "an adapter of this model", ADAPTER_CONFIG, *ADAPTER_FILES),
        torch.random.fork_rng(devices=[]),
    ):
        adapted: Any = get_peft_model(model, adapter.config)
        result = set_peft_model_state_dict(adapted, adapter.tensors)
        missing = [name for name in result.missing_keys if ".lora_" in name]
        if unread := [*result.unexpected_keys, *missing]:
            raise ValueError(
                f"{len(unread)} of its tensors have no place in the model, or are missing: "
                f"{unread[0]}"
            )
        adapted.merge_and_unload(safe_merge=True)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        parameter.data = parameter.data.to(dtypes[name])
        parameter.requires_grad_(True)


def _untie(model: Any, adapter: PeftAdapter) -> None:
    """Give the output layer weights of its own, where the adapter changes it or the embeddings but
    not both alike."""
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    if head is None or head.weight is not model.get_input_embeddings().weight:
        return
    ends = [
        name.split(".")[-1]
        for name, module in model.named_modules()
        if module is head or module is model.get_input_embeddings()
    ]
    changed = [*adapter.layers, *(adapter.config.modules_to_save or ())]
    if adapter.config.ensure_weight_tying or not any(
        name.split(".")[-1] in ends for name in changed
    ):
        return
    head.weight = nn.Parameter(head.weight.detach().clone())
    for config in (model.config, model.config.get_text_config()):
        config.tie_word_embeddings = False
