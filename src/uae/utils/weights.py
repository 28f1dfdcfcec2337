"""The one way in for a model folder's files: what is cut short, missing, of another model or NaN is
refused by name.

Libraries tell of a damaged file in exceptions of a dozen kinds, read a missing ``config.json`` as
that of another model, and start weights that a file lacks at random. So configurations are parsed
before a library sees them, weights are counted and looked at after, and what is raised in between
is looked for in the files.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from uae.utils.finite import is_finite
from uae.utils.messages import first_line
from uae.utils.progress import phase

CONFIG, INDEX = "config.json", ".index.json"
STEM, DIFFUSION_STEM = "model", "diffusion_pytorch_model"
CONFIGS = (
    CONFIG,
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "scheduler_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.json",
)
"""Read by the libraries if they are there, some of them in silence if they can't be."""
TORCH_SUFFIXES = (".bin", ".pt", ".pth")
MAY_BE_EMPTY = ("special_tokens_map.json", "added_tokens.json")
VOCABULARIES, TOKENIZER_CONFIG = ("tokenizer.json", "vocab.json"), "tokenizer_config.json"
TEMPLATE = "chat_template.jinja"
TEMPLATE_FILES = (TEMPLATE, "chat_template.json", TOKENIZER_CONFIG, *VOCABULARIES)
SCHEDULER_CONFIG = "scheduler_config.json"
DESCRIPTION = "uae.json"
NOT_WEIGHTS = ("position_ids", "inv_freq", "num_batches_tracked")
"""Last parts of the names of buffers that older releases stored and newer ones compute."""
AGAIN = "download or copy it again"
SINGLE = ("F64", "F32")  # as safetensors calls what is computed with in fp32; all else in bf16
NUM_NAMED = 3  # weights, of those that are missing


class ModelFileError(ValueError):
    """A model's file can't be used; the message names it and says what to do."""


# --- models --------------------------------------------------------------------------------------


def load_pretrained(
    model_class: Any, folder: Path, dtype: torch.dtype | None = None, **options: Any
) -> Any:
    """``from_pretrained`` of a class of ``transformers`` or ``diffusers``, with all its weights and
    no others.

    dtype: None leaves the weights as they are stored.

    Raises:
        ModelFileError: naming the file, or the weights, that do not do.
    """
    is_transformers = any(
        parent.__module__.startswith("transformers.") for parent in model_class.__mro__
    )
    with naming_files(folder, model_class.__name__, CONFIG):
        files = weight_files(folder, STEM if is_transformers else DIFFUSION_STEM)
        for file in files:
            check_weight_file(file)
        if is_transformers:
            check_size(model_class, folder, files)
        if files[0].suffix == ".bin":
            options["use_safetensors"] = False
        options |= {"dtype" if is_transformers else "torch_dtype": dtype or stored_dtype(folder)}
        options |= {
            "local_files_only": True,
            "output_loading_info": True,
            "ignore_mismatched_sizes": True,
        }
        with phase(f"loading {model_class.__name__}"):
            model, info = model_class.from_pretrained(folder, **options)
    check_loaded(model, info, folder)
    check_finite(model.state_dict(), folder)
    return model


def stored_dtype(folder: Path) -> torch.dtype:
    """What to compute in with a folder's weights: fp32 where its largest tensor is stored so, else
    bf16."""
    sizes: dict[str, int] = {}
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - no mapping
                part = tensors.get_slice(name)
                dtype, size = part.get_dtype(), math.prod(part.get_shape())
                sizes[dtype] = max(sizes.get(dtype, 0), size)
    largest = max(sizes, key=sizes.__getitem__, default="")
    return torch.float32 if largest in SINGLE else torch.bfloat16


def check_size(model_class: Any, folder: Path, files: list[Path]) -> None:
    """Refuse a configuration of far more weights than the files hold, before memory is taken for
    them.

    What a configuration does not say the library takes from its default, a model of 75B.
    """
    with torch.device("meta"):
        model = model_class(model_class.config_class.from_pretrained(folder, local_files_only=True))
    described = sum(parameter.numel() for parameter in model.parameters())
    stored = sum(file.stat().st_size for file in files)
    if described > stored:  # a byte a weight is less than any file has
        raise ModelFileError(
            f"{folder / CONFIG}: expected the configuration of the {stored:,} bytes of weights "
            f"beside it, got one of {described:,} weights; {AGAIN}"
        )


