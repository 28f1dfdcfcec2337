"""Which model was measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from uae.models.origin import SHIPPED, Base, checksum
from uae.utils.progress import phase


@phase("reading which weights the model has")
def provenance(source: str, model: Any) -> dict[str, Any]:
    """The source as it was asked for, the family, and the identity of the weights: of a folder its
    own files, else of each checkpoint that the model was loaded from."""
    folder = SHIPPED.get(source, Path(source).expanduser())
    if folder.is_dir():
        weights = [checksum(folder)]
    else:
        weights = [Base.of(origin, Path()).weights for origin in model.origin]
    return {"source": source, "family": model.family, "weights": weights}
