"""What teaches a decoder to paint: the table of docs/results.md, arm by arm, on the embedded world.

    python benchmarks/painting.py run ROOT ARM --seed 0   # train, measure; run again, it goes on
    python benchmarks/painting.py table ROOT              # what is there, as Markdown
    python benchmarks/painting.py measure MODEL           # any model, as the arms are
    python benchmarks/painting.py judges                  # which rewards know a right picture

Every arm learns from 20,032 pictures: 313 steps of 8 prompts, 8 pictures each, or as many pairs of
flow matching (``pairs_alone``: the 10,016 that stand beside others). Prompts are of training
scenes, the six tags in turn, a quarter of them exhaustive captions where nothing else is said. All
start from the shipped model, UMM-1 with LoRA of rank 16, UMM-2 with all its weights.

Measured on test scenes, as the model paints by itself: 30 prompts a tag and two draws of noise, and
the objects of 300 exhaustive captions.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from arms import MEASURED, folder_of, parsers, table

from uae.config import DecodeSettings
from uae.diffusion.forward import AWM
from uae.images.write import to_png
from uae.models.load import load_model
from uae.rewards.build import build_reward
from uae.rewards.reconstruction import CLIPScore
from uae.rl.advantages import group_advantages
from uae.rl.config import TrainConfig
from uae.rl.losses import Objective
from uae.similarity.backbones import load_backbone
from uae.stages.base import Assignment, Stage
from uae.stages.grpo_settings import UnifiedGRPOSettings
from uae.stages.long_captions import LongCaptionConfig, LongCaptions
from uae.stages.unified_grpo import UnifiedGRPO
from uae.utils.files import appear, atomic_write_json
from uae.utils.quiet import quiet_libraries
from uae.world.data import SCENES, ScenePairs, ScenePrompts, pictures
from uae.world.detector import detect
from uae.world.fidelity import fidelity, paint
from uae.world.language import exhaustive_caption
from uae.world.prompts import TAGS, ScenePrompt, judge, make_prompts, mean_over_tags, shares_by_tag
from uae.world.scene import first_scenes

Arm = Callable[[int, Path], Stage]
"""From a seed and the arm's folder."""
Pairs = tuple[torch.Tensor, list[str]]
NUM_STEPS, PROMPTS, GROUP, NUM_PAIRS, HELD_OUT = 313, 8, 8, 32, 64
STARTS = ("start", "start_umm2")
ONLY_MEASURED = ("v3-tiny-ar",)  # a recipe: trained elsewhere, measured here
RATE, SHARE, RANK = 7e-4, 0.25, 16
WINDOW = DecodeSettings(sampler="sde", window_size=2, shared_noise=True)
ALL_STEPS = replace(WINDOW, window_size=None)
FORWARD = DecodeSettings()  # of the forward process: no step is random
TWO_TIMES = AWM(num_times=2)  # a picture is noised at
TOKENS = DecodeSettings()  # drawn at temperature 1
PUBLISHED = TrainConfig(  # Flow-GRPO, but for its guidance; there half a rollout is an update
    decoding=DecodeSettings(sampler="sde", window_size=9),
    objective=Objective(
        clip_eps_low=1e-4,
        clip_eps_high=1e-4,
        kl_coef=0.04,
        scale_rewards="batch",
        advantage_clamp=5.0,
    ),
    learning_rate=3e-4,
    ema_decay=0.9,
)


def rl(
    rewards: dict[str, float] | None = None,
    share: float = SHARE,
    start: TrainConfig | None = None,
    rank: int = RANK,
    **train: Any,
) -> Arm:
    """An arm of reinforcement learning; ``train`` are settings of ``TrainConfig``."""
    common = TrainConfig(
        decoding=WINDOW,
        objective=Objective(kl_coef=0.0),
        learning_rate=RATE,
        lr_scheduler_type="linear",
    )

    def stage(seed: int, folder: Path) -> Stage:
        config = replace(
            start or common,
            **train,
            num_steps=NUM_STEPS,
            images_per_step=PROMPTS,
            group_size=1,
            reconstructions_per_caption=GROUP,
            caption_weight=0.0,
            probe_every=10 * NUM_STEPS,
            seed=seed,
        )
        settings = UnifiedGRPOSettings(
            prompts="world",
            exhaustive_share=share,
            rewards=rewards or {"judge": 1.0},
            lora_rank=rank,
            train=config,
        )
        return UnifiedGRPO(settings, SCENES)

    return stage


umm2 = partial(
    rl,
    share=0.0,
    rank=0,
    decoding=replace(TOKENS, temperature=0.5),
    learning_rate=1e-4,
    image_kl_coef=0.01,
    matching_coef=0.5,
)


umm2_self_judged = partial(
    umm2, {"caption_likelihood": 1.0}, objective=Objective(kl_coef=0.0, scale_rewards="batch")
)


def equal(sources: object, prompts: object, pictures: torch.Tensor) -> torch.Tensor:
    """A reward that teaches nothing: no picture is better than another."""
    return torch.zeros(len(pictures))


