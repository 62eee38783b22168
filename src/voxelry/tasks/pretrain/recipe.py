"""The pretraining task in the engine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from omegaconf import DictConfig

from voxelry.core.space import Space
from voxelry.data.demands import Demands
from voxelry.data.patches import window_size
from voxelry.data.sample import Sample
from voxelry.tasks.evaluate import Evaluation
from voxelry.tasks.pretrain import report as pages
from voxelry.tasks.pretrain.predict import PretrainPrediction, write_images
from voxelry.tasks.pretrain.samples import PeriodicSamples
from voxelry.tasks.pretrain.task import PretrainTask
from voxelry.tasks.recipe import DenseRecipe, History, make_folder
from voxelry.viz.report import Report

if TYPE_CHECKING:
    import lightning.pytorch as pl

__all__ = ["PretrainRecipe", "add_new_images"]

SAMPLES = 4
DRAWN_VOXELS = 1 << 16  # of a new image: 256 squared, or a cube of 40
FRACTIONS = (0.9, 0.1, 0.0)  # of the experiments


class PretrainRecipe(DenseRecipe[PretrainTask, PretrainPrediction]):
    """Diffusion: images alone, an estimate of the noise in each, new images."""

    task = PretrainTask
    alike = ("translate",)
    windowed = True
    stored = (PretrainPrediction, Space)

    def demands(self) -> Demands:
        """Nothing but images; no case is kept for a test."""
        return Demands((), fractions=FRACTIONS)

    def out_channels(self, sample: Sample, config: DictConfig) -> int:
        """As many as the image has."""
        return int(sample.image.shape[0])

    def callbacks(self, output: Path) -> list[pl.Callback]:
        """A sheet of new images after each validation."""
        return [PeriodicSamples(output / "samples")]

    def write(self, prediction: PretrainPrediction, sample: Sample, folder: Path, format: str) -> Path:
        """What was denoised and what came of it."""
        pairs = {"noised": prediction.noised, "reconstruction": prediction.reconstruction}
        return write_images(prediction.name, pairs, make_folder(folder), prediction.space, format)[-1]

    def add_results(
        self, report: Report, task: PretrainTask, evaluation: Evaluation[PretrainPrediction], history: History
    ) -> None:
        """Reconstructions, losses by time step, and new images."""
        pages.add_reconstructions(report, task, evaluation.predictions, evaluation.rows)
        pages.add_losses(report, task, evaluation.rows, history)
        add_new_images(report, task, evaluation)


def add_new_images(
    report: Report, task: PretrainTask, evaluation: Evaluation[PretrainPrediction], seed: int = 0
) -> None:
    """New images of the size that the first held-out case was seen in, beside held-out ones.

    Of larger ones the middle: each new image takes the network as often as there are steps of sampling.
    """
    first = evaluation.predictions[0]
    shape = first.image.shape[1:]
    size = window_size(shape, DRAWN_VOXELS)
    start = [(whole - part) // 2 for whole, part in zip(shape, size, strict=True)]
    middle = (slice(None), *(slice(low, low + part) for low, part in zip(start, size, strict=True)))
    alike = [record.image[middle] for record in evaluation.predictions if record.image.shape == first.image.shape]
    generator = torch.Generator().manual_seed(seed)
    pages.add_noising(report, task, first.image, first.space)
    drawn = task.sample(SAMPLES, alike[0].shape, generator=generator)
    steps, frames = task.denoising_process(alike[0].shape, generator=generator)
    space = first.space.crop(start, size)
    pages.add_samples(report, task, drawn, torch.stack(alike), space, denoising=(steps, list(frames)))
