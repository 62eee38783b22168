"""The masked-autoencoder part of a report: what was hidden, and what the network made of it."""

from __future__ import annotations

from collections.abc import Sequence

from voxelry.tasks.base import Row
from voxelry.tasks.pretrain.masked import MaskedPrediction, MaskedPretrainTask
from voxelry.viz import figures
from voxelry.viz.report import Report

__all__ = ["add_masked_reconstructions"]


def add_masked_reconstructions(
    report: Report,
    task: MaskedPretrainTask,
    predictions: Sequence[MaskedPrediction],
    rows: Sequence[Row],
    *,
    count: int = 3,
) -> Report:
    """Held-out images, masked and completed: a figure for the first `count`, a table of all.

    Args:
        report: added to.
        task: that predicted.
        predictions: of the held-out cases.
        rows: theirs, as `task.metrics` gives them.
        count: how many are drawn.
    """
    summary = task.summary(rows)
    scale = (
        "The network predicts each patch up to its mean and contrast, which the pictures take from the image; a loss "
        "of 1 is what the mean of each patch scores."
        if task.normalise_targets
        else "The loss is the mean squared error of the hidden voxels."
    )
    report.section(
        "Reconstruction of hidden units",
        f"{task.mask_ratio:.0%} of the mask units of each held-out image are hidden, always the same ones. {scale}",
    )
    report.facts({name: summary[name] for name in ("val_loss", "ssim", "psnr", "mse", "mae") if name in summary})
    for prediction in predictions[:count]:
        stages = prediction.image, prediction.masked(task.data_range[0]), prediction.reconstruction
        report.figure(
            figures.sheet(
                [stage.numpy() for stage in stages],
                columns=len(stages),
                titles=["held out", f"seen, {1 - prediction.hidden.float().mean():.0%}", "completed"],
                space=prediction.space,
                window=task.data_range,
            ),
            f"{prediction.name}: held out, masked and completed",
        )
    columns = ["name", "val_loss", "ssim", "psnr", "mse", "mae", "hidden"]
    return report.table(rows, columns=columns, caption="Each held-out case")
