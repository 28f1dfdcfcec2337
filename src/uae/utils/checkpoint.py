"""Run checkpoints that survive a kill, a full disk or a damaged file.

A checkpoint is a folder ``step_00000040/`` with one safetensors file per module, ``state.pt``
(optimiser, schedule, generators, sampler position: plain data, loaded with ``weights_only=True``)
and ``manifest.json`` (size and sha256 of each file). Of a model that is spread over processes
weights and moments are in ``parts/``, a file of each process. It is written under a temporary name,
flushed to disk and renamed; then ``latest`` is pointed at it. So at every moment the folder holds
the previous complete checkpoint, the new one, or both.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import warnings
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Mapping
from dataclasses import MISSING, asdict, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from uae.utils.files import disk_error, fsync, replace_text, sha256_of
from uae.utils.progress import phase
from uae.utils.sharded_files import read_whole

PARTS, MOMENTS = "parts", "moments"
LATEST, MANIFEST, STATE = "latest", "manifest.json", "state.pt"
_UNFINISHED, _REPLACED = ".tmp_", ".old_"
_PLAIN_TYPES = (bool, int, float, str, bytes, type(None), torch.dtype, torch.device, torch.Size)


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint, read; all tensors are on the CPU."""

    step: int
    path: Path
    weights: dict[str, dict[str, Tensor]]
    state: dict[str, Any]


@phase("saving a checkpoint")
def save_checkpoint(
    directory: Path | str,
    step: int,
    weights: Mapping[str, Mapping[str, Tensor]],
    state: Mapping[str, Any],
    keep_last: int = 2,
    write_parts: Callable[[Path], None] | None = None,
) -> Path:
    """Write the checkpoint of ``step`` and drop all but the last ``keep_last``; on failure the
    others are untouched.

    weights: state dicts by module name, e.g. ``{"encoder_lora": ...}``. state: all else that
    resuming needs. write_parts: what else to write, into the folder that it is given.
    """
    if keep_last < 1:
        raise ValueError(f"keep_last must be at least 1, got {keep_last}")
    _check_plain(state, "state")
    directory = Path(directory)
    target = directory / f"step_{step:08d}"
    unfinished = target.with_name(f"{_UNFINISHED}{target.name}")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        _clean(directory)
        unfinished.mkdir()
        if write_parts is not None:
            (unfinished / PARTS).mkdir()
            write_parts(unfinished / PARTS)
        _write_files(unfinished, step, weights, state)
        _publish(unfinished, target)
        replace_text(directory / LATEST, f"{target.name}\n")
    except (OSError, SafetensorError) as error:
        _clean(directory)
        raise disk_error(
            f"the checkpoint of step {step}", directory, error, _untouched(directory)
        ) from error
    _prune(directory, step, keep_last)
    return target


def unfinished_parts(directory: Path, step: int) -> Path:
    """Where the parts of a checkpoint are written."""
    return directory / f"{_UNFINISHED}step_{step:08d}" / PARTS


def load_latest(directory: Path | str) -> Checkpoint | None:
    """The newest complete checkpoint, each file verified; None if there is none yet.

    A damaged one is skipped with a warning. If all are damaged this raises: a run must not silently
    start over.
    """
    directory = Path(directory)
    if not directory.is_dir():
        return None
    _clean(directory)
    problems = []
    for path in _candidates(directory):
        problem = find_damage(path)
        if problem is None:
            return _read(path)
        problems.append(f"{path}: {problem}")
        warnings.warn(f"skipping the damaged checkpoint {path}: {problem}", stacklevel=2)
    if problems:
        raise ValueError(
            "no checkpoint can be resumed, each is damaged:\n  " + "\n  ".join(problems) + "\n"
            "Restore one from a backup, or give another output folder to start over."
        )
    return None


