"""What a run logs: its curves, which a resumed run goes on with, and lines that tell how far it is."""

from __future__ import annotations

import csv
import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback, TQDMProgressBar
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger

from voxelry.core.choice import check_choice
from voxelry.core.errors import ConfigError

__all__ = ["LOGGERS", "EvaluationLines", "make_logger", "progress_callback"]

LOGGERS = ("csv", "tensorboard")
SECONDS = 30.0  # between two lines of a log

log = logging.getLogger("voxelry")


def make_logger(name: str, output: Path, resumed_at: int | None) -> Logger:
    """The logger of a run, into `output/logs`.

    Args:
        name: one of `LOGGERS`.
        output: the run's folder.
        resumed_at: optimizer steps that the run goes on from, what was logged before is kept; None: a new run.

    Raises:
        ConfigError: another name.
    """
    check_choice("trainer.logger", name, LOGGERS, ConfigError)
    if name == "tensorboard":
        return TensorBoardLogger(save_dir=output, name="", version="logs", purge_step=resumed_at)
    earlier = [] if resumed_at is None else _rows(output / "logs" / "metrics.csv", resumed_at)
    logger = CSVLogger(save_dir=output, name="", version="logs")
    writer: Any = logger.experiment  # removes an older file
    for row in earlier:
        step = int(row.pop("step"))
        writer.log_metrics({key: float(value) for key, value in row.items()}, step)
    if earlier:
        writer.save()
    return logger


def _rows(path: Path, before: int) -> list[dict[str, str]]:
    """The lines that were logged before that step, without the cells that are empty."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        rows = [{key: value for key, value in row.items() if key and value} for row in csv.DictReader(file)]
    return [row for row in rows if "step" in row and int(row["step"]) < before]


class EvaluationLines:
    """Tells every `SECONDS` how far an evaluation is; called after each sample, see `tasks.evaluate.evaluate_task`.

    Args:
        part: of the data, such as `test`.
        count: samples of it.
    """

    def __init__(self, part: str, count: int):
        self.part, self.count = part, count
        self._done, self._told = 0, time.monotonic()

    def __call__(self, names: Sequence[str]) -> None:
        """Count what was measured."""
        self._done += 1
        now = time.monotonic()
        if now - self._told >= SECONDS and self._done < self.count:
            self._told = now
            log.info("measured %d of %d for the %s", self._done, self.count, self.part)


def progress_callback() -> Callback:
    """A bar where somebody looks on, else a line every so often."""
    return TQDMProgressBar(refresh_rate=1) if sys.stderr.isatty() else ProgressLines()


class ProgressLines(Callback):
    """A line at the first step, then not before `SECONDS` have passed, and at every validation and at the end."""

    def __init__(self) -> None:
        self._told = -float("inf")
        self._step = -1

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Tell how far the run is, when it is time."""
        if time.monotonic() - self._told >= SECONDS:
            self._tell(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Tell what was found."""
        self._tell(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Tell where the run ended."""
        if trainer.global_step != self._step:
            self._tell(trainer)

    def _tell(self, trainer: pl.Trainer) -> None:
        self._told, self._step = time.monotonic(), trainer.global_step
        if not trainer.is_global_zero:
            return
        steps = f"step {trainer.global_step}" + (f" of {trainer.max_steps}" if trainer.max_steps > 0 else "")
        metrics = trainer.callback_metrics
        log.info(
            ", ".join([steps, *(f"{name} {float(metrics[name]):.4g}" for name in ("loss", "val") if name in metrics)])
        )
