"""A page of round trips: source | caption | reconstruction, self-contained; all text is escaped."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from jinja2 import Environment

from uae.images.write import png_address
from uae.report.samples import Sample
from uae.utils.files import atomic_write_text

_PAGE = """<!doctype html><html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>Reconstructions</title><style>
body { font: 16px/1.5 system-ui, sans-serif; color-scheme: light dark;
       max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
figure { display: grid; grid-template-columns: 9rem 1fr 9rem; gap: 1rem; align-items: center;
         margin: 0 0 1rem }
img { width: 100%; image-rendering: {{ "pixelated" if small else "auto" }} } p.note { opacity: .75 }
</style></head><body><h1>Reconstructions</h1>{% if note %}<p class="note">{{ note }}</p>{% endif %}
{% for name, source, caption, reconstruction in rows %}<figure><img src="{{ source }}" alt="source">
<figcaption><small>{{ name }}</small><br>{{ caption or "(empty caption)" }}</figcaption>
<img src="{{ reconstruction }}" alt="reconstruction"></figure>
{% endfor %}</body></html>
"""


def write_gallery(path: Path, samples: Mapping[str, Sample], note: str = "") -> None:
    """Write the page of samples by name, whole or not at all."""
    rows = [
        (name, png_address(s.source), s.caption, png_address(s.reconstruction))
        for name, s in samples.items()
    ]
    small = all(max(s.source.shape[1:]) <= 128 for s in samples.values())
    template = Environment(autoescape=True).from_string(_PAGE)
    atomic_write_text(path, template.render(note=note, rows=rows, small=small))
