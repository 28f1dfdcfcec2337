"""The tiny UMM-2 but for its VQ model: captions, questions and image tokens, learnt together.

As with UMM-1's text states (``binding.py``), attention must first learn what belongs together:
which phrase speaks of the cell that an image token lies in. So the state that predicts a token must
also name, under one linear layer, what its cell shows, wherever the caption says all. The layer is
thrown away.
"""

from __future__ import annotations

import random
from pathlib import Path

import torch
from torch import Tensor, nn

from uae.models.encoders.causal import CausalCaptioner
from uae.models.encoders.tokens import pad
from uae.models.janus import Janus
from uae.models.llm_diffusion import LLMDiffusion
from uae.stages.fit import FitSettings
from uae.utils.device import can_compile
from uae.world.build.captioner import caption_and_answer_loss, captioner_quality
from uae.world.build.decoder import objects_exact
from uae.world.build.vision import HEADS, NOTHING, ReadOut, cell_labels, to_tokens
from uae.world.data import pictures, train_scenes
from uae.world.detector import detect
from uae.world.fidelity import paint
from uae.world.language import caption, caption_level
from uae.world.models import LLM_WIDTH, TEXT_LENGTH
from uae.world.pairs import captioned_scene
from uae.world.prompts import judge, make_prompts, mean_over_tags, shares_by_tag
from uae.world.scene import Scene, first_scenes

SAME_TOKEN = {  # in UMM-1's tokenizer
    "<pad>": "<|endoftext|>",
    "<eos>": "<|im_end|>",
    "<unk>": "<|unk|>",
    "<bos>": "<|im_start|>",
    "<|User|>:": "user",
    "<|Assistant|>:": "assistant",
    "<begin_of_image>": "<|vision_start|>",
    "<end_of_image>": "<|vision_end|>",
    "<image_placeholder>": "<|image_pad|>",
}
# of the captions' and answers' cross-entropy, beside the image tokens': it is known at the start
CAPTIONER_COEF = 0.5
CELL_COEF = 0.2  # of what cells show
# of the prompts: they lose their words, so that guidance has something to lead away from
WORDLESS_SHARE = 0.1