def find_damage(path: Path) -> str | None:
    """What is wrong with this checkpoint folder, or None if every file is as it was written."""
    try:
        manifest = json.loads((path / MANIFEST).read_text())
        for name, expected in manifest["files"].items():
            size = (path / name).stat().st_size
            if size != expected["size"]:
                return f"{name} has {size} bytes, expected {expected['size']}"
            if sha256_of(path / name).hex() != expected["sha256"]:
                return f"{name} has the right size but other content than was written"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def capture_rng(**generators: torch.Generator) -> dict[str, Any]:
    """The state of the global generators (python, numpy, torch CPU and CUDA) and of any given by
    name."""
    # the state that other libraries draw from
    algorithm, keys, *rest = np.random.get_state()  # noqa: NPY002
    return {
        "python": random.getstate(),
        "numpy": (algorithm, np.asarray(keys).tolist(), *rest),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "generators": {name: generator.get_state() for name, generator in generators.items()},
    }


def restore_rng(saved: Mapping[str, Any], **generators: torch.Generator) -> None:
    """Put every generator back to where ``capture_rng`` found it."""
    random.setstate(saved["python"])
    np.random.set_state(saved["numpy"])  # noqa: NPY002
    torch.set_rng_state(saved["torch"])
    for device in range(min(len(saved["cuda"]), torch.cuda.device_count())):
        torch.cuda.set_rng_state(saved["cuda"][device], device)
    for name, generator in generators.items():
        generator.set_state(saved["generators"][name])


def check_same_config(
    saved: Mapping[str, Any],
    current: Mapping[str, Any],
    may_change: Collection[str] = (),
    defaults: Mapping[str, Any] | None = None,
) -> None:
    """A ValueError naming every setting that differs from the run being resumed. A run of an
    earlier release lacks later settings: those are as they were then while they are None, False or
    at their default.

    may_change: dotted paths that may differ, e.g. ``{"num_steps", "save_every"}``. defaults: of
    settings, nested as in ``current``; see ``defaults_of``.
    """
    before, now, default = _flatten(saved), _flatten(current), _flatten(defaults or {})
    unset = {
        path
        for path in now.keys() - before.keys()
        if now[path] is None or now[path] is False or now[path] == default.get(path)
    }
    differing = [
        path
        for path in sorted((before.keys() | now.keys()) - set(may_change) - unset)
        if path not in before or path not in now or before[path] != now[path]
    ]
    if differing:
        lines = [
            f"  {path}: was {_show(before, path)}, now {_show(now, path)}" for path in differing
        ]
        raise ValueError(
            "cannot resume, the run was started with other settings:\n" + "\n".join(lines) + "\n"
            "Give the settings it was started with, or another output folder for a new run."
            + (f" Free to change: {', '.join(sorted(may_change))}." if may_change else "")
        )


def defaults_of(settings: Any) -> dict[str, Any]:
    """The defaults of a dataclass's fields, nested as ``asdict`` has them; fields without one are
    left out."""
    values = {
        field.name: field.default if field.default_factory is MISSING else field.default_factory()
        for field in fields(settings)
    }
    return {
        name: asdict(value) if is_dataclass(value) and not isinstance(value, type) else value
        for name, value in values.items()
        if value is not MISSING
    }


def _write_files(
    folder: Path, step: int, weights: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]
) -> None:
    for name, tensors in weights.items():
        # A copy of each: safetensors refuses tensors that share memory, such as tied embeddings.
        copies = {
            key: tensor.detach().to("cpu", copy=True).contiguous()
            for key, tensor in tensors.items()
        }
        save_file(copies, folder / f"{name}.safetensors")
    _save_state(folder / STATE, state)
    files = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        fsync(path)
        name = str(path.relative_to(folder))
        files[name] = {"size": path.stat().st_size, "sha256": sha256_of(path).hex()}
    replace_text(folder / MANIFEST, json.dumps({"step": step, "files": files}, indent=2))


def _save_state(path: Path, state: Mapping[str, Any]) -> None:
    try:
        with open(path, "wb") as file:
            torch.save(dict(state), file)
    except RuntimeError as error:  # how torch reports a failed write; the cause is its context
        raise error.__context__ if isinstance(error.__context__, OSError) else error from None


def _publish(unfinished: Path, target: Path) -> None:
    """Rename into place. A checkpoint of the same step steps aside first; ``_clean`` puts it back
    after a kill."""
    aside = target.with_name(f"{_REPLACED}{target.name}")
    if target.exists():
        os.rename(target, aside)
    os.rename(unfinished, target)
    fsync(target.parent)
    shutil.rmtree(aside, ignore_errors=True)


