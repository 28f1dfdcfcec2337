"""Tensors that several processes have parts of, as files that each writes its own of: safetensors,
by ``torch.distributed.checkpoint``. They are read whole, by any number of processes."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import (
    HuggingFaceStorageReader,
    HuggingFaceStorageWriter,
)
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from uae.utils.files import fsync
from uae.utils.processes import noticing_outages, process_rank


def write_parts(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """What this process has of the ``DTensor``s among them; of the others one process writes each.
    All processes call it, in a folder that is there.

    Raises:
        OSError: a process could not write; all raise it.
    """
    writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
    try:
        with noticing_outages():
            save(dict(tensors), storage_writer=writer)
    except CheckpointException as error:
        rank, (cause, _) = next(iter(error.failures.items()))
        raise OSError(f"process {rank}: {cause}") from error
    for path in folder.glob(f"shard-{process_rank() + 1:05d}-*"):
        fsync(path)


def read_whole(folder: Path) -> dict[str, Tensor]:
    """All of them, on the CPU."""
    reader = HuggingFaceStorageReader(str(folder))
    described = reader.read_metadata().state_dict_metadata
    tensors = {
        name: torch.empty(each.size, dtype=each.properties.dtype)  # type: ignore[union-attr]
        for name, each in described.items()
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it reads alone
        load(tensors, storage_reader=reader, no_dist=True)
    return tensors
