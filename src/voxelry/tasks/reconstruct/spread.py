"""How sure a shape is: hypotheses whose spread keeps its promise, and the measure of that.

Seen from a vertex of the answer, the true surface lies some way off; the spread is how far the hypotheses' surfaces
do (root mean square, mm). If they differ as much as the truth does, the truth is within `z * spread` of as many
vertices as a normal distribution promises. A network knows its training cases better than new ones, so hypotheses
differ too little at first: on held-out cases a factor is found by which all differences from the mean are enlarged,
in the signed distances, where a difference near the surface is a displacement of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from voxelry.core.space import Space
from voxelry.metrics.intervals import LEVELS, calibration_factor, interval_coverage, standardised_errors
from voxelry.ops.sdf import signed_distance
from voxelry.ops.surface import Mesh, distance_to_surface, extract_surface
from voxelry.tasks.calibration import SpreadFactor
from voxelry.tasks.reconstruct.baselines import dice_of
from voxelry.tasks.reconstruct.predict import ReconstructPrediction

__all__ = ["LEVEL", "SPREAD_METRICS", "HypothesisCalibration", "spread_metrics"]

LEVEL = 0.9
LEAST = 0.1  # of a voxel: where all hypotheses meet, such as on a given contour, they are no surer than that
LIMITS = (0.1, 10.0)  # beyond them differences are none, or make no shapes of that organ any more
_COVERAGES = tuple(f"coverage_{100 * level:.0f}" for level in LEVELS)
SPREAD_METRICS = ("hypothesis_dice", "best_hypothesis_dice", "spread_mm", *_COVERAGES)
_VERTICES = 2000  # of a case, so that large organs don't count more than small ones
_PASSES = 2  # a surface doesn't move quite in proportion


class HypothesisCalibration(SpreadFactor):
    """A factor by which hypotheses differ more, or less, from their mean; kept as a buffer."""

    def forward(self, shapes: Tensor, mean: Tensor) -> Tensor:
        """Hypotheses `(K, *S)` and their mean `(*S)`, signed distances; the hypotheses as they are told."""
        return mean + self.factor.to(shapes) * (shapes - mean)

    def fit(
        self,
        predictions: Sequence[ReconstructPrediction],
        truths: Sequence[NDArray[np.bool_] | None],
    ) -> None:
        """Set the factor from held-out cases, made with the present one, so that 90 % of the intervals hold.

        Args:
            predictions: those with hypotheses count; where there are none, the factor stays.
            truths: the voxels of each on its `space`.
        """
        known = [
            (prediction, surface)
            for prediction, truth in zip(predictions, truths, strict=True)
            if len(prediction.hypotheses) > 1
            and not prediction.mesh.is_empty
            and truth is not None
            and not (surface := true_surface(truth, prediction.space)).is_empty
        ]
        change = 1.0
        for _ in range(_PASSES if known else 0):
            errors = [_errors(_changed(prediction, change), surface) for prediction, surface in known]
            change *= calibration_factor(errors, level=LEVEL)
        self.factor.copy_((self.factor * change).clamp(*LIMITS))
        self.cases.fill_(len(known))


def spread_metrics(prediction: ReconstructPrediction, truth: NDArray[np.bool_]) -> dict[str, float]:
    """How far hypotheses spread, and whether the truth lies within.

    Args:
        prediction: with hypotheses; without them nothing is answered.
        truth: voxels on its `space`.

    Returns:
        `spread_mm`, the mean over the vertices; `coverage_50` to `coverage_95`, the share of vertices whose distance
        to the true surface is within the spread's normal interval of that level; `hypothesis_dice`, the mean over
        the hypotheses, and `best_hypothesis_dice`. Where a surface is empty, the first two kinds are NaN.
    """
    if len(prediction.hypotheses) < 2:
        return {}
    overlaps = [dice_of(replace(prediction, sdf=one, hypotheses=()).mask(), truth) for one in prediction.hypotheses]
    found = {"hypothesis_dice": float(np.mean(overlaps)), "best_hypothesis_dice": max(overlaps)}
    surface = true_surface(truth, prediction.space)
    if prediction.mesh.is_empty or surface.is_empty:
        return found | dict.fromkeys(("spread_mm", *_COVERAGES), float("nan"))
    errors = _errors(prediction, surface)
    found["spread_mm"] = float(prediction.mesh.values["spread_mm"].mean())
    shares = [interval_coverage(errors, level=level) for level in LEVELS]
    return found | dict(zip(_COVERAGES, shares, strict=True))


def true_surface(truth: NDArray[np.bool_], space: Space) -> Mesh:
    """The surface of a truth's voxels, empty where there are none."""
    distances = signed_distance(truth, space.spacing, truncation=4 * max(space.spacing))
    outside = np.ones(space.shape, dtype=np.float32)
    return extract_surface(outside if distances is None else distances, space)


def _errors(prediction: ReconstructPrediction, surface: Mesh) -> Tensor:
    """Distances of vertices to the truth, in spreads."""
    mesh = prediction.mesh
    chosen = slice(None, None, max(1, len(mesh.vertices) // _VERTICES))
    distance = torch.from_numpy(distance_to_surface(mesh.vertices[chosen], surface)[0].copy())
    spread = torch.from_numpy(mesh.values["spread_mm"][chosen].copy()).clamp(min=LEAST * min(prediction.space.spacing))
    return standardised_errors(torch.zeros_like(distance), spread, distance)


def _changed(prediction: ReconstructPrediction, factor: float) -> ReconstructPrediction:
    """A prediction whose hypotheses differ more."""
    if factor == 1:
        return prediction
    others = tuple(prediction.sdf + np.float32(factor) * (one - prediction.sdf) for one in prediction.hypotheses)
    return replace(prediction, hypotheses=others)
