"""Who writes captions: an endpoint (``endpoint.py``) or a model on this machine (``local.py``).

An annotator is one function, ``await annotator(file, attempt)`` → ``Answer``; ``attempt`` counts
from 0. It raises

* ``ImageRefused`` when it will never answer for this image (recorded, the rest goes on),
* ``NoAnswer`` when it may answer later (asked again by the next run),
* ``ValueError`` when no image can be captioned, such as a wrong key or an unknown model (everything
  stops).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

from uae.data.answers import Answer

Annotator = Callable[[Path, int], Awaitable[Answer]]
