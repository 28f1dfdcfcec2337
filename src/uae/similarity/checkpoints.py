"""Where a similarity backbone's weights come from: names, published checkpoints, cheap checks,
provenance.

A source is a hub id, a folder written by ``save_pretrained``, LongCLIP's ``.pt`` file, or ``tiny``
for the small backbone of the embedded world that ships with the package. ``check_backbone_source``
finds what is wrong with one (missing, gated, another architecture, no weights) without reading
weights, so that it can run before any work starts.
"""

from __future__ import annotations

import difflib
import hashlib
import re
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from uae.similarity.preprocess import read_preprocess
from uae.utils.assets import ASSETS
from uae.utils.files import sha256_of
from uae.utils.messages import first_line
from uae.utils.weights import (
    CONFIG,
    STEM,
    ModelFileError,
    check_weight_file,
    hub_revision,
    read_json,
    weight_files,
)

TINY = "tiny"
CLIP_TEXT_POSITIONS = 77


class BackboneError(ValueError):
    """A backbone's checkpoint can't be used; the message says what was expected, what came and what
    to do."""


@dataclass(frozen=True)
class Architecture:
    """What a backbone's name stands for."""

    published: str
    """Hub id of the checkpoint that published scores use."""
    model_type: str
    """``model_type`` of its ``config.json``."""
    published_file: str = CONFIG
    """The file whose presence shows that the published checkpoint is there."""


ARCHITECTURES = {
    "clip": Architecture("openai/clip-vit-large-patch14", "clip"),
    "longclip": Architecture("BeichenZhang/LongCLIP-L", "clip", published_file="longclip-L.pt"),
    "dinov2": Architecture("facebook/dinov2-large", "dinov2"),
    "dinov3": Architecture("facebook/dinov3-vitl16-pretrain-lvd1689m", "dinov3_vit"),
}


@dataclass(frozen=True)
class Provenance:
    """Which weights answered: enough to repeat a score."""

    name: str
    """Backbone name, one of ``ARCHITECTURES``."""
    source: str
    """Hub id, folder or file as it was given."""
    weights: str
    """``commit:<hash>`` of the hub repository, or ``sha256:<hash>`` of local weight files."""
    dtype: str
    """Floating-point type of the weights in memory."""
    versions: dict[str, str]
    """Library versions."""

    @property
    def fingerprint(self) -> str:
        """One string that differs whenever embeddings may differ."""
        return "/".join(
            [self.name, self.weights, self.dtype, *(f"{k}={v}" for k, v in self.versions.items())]
        )


def check_backbone_source(name: str, source: str | Path | None = None) -> None:
    """Raise ``BackboneError`` unless ``load_backbone(name, source)`` can be expected to work. Reads
    no weights."""
    architecture = architecture_of(name)
    source = str(source or architecture.published)
    path = local_path(name, source)
    if path.is_file():
        check_longclip_file(name, path)
    elif path.is_dir():
        check_folder(name, path)
    elif source == TINY:
        raise BackboneError(
            f"backbone {name}: expected the shipped weights at {path}, found none; "
            "install the package again or rebuild them with `make tiny`"
        )
    elif is_hub_id(source):
        check_hub(name, source)
    else:
        raise BackboneError(
            f"backbone {name}: expected a folder, a file or a hub id, "
            f"but {source} does not exist; published weights: {architecture.published}"
        )


def fetch_backbone(name: str, source: str | Path | None = None) -> Path:
    """The folder (or LongCLIP's ``.pt``) on this machine, downloaded if the source is a hub id."""
    from huggingface_hub import hf_hub_download, snapshot_download

    check_backbone_source(name, source)
    source = str(source or ARCHITECTURES[name].published)
    path = local_path(name, source)
    if path.exists():
        return path
    try:
        if (file := hub_file(name, source)) != CONFIG:
            return Path(hf_hub_download(source, file))
        folder = Path(
            snapshot_download(source, allow_patterns=["*.json", "*.safetensors", "*.txt"])
        )
    except Exception as error:
        raise hub_error(name, source, error) from error
    check_folder(name, folder)
    return folder


