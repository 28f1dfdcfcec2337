"""uae: Unified Multimodal Models as Auto-Encoders.

Understanding is the encoder (image -> caption), generation is the decoder (caption -> image), and
the similarity between an image and its reconstruction is both the reward (Unified-GRPO) and the
benchmark (Unified-Bench). Paper: arXiv 2509.09666.

>>> import torch
>>> from uae import autoencode, load_model, unified_score
>>> model = load_model("tiny")
>>> images = torch.rand(2, 3, 48, 48)
>>> captions, reconstructions = autoencode(model, images)
>>> len(captions.texts), tuple(reconstructions.images.shape)
(2, (2, 3, 48, 48))
>>> 0 <= unified_score(images, reconstructions.images, backbones="tiny") <= 100
True

Reading order: ``autoencode.py`` -> ``types.py`` -> ``rl/losses.py`` -> ``rl/train.py``.
"""

import os
import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from uae.autoencode import autoencode as autoencode
    from uae.bench.unified import unified_score as unified_score
    from uae.models.load import load_model as load_model

__version__ = "0.1.0"
__all__ = ["autoencode", "load_model", "unified_score"]

_MODULES = {
    "autoencode": "uae.autoencode",
    "load_model": "uae.models.load",
    "unified_score": "uae.bench.unified",
}

if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "KMP_BLOCKTIME"} & os.environ.keys():
    # Threads of GNU's OpenMP wait for each other by spinning, which beside other work takes up to
    # 70 times as long as the work itself (docs/performance.md). It is read when torch is loaded, so
    # a torch loaded before is as it was.
    os.environ["GOMP_SPINCOUNT"] = "1000"


class _Package(ModuleType):
    """Functions are loaded when they are asked for, so that ``import uae`` is instant. One keeps
    its name where a module of that name is imported, too: ``autoencode`` is the function."""

    def __getattr__(self, name: str) -> Any:
        if name not in _MODULES:
            raise AttributeError(f"module 'uae' has no attribute {name!r}")
        function = getattr(import_module(_MODULES[name]), name)
        super().__setattr__(name, function)
        return function

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *_MODULES})

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _MODULES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
