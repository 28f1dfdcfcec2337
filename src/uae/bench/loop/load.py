"""A model by its name, or a loop of two."""

from __future__ import annotations

from pathlib import Path

from uae.bench.loop.api import CaptionHalf, Loop, PaintHalf
from uae.bench.loop.halves import (
    CaptioningModel,
    EndpointCaptions,
    EndpointPictures,
    PaintingModel,
    WrittenCaptions,
)
from uae.models.base import UnifiedModel
from uae.utils.importing import import_named

ARROW, MODEL_MARK = "->", "#"
LOAD = "uae.models.load:load_model"  # no benchmark imports a model


def load_loop(source: str) -> UnifiedModel | Loop:
    """The model of a name, or the loop of two.

    Raises:
        ValueError: where a half is none.
    """
    if ARROW not in source:
        return import_named(LOAD, "loader")(source)
    captioner, _, painter = (part.strip() for part in source.partition(ARROW))
    if not captioner or not painter or ARROW in painter:
        raise ValueError(
            f"expected CAPTIONER {ARROW} PAINTER, got {source!r}; name one model, or two"
        )
    loaded: dict[str, UnifiedModel] = {}
    return Loop(_caption_half(captioner, loaded), _paint_half(painter, loaded))


def _caption_half(source: str, loaded: dict[str, UnifiedModel]) -> CaptionHalf:
    if (endpoint := _endpoint(source)) is not None:
        return EndpointCaptions(*endpoint)
    if Path(source).suffix in (".json", ".jsonl"):
        return WrittenCaptions(Path(source))
    return CaptioningModel(source, _loaded(source, loaded))


def _paint_half(source: str, loaded: dict[str, UnifiedModel]) -> PaintHalf:
    if (endpoint := _endpoint(source)) is not None:
        return EndpointPictures(*endpoint)
    return PaintingModel(source, _loaded(source, loaded))


def _loaded(source: str, loaded: dict[str, UnifiedModel]) -> UnifiedModel:
    if source not in loaded:
        loaded[source] = import_named(LOAD, "loader")(source)
    return loaded[source]


def _endpoint(source: str) -> tuple[str, str] | None:
    """URL#MODEL, if it is an address.

    Raises:
        ValueError: for an address without a model.
    """
    if not source.startswith(("http://", "https://")):
        return None
    url, mark, model = source.partition(MODEL_MARK)
    if not mark or not model:
        raise ValueError(f"expected URL{MODEL_MARK}MODEL of an endpoint, got {source}")
    return url, model