def architecture_of(name: str) -> Architecture:
    if name not in ARCHITECTURES:
        close = difflib.get_close_matches(name, ARCHITECTURES, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise BackboneError(
            f"expected a backbone out of {', '.join(ARCHITECTURES)}, got {name}{hint}"
        )
    return ARCHITECTURES[name]


def local_path(name: str, source: str) -> Path:
    return ASSETS / name if source == TINY else Path(source).expanduser()


def is_hub_id(source: str) -> bool:
    return re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", source) is not None


# --- on this machine -----------------------------------------------------------------------------


def check_longclip_file(name: str, file: Path) -> None:
    if name != "longclip" or file.suffix != ".pt":
        raise BackboneError(
            f"backbone {name}: expected a checkpoint folder, {file} is a file "
            "(only longclip loads from a file, its longclip-L.pt)"
        )
    if file.stat().st_size == 0:
        raise BackboneError(f"backbone {name}: {file} is empty; download it again")


def check_folder(name: str, folder: Path) -> None:
    """Configuration, architecture, weight files and preprocessing of a ``save_pretrained``
    folder."""
    config = read_config(name, folder)
    expected, got = ARCHITECTURES[name].model_type, config.get("model_type")
    if got != expected:
        raise BackboneError(
            f"backbone {name}: expected model_type {expected} in {folder / 'config.json'}, got "
            f"{got}; published weights: {ARCHITECTURES[name].published}"
        )
    positions = (config.get("text_config") or {}).get(
        "max_position_embeddings", CLIP_TEXT_POSITIONS
    )
    if name == "longclip" and positions <= CLIP_TEXT_POSITIONS:
        raise BackboneError(
            f"backbone {name}: expected LongCLIP's 248 text positions, {folder} has {positions}, "
            "as CLIP has; give it as backbone clip"
        )
    check_weight_files(name, folder)
    check_image_size(name, folder, config)


def read_config(name: str, folder: Path) -> dict:
    file = folder / CONFIG
    if not file.is_file():
        raise BackboneError(
            f"backbone {name}: expected config.json and weights in {folder}, found no config.json; "
            f"published weights: {ARCHITECTURES[name].published}"
        )
    try:
        return read_json(file)
    except ModelFileError as error:
        raise BackboneError(f"backbone {name}: {error}") from error


def check_image_size(name: str, folder: Path, config: dict) -> None:
    """CLIP's learnt positions fit one image size only; the DINO classes interpolate theirs."""
    try:
        crop = read_preprocess(folder).crop
    except (OSError, ValueError) as error:
        raise BackboneError(f"backbone {name}: {error}") from error
    size = (config.get("vision_config") or {}).get("image_size", 224)
    if config["model_type"] == "clip" and crop != size:
        raise BackboneError(
            f"backbone {name}: {folder} prepares images of {crop} pixels for a model of {size}"
        )


def check_weight_files(name: str, folder: Path) -> None:
    try:
        for file in weight_files(folder, STEM):
            check_weight_file(file)
    except ModelFileError as error:
        raise BackboneError(
            f"backbone {name}: {error}; published weights: {ARCHITECTURES[name].published}"
        ) from error


def weights_identity(path: Path) -> str:
    """The hub commit that the file cache is named after, or a hash over the weight files."""
    if (revision := hub_revision(path)) is not None:
        return f"commit:{revision}"
    digest = hashlib.sha256()
    for file in weight_files(path, STEM) if path.is_dir() else [path]:
        digest.update(sha256_of(file))
    return f"sha256:{digest.hexdigest()}"


def library_versions() -> dict[str, str]:
    return {package: version(package) for package in ("torch", "transformers")}


# --- on the hub ----------------------------------------------------------------------------------


def hub_file(name: str, repo: str) -> str:
    """The file that must be there: the published one, or a configuration in anybody else's
    conversion."""
    architecture = ARCHITECTURES[name]
    return architecture.published_file if repo == architecture.published else CONFIG


def check_hub(name: str, repo: str) -> None:
    """Is the repository in the local cache, or reachable and open to this user? One small
    request."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.utils import build_hf_headers

    file = hub_file(name, repo)
    if isinstance(try_to_load_from_cache(repo, file), str):
        return
    try:
        get_hf_file_metadata(hf_hub_url(repo, file), headers=build_hf_headers())
    except Exception as error:  # of several libraries; each means that the weights can't be had
        raise hub_error(name, repo, error) from error


def hub_error(name: str, repo: str, error: Exception) -> BackboneError:
    from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, LocalEntryNotFoundError
    from huggingface_hub.errors import RepositoryNotFoundError as NotFoundError

    page = f"https://huggingface.co/{repo}"
    if isinstance(error, BackboneError):
        return error
    if isinstance(error, GatedRepoError):
        problem = (
            f"{repo} is gated and this account has no access; request it at {page} (log in, "
            "accept the terms, wait for approval), then run `hf auth login` here or set "
            "HF_TOKEN"
        )
    elif isinstance(error, NotFoundError):
        problem = (
            f"{repo} is neither a folder here nor a repository on the hub; check the name, or "
            "run `hf auth login` if it is private"
        )
    elif isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
        problem = (
            f"{repo} has no {hub_file(name, repo)}; expected a checkpoint like "
            f"{ARCHITECTURES[name].published}"
        )
    else:
        problem = (
            f"{repo} is neither a folder here nor in the local cache, and the hub can't be "
            f"reached ({first_line(error)}); check the connection or give a folder"
        )
    return BackboneError(f"backbone {name}: {problem}")
