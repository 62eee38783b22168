"""What a translation is worth: its figures beside those of doing nothing and of plain regression."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from voxelry.metrics.choice import ALL, Wanted
from voxelry.metrics.intervals import LEVELS
from voxelry.metrics.translation import figure_names, translate_metrics
from voxelry.ops.bootstrap import bootstrap_interval
from voxelry.tasks.base import Row
from voxelry.tasks.translate.calibration import SpreadCalibration
from voxelry.tasks.translate.predict import TranslatePrediction

__all__ = ["BETTER", "COVERAGES", "METHODS", "duel", "metric_names", "score", "untranslated"]

COVERAGES = tuple(f"coverage_{level * 100:.0f}" for level in LEVELS)
"""Shares of the truth inside the intervals of a spread."""

METHODS = {"input_": "the input itself", "baseline_": "regression", "": "translation"}
"""What the names of a row's figures begin with, and what is measured."""

BETTER = {"psnr": 1, "ssim": 1, "mae": -1, "gmsd": -1, "spectral_distance": -1}
"""The figures that methods are judged by, and their sense."""


def score(
    prediction: TranslatePrediction,
    *,
    data_range: Sequence[float] | None = None,
    mask: Tensor | None = None,
    wanted: Wanted = ALL,
) -> Row:
    """One row of figures, see `metrics.translation.translate_metrics`.

    Args:
        prediction: with its target.
        data_range: lowest and highest physical value that counts, by default the target's levels.
        mask: `(*spatial)` bool, where it matters.
        wanted: a method of which no figure is wanted isn't measured.

    Returns:
        `name`, `calls`, `seconds`, the figures of the translation, those of its input under `input_...` and of the
        regression baseline under `baseline_...`, and `coverage_50` to `coverage_95` where there is a spread.
    """
    target = prediction.target
    assert target is not None, "a translation without a target can't be scored"
    row: Row = {"name": prediction.name, "calls": float(prediction.calls), "seconds": prediction.seconds}
    images = {"": prediction.translated, "input_": untranslated(prediction), "baseline_": prediction.baseline}
    for prefix, image in images.items():
        if image is not None and wanted(*(f"{prefix}{name}" for name in figure_names(prediction.space.ndim))):
            figures = translate_metrics(
                image,
                target,
                levels=prediction.target_levels,
                data_range=data_range,
                space=prediction.space,
                mask=mask,
            )
            row.update({f"{prefix}{name}": value for name, value in figures.items()})
    row.update(SpreadCalibration.coverage(prediction))
    return row


def metric_names(ndim: int) -> list[str]:
    """Names of everything that a summary of rows may hold."""
    figures = figure_names(ndim)
    return [
        *("psnr", "psnr_low", "psnr_high", "ssim", "ssim_low", "ssim_high", "calls", "seconds", "exact"),
        *(f"{prefix}{name}" for prefix in METHODS for name in figures),
        *COVERAGES,
    ]


def untranslated(prediction: TranslatePrediction) -> Tensor:
    """The image itself as a guess of the target, `(C_t, *spatial)`: the mean of its contrasts where they are more."""
    image, channels = prediction.image, len(prediction.translated)
    if len(image) == channels:
        return image
    there = image[image.flatten(1).any(dim=1)]  # absent contrasts are zeros
    return (there if len(there) else image).mean(dim=0, keepdim=True).expand(channels, *image.shape[1:])


def duel(rows: Sequence[Row]) -> list[dict[str, float | str]]:
    """Translation against regression, case by case; a figure that is infinite or undefined leaves its case out.

    Returns:
        For every figure of `BETTER`, named under `figure`: the mean `difference` (translation minus regression), the
        ends `low` and `high` of its 95 % bootstrap interval, the number of `cases` and of those that are `better` in
        the translation, and the `winner`: `translation`, `regression`, or `undecided` where the interval holds 0.
    """
    result: list[dict[str, float | str]] = []
    for name, sense in BETTER.items():
        pairs = np.array([[float(row[name]), float(row[f"baseline_{name}"])] for row in rows])
        ours, theirs = pairs[np.isfinite(pairs).all(axis=1)].T
        difference = ours - theirs
        low, high = bootstrap_interval(difference)
        winner = "undecided"
        if low > 0 or high < 0:
            winner = "translation" if low * sense > 0 else "regression"
        result.append(
            {
                "figure": name,
                "difference": float(difference.mean()) if len(difference) else float("nan"),
                "low": low,
                "high": high,
                "cases": len(difference),
                "better": int((difference * sense > 0).sum()),
                "winner": winner,
            }
        )
    return result
