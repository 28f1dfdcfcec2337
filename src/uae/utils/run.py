"""A training run in its folder, whatever learns in it: ``rl/run.py`` and ``stages/fit.py`` say
what that is.

    RUN/metrics.jsonl  RUN/checkpoints/

Data and draws are functions of the step number, so the weights, the optimiser, the average and the
step are all there is to save. What is saved are whole steps: nothing of a step that failed. Of
several processes that train together each holds all of that, and the main one writes the folder.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from uae.utils.checkpoint import Checkpoint, check_same_config, load_latest, save_checkpoint
from uae.utils.lock import locked
from uae.utils.metrics import MetricsLogger
from uae.utils.optim import Average, Schedule
from uae.utils.processes import is_main, main_first
from uae.utils.sharded_checkpoint import cut_to_rows, labelled, save_together
from uae.utils.sharding import WHOLE, Shards
from uae.utils.snapshot import Snapshot


class Run(ABC):
    """Weights, optimiser, average, step number and log of one run."""

    settings_key = "settings"
    """Of ``settings``, in a checkpoint's state."""
    may_change: tuple[str, ...] = ()
    """Dotted paths of settings that a resumed run may have otherwise."""
    takes_back = False
    """Whether a step that fails is undone, from a copy of all that it changes; else it is merely
    not saved."""

    settings: dict[str, Any]
    """What must be the same on resume."""
    defaults: Mapping[str, Any] = {}
    """Of settings, for runs that were begun before there were these."""
    save_every: int
    """Steps between checkpoints."""
    keep_checkpoints = 2
    """How many of the last checkpoints stay."""
    use_tensorboard = False
    """Log for TensorBoard, too."""

    def __init__(
        self,
        folder: Path,
        parameters: dict[str, nn.Parameter],
        optimizer: torch.optim.Optimizer,
        schedule: Schedule,
        average: Average,
        others: Sequence[Tensor] = (),
        shards: Shards = WHOLE,
    ) -> None:
        """parameters, others: what a step changes. shards: of a model that is spread over
        processes, whose rows they are."""
        self.folder, self.parameters, self.optimizer = folder, parameters, optimizer
        self.schedule, self.average, self.shards = schedule, average, shards
        self.optimizer.zero_grad(set_to_none=True)  # of a step that failed in this process
        self.step = self._saved_step = 0
        self.logger: MetricsLogger | None = None  # the main process has one
        self._rates = [group["lr"] for group in optimizer.param_groups]
        changing = [*parameters.values(), *average.values.values(), *others]
        self._before = Snapshot(changing, optimizer)
        self._is_between_steps = True

    @abstractmethod
    def contents(self) -> tuple[dict[str, Mapping[str, Tensor]], dict[str, Any]]:
        """A checkpoint's weights, by module, and state, ``settings_key`` included."""

    @abstractmethod
    def restore(self, checkpoint: Checkpoint) -> None:
        """Put back what ``contents`` gave."""

    @contextmanager
    def opened(self) -> Iterator[Self]:
        """New, or as its last checkpoint left it, and locked for others. Whatever ends the run,
        Ctrl-C too, the steps that are finished are saved; of a model that is spread those up to the
        last regular checkpoint, as the other processes may be anywhere then.

        Raises:
            ValueError: the folder is in use; or it holds a run with other settings, naming each; or
                only damaged checkpoints.
        """
        with locked(self.folder):
            with main_first():  # the others read what it has mended
                self.resume()
            if is_main():
                self.logger = MetricsLogger(
                    self.folder, last_step=self.step - 1, use_tensorboard=self.use_tensorboard
                )
            try:
                yield self
            except BaseException:
                self._save_finished()
                if self.logger is not None:
                    with suppress(OSError):
                        self.logger.close()
                raise
            self.close()

    def resume(self) -> None:
        """Go on from the last checkpoint, if there is one."""
        checkpoint = load_latest(self.folder / "checkpoints")
        if checkpoint is None:
            return
        saved = checkpoint.state[self.settings_key]
        check_same_config(saved, self.settings, self.may_change, self.defaults)
        if self.shards:
            cut_to_rows(checkpoint, self.parameters, self.optimizer, self.shards)
        self.restore(checkpoint)
        self.step = self._saved_step = checkpoint.step

    @contextmanager
    def whole_step(self) -> Iterator[None]:
        """What is done in this context is done wholly, or not saved. Where it is taken back,
        weights, optimiser, average and generators are then those of the step's beginning, bit for
        bit."""
        factor = self.schedule.factor(self.step)  # of now, so that a run may be made longer
        for group, rate in zip(self.optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * factor
        if self.takes_back:
            self._before.take()
        step, self._is_between_steps = self.step, False
        try:
            yield
        except BaseException:
            if self.takes_back:
                self._before.put_back()
                self.step, self._is_between_steps = step, True
            raise
        self._is_between_steps = True

    def finish_step(self, metrics: Mapping[str, float] | None = None) -> None:
        """Log the step, if there is something to log, and count it; the last thing in it."""
        if metrics is not None and self.logger is not None:
            self.logger.log(self.step, metrics)
        self.step += 1

    def save_if_due(self) -> None:
        """A checkpoint every so many steps, and of the last."""
        if self.step % self.save_every == 0 or self.step == self.schedule.num_steps:
            self.save()

    def save(self) -> None:
        """Write a checkpoint, atomically; the log is on disk first. Where the model is spread, all
        processes write a part."""
        if self.logger is not None:
            self.logger.sync()
        folder, contents = self.folder / "checkpoints", self.contents
        if self.shards:
            weights, state = labelled(*contents(), self.parameters, self.optimizer, self.shards)
            save_together(folder, self.step, weights, state, self.keep_checkpoints)
        elif self.logger is not None:
            save_checkpoint(folder, self.step, *contents(), self.keep_checkpoints)
        self._saved_step = self.step

    def close(self) -> None:
        """End here, saving what the last regular checkpoint lacks."""
        if self.step > self._saved_step:
            self.save()
        if self.logger is not None:
            self.logger.close()

    def _save_finished(self) -> None:
        if not self._is_between_steps or self.step == self._saved_step or self.shards:
            return
        try:
            self.save()
        except Exception as error:  # the disk's, say; what ended the run is the one to raise
            warnings.warn(
                f"the steps after {self._saved_step} were not saved: {error}", stacklevel=2
            )
