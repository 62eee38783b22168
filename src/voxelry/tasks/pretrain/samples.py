"""What a diffusion model draws while it learns."""

from __future__ import annotations

from pathlib import Path

import lightning.pytorch as pl
import torch

from voxelry.core.errors import FileError
from voxelry.data.sample import Batch
from voxelry.engine.lightning import TaskModule
from voxelry.tasks.pretrain import PretrainTask

__all__ = ["PeriodicSamples"]

COUNT = 4


class PeriodicSamples(pl.Callback):
    """After each validation, a sheet of new images from the same noise: `step_000500.png`, and so on.

    Args:
        folder: where the pictures go.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._like: Batch | None = None

    def on_validation_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Batch, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Remember what an image looks like."""
        self._like = batch

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw and write."""
        if self._like is None or trainer.sanity_checking or not trainer.is_global_zero:
            return
        from voxelry.viz import figures

        assert isinstance(pl_module, TaskModule)
        assert isinstance(pl_module.task, PretrainTask)
        task = pl_module.task
        generator = torch.Generator().manual_seed(task.seed)
        images = task.sample(COUNT, self._like.image.shape[1:], generator=generator)
        sheet = figures.sheet([image.cpu().numpy() for image in images], space=self._like.spaces[0])
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            sheet.savefig(self.folder / f"step_{trainer.global_step:06d}.png")
        except OSError as error:
            raise FileError(self.folder, f"the samples can't be written: {error.strerror or error}") from error
