"""The tiny UMM-2, all of it but its VQ model: captions, questions and image tokens learnt together."""

from __future__ import annotations

import random
from pathlib import Path

import torch
from torch import Tensor, nn

from uae.models.janus import Janus, PaintContext
from uae.models.llm_diffusion import LLMDiffusion
from uae.models.qwen_vl import QwenVL
from uae.scenes.language import caption
from uae.scenes.scene import Scene, scene_at
from uae.stages.fit import Recipe
from uae.stages.tiny.captioner import caption_and_answer_loss, measure_captions, measure_questions
from uae.stages.tiny.data import images_of, train_scenes
from uae.stages.tiny.decoder import caption_level, objects_exact
from uae.types import Rollout

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
PAINT_COEF = 2.0  # of the image tokens' cross-entropy, beside the caption's and the answers'
UNGUIDED_SHARE = 0.1  # of the prompts lose their words, so that guidance has something to lead away from


class JanusTask:
    """Mean cross-entropy of caption tokens, of answer tokens and of image tokens; the VQ model is frozen."""

    name = "janus"
    recipe = Recipe(num_steps=4_000, batch_size=32, num_parallel=2, learning_rate=1.2e-3, ema_decay=0.998, seed=3)
    exhaustive_share = 0.65

    def __init__(self, vision_folder: Path, umm1_folder: Path) -> None:
        self.model = Janus.from_pretrained(vision_folder)
        inherit_language_model(self.model, LLMDiffusion.from_pretrained(umm1_folder).encoder)
        self.model.model.requires_grad_(True)
        self.model.model.model.vqmodel.requires_grad_(False)
        self.modules: dict[str, nn.Module] = {"janus": self.model.model}

    def loss(self, step: int) -> tuple[Tensor, dict[str, float]]:
        scenes = train_scenes(step, self.recipe.batch_size, seed=self.recipe.seed)
        rng = random.Random(f"janus {step}")
        with torch.autocast("cpu", torch.bfloat16):
            said, metrics = caption_and_answer_loss(self.model, scenes, rng)
            painted = paint_loss(self.model, scenes, self.exhaustive_share, rng)
        return said + PAINT_COEF * painted, {"paint_loss": painted.item(), **metrics}

    def evaluate(self) -> dict[str, float]:
        scenes = [scene_at("validation", i, with_word=False) for i in range(200)]
        return {
            "objects_exact": objects_exact(self.model, scenes),
            **{f"question_{kind}": share for kind, share in measure_questions(self.model, scenes).items()},
            "detailed_recall": measure_captions(self.model, scenes, "detailed")["exact_recall"],
        }

    def export(self, folder: Path) -> None:
        self.model.save_pretrained(folder)

    def after_step(self, step: int) -> None:
        pass


@torch.no_grad()
def inherit_language_model(janus: Janus, qwen: QwenVL) -> None:
    """UMM-2's language model becomes UMM-1's: Qwen2.5's is Llama's with biases. Words go by name.

    As Janus-Pro's was DeepSeek-LLM before it painted, so this one knows the world's words before it does.
    """
    inherited = qwen.language_model.state_dict()
    words = inherited.pop("embed_tokens.weight")
    result = janus.language_model.load_state_dict(inherited, strict=False)
    assert not result.unexpected_keys
    for name in result.missing_keys:
        if name != "embed_tokens.weight":
            janus.language_model.get_parameter(name).zero_()  # the bias of attention's output, which Qwen2.5 lacks
    known, embeddings = qwen.tokenizer.get_vocab(), janus.language_model.get_parameter("embed_tokens.weight")
    for word, row in janus.tokenizer.get_vocab().items():
        source = known.get(SAME_TOKEN.get(word, word))
        if source is not None:
            embeddings[row] = words[source]


def paint_loss(model: Janus, scenes: list[Scene], exhaustive_share: float, rng: random.Random) -> Tensor:
    """Mean cross-entropy of each scene's image tokens, given a caption of it or, now and then, no words."""
    texts = [caption(scene, caption_level(exhaustive_share, rng), rng) for scene in scenes]
    prompts = [torch.tensor(model.paint_prompt(text)) for text in texts]
    prompts = [model.decoder.without_words(p) if rng.random() < UNGUIDED_SHARE else p for p in prompts]
    context = PaintContext(tuple(tuple(p.tolist()) for p in prompts), torch.arange(len(scenes)), 1.0)
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        tokens = model.image_tokens(images_of(scenes))
    unknown = torch.zeros(tokens.shape)
    scores = model.decoder.scores(Rollout(tokens, unknown, unknown == 0, context))
    return -scores.gather(-1, tokens[..., None]).mean()
