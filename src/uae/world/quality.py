"""What a similarity backbone of the world is worth as a reward, on scenes it was not trained on.

- ``similarity_by_wrong``: mean cosine between a render and that of the same scene with k wrong
  attributes, k = 0..5; it must fall with k. ``falls_by_wrong``: the share of scenes in which the
  k-th wrong attribute lowers it further.
- ``sensitivity``: mean of 1 - cosine for a single wrong attribute, by kind.
- ``unrelated``: mean cosine between different scenes; near 1 the space has collapsed.
- ``noise``: mean cosine with the same render under slight noise, which should cost less than a
  wrong attribute.
- ``text_to_image``, ``image_to_text``: recall@1 among as many exhaustive captions and images (CLIP,
  LongCLIP).
"""

from __future__ import annotations

import random
from collections.abc import Callable

import torch
from torch import Tensor

from uae.similarity.backbones import Backbone
from uae.world.data import pictures
from uae.world.edits import EDIT_KINDS, wrong_scene, wrong_scenes
from uae.world.language import caption
from uae.world.scene import Scene, Split, first_scenes

MAX_WRONG = 5
NOISE_STD = 0.02

EmbedImages = Callable[[Tensor], Tensor]
EmbedTexts = Callable[[list[str]], Tensor]


def measure_backbone(
    backbone: Backbone, split: Split = "test", num_scenes: int = 256
) -> dict[str, float]:
    """All measurements of a loaded backbone, by name."""
    scenes = first_scenes(split, num_scenes)
    results = measure_similarity(backbone.embed, scenes)
    if backbone.tokenizer is not None:
        results |= measure_retrieval(backbone.embed, backbone.embed_text, scenes)
    return results


@torch.no_grad()
def measure_similarity(embed: EmbedImages, scenes: list[Scene]) -> dict[str, float]:
    """How image similarity reacts to wrong attributes; ``embed`` gives unit vectors."""
    sources = _embed(embed, scenes)
    cosines = wrong_cosines(embed, scenes, sources)
    results = {f"similarity_by_wrong/{k}": v for k, v in enumerate(cosines.mean(0).tolist())}
    falls = (cosines[:, 1:] < cosines[:, :-1]).float().mean(0).tolist()
    results |= {f"falls_by_wrong/{k}": v for k, v in enumerate(falls, start=1)}
    for kind in EDIT_KINDS:
        results[f"sensitivity/{kind}"] = sensitivity(embed, scenes, sources, kind)
    pairs = sources @ sources.T
    num_pairs = len(scenes) * (len(scenes) - 1)
    results["unrelated"] = ((pairs.sum() - pairs.trace()) / num_pairs).item()
    images = pictures(scenes)
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    noisy = embed((images + NOISE_STD * noise).clamp(0, 1))
    results["noise"] = (sources * noisy).sum(-1).mean().item()
    return results


def wrong_cosines(embed: EmbedImages, scenes: list[Scene], sources: Tensor) -> Tensor:
    """``[P, 1 + MAX_WRONG]``: cosine of each render with that of 0, 1, … wrong attributes."""
    chains = [
        wrong_scenes(s, MAX_WRONG, random.Random(f"uae wrong {i}")) for i, s in enumerate(scenes)
    ]
    columns = [sources, *(_embed(embed, [chain[k] for chain in chains]) for k in range(MAX_WRONG))]
    return torch.stack([(sources * column).sum(-1) for column in columns], dim=1)


def sensitivity(embed: EmbedImages, scenes: list[Scene], sources: Tensor, kind: str) -> float:
    """Mean of 1 - cosine over the scenes that allow an edit of ``kind``; nan where none does."""
    edited = [wrong_scene(s, kind, random.Random(f"uae {kind} {i}")) for i, s in enumerate(scenes)]
    indices = [i for i, scene in enumerate(edited) if scene is not None]
    if not indices:
        return float("nan")
    embeddings = _embed(embed, [scene for scene in edited if scene is not None])
    return 1 - (sources[indices] * embeddings).sum(-1).mean().item()


@torch.no_grad()
def measure_retrieval(
    embed: EmbedImages, embed_text: EmbedTexts, scenes: list[Scene]
) -> dict[str, float]:
    """Recall@1 both ways among the scenes' renders and freely worded exhaustive captions."""
    captions = [
        caption(s, "exhaustive", random.Random(f"uae retrieval {i}")) for i, s in enumerate(scenes)
    ]
    similarity = _embed(embed, scenes) @ embed_text(captions).T
    target = torch.arange(len(scenes))
    return {
        "image_to_text": (similarity.argmax(1) == target).float().mean().item(),
        "text_to_image": (similarity.argmax(0) == target).float().mean().item(),
    }


def _embed(embed: EmbedImages, scenes: list[Scene], batch_size: int = 128) -> Tensor:
    return torch.cat([embed(batch) for batch in pictures(scenes).split(batch_size)])
