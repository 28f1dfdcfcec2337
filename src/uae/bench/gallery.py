"""A page of round trips: source | caption | reconstruction, self-contained; all text is escaped."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment

from uae.bench.report import png
from uae.bench.samples import Sample
from uae.utils.checkpoint import atomic_write_text

_PAGE = """<!doctype html><html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{{ title }}</title><style>
body { font: 16px/1.5 system-ui, sans-serif; color-scheme: light dark;
       max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
figure { display: grid; grid-template-columns: 9rem 1fr 9rem; gap: 1rem; align-items: center; margin: 0 0 1rem }
img { width: 100%; image-rendering: {{ "pixelated" if small else "auto" }} } p.note { opacity: .75 }
</style></head><body><h1>{{ title }}</h1>{% if note %}<p class="note">{{ note }}</p>{% endif %}
{% for s in samples %}<figure><img src="{{ s[0] }}" alt="source">
<figcaption>{{ s[1] or "(empty caption)" }}</figcaption>
<img src="{{ s[2] }}" alt="reconstruction"></figure>
{% endfor %}</body></html>
"""


def write_gallery(path: Path, samples: Sequence[Sample], note: str = "", title: str = "Reconstructions") -> None:
    """Write the page, whole or not at all."""
    rows = [(png(s.source), s.caption, png(s.reconstruction)) for s in samples]
    small = all(max(s.source.shape[1:]) <= 128 for s in samples)
    template = Environment(autoescape=True).from_string(_PAGE)
    atomic_write_text(path, template.render(title=title, note=note, samples=rows, small=small))
