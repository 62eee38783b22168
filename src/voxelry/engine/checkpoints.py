"""Checkpoints of a run: `last.ckpt` to go on from, `best.ckpt` to keep."""

from __future__ import annotations

import pickle
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import lightning.pytorch as pl
import torch

from voxelry.core.errors import CheckpointError, FileError

__all__ = ["Checkpoints", "check_description", "read_checkpoint"]


class Checkpoints(pl.Callback):
    """Write checkpoints whole or not at all, and turn Ctrl-C into a clean stop.

    The first SIGINT or SIGTERM finishes the batch at hand, writes `last.ckpt` and ends the run with
    `interrupted` set; a second one ends it at once. Where a validation is due, `last.ckpt` is written
    after it, for a run that goes on from there does not repeat it.

    Args:
        folder: where `last.ckpt` and `best.ckpt` go.
        every: optimizer steps between two writings of `last.ckpt`.
        validate_every: optimizer steps between two validations; a run isn't stopped where one is due, as the
            resumed run would go without it.
        monitor: the summary metric that `best.ckpt` follows.
        higher_is_better: its sense.
        saved: called in every process when `last.ckpt` was written.
    """

    def __init__(
        self,
        folder: Path,
        *,
        every: int,
        validate_every: int,
        monitor: str,
        higher_is_better: bool = False,
        saved: Callable[[pl.Trainer, Path], None] | None = None,
    ):
        self.folder, self.every, self.validate_every = folder, every, validate_every
        self.monitor, self.higher_is_better, self.saved = monitor, higher_is_better, saved
        self.best: float | None = None
        self.interrupted = False
        self._written = -1
        self._previous: dict[int, Any] = {}

    @property
    def last_path(self) -> Path:
        """The checkpoint to go on from."""
        return self.folder / "last.ckpt"

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
            signal.signal(number, self._previous[number])
            signal.raise_signal(number)
        self.interrupted = True

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write `last.ckpt` when it is due or when the run is interrupted."""
        step = trainer.global_step
        accumulating = (batch_idx + 1) % trainer.accumulate_grad_batches != 0 and not trainer.is_last_batch
        # between two optimizer steps the gathered gradients would be lost
        between = self.validate_every == 1 or step % self.validate_every != 0
        if self.interrupted and not accumulating and between:
            self._save_last(trainer)
            trainer.should_stop = True
            trainer.limit_val_batches = 0
        elif not accumulating and not (sum(trainer.num_val_batches) and step % self.validate_every == 0):
            self._save_if_due(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write `best.ckpt` after the best validation so far, and `last.ckpt` when it is due."""
        if trainer.sanity_checking:
            return
        value = float(trainer.callback_metrics[f"val/{self.monitor}"])
        better = self.best is None or (value > self.best if self.higher_is_better else value < self.best)
        if better:
            self.best = value
            self._save(trainer, self.best_path)
        self._save_if_due(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the end of the run and give the signals back."""
        if not self.interrupted:
            self._save_last(trainer)
        self._release()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Give the signals back."""
        self._release()

    def state_dict(self) -> dict[str, Any]:
        """The best value so far."""
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore it."""
        self.best = state_dict["best"]

    def _release(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def _save_if_due(self, trainer: pl.Trainer) -> None:
        step = trainer.global_step
        if step % self.every == 0 and step != self._written:
            self._save_last(trainer)
            self._written = step

    def _save_last(self, trainer: pl.Trainer) -> None:
        self._save(trainer, self.last_path)
        if self.saved is not None:
            self.saved(trainer, self.last_path)

    def _save(self, trainer: pl.Trainer, path: Path) -> None:
        partial = path.with_suffix(".partial")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            trainer.save_checkpoint(partial)
            if trainer.is_global_zero:
                partial.replace(path)
        except OSError as error:
            raise FileError(path, f"the checkpoint can't be written: {error.strerror or error}") from error
        finally:
            if trainer.is_global_zero:  # another process would take the file away from under its name
                partial.unlink(missing_ok=True)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint's content, tensors and plain values only.

    Raises:
        CheckpointError: missing, unreadable, or holding anything that would have to be executed.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such checkpoint") from error
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, KeyError, ValueError) as error:
        raise CheckpointError(f"{path}: not a checkpoint of tensors and plain values") from error
    if not isinstance(checkpoint, dict):
        raise CheckpointError(f"{path}: expected a dictionary, found {type(checkpoint).__name__}")
    return checkpoint


def check_description(path: Path, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Refuse to go on with a checkpoint of another model.

    Raises:
        CheckpointError: names the first setting that differs.
    """
    for part in ("task", "network"):
        theirs, ours = found.get(part, {}), wanted.get(part, {})
        for key in sorted(set(theirs) | set(ours)):
            if theirs.get(key) != ours.get(key):
                raise CheckpointError(
                    f"{path}: {part}.{key} is {theirs.get(key)!r} in the checkpoint, but {ours.get(key)!r} "
                    "is configured (train into another folder, or configure the same)"
                )