def matching(pairs: Callable[[int], Pairs], batch_size: int = PROMPTS * GROUP) -> Arm:
    """An arm of flow matching alone, on what ``pairs`` gives of a seed."""

    def stage(seed: int, folder: Path) -> Stage:
        data = folder / "pairs"
        if not data.exists():
            appear(data, lambda unfinished: write_pairs(unfinished, *pairs(seed)))
        settings = LongCaptionConfig(
            data=(str(data),),
            num_steps=NUM_STEPS,
            batch_size=batch_size,
            learning_rate=RATE,
            resolution=48,
            lora_rank=RANK,
            num_held_out=HELD_OUT,
            seed=seed,
        )
        return LongCaptions(settings)

    return stage


def of_prompts(seed: int, are_own: bool = False) -> Pairs:
    """As many pictures as an arm of reinforcement learning sees, of its prompts: of their scenes,
    or the shipped model's own."""
    prompts = ScenePrompts(seed, SHARE).batch(0, NUM_STEPS * PROMPTS * GROUP + HELD_OUT)
    texts = [prompt.text for prompt in prompts]
    if are_own:
        return paint(load_model("tiny"), texts, FORWARD, seed), texts
    return pictures([prompt.scene for prompt in prompts]), texts


def exhaustive(seed: int) -> Pairs:
    """The pairs that stand beside reinforcement learning where there is a ``matching_coef``."""
    return ScenePairs(seed).batch(0, NUM_STEPS * NUM_PAIRS + HELD_OUT)


COLUMNS = {
    "geneval": "GenEval-style",
    **dict(zip(TAGS, TAGS, strict=True)),
    "exhaustive": "exhaustive",
    "longclip_score": "LongCLIP score",
}
ARMS: dict[str, Arm] = {
    "flow_grpo": rl(start=PUBLISHED),
    "window": rl(),
    "window_own_noise": rl(decoding=replace(WINDOW, shared_noise=False)),
    "window_prompts_alone": rl(share=0.0),
    "window_half_exhaustive": rl(share=0.5),
    "window_kl": rl(image_kl_coef=0.04),
    "window_moving": rl(window_interval=25),
    "all_steps": rl(decoding=ALL_STEPS),
    "all_steps_pull": rl(decoding=ALL_STEPS, pull_coef=0.1),
    "nft": rl(decoding=FORWARD, decoder_update="nft"),
    "awm": rl(decoding=FORWARD, decoder_update="awm"),
    "awm_matching": rl(share=0.0, decoding=FORWARD, decoder_update="awm", matching_coef=0.5),
    "awm_matching_likelihood": rl(
        {"caption_likelihood": 1.0},
        share=0.0,
        decoding=FORWARD,
        decoder_update="awm",
        matching_coef=0.5,
    ),
    "awm_matching_two_times": rl(
        share=0.0, decoding=FORWARD, decoder_update="awm", awm=TWO_TIMES, matching_coef=0.5
    ),
    "awm_two_times": rl(decoding=FORWARD, decoder_update="awm", awm=TWO_TIMES),
    "window_batch_scale": rl(objective=Objective(kl_coef=0.0, scale_rewards="batch")),
    "awm_fast": rl(decoding=FORWARD, decoder_update="awm", awm=TWO_TIMES, learning_rate=2e-3),
    "awm_likelihood": rl(
        {"caption_likelihood": 1.0},
        decoding=FORWARD,
        decoder_update="awm",
        awm=TWO_TIMES,
    ),
    "likelihood": rl({"caption_likelihood": 1.0}),
    "clip": rl({"clip_score": 1.0}),
    "likelihood_clip": rl({"caption_likelihood": 1.0, "clip_score": 5.0}),
    "umm2_judge": umm2(matching_coef=0.0),
    "umm2_matching": umm2(),
    "umm2_matching_unrewarded": umm2({"painting:equal": 1.0}),
    "umm2_matching_likelihood": umm2_self_judged(),
    "umm2_likelihood": umm2_self_judged(matching_coef=0.0),
    "matching_true": matching(of_prompts),
    "matching_own": matching(partial(of_prompts, are_own=True)),
    "pairs_alone": matching(exhaustive, NUM_PAIRS),
}