def _clean(directory: Path) -> None:
    """Undo what a killed save left behind: drop unfinished folders, put back a replaced one whose
    heir is missing."""
    for path in directory.glob(f"{_UNFINISHED}*"):
        shutil.rmtree(path, ignore_errors=True)
    for path in directory.glob(f"{_REPLACED}*"):
        heir = directory / path.name.removeprefix(_REPLACED)
        if heir.exists():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):  # reading from a folder we may not write in
                os.rename(path, heir)


def _prune(directory: Path, step: int, keep_last: int) -> None:
    """Drop the older ones; the checkpoint just written always stays."""
    older = [path for path in _folders(directory) if _step_of(path) < step]
    for path in older[keep_last - 1 :]:
        doomed = path.with_name(f"{_UNFINISHED}{path.name}")
        os.rename(path, doomed)
        shutil.rmtree(doomed, ignore_errors=True)


def _folders(directory: Path) -> list[Path]:
    """Checkpoint folders, newest step first."""
    return sorted(
        (path for path in directory.glob("step_*") if path.is_dir()), key=_step_of, reverse=True
    )


def _candidates(directory: Path) -> list[Path]:
    """The one ``latest`` names, then all others from the newest."""
    folders, pointer = _folders(directory), directory / LATEST
    named = pointer.read_text(errors="replace").strip() if pointer.is_file() else ""
    return sorted(folders, key=lambda path: path.name != named)


def _step_of(path: Path) -> int:
    digits = path.name.removeprefix("step_")
    return int(digits) if digits.isdecimal() else -1


def _read(path: Path) -> Checkpoint:
    manifest = json.loads((path / MANIFEST).read_text())
    names = [
        name.removesuffix(".safetensors")
        for name in manifest["files"]
        if name.endswith(".safetensors") and not name.startswith(PARTS)
    ]
    weights = {name: load_file(path / f"{name}.safetensors") for name in names}
    state = torch.load(path / STATE, map_location="cpu", weights_only=True)
    if (path / PARTS).is_dir():
        weights = _of_parts(path / PARTS, state)
    return Checkpoint(manifest["step"], path, weights, state)


def _of_parts(folder: Path, state: dict[str, Any]) -> dict[str, dict[str, Tensor]]:
    """Weights, by module; moments are put into the optimiser's state."""
    weights: dict[str, dict[str, Tensor]] = {}
    for key, tensor in read_whole(folder).items():
        module, name = key.split("/", 1)
        weights.setdefault(module, {})[name] = tensor
    for key, tensor in weights.pop(MOMENTS, {}).items():
        number, name = key.split(".", 1)
        state["optimizer"]["state"][int(number)][name] = tensor
    return weights


def _untouched(directory: Path) -> str:
    existing = _candidates(directory) if directory.is_dir() else []
    return (
        f"The previous checkpoint {existing[0].name} is untouched: resume from it. "
        if existing
        else ""
    )


def _check_plain(value: Any, path: str) -> None:
    """Refuse at saving what ``weights_only=True`` would refuse at resuming."""
    if isinstance(value, Tensor) or type(value) in _PLAIN_TYPES:
        return
    if type(value) in (dict, OrderedDict, Counter):
        for key, item in value.items():
            _check_plain(item, f"{path}.{key}")
    elif type(value) in (list, tuple):
        for index, item in enumerate(value):
            _check_plain(item, f"{path}[{index}]")
    else:
        raise ValueError(
            f"{path} is a {type(value).__name__}; a checkpoint holds tensors, numbers, text, "
            "lists, dicts"
        )


def _flatten(config: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted path to value, with tuples as lists and paths as text."""

    def walk(value: Any, path: str) -> dict[str, Any]:
        if not isinstance(value, dict) or not value:
            return {path: value}
        return {
            p: v
            for key, item in value.items()
            for p, v in walk(item, f"{path}.{key}" if path else key).items()
        }

    return walk(json.loads(json.dumps(config, default=str)), "") if config else {}


def _show(flat: dict[str, Any], path: str) -> str:
    return repr(flat[path]) if path in flat else "not set"
