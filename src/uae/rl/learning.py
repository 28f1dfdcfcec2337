"""What changes the weights of a policy: an optimiser, with a rate for each half of the model.

Where the model is spread over processes, the optimiser has the rows that this one keeps.

Weights that both halves learn (UMM-2) have a *twin* where painting has a rate of its own: a
parameter of the same memory, whose gradient and moments are those of image tokens alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import nn

from uae.models.base import Shardable, UnifiedModel
from uae.rl.config import TrainConfig
from uae.types import Policy
from uae.utils.optim import FastAverage, clipped_update
from uae.utils.processes import num_processes
from uae.utils.sharding import OF_ADAPTERS, WHOLE, Shards

Parameters = dict[str, nn.Parameter]


@dataclass
class Twins:
    """Pairs of a parameter and its twin."""

    pairs: list[tuple[nn.Parameter, nn.Parameter]] = field(default_factory=list)

    @classmethod
    def of(cls, parameters: Parameters, shards: Shards) -> Twins:
        twins = cls([(p, nn.Parameter(p.data)) for p in parameters.values()])
        for pair in twins.pairs:
            shards.twin(*pair)
        return twins

    @property
    def parameters(self) -> list[nn.Parameter]:
        return [twin for _, twin in self.pairs]

    @contextmanager
    def taking_gradients(self) -> Iterator[None]:
        """Gradients of this context are added to the twins'."""
        others = [p.grad for p, _ in self.pairs]
        for p, twin in self.pairs:
            p.grad = twin.grad
        try:
            yield
        finally:
            for (p, twin), other in zip(self.pairs, others, strict=True):
                twin.grad, p.grad = p.grad, other


@dataclass
class Learning:
    """An optimiser, and what stands beside it."""

    optimizer: torch.optim.Optimizer
    shards: Shards = WHOLE
    twins: Twins = field(default_factory=Twins)
    old: FastAverage = field(default_factory=lambda: FastAverage({}, 0.0, 0.0))
    """Of the decoder's weights, where it learns with a look at them."""

    @classmethod
    def of(cls, model: UnifiedModel, config: TrainConfig, shards: Shards = WHOLE) -> Learning:
        """As the settings say, from the weights as they are, whole."""
        encoder, decoder = trainable_parameters(model)
        rate, own_rate = config.learning_rate, config.decoder_learning_rate or config.learning_rate
        captions = config.caption_weight > 0
        has_twins = captions and config.decoder_learning_rate is not None and shares_weights(model)
        twins = Twins.of(encoder if has_twins else {}, shards)
        groups = [
            {"params": list(encoder.values()), "lr": rate if captions else own_rate},
            {"params": list(decoder.values()), "lr": own_rate},
            {"params": twins.parameters, "lr": own_rate, "weight_decay": 0.0},
        ]
        own = [group | {"params": [shards.own(p) for p in group["params"]]} for group in groups]
        optimizer = torch.optim.AdamW(
            [group for group in own if group["params"]],
            weight_decay=config.weight_decay,
            betas=(0.9, 0.999),
        )
        watched = decoder if config.uses_old_weights else {}
        old = FastAverage(watched, config.old_decay_rate, config.largest_old_decay)
        return cls(optimizer, shards, twins, old)

    def rollout_weights(self, config: TrainConfig) -> AbstractContextManager[None]:
        """A context in which those weights stand that paint what is learnt from."""
        return self.old.in_place() if config.decoder_update == "nft" else nullcontext()

    def painting_gradients(self) -> AbstractContextManager[None]:
        """A context whose gradients are those of the half that paints."""
        return self.twins.taking_gradients() if self.twins.pairs else nullcontext()

    def update(self, max_grad_norm: float) -> float:
        """One update by the gradients of all processes, clipped together to a norm; the norm
        before that."""
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.shards.add_gradients(parameters)
        advice = "Begin another run with a lower learning rate, or with use_bf16 off"
        clip = self.shards.clip
        return clipped_update(self.optimizer, parameters, max_grad_norm, advice, clip)


def shards_of(model: UnifiedModel, config: TrainConfig) -> Shards:
    """What the settings spread of this model over processes.

    Raises:
        ValueError: it cannot be spread, or not while it learns so.
    """
    if config.shard == "nothing" or num_processes() == 1:
        return Shards()
    _check_old_weights(model, config)
    halves = [half for half in (model.encoder, model.decoder) if isinstance(half, Shardable)]
    run_by_updates, frozen = [], []
    for half in halves:
        learns = bool(half.named_trainable_parameters())
        if learns or config.shard == "all":
            # pairs that are matched beside have texts, which a frozen half reads
            is_run = learns or config.matching_coef > 0
            (run_by_updates if is_run else frozen).extend(half.networks())
    return Shards(run_by_updates, frozen)


def _check_old_weights(model: UnifiedModel, config: TrainConfig) -> None:
    """A ValueError where weights that are not adapters would stand beside others that are whole."""
    if not config.uses_old_weights:
        return
    if any(OF_ADAPTERS not in name for name in model.decoder.named_trainable_parameters()):
        raise ValueError(
            "train.shard: expected nothing, or LoRA (--lora-rank 32), where a decoder learns by "
            f"nft, awm or a pull, as its old weights are whole, got {config.shard} and full "
            "training"
        )


def shares_weights(model: UnifiedModel) -> bool:
    """Whether what learns to paint also captions."""
    if not isinstance(model.decoder, Policy):
        return False
    encoder = {id(p) for p in model.encoder.named_trainable_parameters().values()}
    painting = model.decoder.named_trainable_parameters().values()
    return any(id(p) in encoder for p in painting)


def trainable_parameters(model: UnifiedModel) -> tuple[Parameters, Parameters]:
    """What the optimiser may change: the encoder's, and of the decoder's those that are not the
    encoder's too.

    Raises:
        ValueError: when there is nothing.
    """
    encoder = model.encoder.named_trainable_parameters()
    shared = {id(p) for p in encoder.values()}
    all_of_decoder = (
        model.decoder.named_trainable_parameters() if isinstance(model.decoder, Policy) else {}
    )
    decoder = {f"decoder.{name}": p for name, p in all_of_decoder.items() if id(p) not in shared}
    if not encoder and not decoder:
        raise ValueError(
            "expected something to learn, but every weight is frozen: set caption_weight above "
            "0, or image_weight and a sampler other than ode or a decoder_update"
        )
    return encoder, decoder
