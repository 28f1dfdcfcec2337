"""Checkpoints of the hub: REPOSITORY, or REPOSITORY@REVISION, as a folder on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from uae.utils.progress import phase

MODEL_FILES = ("*.json", "*.safetensors", "*.txt", "*.jinja", "*.model")


def fetch(source: str, what: str, files: Sequence[str] = MODEL_FILES) -> Path:
    """The folder itself, or that of the hub's cache, downloaded if need be.

    Raises:
        ValueError: saying why it can't be had.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError

    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    repository, _, revision = source.partition("@")
    try:
        with phase(f"fetching {source}"):
            folder = snapshot_download(
                repository,
                revision=revision or None,
                allow_patterns=list(files),
                ignore_patterns="*.fp16*",
            )
        return Path(folder)
    except GatedRepoError as error:
        raise ValueError(
            f"{what} {source} is gated and this account has no access; accept its terms at https://"
            f"huggingface.co/{repository}, then `hf auth login` or set HF_TOKEN"
        ) from error
    except (HFValidationError, RepositoryNotFoundError) as error:
        raise ValueError(
            f"{what} {source}: expected a folder or a hub id, but there is neither; check the "
            "name, or run `hf auth login` if it is private"
        ) from error
    except (
        Exception
    ) as error:  # of several libraries; every one means that the weights can't be had
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"{what} {source} is neither a folder here nor in the local cache, and the hub can't "
            f"be reached ({reason}); check the connection or give a folder"
        ) from error
