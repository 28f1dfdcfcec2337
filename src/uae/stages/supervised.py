"""What stages have in common in which the decoder learns from a loss with a gradient."""

from __future__ import annotations

from typing import Any, Literal

from torch import nn

from uae.models.llm_diffusion import LLMDiffusion
from uae.models.load import load_to_train
from uae.stages.base import Assignment
from uae.stages.fit import Fittable, fit
from uae.utils.processes import is_main, num_processes, wait
from uae.utils.sharding import WHOLE, Shards

SupervisedShard = Literal["nothing", "learning"]
"""What several processes keep a part each of: nothing, or the transformer that learns."""


def load_decoder_model(work: Assignment, lora_rank: int) -> Any:
    """The model that a stage takes."""
    model: Any = load_to_train(work.source, lora_rank)
    model.is_self_contained = work.is_self_contained
    return model


def fit_to_model(task: Fittable, work: Assignment, keep_checkpoints: int) -> None:
    """``fit``, whose average of the weights becomes the stage's model."""
    save_every = max(1, min(250, task.fit_settings.num_steps // 10))
    fit(task, work.folder, save_every=save_every, keep_checkpoints=keep_checkpoints)
    if is_main():
        (work.folder / "export").replace(work.folder / "model")
    wait()


def check_paints_by_diffusion(model: object, stage: str) -> None:
    """A ValueError for a UMM-2, whose image tokens have no gradient."""
    if not isinstance(model, LLMDiffusion):
        raise ValueError(
            f"{stage}: expected a model that paints by diffusion (UMM-1), got "
            f"{type(model).__name__}: image tokens have no gradient; train it by reinforcement "
            "learning"
        )


def decoder_learning(
    model: LLMDiffusion, lora_rank: int, shard: SupervisedShard
) -> tuple[dict[str, nn.Module], Shards]:
    """Freeze all but projector and transformer, or its LoRA, whose weights are made fp32: bf16
    loses small updates. These, and what of them this process keeps."""
    model.requires_grad_(False)
    model.eval()
    decoder = model.decoder
    decoder.projector.float().requires_grad_(True)
    if lora_rank:
        decoder.add_lora(lora_rank)
    else:
        decoder.transformer.float()
        decoder.train_transformer(with_reference=False)
    is_spread = shard == "learning" and num_processes() > 1
    shards = Shards(decoder.networks()) if is_spread else WHOLE
    with shards.whole():
        learning = {
            name.replace(".", "/"): shards.own(p)
            for name, p in decoder.named_trainable_parameters().items()
        }
    return {"transformer": nn.ParameterDict(learning), "projector": decoder.projector}, shards
