"""How far predicted points are from annotated ones, in mm, and how much to believe it.

Errors are taken against the original points, not against points decoded from target heatmaps, whose
rounding would hide up to half a voxel. Points are world coordinates `(..., 3)` in mm; NaN in the truth
means that the landmark is absent, NaN in a prediction that nothing was found.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from voxelry.core.errors import DataError
from voxelry.core.space import Space
from voxelry.ops.bootstrap import bootstrap_interval

__all__ = [
    "SDR_THRESHOLDS_MM",
    "MeanPosition",
    "case_row",
    "oks_average_precision",
    "presence_auc",
    "radial_errors",
    "success_rate",
    "summarise",
]

Floats = NDArray[np.floating]
Row = dict[str, float | str]

SDR_THRESHOLDS_MM = (1.0, 2.0, 2.5, 3.0, 4.0, 6.0, 9.0, 10.0)
OKS_SIGMA_MM = 2.0


def radial_errors(predicted: Floats, truth: Floats) -> NDArray[np.float64]:
    """Euclidean distances in mm, `(..., 3), (..., 3) -> (...)`; NaN where either point is NaN."""
    return np.linalg.norm(np.asarray(predicted, dtype=np.float64) - np.asarray(truth, dtype=np.float64), axis=-1)


def success_rate(errors: Floats, threshold_mm: float) -> float:
    """Successful detection rate: the fraction of errors of at most `threshold_mm`, in [0, 1].

    Pass inf for a landmark that was missed; NaN is left out. NaN when nothing is left.
    """
    known = errors[~np.isnan(errors)]
    return float((known <= threshold_mm).mean()) if known.size else math.nan


def oks_average_precision(errors: Floats, *, sigma_mm: float = OKS_SIGMA_MM) -> float:
    """Mean, over the thresholds 0.50, 0.55, ..., 0.95, of the fraction of points with an OKS above, in [0, 1].

    OKS is object keypoint similarity, `exp(-d² / (2 sigma²))` as in COCO's keypoint evaluation, with
    the scale of the object and the constant of the keypoint in one `sigma_mm`: the error at which a
    point counts as 0.61 right. The default of 2 mm is the usual clinical tolerance. inf counts as
    missed, NaN is left out; NaN when nothing is left.
    """
    known = errors[~np.isnan(errors)]
    if not known.size:
        return math.nan
    similarity = np.exp(-np.square(known) / (2 * sigma_mm**2))
    thresholds = np.arange(50, 100, 5) / 100
    return float((similarity[:, None] >= thresholds).mean())


def presence_auc(scores: Floats, present: NDArray[np.bool_]) -> float:
    """Area under the ROC curve of presence scores, in [0, 1]; NaN unless both classes occur.

    The probability that a present landmark scores higher than an absent one, ties counting half
    (Mann and Whitney 1947).
    """
    scores, present = np.asarray(scores).ravel(), np.asarray(present, dtype=bool).ravel()
    positives, negatives = int(present.sum()), int((~present).sum())
    if not positives or not negatives:
        return math.nan
    _, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[place]  # from 1 on, ties at the mean of theirs
    return float((ranks[present].sum() - positives * (positives + 1) / 2) / (positives * negatives))


class MeanPosition:
    """The baseline that every model should beat: each landmark's mean position in the training images.

    A position is a fraction of the image's extent along each axis, from outer edge to outer edge, so
    that images of different sizes can share one mean.
    """

    def __init__(self, fractions: Floats):
        self.fractions = np.asarray(fractions, dtype=np.float64)

    @classmethod
    def fit(cls, points: Sequence[Floats], spaces: Sequence[Space]) -> MeanPosition:
        """Average index coordinates `(N, ndim)` of training cases; NaN is left out per landmark.

        Raises:
            DataError: no cases.
        """
        if not len(points):
            raise DataError("mean-position baseline: expected at least one training case")
        fractions = np.stack(
            [
                (np.asarray(own, dtype=np.float64) + 0.5) / np.asarray(space.shape)
                for own, space in zip(points, spaces, strict=True)
            ]
        )
        known = ~np.isnan(fractions)
        total = np.where(known, fractions, 0.0).sum(axis=0)
        count = known.sum(axis=0)
        return cls(np.where(count > 0, total / np.maximum(count, 1), np.nan))

    def predict(self, space: Space) -> NDArray[np.float64]:
        """World coordinates `(N, 3)` in mm for an image of any size."""
        index = self.fractions * np.asarray(space.shape) - 0.5
        return np.asarray(space.to_world(index), dtype=np.float64)


def case_row(
    name: str,
    names: Sequence[str],
    predicted: Floats,
    truth: Floats,
    *,
    radii_mm: Floats | None = None,
    levels: Sequence[float] = (),
    presence: Floats | None = None,
    counted: Sequence[str] | None = None,
) -> Row:
    """One case's metrics.

    Args:
        names: `N` landmark names.
        predicted, truth: `(N, 3)` world mm.
        radii_mm: `(N, levels)` calibrated radii.
        presence: `(N,)` scores.
        counted: names of the landmarks that the numbers of the whole case are of; None: all.

    Returns:
        `name`, `mre_mm`, `worst_mm`, `missed` (present, but not found), and for each landmark
        `error_mm.<landmark>`, `present.<landmark>`, and if given `covered_<percent>.<landmark>` and
        `presence.<landmark>`.
    """
    errors = radial_errors(predicted, truth)
    present = np.atleast_1d(~np.isnan(truth).any(axis=-1))
    counts = np.array([counted is None or name in counted for name in names], dtype=bool)
    found = errors[~np.isnan(errors) & counts]
    row: Row = {
        "name": name,
        "mre_mm": float(found.mean()) if found.size else math.nan,
        "worst_mm": float(found.max()) if found.size else math.nan,
        "missed": float((present & np.isnan(errors) & counts).sum()),
    }
    for index, landmark in enumerate(names):
        row[f"error_mm.{landmark}"] = float(errors[index])
        row[f"present.{landmark}"] = float(present[index])
        if presence is not None:
            row[f"presence.{landmark}"] = float(presence[index])
        if radii_mm is not None:
            for position, level in enumerate(levels):
                inside = math.nan if np.isnan(errors[index]) else float(errors[index] <= radii_mm[index, position])
                row[f"covered_{_percent(level)}.{landmark}"] = inside
    return row


def summarise(
    rows: Sequence[Mapping[str, float | str]],
    names: Sequence[str],
    *,
    levels: Sequence[float] = (),
    thresholds_mm: Sequence[float] = SDR_THRESHOLDS_MM,
    oks_sigma_mm: float = OKS_SIGMA_MM,
    seed: int = 0,
) -> dict[str, float]:
    """All rows of `case_row` in a few numbers.

    Returns:
        `mre_mm` with its 95 % interval `mre_mm_low`, `mre_mm_high`, `median_mm`, `sd_mm`, `mse_mm2`,
        `mre_mm.<landmark>`, `sdr_<threshold>mm` in [0, 1] (a missed point is no success), `map_oks`,
        `coverage_<percent>`, `presence_auc`, `missed`, `cases`, `points`.
    """
    errors = _table(rows, "error_mm", names)
    present = _table(rows, "present", names) == 1
    found = errors[~np.isnan(errors)]
    scored = np.where(present & np.isnan(errors), np.inf, errors)
    low, high = bootstrap_interval(errors, seed=seed)
    result = {
        "mre_mm": float(found.mean()) if found.size else math.nan,
        "mre_mm_low": low,
        "mre_mm_high": high,
        "median_mm": float(np.median(found)) if found.size else math.nan,
        "sd_mm": float(found.std()) if found.size else math.nan,
        "mse_mm2": float(np.square(found).mean()) if found.size else math.nan,
    }
    for landmark, column in zip(names, errors.T, strict=True):
        known = column[~np.isnan(column)]
        result[f"mre_mm.{landmark}"] = float(known.mean()) if known.size else math.nan
    for threshold in thresholds_mm:
        result[f"sdr_{threshold:g}mm"] = success_rate(scored, threshold)
    result["map_oks"] = oks_average_precision(scored, sigma_mm=oks_sigma_mm)
    for level in levels:
        inside = _table(rows, f"covered_{_percent(level)}", names)
        inside = inside[~np.isnan(inside)]
        result[f"coverage_{_percent(level)}"] = float(inside.mean()) if inside.size else math.nan
    result["presence_auc"] = presence_auc(_table(rows, "presence", names), present)
    result["missed"] = float((present & np.isnan(errors)).sum())
    result["cases"] = float(len(rows))
    result["points"] = float(present.sum())
    return result


def _table(rows: Sequence[Mapping[str, float | str]], field: str, names: Sequence[str]) -> NDArray[np.float64]:
    """One field of every row and landmark, `(cases, N)`; NaN where a row lacks it."""
    values = [[float(row.get(f"{field}.{name}", math.nan)) for name in names] for row in rows]
    return np.array(values, dtype=np.float64).reshape(len(rows), len(names))


def _percent(level: float) -> str:
    return f"{100 * level:g}"
