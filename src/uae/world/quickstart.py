"""The whole idea in one go: measure a shipped model, train it with Unified-GRPO, measure again.

It leaves ``results.json``, ``report.html`` and the trained model.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from torch import Tensor

from uae.bench.result import versions
from uae.bench.unified import BACKBONES
from uae.config import CaptionSettings
from uae.models.base import UnifiedModel
from uae.models.load import load_model
from uae.report.run_page import Frame, RunReport, write_report
from uae.rewards.build import check_rewards
from uae.similarity.backbones import Backbone, load_backbone
from uae.stages.grpo_settings import Half, RunConfig
from uae.stages.unified_grpo import UnifiedGRPO, prepare_policy
from uae.utils.files import appear, atomic_write_json
from uae.utils.lock import locked
from uae.utils.metrics import read_metrics
from uae.utils.outputs import check_out_folder
from uae.utils.ranges import refuse_if
from uae.utils.suggest import did_you_mean
from uae.world.data import SCENES, pictures
from uae.world.fidelity import paint
from uae.world.imitation import imitate
from uae.world.language import INSTRUCTIONS
from uae.world.measure import WorldResult, delta, measure_ceiling, measure_model, split_gain
from uae.world.prompts import make_prompts
from uae.world.recipes import QUICK
from uae.world.scene import scene_at

Control = Literal["none", "prompted", "supervised"]
FAMILIES = {"umm1": "tiny", "umm2": "tiny-ar"}
EARLY = "tiny-early"
LEADS = {"images": "geneval", "seeing": "caption_complete"}
"""The measure that a run is about, by what learns, where it is not Unified-Score."""
FORMER_NAMES = {"diffusion": "umm1", "ar": "umm2"}
FRAME_EVERY = 20
"""Steps between pictures of the same prompts, where painting learns."""
STRIP_SCENE, EARLY_STRIP_SCENE = 7, 291
"""Of the test split, what the strip shows: three objects, one of them small. The second is one of
those that were wrong before and right after, with two seeds."""


def _parse_family(words: list[str]) -> str:
    name = FORMER_NAMES.get(words[0], words[0])
    if name not in FAMILIES:
        hint = did_you_mean(name, FAMILIES)
        raise ValueError(f"expected {' or '.join(FAMILIES)}, got {name!r}{hint}")
    return name


Family = Annotated[
    str,
    tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="{umm1,umm2}",
        instance_from_str=_parse_family,
        is_instance=lambda value: value in FAMILIES,
        str_from_instance=lambda value: [value],
    ),
]


@dataclass(frozen=True)
class QuickstartSettings:
    """Post-train a shipped tiny model with Unified-GRPO and compare it before and after."""

    out: Path | None = None
    """Folder for results.json, report.html, the run and the trained model; by default `quickstart`,
    and `quickstart-umm2` of that family."""
    family: Family = "umm1"
    """UMM-1, a vision-language model with a diffusion decoder, or UMM-2, one autoregressive
    model."""
    half: Half | Literal["seeing"] | None = None
    """What learns; by default captions in UMM-1, and both in UMM-2, captions from images and
    painting from prompts. `seeing`: captions of a model that is always asked for detail and sees
    less well, so that all there is to gain is to see."""
    seed: int = 0
    """Of the training data and all draws."""
    num_steps: int | None = None
    """Unified-GRPO steps; by default the recipe's."""
    control: Control = "none"
    """What stands in for Unified-GRPO: the shipped model asked for detail, or taught as many
    exhaustive captions."""
    resume: bool = False
    """Continue the unfinished run in `out` instead of starting anew."""

    def __post_init__(self) -> None:
        refuse_if(
            (
                self.control != "none" and self.half == "images",
                (
                    f"control: expected none with half images, got {self.control}, which is of "
                    "captions"
                ),
            ),
            (
                self.sees and self.control != "none",
                (
                    f"control: expected none with half seeing, got {self.control}; those of "
                    "seeing are in benchmarks/seeing.py"
                ),
            ),
            (
                self.sees and self.family != "umm1",
                f"family: expected umm1 with half seeing, got {self.family}",
            ),
        )

    @property
    def sees(self) -> bool:
        """Whether it is seeing that learns."""
        return self.half == "seeing"

    @property
    def model(self) -> str:
        """Which of the shipped ones is trained."""
        return EARLY if self.sees else FAMILIES[self.family]

    @property
    def folder(self) -> Path:
        """Where everything goes: one for each family, as a run of the other would replace it. A run
        of before, when both had the same folder, is resumed where it is."""
        first = Path("quickstart")
        if self.out is None and self.sees:
            return Path("quickstart-seeing")
        if self.out is not None or self.family == "umm1":
            return self.out or first
        is_there = self.resume and model_of(first) == FAMILIES[self.family]
        return first if is_there else Path("quickstart-umm2")

    @property
    def lead(self) -> str:
        """The measure that this is about."""
        return LEADS.get(self.half or "", "unified_score")

    def run(self) -> RunConfig:
        """What the family's half learns by, with this seed and length."""
        config = RunConfig.of(QUICK[self.family][self.half], self.model)
        num_steps = config.train.num_steps if self.num_steps is None else self.num_steps
        return replace(config, train=replace(config.train, seed=self.seed, num_steps=num_steps))


