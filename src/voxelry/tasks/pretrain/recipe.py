"""The pretraining task in the engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from omegaconf import DictConfig

from voxelry.data.sample import Sample
from voxelry.tasks.recipe import DenseKind, make_folder

if TYPE_CHECKING:
    import lightning.pytorch as pl

    from voxelry.data.parts import SampleSource
    from voxelry.tasks.evaluate import Evaluation
    from voxelry.viz.report import Report

__all__ = ["PretrainKind", "add_new_images"]

SAMPLES = 4


class PretrainKind(DenseKind):
    """Diffusion: images alone, an estimate of the noise in each, new images."""

    name = "pretrain"
    target = "voxelry.tasks.pretrain.PretrainTask"
    formats = ("nii.gz",)
    alike = ("translate",)

    def out_channels(self, sample: Sample, config: DictConfig) -> int:
        """As many as the image has."""
        return int(sample.image.shape[0])

    def callbacks(self, output: Path) -> list[pl.Callback]:
        """A sheet of new images after each validation."""
        from voxelry.tasks.pretrain.samples import PeriodicSamples

        return [PeriodicSamples(output / "samples")]

    def write(self, prediction: Any, sample: Sample, folder: Path, format: str) -> Path:
        """The reconstruction as NIfTI."""
        from voxelry.tasks.pretrain.predict import write_reconstruction

        return write_reconstruction(prediction, make_folder(folder))[-1]

    def add_results(
        self,
        report: Report,
        task: Any,
        evaluation: Evaluation,
        held_out: SampleSource,
        history: Sequence[Mapping[str, float]],
    ) -> None:
        """Reconstructions, losses by time step, and new images."""
        from voxelry.tasks.pretrain import report as pages

        pages.add_reconstructions(report, task, evaluation.predictions, evaluation.rows)
        pages.add_losses(report, task, evaluation.rows, history)
        add_new_images(report, task, evaluation)


def add_new_images(report: Report, task: Any, evaluation: Evaluation, seed: int = 0) -> None:
    """New images of the first held-out case's size, beside held-out ones."""
    from voxelry.tasks.pretrain import report as pages

    first = evaluation.predictions[0]
    alike = [record.image for record in evaluation.predictions if record.image.shape == first.image.shape]
    generator = torch.Generator().manual_seed(seed)
    pages.add_noising(report, task, first.image, first.space)
    drawn = task.sample(SAMPLES, first.image.shape, generator=generator)
    steps, frames = task.denoising_process(first.image.shape, generator=generator)
    pages.add_samples(report, task, drawn, torch.stack(alike), first.space, denoising=(steps, list(frames)))
