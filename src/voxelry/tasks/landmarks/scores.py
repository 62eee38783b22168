"""Metrics of predicted landmarks: ours in mm, the baseline's, and the original's own."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from torch import Tensor

from voxelry.data.sample import Batch
from voxelry.metrics.landmarks import SDR_THRESHOLDS_MM, MeanPosition, case_row, summarise
from voxelry.metrics.original_landmarks import original_landmark_scores, score_names
from voxelry.tasks.base import Row
from voxelry.tasks.landmarks.calibration import LEVELS
from voxelry.tasks.landmarks.predict import LandmarkPrediction

__all__ = ["ORIGINAL", "metric_names", "score_rows", "summarise_rows"]

ORIGINAL = "original_"  # before the names of the original's own scores


def score_rows(
    predictions: Sequence[LandmarkPrediction],
    batch: Batch,
    points: Tensor,
    *,
    baseline: MeanPosition,
    presence: bool = False,
    original: bool = False,
    counted: Sequence[str] | None = None,
) -> list[Row]:
    """One row per sample: `metrics.landmarks.case_row`, `mean_position_mm` of the baseline, the original's scores.

    Args:
        points: the batch's, `(B, N, ndim)` index coordinates.
        presence: whether the predicted presence is a statement.
        original: add the original's scores, by `metrics.original_landmarks`.
        counted: names of the landmarks that the numbers of a whole case are of; None: all.
    """
    rows = []
    for prediction, own, space in zip(predictions, points, batch.spaces, strict=True):
        truth = space.to_world(own.double().cpu().numpy())
        row = case_row(
            prediction.name,
            prediction.names,
            prediction.world,
            truth,
            radii_mm=prediction.radii_mm,
            levels=prediction.levels,
            presence=prediction.presence if presence else None,
            counted=counted,
        )
        guess = case_row(prediction.name, prediction.names, baseline.predict(space), truth, counted=counted)
        row |= {"mean_position_mm": guess["mre_mm"]}
        if original:
            scores = original_landmark_scores(prediction.index, own.cpu().numpy(), space.shape)
            row |= {f"{ORIGINAL}{name}": score for name, score in scores.items()}
        rows.append(row)
    return rows


def summarise_rows(
    rows: Sequence[Mapping[str, float | str]], names: Sequence[str], thresholds: Sequence[float] = ()
) -> dict[str, float]:
    """`metrics.landmarks.summarise`, and the means of the other numbers that `score_rows` adds.

    Args:
        names: of the landmarks that count.
        thresholds: mm of further success rates.
    """
    further = ["mean_position_mm", *dict.fromkeys(key for row in rows for key in row if key.startswith(ORIGINAL))]
    limits = sorted({*SDR_THRESHOLDS_MM, *thresholds})
    found = summarise(rows, names, levels=LEVELS, thresholds_mm=limits)
    return found | {key: _finite_mean(rows, key) for key in further}


def metric_names(names: Sequence[str], thresholds: Sequence[float] = (), *, original: bool = False) -> list[str]:
    """Names of everything that `summarise_rows` may give."""
    theirs = [f"{ORIGINAL}{name}" for name in score_names()] if original else []
    return [*summarise_rows((), names, thresholds), *theirs]


def _finite_mean(rows: Sequence[Mapping[str, float | str]], key: str) -> float:
    values = np.array([float(row.get(key, math.nan)) for row in rows])
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if finite.size else math.nan
