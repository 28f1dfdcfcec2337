"""What is learnt from: the user's files, or what the embedded world hands in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from uae.config import DecodeSettings
from uae.data.folders import list_images
from uae.data.questions import GenericQuestions
from uae.data.training import FilePrompts, FolderImages, check_same_files
from uae.rl.auxiliary import Auxiliary
from uae.rl.rollout import JointSource
from uae.stages.grpo_settings import WORLD, UnifiedGRPOSettings
from uae.types import ImageSource, PairSource, PromptSource, QuestionSource

Endless = Callable[[int], ImageSource]
"""Images without files, by the seed of their order."""
ANCHORED_EXHAUSTIVE_SHARE = 0.5


@dataclass(frozen=True)
class World:
    """What the embedded world hands in, each by its seed."""

    images: Endless
    """What is learnt from where the settings name no files."""
    prompts: Callable[[int, float], PromptSource]
    """What is painted where the settings ask for prompts of the world, by the share of exhaustive
    captions too."""
    pairs: Callable[[int], PairSource]
    """Pictures with exhaustive captions, for `matching_coef`."""
    questions: Callable[[int], QuestionSource]
    """About its images, for `anchor_coef`."""


@dataclass(frozen=True)
class Sources:
    """Those of Unified-GRPO with these settings."""

    settings: UnifiedGRPOSettings
    world: World | None = None
    """For the tiny models."""

    def check(self) -> None:
        """A ValueError where something is asked for that there is not."""
        settings = self.settings
        if settings.is_joint and not settings.data and self.world is None:
            raise ValueError(
                "expected images to caption beside the prompts: give --data FOLDER, or "
                "--train.caption-weight 0 to learn from prompts alone"
            )
        if settings.captions_images:
            check_images(settings.data, self._endless)
        self.prompts()
        self.anchor_texts()
        if settings.train.matching_coef > 0 and self.world is None:
            raise ValueError(
                "train.matching-coef: expected 0, as its pairs are the embedded world's, for the "
                f"tiny models, got {settings.train.matching_coef}"
            )

    def check_same_files(self, run_dir: Path) -> None:
        """A ValueError that names what changed in the user's files since the run in ``run_dir`` was
        started."""
        for source in (self.images, self.prompts(), self.anchor_texts()):
            check_same_files(source, run_dir)

    def learnt(self) -> ImageSource | PromptSource | JointSource:
        """What rewards are for: images to caption, prompts to paint, or both."""
        images, prompts = self.images, self.prompts()
        if images and prompts:
            return JointSource(images, prompts)
        source = images or prompts
        assert source is not None, "settings without prompts have images"
        return source

    def beside(self) -> Auxiliary:
        """What stands beside that."""
        pairs = self.world.pairs(self.settings.train.seed) if self.world else None
        return Auxiliary(pairs, self.questions(), self.anchor_texts())

    @cached_property
    def images(self) -> ImageSource | None:
        """What is captioned, if captions are learnt or painted."""
        settings = self.settings
        if not settings.captions_images:
            return None
        train = settings.train
        return image_source(settings.data, train.decoding, train.seed, self._endless)

    def prompts(self) -> PromptSource | None:
        """What is painted, where that are not captions.

        Raises:
            ValueError: when there are no such prompts.
        """
        settings = self.settings
        if settings.prompts is None:
            return None
        return self._texts("prompts", settings.prompts, settings.exhaustive_share)

    def questions(self) -> QuestionSource | None:
        """What is asked beside captioning, if that is asked for: about the user's images whatever
        can be asked of any, about the world's what can be asked of them."""
        settings = self.settings
        if settings.train.anchor_coef == 0:
            return None
        if not settings.data and self.world:
            return self.world.questions(settings.train.seed)
        return GenericQuestions(self.images) if self.images else None

    def anchor_texts(self) -> PromptSource | None:
        """What goes on telling the decoder what it told, if that is asked for.

        Raises:
            ValueError: when there are no such texts.
        """
        settings = self.settings
        if settings.train.text_anchor_coef == 0:
            return None
        name = settings.anchor_texts or WORLD
        return self._texts("anchor-texts", name, ANCHORED_EXHAUSTIVE_SHARE)

    @property
    def _endless(self) -> Endless | None:
        return self.world.images if self.world else None

    def _texts(self, option: str, name: str, exhaustive_share: float) -> PromptSource:
        """Of a file, or the world's."""
        seed = self.settings.train.seed
        if name != WORLD:
            if not Path(name).exists():
                raise ValueError(
                    f"{option}: expected a file of prompts or {WORLD}, there is no {name}"
                )
            return FilePrompts(Path(name), seed, option)
        if self.world is None:
            raise ValueError(
                f"{option}: expected a file, got {WORLD}, whose prompts are for the tiny models"
            )
        return self.world.prompts(seed, exhaustive_share)


def check_images(data: tuple[str, ...], endless: Endless | None) -> None:
    """There is something to learn from."""
    if data:
        list_images(data)
    elif endless is None:
        raise ValueError(
            "expected images to learn from: give --data FOLDER (the world's scenes are for the "
            "tiny models)"
        )


def image_source(
    data: tuple[str, ...], decoding: DecodeSettings, seed: int, endless: Endless | None = None
) -> ImageSource:
    """The user's files at the size that is painted, or images without files."""
    if not data:
        assert endless is not None, "check_images"
        return endless(seed)
    return FolderImages(data, (decoding.height, decoding.width), seed)