def check_loaded(model: nn.Module, info: Mapping[str, Any], folder: Path) -> None:
    """Refuse weights that are missing, of another shape, or of layers that the model does not have.

    Weights beside the model, as a head for classification, are passed over.
    """
    name = type(model).__name__
    if mismatched := sorted(set(info["mismatched_keys"])):
        shapes = [
            f"{weight} {tuple(stored)} in place of {tuple(expected)}"
            for weight, stored, expected in mismatched
        ]
        raise ModelFileError(
            f"{folder}: expected the weights of a {name} of its {CONFIG}, {len(shapes)} have "
            f"another shape ({_some(shapes)}); take both from one model"
        )
    weights = model.state_dict().items()
    in_no_file = (weight for weight, tensor in weights if tensor.is_meta)  # but in an index
    if missing := sorted({*info["missing_keys"], *in_no_file}):
        raise ModelFileError(
            f"{folder}: expected all weights of {name}, {len(missing)} are missing "
            f"({_some(missing)}); take weights and {CONFIG} from one model, whole"
        )
    parts = {part for part, _ in model.named_children()}
    surplus = sorted(key for key in info["unexpected_keys"] if key.partition(".")[0] in parts)
    if surplus := [key for key in surplus if key.rpartition(".")[2] not in NOT_WEIGHTS]:
        raise ModelFileError(
            f"{folder}: expected the weights of a {name} of its {CONFIG}, {len(surplus)} belong to "
            f"no part of it ({_some(surplus)}); take both from one model"
        )


def _some(names: list[str]) -> str:
    return ", ".join(names[:NUM_NAMED]) + (", …" if len(names) > NUM_NAMED else "")


def check_finite(tensors: Mapping[str, Tensor], source: Path) -> None:
    """Refuse NaN and infinity in any weight: what comes of them is black pictures and gibberish."""
    not_finite = [name for name, tensor in tensors.items() if not is_finite(tensor)]
    if not_finite:
        raise ModelFileError(
            f"{source}: expected finite weights, got NaN or infinity in {len(not_finite)} of "
            f"{len(tensors)} tensors ({_some(not_finite)}); take it from a sound checkpoint"
        )


# --- files ---------------------------------------------------------------------------------------


def load_part(part_class: Any, folder: Path, *files: str, **options: Any) -> Any:
    """``from_pretrained`` of what has no weights: a tokenizer, scheduler or processor.

    files: what it is read from; one of them at least must be there.
    """
    with naming_files(folder, part_class.__name__, *files):
        return part_class.from_pretrained(folder, local_files_only=True, **options)


