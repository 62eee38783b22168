"""Checkpoints of a run: `last.ckpt` to go on from, `best.ckpt` to keep, numbered ones to choose from."""

from __future__ import annotations

import logging
import math
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import lightning.pytorch as pl

from voxelry.core.errors import CheckpointError, FileError, VoxelryError
from voxelry.engine.run_folder import BEFORE, LAST
from voxelry.engine.validations import Validations

__all__ = ["Checkpoints", "StoppedError", "check_description"]

log = logging.getLogger("voxelry")
_NEVER = 1 << 62  # batches


class StoppedError(VoxelryError):
    """Ended at once, by a second Ctrl-C."""


class Checkpoints(pl.Callback):
    """Write checkpoints whole or not at all, say when to validate, and turn Ctrl-C into a clean stop.

    The first SIGINT or SIGTERM finishes the batch at hand, and the validation where one is due, writes
    `last.ckpt` and ends the run with `interrupted` set; a second one ends it at once. Where a validation is
    due, checkpoints are written after it, for a run that goes on from there does not repeat it.

    Args:
        folder: where the checkpoints go.
        every: optimizer steps between two writings of `last.ckpt`.
        monitor: the summary metric that `best.ckpt` follows.
        higher_is_better: its sense.
        validations: when they are due; None for a run without validation cases.
        keep_every: optimizer steps between two checkpoints that are kept as `step_00002000.ckpt`; None for none.
        patience: validations in a row without a better one after which the run ends; None goes on.
        saved: called in every process when `last.ckpt` was written.

    Attributes:
        best: the best validation's value, None before there was one that is a number.
        best_step: the optimizer step that it followed.
    """

    def __init__(
        self,
        folder: Path,
        *,
        every: int,
        monitor: str,
        higher_is_better: bool = False,
        validations: Validations | None = None,
        keep_every: int | None = None,
        patience: int | None = None,
        saved: Callable[[pl.Trainer, Path], None] | None = None,
    ):
        self.folder, self.every, self.keep_every = folder, every, keep_every
        self.monitor, self.higher_is_better, self.saved = monitor, higher_is_better, saved
        self.validations, self.patience = validations, patience
        self.best: float | None = None
        self.best_step = 0
        self.waited = 0
        self.interrupted = False
        self._written = -1
        self._previous: dict[int, Any] = {}

    @property
    def last_path(self) -> Path:
        """The checkpoint to go on from."""
        return self.folder / LAST

    @property
    def best_path(self) -> Path:
        """The checkpoint of the best validation."""
        return self.folder / "best.ckpt"

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take over the signals, which only the main thread may; elsewhere they are somebody else's."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._stop)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        if self.interrupted:
            self._release()
            raise StoppedError(f"stopped at once; what was done since the last checkpoint is lost ({self.last_path})")
        self.interrupted = True
        print("\nstopping after this batch; once more stops at once", file=sys.stderr)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Say whether a validation follows; where none does, write what is due, and end an interrupted run."""
        trainer.val_check_batch = _NEVER
        # between two optimizer steps the gathered gradients would be lost
        if (batch_idx + 1) % trainer.accumulate_grad_batches != 0 and not trainer.is_last_batch:
            return
        progress = pl_module.progress()  # type: ignore[operator]
        if self.validations is not None and self.validations.due(trainer.global_step, progress):
            trainer.val_check_batch = 1
        elif self.interrupted:
            self._save_last(trainer)
            trainer.should_stop = True
            trainer.limit_val_batches = 0
        else:
            self._save_if_due(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write `best.ckpt` after the best validation so far, and what else is due; end a run that waited enough."""
        if trainer.sanity_checking:
            return
        if pl_module.task.judged(pl_module.progress()):  # type: ignore[operator, union-attr]
            self._judge(trainer, float(trainer.callback_metrics[f"val/{self.monitor}"]))
        if self.interrupted:
            self._save_last(trainer)
            trainer.should_stop = True
            return
        self._save_if_due(trainer)
        if self.patience is not None and self.waited >= self.patience:
            log.info(
                "step %d: no better %s in %d validations; the run ends", trainer.global_step, self.monitor, self.waited
            )
            trainer.should_stop = True

    def _judge(self, trainer: pl.Trainer, value: float) -> None:
        better = self.best is None or (value > self.best if self.higher_is_better else value < self.best)
        if math.isnan(value) or not better:
            self.waited += 1
            return
        self.best, self.best_step, self.waited = value, trainer.global_step, 0
        self._save(trainer, self.best_path)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the end of the run and give the signals back."""
        if not self.interrupted:
            self._save_last(trainer)
        self._release()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Give the signals back."""
        self._release()

    def state_dict(self) -> dict[str, Any]:
        """The best value so far, and what was waited for a better one."""
        state: dict[str, Any] = {"best": self.best, "best_step": self.best_step, "waited": self.waited}
        return state if self.validations is None else state | self.validations.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore it."""
        self.best, self.best_step = state_dict["best"], state_dict["best_step"]
        self.waited = state_dict["waited"]
        if self.validations is not None and "part" in state_dict:
            self.validations.load_state_dict(state_dict)

    def _release(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def _save_if_due(self, trainer: pl.Trainer) -> None:
        step = trainer.global_step
        if step == self._written:
            return
        self._written = step
        if step % self.every == 0:
            self._save_last(trainer)
        if self.keep_every is not None and step % self.keep_every == 0:
            self._save(trainer, self.folder / f"step_{step:08d}.ckpt")

    def _save_last(self, trainer: pl.Trainer) -> None:
        self._save(trainer, self.last_path, before=self.folder / BEFORE)
        if self.saved is not None:
            self.saved(trainer, self.last_path)

    def _save(self, trainer: pl.Trainer, path: Path, before: Path | None = None) -> None:
        """Write a checkpoint; the one that it replaces is kept as `before`, for a machine that loses its power."""
        partial = path.with_suffix(".partial")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            trainer.save_checkpoint(partial)
            if trainer.is_global_zero:
                with partial.open("r+b") as file:
                    os.fsync(file.fileno())
                if before is not None and path.exists():
                    path.replace(before)
                partial.replace(path)
        except OSError as error:
            raise FileError(path, f"the checkpoint can't be written: {error.strerror or error}") from error
        finally:
            if trainer.is_global_zero:  # another process would take the file away from under its name
                partial.unlink(missing_ok=True)


def check_description(
    path: Path, found: dict[str, Any], wanted: dict[str, Any], parts: Sequence[str] = ("task", "network")
) -> None:
    """Refuse to go on with a checkpoint of another model.

    Args:
        path: the checkpoint.
        found, wanted: what it says of its model, and what is configured.
        parts: which of these must be the same.

    Raises:
        CheckpointError: names the first setting that differs.
    """
    for part in parts:
        theirs, ours = found.get(part, {}), wanted.get(part, {})
        for key in sorted(set(theirs) | set(ours)):
            if theirs.get(key) != ours.get(key):
                raise CheckpointError(
                    f"{path}: {part}.{key} is {theirs.get(key)!r} in the checkpoint, but {ours.get(key)!r} "
                    "is configured (train into another folder, or configure the same)"
                )
