"""What the loop knows and a translation task needs: how many samples it has drawn, and what a prediction is for."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl

__all__ = ["TranslateProgress"]


class TranslateProgress(pl.Callback):
    """Keeps `drawn` and `quick` of a `TranslateTask`.

    `drawn` follows from the trainer's own counter, so that a run that was interrupted goes on with the very numbers.
    """

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Before each batch: how many samples were drawn by all processes."""
        module: Any = pl_module
        module.task.drawn = (module.batches_taken * trainer.world_size + trainer.global_rank) * len(batch)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Validations in between need no spread."""
        module: Any = pl_module
        module.task.quick = True

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The final ones do."""
        module: Any = pl_module
        module.task.quick = False