def quickstart(settings: QuickstartSettings, command: str) -> dict[str, Any]:
    """Measure, train, measure; the results as written to ``results.json``."""
    check_out_folder(settings.folder)
    with locked(settings.folder):
        check_model(settings.folder, settings)
        return _train_and_measure(settings, command)


def _train_and_measure(settings: QuickstartSettings, command: str) -> dict[str, Any]:
    start, config, library_versions = time.monotonic(), settings.run(), versions()
    out, run_dir = settings.folder, settings.folder / "run"
    check_rewards(config.rewards, config.backbones)
    model: Any = load_model(config.model)
    backbones = {name: load_backbone(name, config.backbones) for name in BACKBONES}
    if not settings.resume and settings.control == "none":
        shutil.rmtree(run_dir, ignore_errors=True)
    print(
        "measuring the model as shipped, and its ceiling: what its decoder makes of exhaustive "
        "true captions"
    )
    before = measure_model(model, backbones)
    ceiling = measure_ceiling(model, backbones)
    captioning, looks = model.captioning, []
    if settings.control == "none":
        looks = train_with_frames(model, backbones, config, run_dir)
    else:
        captioning = run_control(model, config, settings.control)
    print("measuring the trained model")
    after = measure_model(model, backbones, captioning=captioning)
    appear(out / "model", model.save_pretrained)
    results = {
        **headline(before, after, ceiling),
        "family": model.family,
        "seconds": time.monotonic() - start,
        "seed": settings.seed,
        "command": command,
        "control": settings.control,
        "versions": library_versions,
        "details": {"before": before.details, "after": after.details, "ceiling": ceiling.details},
        "config": asdict(config),
    }
    atomic_write_json(out / "results.json", results)
    report = RunReport(
        results,
        read_metrics(run_dir / "metrics.jsonl") if settings.control == "none" else [],
        before=before.samples,
        after=after.samples,
        **shown(looks, config),
        reward_backbones=reward_backbones(config),
        lead=settings.lead,
    )
    write_report(out / "report.html", report)
    return results


def check_model(folder: Path, settings: QuickstartSettings) -> None:
    """Another model's quickstart is not replaced.

    Raises:
        ValueError: where the folder holds one.
    """
    model = model_of(folder)
    if model not in (None, settings.model):
        name = EARLY if settings.sees else settings.family
        raise ValueError(
            f"--out {folder}: expected a new folder or one of a quickstart of {name}, it holds "
            f"one of the model {model}; name another"
        )