def write_pairs(folder: Path, images: Iterable[torch.Tensor], texts: Iterable[str]) -> None:
    """As parquet."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir(parents=True)
    rows = [
        {"image": {"bytes": to_png(image), "path": f"{i}.png"}, "caption": text}
        for i, (image, text) in enumerate(zip(images, texts, strict=True))
    ]
    pq.write_table(pa.Table.from_pylist(rows), folder / "train-00000.parquet", row_group_size=500)


def measure(source: str, split: str = "test") -> dict[str, Any]:
    """The numbers of a model, times 100: GenEval-style, objects of exhaustive captions exactly
    right, and CLIPScore of a CLIP that was no reward."""
    model: Any = load_model(source)
    prompts: list[ScenePrompt] = make_prompts(30, split=split)  # type: ignore[arg-type]
    texts = [prompt.text for prompt in prompts]
    draws = [paint(model, texts, model.decoding, seed) for seed in (0, 1)]
    verdicts = [
        judge(prompt, detection)
        for images in draws
        for prompt, detection in zip(prompts, detect(images), strict=True)
    ]
    by_tag = shares_by_tag(verdicts)
    with torch.no_grad():
        likeness = CLIPScore(load_backbone("longclip", "tiny"))([], texts * 2, torch.cat(draws))
    return {
        "geneval": mean_over_tags(by_tag),
        **{tag: by_tag[tag].percent for tag in TAGS},
        "exhaustive": objects_of_captions(model, split),
        "longclip_score": 100 * likeness.mean().item(),
    }


def objects_of_captions(model: Any, split: str = "test") -> float | None:
    """Objects exactly right, times 100, in what is painted from 300 exhaustive true captions."""
    scenes = first_scenes(split, 300)  # type: ignore[arg-type]
    painted = paint(model, [exhaustive_caption(scene) for scene in scenes], model.decoding)
    return fidelity(scenes, painted).objects_exact.percent


def compiled(stage: Stage) -> Stage:
    """``stage``, its decoder run by compiled code: the same but for rounding, which ratios that are
    clipped within 1e-4 would show."""
    if not isinstance(stage, UnifiedGRPO) or stage.settings.train.objective.clip_eps_low < 1e-3:
        return stage
    train = replace(stage.settings.train, compile_decoder=True)
    return replace(stage, settings=replace(stage.settings, train=train))


def run(root: Path, arm: str, seed: int, is_compiled: bool = False) -> None:
    """Train and measure one arm; what is done already is not done again."""
    folder = folder_of(root, arm, seed)
    results = folder / MEASURED
    if results.exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    model = "tiny-ar" if "umm2" in arm else "tiny"
    if arm not in STARTS and not (folder / "model").exists():
        stage = ARMS[arm](seed, folder)
        stage = compiled(stage) if is_compiled else stage
        stage.run(Assignment(model, folder, model))
    numbers = measure(model if arm in STARTS else str(folder / "model"))
    atomic_write_json(results, numbers)
    print(arm, seed, numbers, flush=True)


@torch.no_grad()
def judges(num_prompts: int = 48, num_pictures: int = 16) -> str:
    """Of the shipped model's pictures of training prompts: the share that is right of those that
    each reward likes best of a prompt, and its correlation with being right among a prompt's
    pictures, each prompt's rewards scaled to a standard deviation of 1."""
    model: Any = load_model("tiny")
    prompts = ScenePrompts(7).batch(0, num_prompts)
    texts = [prompt.text for prompt in prompts]
    groups = {"group_size": num_pictures, "seed": 3}
    images = model.generate(texts, FORWARD, **groups).images.float().clamp(0, 1)
    of_each = [prompt for prompt in prompts for _ in range(num_pictures)]
    verdicts = [judge(p, d).correct for p, d in zip(of_each, detect(images), strict=True)]
    right = torch.tensor(verdicts).float().view(num_prompts, num_pictures)
    weights = {"judge": 1.0, "caption_likelihood": 1.0, "clip_score": 1.0}
    clip, question = {"clip": load_backbone("clip", "tiny")}, model.captioning.instruction
    reward = build_reward(weights, clip, model.encoder, question)
    reward([], texts, images, prompts)
    likelihood, score = (reward.breakdown[n] for n in ("caption_likelihood", "clip_score"))
    values = {**reward.breakdown, "likelihood + 5 clip": likelihood + 5 * score}
    lines = [
        "| reward | right, of the best of 16 | correlation with right |",
        "|---|---|---|",
        f"| none | {100 * right.mean():.0f} | |",
    ]
    for name, flat in values.items():
        of_prompt = flat.view(right.shape)
        best = right.gather(1, of_prompt.argmax(1, keepdim=True)).mean()
        scaled = [group_advantages(each) for each in (of_prompt, right)]
        correlation = torch.corrcoef(torch.stack([each.flatten() for each in scaled]))[0, 1]
        lines.append(f"| {name} | {100 * best:.0f} | {correlation:.2f} |")
    return "\n".join(lines)


def main() -> None:
    parser, commands, running = parsers(__doc__, [*STARTS, *ARMS])
    running.add_argument("--compiled", action="store_true", help="the decoder by compiled code")
    commands.add_parser("judges", help="which rewards know a right picture")
    measuring = commands.add_parser("measure", help="any model, as the arms are")
    measuring.add_argument("model", help="a name or folder")
    args = parser.parse_args()
    quiet_libraries()
    if args.command == "table":
        print(table(args.root, (*STARTS, *ARMS, *ONLY_MEASURED), COLUMNS))
        return
    if args.command == "judges":
        print(judges())
        return
    if args.command == "measure":
        print(json.dumps(measure(args.model)))
        return
    for arm in args.arms:
        run(args.root, arm, args.seed, args.compiled)


if __name__ == "__main__":
    main()
