"""Where the time of a run goes."""

from __future__ import annotations

import time
from typing import Any

import lightning.pytorch as pl

__all__ = ["TimeShares"]


class TimeShares(pl.Callback):
    """Seconds by what a run is busy with; the last of its callbacks, so that what the others do counts as theirs.

    Attributes:
        seconds: of this session: `waiting for data`, `learning` (steps and checkpoints), `validating`, and what is
            told by `lap`.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, part: str) -> None:
        """Count the time since the last call for a part of the run."""
        now = time.perf_counter()
        self.seconds[part] = self.seconds.get(part, 0.0) + now - self._last
        self._last = now

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """What was before."""
        self.lap("preparing")

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """The batch is there."""
        self.lap("waiting for data")

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """The step is done."""
        self.lap("learning")

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The validation is done."""
        self.lap("validating")

    def rows(self) -> list[dict[str, str]]:
        """A table: part, seconds, share."""
        total = sum(self.seconds.values()) or 1.0
        return [
            {"part": part, "seconds": f"{seconds:.1f}", "share": f"{100 * seconds / total:.0f} %"}
            for part, seconds in self.seconds.items()
        ]