class JanusTask:
    """Mean cross-entropy of caption, answer and image tokens, and of what the tokens' cells show.

    The VQ model is frozen.
    """

    name = "janus"
    fit_settings = FitSettings(
        num_steps=2_700,
        batch_size=32,
        num_parallel=2,
        learning_rate=1.2e-3,
        ema_decay=0.998,
        seed=3,
    )
    exhaustive_share = 0.65

    def __init__(self, vision_folder: Path, umm1_folder: Path, compiled: bool = True) -> None:
        torch.manual_seed(self.fit_settings.seed)
        self.model = Janus.from_pretrained(vision_folder)
        inherit_language_model(self.model, LLMDiffusion.from_pretrained(umm1_folder).encoder)
        self.heads = ReadOut(LLM_WIDTH, HEADS)
        self.modules: dict[str, nn.Module] = {"janus": self.model.model, "heads": self.heads}
        self._prepare_states(compiled)

    def _prepare_states(self, compiled: bool) -> None:
        """All of the model learns but its VQ model; its states by compiled code where it can be."""
        self.model.model.requires_grad_(True)
        self.model.model.model.vqmodel.requires_grad_(False)
        is_compiled = compiled and can_compile()
        states = torch.compile(_last_states, dynamic=False) if is_compiled else _last_states
        self.last_states = states

    def loss(self, step: int) -> tuple[Tensor, dict[str, float]]:
        scenes = train_scenes(step, self.fit_settings.batch_size, seed=self.fit_settings.seed)
        rng = random.Random(f"janus {step}")
        with torch.autocast("cpu", torch.bfloat16):
            paint_loss, cell_loss = self.paint_losses(scenes, rng)
            captioner_loss, metrics = caption_and_answer_loss(self.model, scenes, rng)
        loss = paint_loss + CELL_COEF * cell_loss + CAPTIONER_COEF * captioner_loss
        return loss, {"paint_loss": paint_loss.item(), "bound": cell_loss.item(), **metrics}

    def paint_losses(self, scenes: list[Scene], rng: random.Random) -> tuple[Tensor, Tensor]:
        """Mean cross-entropy of image tokens, and of what their cells show.

        The tokens follow a caption of the scene or, now and then, no words. What cells show is
        asked only where the caption is exhaustive.
        """
        levels = [caption_level(self.exhaustive_share, rng) for _ in scenes]
        texts = [caption(scene, level, rng) for scene, level in zip(scenes, levels, strict=True)]
        is_wordless = torch.tensor([rng.random() < WORDLESS_SHARE for _ in scenes])
        paint_loss, states = self.paint_loss(scenes, texts, is_wordless)
        is_exhaustive = torch.tensor([level == "exhaustive" for level in levels]) & ~is_wordless
        return paint_loss, self._cell_loss(states, scenes, is_exhaustive)

    def paint_loss(
        self, scenes: list[Scene], texts: list[str], is_wordless: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Mean cross-entropy of image tokens after their texts, and the states ``[B, T, D]`` that
        predict them."""
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            tokens = self.model.image_tokens(pictures(scenes))
        states = self._image_states(texts, is_wordless, tokens)
        logits = self.model.model.model.generation_head(states)
        return nn.functional.cross_entropy(logits.float().transpose(1, 2), tokens), states

    def _cell_loss(self, states: Tensor, scenes: list[Scene], is_exhaustive: Tensor) -> Tensor:
        """Mean cross-entropy of what the cells of exhaustive captions show, summed over kinds."""
        logits, labels = self.heads.read(states), cell_labels(scenes)
        losses = []
        for kind in HEADS:
            label = labels[kind].masked_fill(~is_exhaustive[:, None], NOTHING)
            label = to_tokens(label, states.shape[1])
            errors = nn.functional.cross_entropy(
                logits[kind].float().transpose(1, 2), label, reduction="sum"
            )
            losses.append(errors / (label != NOTHING).sum().clamp(min=1))
        return torch.stack(losses).sum()

    def _image_states(self, texts: list[str], is_wordless: Tensor, tokens: Tensor) -> Tensor:
        """``[B, T, D]``: the language model's state before each image token.

        All batches have one shape, to compile.
        """
        model = self.model
        prompts = [model.paint_prompt(text) for text in texts]
        ids, mask = pad(prompts, model.pad_id, "left", model.device)
        padding = (TEXT_LENGTH - ids.shape[1], 0)
        ids = nn.functional.pad(ids, padding, value=model.pad_id)
        mask = nn.functional.pad(mask, padding)
        ids = torch.where(is_wordless[:, None], model.decoder.without_words(ids), ids)
        words = model.language_model.embed_tokens(ids)  # type: ignore[operator]
        image = model.model.prepare_embeddings_for_image_generation(tokens[:, :-1])
        mask = torch.cat([mask, torch.ones_like(tokens[:, :-1], dtype=torch.bool)], 1)
        states = self.last_states(model.language_model, torch.cat([words, image], 1), mask)
        return states[:, TEXT_LENGTH - 1 :]

    @torch.compiler.set_stance("force_eager")
    def evaluate(self) -> dict[str, float]:
        scenes = first_scenes("validation", 200, with_word=False)
        exact = objects_exact(self.model, scenes)
        return {"objects_exact": exact, **captioner_quality(self.model, scenes)}

    def export(self, folder: Path) -> None:
        self.model.save_pretrained(folder)

    def after_step(self, step: int) -> None:
        pass


class JanusOnTask(JanusTask):
    """The same model trained on, its VQ model resting: painting from long and short captions as
    UMM-1 is pretrained on (``world/pairs.py``), captions and answers at their full weight.

    What lies in which cell is known by now, so nothing asks for it.
    """

    name = "janus_on"
    fit_settings = FitSettings(
        num_steps=2_500,
        batch_size=32,
        num_parallel=2,
        learning_rate=6e-4,
        ema_decay=0.998,
        seed=4,
    )

    def __init__(self, janus_folder: Path, compiled: bool = True) -> None:
        self.model = Janus.from_pretrained(janus_folder)
        self.modules = {"janus": self.model.model}
        self._prepare_states(compiled)

    def loss(self, step: int) -> tuple[Tensor, dict[str, float]]:
        size, seed = self.fit_settings.batch_size, self.fit_settings.seed
        rng = random.Random(f"janus on {step}")
        painted = [captioned_scene(i, seed) for i in range(step * size, (step + 1) * size)]
        is_wordless = torch.tensor([rng.random() < WORDLESS_SHARE for _ in painted])
        with torch.autocast("cpu", torch.bfloat16):
            scenes, texts = [scene for scene, _ in painted], [text for _, text in painted]
            paint_loss, _ = self.paint_loss(scenes, texts, is_wordless)
            described = train_scenes(step, size, seed=seed)
            captioner_loss, metrics = caption_and_answer_loss(self.model, described, rng)
        return paint_loss + captioner_loss, {"paint_loss": paint_loss.item(), **metrics}

    @torch.compiler.set_stance("force_eager")
    def evaluate(self) -> dict[str, float]:
        prompts = make_prompts(10, split="validation")
        detections = detect(paint(self.model, [p.text for p in prompts], self.model.decoding))
        verdicts = [judge(p, d) for p, d in zip(prompts, detections, strict=True)]
        return super().evaluate() | {"geneval": mean_over_tags(shares_by_tag(verdicts)) or 0.0}


@torch.no_grad()
def inherit_language_model(janus: Janus, qwen: CausalCaptioner) -> None:
    """UMM-2's language model becomes UMM-1's: Qwen2.5's is Llama's with biases. Words go by name.

    As Janus-Pro's was DeepSeek-LLM before it painted, so this one knows the world's words before it
    does.
    """
    inherited = qwen.language_model.state_dict()
    words = inherited.pop("embed_tokens.weight")
    keys = janus.language_model.load_state_dict(inherited, strict=False)
    assert not keys.unexpected_keys
    for name in keys.missing_keys:
        if name != "embed_tokens.weight":  # the bias of attention's output, which Qwen2.5 lacks
            janus.language_model.get_parameter(name).zero_()
    vocabulary = qwen.tokenizer.get_vocab()
    embeddings = janus.language_model.get_parameter("embed_tokens.weight")
    for word, row in janus.tokenizer.get_vocab().items():
        source = vocabulary.get(SAME_TOKEN.get(word, word))
        if source is not None:
            embeddings[row] = words[source]


def _last_states(language_model: nn.Module, embeds: Tensor, mask: Tensor) -> Tensor:
    positions = (mask.long().cumsum(-1) - 1).clamp(min=0)
    return language_model(
        inputs_embeds=embeds, attention_mask=mask.long(), position_ids=positions
    ).last_hidden_state
