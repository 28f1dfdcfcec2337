"""How alike texts and the captions of their pictures are.

For CLIP and LongCLIP, ``s = 100 · mean_i cos(t(text_i), t(caption_i))`` by their text sides, with
``s_shuffled`` the mean over all captions of other texts, and

    rescaled = 100 · (s - s_shuffled) / (100 - s_shuffled)

so that 0 means "no better than another text's caption". In the embedded world also by exact
attributes (``world/agreement.py``): precision, recall, and captions that say exactly the same.
Texts are quick to embed: of several processes each does all of it, and the main one's is kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from uae.bench.bootstrap import Sums, interval_of, resampled
from uae.bench.painted.result import Score, ratio_scores
from uae.similarity.backbones import Backbone
from uae.utils.importing import import_named

AGREEMENT = "uae.world.agreement:agreement"  # no benchmark imports the world
BATCH = 64
Cycles = Mapping[str, tuple[str, Sequence[str]]]  # by name: a text, and captions of its pictures


@torch.no_grad()
def cosines(backbone: Backbone, cycles: Cycles) -> tuple[dict[str, list[float]], float | None]:
    """Of each text and its captions; and the mean over captions of other texts, None where there
    is none."""
    pairs = [(name, text, caption) for name, (text, said) in cycles.items() for caption in said]
    texts = embedded(backbone, [text for _, text, _ in pairs])
    captions = embedded(backbone, [caption for *_, caption in pairs])
    found: dict[str, list[float]] = {}
    for (name, *_), cosine in zip(pairs, (texts * captions).sum(-1).tolist(), strict=True):
        found.setdefault(name, []).append(cosine)
    return found, _shuffled([name for name, *_ in pairs], texts, captions)


def embedded(backbone: Backbone, texts: Sequence[str]) -> Float[Tensor, "N D"]:
    """Unit vectors, in double precision; each different text once."""
    distinct = list(dict.fromkeys(texts))
    batches = [distinct[start : start + BATCH] for start in range(0, len(distinct), BATCH)]
    rows = torch.cat([backbone.embed_text(batch).double().cpu() for batch in batches])
    place = {text: i for i, text in enumerate(distinct)}
    return rows[[place[text] for text in texts]]


def _shuffled(
    names: Sequence[str], texts: Float[Tensor, "N D"], captions: Float[Tensor, "N D"]
) -> float | None:
    """Sums are enough: all pairs less those of one text."""
    total, number = float(texts.sum(0) @ captions.sum(0)), len(names) ** 2
    for name in dict.fromkeys(names):
        own = [i for i, each in enumerate(names) if each == name]
        total -= float(texts[own].sum(0) @ captions[own].sum(0))
        number -= len(own) ** 2
    return 100 * total / number if number else None


def similarity_scores(
    by_backbone: Mapping[str, Mapping[str, Sequence[float]]],
    shuffled: Mapping[str, float | None],
    num_bootstrap: int,
    seed: int,
) -> dict[str, dict[str, Score]]:
    """Each backbone and their plain mean; and what a caption of another text would get."""
    names = list(next(iter(by_backbone.values())))
    sums: list[Sums] = [
        {b: (sum(found[name]), len(found[name])) for b, found in by_backbone.items()}
        for name in names
    ]
    scores = ratio_scores(sums, num_bootstrap, seed)
    draws = np.mean(list(resampled(sums, num_bootstrap, seed).values()), axis=0)
    values = [score.value for score in scores.values() if score.value is not None]
    count = next(iter(scores.values())).count
    overall = Score(sum(values) / len(values), interval_of(draws), count)
    others = {name: Score(value, None, count) for name, value in shuffled.items()}
    return {
        "similarity": {"overall": overall, **scores},
        "captions of other texts": others,
        "rescaled": {
            name: Score(_rescaled(scores[name].value, shuffled[name]), None, count)
            for name in scores
        },
    }


def _rescaled(score: float | None, shuffled: float | None) -> float | None:
    if score is None or shuffled is None or shuffled >= 100:
        return None
    return 100 * (score - shuffled) / (100 - shuffled)


def attribute_scores(cycles: Cycles, num_bootstrap: int, seed: int) -> dict[str, Score]:
    """Of texts of the embedded world."""
    agreement = import_named(AGREEMENT, "embedded world")
    sums = [_attribute_sums(agreement, text, said) for text, said in cycles.values()]
    return ratio_scores(sums, num_bootstrap, seed)


def _attribute_sums(agreement: Any, text: str, captions: Sequence[str]) -> Sums:
    each = [agreement(text, caption) for caption in captions]
    right = sum(k.right for k in each)
    return {
        "recall": (right, sum(k.asked for k in each)),
        "precision": (right, sum(k.said for k in each)),
        "captions exactly right": (sum(k.is_exact for k in each), len(each)),
    }
