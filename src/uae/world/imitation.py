"""The control beside Unified-GRPO: as many captions, of exhaustive truth, learnt by imitation
(next-token prediction).

Whatever Unified-GRPO gains over this is not the mere choice of the longest caption the model
already knew.
"""

from __future__ import annotations

import torch
from torch import Tensor

from uae.models.encoders.causal import CausalCaptioner
from uae.models.encoders.tokens import pad
from uae.rl.config import TrainConfig
from uae.utils.device import attention_to_train, autocast
from uae.utils.metrics import TrainProgress
from uae.utils.optim import clipped_update
from uae.world.build.captioner import token_errors
from uae.world.data import pictures, train_scenes
from uae.world.language import exhaustive_caption
from uae.world.scene import Scene


def imitate(captioner: CausalCaptioner, config: TrainConfig) -> None:
    """Train on ``P·G`` captions a step, one each of as many scenes, with the run's steps, rate and
    instruction."""
    parameters = list(captioner.named_trainable_parameters().values())
    optimizer = torch.optim.AdamW(
        parameters, lr=config.learning_rate, weight_decay=config.weight_decay
    )
    num_captions = config.images_per_step * config.group_size
    with TrainProgress("imitation", config.num_steps, 0) as progress:
        for step in range(config.num_steps):
            optimizer.param_groups[0]["lr"] = config.learning_rate * config.schedule.factor(step)
            scenes = train_scenes(step, num_captions, seed=config.seed)
            with autocast(captioner.device, config.use_bf16), attention_to_train(captioner.device):
                loss = imitation_loss(captioner, scenes, config.captioning.instruction)
            loss.backward()
            clipped_update(
                optimizer, parameters, config.max_grad_norm, "Imitation needs a lower learning rate"
            )
            progress.update(step + 1, loss=loss.item())


def imitation_loss(captioner: CausalCaptioner, scenes: list[Scene], instruction: str) -> Tensor:
    """Mean cross-entropy over the tokens of the scenes' exhaustive captions, their end included."""
    rows = [
        captioner.tokenize(f"{exhaustive_caption(scene)} {captioner.tokenizer.eos_token}")
        for scene in scenes
    ]
    ids, mask = pad(rows, captioner.pad_id, "right", captioner.device)
    errors = token_errors(
        captioner, captioner.look(list(pictures(scenes)), [instruction] * len(scenes)), ids
    )
    return (errors * mask).sum() / mask.sum()