def model_of(folder: Path) -> str | None:
    """The model of the quickstart in a folder, finished or not; None where there is none."""
    for file, keys in (("results.json", ("config", "model")), ("run/config.json", ("model",))):
        if (folder / file).is_file():
            value: Any = json.loads((folder / file).read_text())
            for key in keys:
                value = value.get(key, {})
            return value or None
    return None


def train_with_frames(
    model: Any, backbones: Mapping[str, Backbone], config: RunConfig, run_dir: Path
) -> list[list[Frame]]:
    """Train, and look on at the start and after some of the steps; what was seen each time. A run
    that is resumed shows the start, and no steps that it has passed."""
    settings, num_steps = config.stage_settings(), config.train.num_steps
    prepare_policy(model, settings)
    stage = UnifiedGRPO(settings, SCENES)
    rewards = stage.rewards(model, backbones)
    if config.prompts is not None:
        stops = {*range(FRAME_EVERY, num_steps, FRAME_EVERY), num_steps}
    else:
        stops = {max(1, num_steps // 4), max(1, num_steps // 2), num_steps}
    looks, log = [look(model, config, 0)], run_dir / "metrics.jsonl"
    num_done = len(read_metrics(log)) if log.exists() else 0  # of a run that is resumed
    for until in sorted(u for u in stops if u >= num_done):
        stage.learn(model, rewards, run_dir, {"model": config.model}, until)
        looks.append(look(model, config, until))
    return looks


def look(model: UnifiedModel, config: RunConfig, step: int) -> list[Frame]:
    """The strip's image where captions learn, then prompts where painting learns from them, as the
    model has them after ``step`` steps."""
    strip = (
        caption_and_paint(strip_image(config.model), model, step) if config.captions_images else []
    )
    return strip + (paint_prompts(model, step) if config.prompts is not None else [])


def run_control(model: Any, config: RunConfig, control: Control) -> CaptionSettings:
    """The control beside Unified-GRPO; returns how the model captions afterwards."""
    if control == "prompted":
        return replace(model.captioning, instruction=INSTRUCTIONS["detailed"])
    prepare_policy(model, config.stage_settings())
    imitate(model.encoder, config.train)
    return model.captioning


def caption_and_paint(source: Tensor, model: UnifiedModel, step: int) -> list[Frame]:
    """The strip's image, captioned and painted by the model after ``step`` steps."""
    captions = model.caption([source], model.captioning)
    reconstruction = model.reconstruct(captions, model.decoding).images[0]
    return [Frame(step, captions.texts[0], reconstruction)]


def paint_prompts(model: UnifiedModel, step: int) -> list[Frame]:
    """A test prompt of each tag, each text once, painted by the model after ``step`` steps."""
    texts = list(dict.fromkeys(prompt.text for prompt in make_prompts(1)))
    images = paint(model, texts, model.decoding)
    return [Frame(step, text, image) for text, image in zip(texts, images, strict=True)]


def shown(looks: Sequence[Sequence[Frame]], config: RunConfig) -> dict[str, Any]:
    """Fields of the report that show them: one image's captions, and prompts, through the steps."""
    pictures_of = list(zip(*looks, strict=True))
    if not config.captions_images:
        return {"prompts": pictures_of}
    source = strip_image(config.model)
    strip, *prompts = pictures_of or [()]
    return {"strip": strip, "strip_source": source, "prompts": prompts}


def strip_image(model: str) -> Tensor:
    index = EARLY_STRIP_SCENE if model == EARLY else STRIP_SCENE
    return pictures([scene_at("test", index)])[0]


def headline(before: WorldResult, after: WorldResult, ceiling: WorldResult) -> dict[str, Any]:
    """The headline numbers side by side."""
    return {
        "before": before.numbers,
        "after": after.numbers,
        "delta": delta(before.numbers, after.numbers),
        "ceiling": ceiling.numbers,
        "gain": split_gain(before.numbers, after.numbers),
    }


def reward_backbones(config: RunConfig) -> list[str]:
    """The backbones that were the reward; the others are held out."""
    return [name for name, weight in config.rewards.items() if weight]
