"""The pretraining part of a report: reconstructions, losses over time, the noising process, samples."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from torch import Tensor

from voxelry.core.space import Space
from voxelry.tasks.base import Row
from voxelry.tasks.pretrain.predict import PretrainPrediction
from voxelry.tasks.pretrain.task import PretrainTask
from voxelry.viz import figures
from voxelry.viz.report import Report

__all__ = ["add_losses", "add_noising", "add_reconstructions", "add_samples"]


def add_reconstructions(
    report: Report,
    task: PretrainTask,
    predictions: Sequence[PretrainPrediction],
    rows: Sequence[Row],
    *,
    count: int = 3,
) -> Report:
    """Held-out images, noised and denoised again: a figure for the first `count`, a table of all."""
    summary = task.summary(rows)
    report.section(
        "Reconstruction of held-out images",
        f"Each image is noised to step {task.t_start} of {task.schedule.steps} and denoised in "
        f"{len(task.reconstruct_steps)} steps. What the noise hid, the network has to make up, so a perfect copy is "
        "not to be expected.",
    )
    report.facts({name: summary[name] for name in ("ssim", "psnr", "mse", "mae") if name in summary})
    for prediction in predictions[:count]:
        stages = prediction.image, prediction.noised, prediction.reconstruction
        report.figure(
            figures.sheet(
                [stage.numpy() for stage in stages],
                columns=len(stages),
                titles=["held out", f"noised, t = {prediction.t_start}", "denoised"],
                space=prediction.space,
                window=task.rescale.data,
            ),
            f"{prediction.name}: held out, noised and denoised",
        )
    return report.table(rows, columns=["name", "ssim", "psnr", "mse", "mae", "val_loss"], caption="Each held-out case")


def add_losses(
    report: Report, task: PretrainTask, rows: Sequence[Row], history: Sequence[Mapping[str, float]] = ()
) -> Report:
    """The held-out loss in each band of time steps, now and over the training.

    Args:
        report: added to.
        task: for the bands.
        rows: of the held-out cases, as `task.metrics` gives them.
        history: summaries during the training, each with its `step`.
    """
    summary = task.summary(rows)
    bands = range(len(task.edges) - 1)
    label = {band: f"t = {task.edges[band]} to {task.edges[band + 1] - 1}" for band in bands}
    report.section(
        "Held-out loss by time step",
        "The noise of every held-out image is the same each time, so that the curves show the network alone. Little "
        "noise is hard to predict, much noise is easy; a rising curve in a band is overfitting.",
    )
    if history:
        steps = np.array([entry["step"] for entry in history])
        series = {
            label[band]: (steps, np.array([entry.get(f"val_loss_band_{band}", math.nan) for entry in history]))
            for band in bands
        }
        report.figure(
            figures.curves(series, xlabel="optimizer step", ylabel="held-out loss", log=True),
            "Held-out loss in each band of time steps during training",
        )
    return report.table(
        [{"time steps": label[band], "loss": summary.get(f"val_loss_band_{band}", math.nan)} for band in bands],
        caption="Held-out loss at the end",
    )


def add_noising(report: Report, task: PretrainTask, image: Tensor, space: Space, *, frames: int = 6) -> Report:
    """One image `(C, *spatial)` as it drowns in noise, on all orthogonal planes."""
    times, stages = task.noising_process(image, frames)
    report.section("The noising process")
    return report.figure(
        figures.process(list(stages), ["clean" if t < 0 else t for t in times], space=space),
        f"One image under the {task.schedule.name} schedule of {task.schedule.steps} steps",
    )


def add_samples(
    report: Report,
    task: PretrainTask,
    samples: Tensor,
    images: Tensor,
    space: Space,
    *,
    denoising: tuple[Sequence[int], Sequence[np.ndarray]] | None = None,
) -> Report:
    """New images beside real ones, and how far the two sets are apart.

    Args:
        report: added to.
        task: that drew them.
        samples: `(N, C, *spatial)`.
        images: `(M, C, *spatial)` held out.
        space: the grid they share.
        denoising: times and stages of one sample, from `task.denoising_process`.
    """
    report.section(
        "Samples",
        f"Drawn from pure noise by {task.sampler} in {len(task.sample_steps)} steps.",
    )
    if denoising is not None:
        times, stages = denoising
        labels = ["sample" if t < 0 else t for t in times]
        report.figure(figures.process(list(stages), labels, space=space), "One sample as it comes out of the noise")
    for what, shown in (("samples", samples), ("held-out images", images[: len(samples)])):
        report.figure(
            figures.sheet([image.cpu().numpy() for image in shown], space=space, window=task.rescale.data),
            f"{len(shown)} {what}",
        )
    distances = task.compare(samples, images)
    rows = [{"level": name.removeprefix("swd_"), "distance": value} for name, value in distances.items()]
    return report.table(
        rows,
        caption="Sliced Wasserstein distance of patches (level 0 is the finest), and between two halves of the "
        "held-out images (floor)",
    )