def load_tokenizer(tokenizer_class: Any, folder: Path, **options: Any) -> Any:
    """As ``load_part``, of a tokenizer or a processor that has one, which the library makes up
    without a vocabulary."""
    if not _present(folder, VOCABULARIES):
        raise ModelFileError(
            f"{folder}: expected {' or '.join(VOCABULARIES)} of {tokenizer_class.__name__}, found "
            f"none; {AGAIN}"
        )
    return load_part(tokenizer_class, folder, *VOCABULARIES, TOKENIZER_CONFIG, **options)


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file."""
    check_is_file(file)
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ModelFileError(
            f"{file} is cut short or not JSON ({_reason(error)}); {AGAIN}"
        ) from error
    if not isinstance(content, dict):
        raise ModelFileError(
            f"{file}: expected a JSON object, got {type(content).__name__}; {AGAIN}"
        )
    return content


def read_tensors(file: Path) -> dict[str, Tensor]:
    """The finite tensors of a ``.safetensors`` file or a state dict of ``torch``; nothing else is
    unpickled."""
    check_is_file(file)
    try:
        tensors = _load_tensors(file)
    except Exception as error:  # of several libraries; each means that the file can't be read
        raise ModelFileError(
            f"{file} is cut short or not what its name says ({_reason(error)}); {AGAIN}"
        ) from error
    if not isinstance(tensors, dict) or not all(
        isinstance(tensor, Tensor) for tensor in tensors.values()
    ):
        raise ModelFileError(
            f"{file}: expected tensors by name, got {type(tensors).__name__}; {AGAIN}"
        )
    check_finite(tensors, file)
    return tensors


def _load_tensors(file: Path) -> Any:
    if file.suffix == ".safetensors":
        return load_file(file)
    return torch.load(file, weights_only=True, map_location="cpu")


def check_is_file(file: Path) -> None:
    if file.is_file():
        return
    if file.is_dir():
        kind = "a folder"
    else:
        kind = "a link to nothing" if file.is_symlink() else "nothing there"
    raise ModelFileError(f"{file}: expected a file, found {kind}{variants_of(file)}; {AGAIN}")


def weight_files(folder: Path, stem: str) -> list[Path]:
    """The files that the library takes, out of several that may lie there; those its index names
    included.

    ``transformers`` takes a whole file before an index, ``diffusers`` the other way round.
    """
    whole, index = f"{stem}.safetensors", f"{stem}.safetensors{INDEX}"
    if stem == STEM:
        names = (whole, index, "pytorch_model.bin", f"pytorch_model.bin{INDEX}")
    else:
        names = (index, whole, f"{stem}.bin")
    file = next(iter(_present(folder, names)), folder / whole)
    return shards_of(file) if file.name.endswith(INDEX) else [file]


def variants_of(file: Path) -> str:
    """What may be said beside the name of a weight file that is not there: what lies there in its
    place."""
    others = sorted(other.name for other in file.parent.glob(f"{file.stem}.*{file.suffix}"))
    shards = sorted(other.name for other in file.parent.glob(f"{file.stem}-*-of-*{file.suffix}"))
    if shards:
        return f" ({shards[0]} is there, but not {file.name}{INDEX})"
    return f" ({', '.join(others)} is there: rename it)" if others else ""


def shards_of(index: Path) -> list[Path]:
    """The files that an index names."""
    names = read_json(index).get("weight_map")
    if (
        not isinstance(names, dict)
        or not names
        or not all(isinstance(name, str) for name in names.values())
    ):
        raise ModelFileError(
            f"{index}: expected weight_map, the file of each weight, got {names!r:.40}; {AGAIN}"
        )
    return [index.parent / name for name in sorted(set(names.values()))]


def check_weight_file(file: Path) -> None:
    """Is it there, and as long as its header says? No weights are read."""
    check_is_file(file)
    if file.suffix != ".safetensors":
        return
    try:
        with safe_open(file, "pt"):
            pass
    except (SafetensorError, OSError) as error:
        raise ModelFileError(
            f"{file} is cut short or not safetensors ({_reason(error)}); {AGAIN}"
        ) from error


# --- what went wrong -----------------------------------------------------------------------------


@contextmanager
def naming_files(folder: Path, part: str, *files: str) -> Iterator[None]:
    """Whatever a library raises as it reads ``part`` from a folder becomes one line with the name
    of the file.

    files: what it is read from; one of them at least must be there.
    """
    if not any((folder / file).exists() for file in files):
        raise ModelFileError(
            f"{folder}: expected {' or '.join(files)} of {part}, found none; {AGAIN}"
        )
    for file in _present(folder, CONFIGS):
        if not read_json(file) and file.name not in MAY_BE_EMPTY:
            raise ModelFileError(f"{file}: expected settings, got an empty object; {AGAIN}")
    for file in _present(folder, (TEMPLATE,)):
        read_text(file)
    try:
        yield
    except (ModelFileError, ImportError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # of several libraries; each means that the folder can't be read
        for file in sorted(folder.iterdir()):
            check_any(file)
        raise ModelFileError(
            f"{folder}: {' or '.join(files)} can't be read as {part} ({_reason(error)}); "
            "take all files from one checkpoint"
        ) from error


def _present(folder: Path, names: Iterable[str]) -> list[Path]:
    return [folder / name for name in names if os.path.lexists(folder / name)]


def check_any(file: Path) -> None:
    """Refuse a file that is damaged, by what its name says it is."""
    if file.suffix == ".json":
        read_json(file)
    elif file.suffix == ".safetensors":
        check_weight_file(file)
    elif file.suffix in TORCH_SUFFIXES:
        read_tensors(file)
    elif file.suffix in (".txt", ".jinja"):
        read_text(file)


def read_text(file: Path) -> str:
    check_is_file(file)
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ModelFileError(
            f"{file}: expected text in UTF-8 ({_reason(error)}); {AGAIN}"
        ) from error


def _reason(error: BaseException) -> str:
    return first_line(error).rstrip(".:")


def hub_revision(folder: Path) -> str | None:
    """The commit that a folder of the hub's cache is named after."""
    parts = folder.parts
    after = parts[parts.index("snapshots") + 1 :] if "snapshots" in parts else ()
    return after[0] if after and re.fullmatch(r"[0-9a-f]{40}", after[0]) else None
