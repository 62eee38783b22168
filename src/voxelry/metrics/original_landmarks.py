"""The landmark scores of an earlier project, by its own definitions, for comparison with figures made by it.

It scores in whole pixels of the resized image, against points that it reads back from its target heatmaps, and none of
its scores depends on where within a pixel a point is. A position `p` in index coordinates is its pixel
`round(p + 0.5)`. See `metrics.landmarks` for errors in mm against the annotated points.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["SDR_THRESHOLDS", "original_landmark_scores", "score_names"]

Pixels = NDArray[np.int64]

SDR_THRESHOLDS = (2.0, 2.5, 3.0, 4.0, 6.0, 9.0, 10.0)
_DISC_SIGMA = 5.0  # pixels, whatever the targets' sigma was
_OKS_SIGMA = 0.1  # pixels
_OKS_THRESHOLDS = np.arange(0.5, 1.0, 0.05)
_CEPHALOMETRIC, _HAND = 19, 37  # its datasets are told apart by the number of points
_CEPHALOMETRIC_SIZE = (1935.0, 2400.0)  # height and width as it takes them; the images are 2400 high and 1935 wide
_CEPHALOMETRIC_SPACING = 0.1  # mm
_WRIST_MM = 50.0


def original_landmark_scores(
    predicted: NDArray[np.floating], truth: NDArray[np.floating], shape: Sequence[int]
) -> dict[str, float]:
    """The scores of one image.

    Args:
        predicted, truth: `(N, ndim)` index coordinates in the resized image. A predicted NaN is a corner of the image,
            as there; landmarks that are absent from the truth, which it doesn't know, are left out.
        shape: of that image.

    Returns:
        `mse`: mean squared difference of a coordinate, pixels².
        `map_keypoints`: mean over OKS thresholds 0.5, 0.55, ... 0.95 of the share of points above, with 0.1 pixels as
            the error that is tolerated: the share of points in the very pixel.
        `map_heatmaps`: the same of the rows of the two fused heatmaps, each row with each: the share of equal pairs.
        `iou`: of the two fused heatmaps, which have 1 within `5 sqrt(2 ln 2)` pixels of any point.
        `mre`, `sdr_2`, ...: mean distance and shares of distances below; pixels, but for 37 points (hand) in units in
            which points 0 and 4 are 50 apart, and for 19 points (cephalometric) in mm by its sizes, which are swapped.
        All NaN without any point.
    """
    known = ~np.isnan(truth).any(axis=-1)
    if not known.any():
        return dict.fromkeys(score_names(), math.nan)
    own = _pixels(np.where(np.isnan(predicted), -0.5, predicted)[known])
    true = _pixels(truth[known])
    squared = np.square(own - true).astype(np.float64)
    distances = np.sqrt((squared * np.square(_unit(true, shape))).sum(axis=-1))
    discs = _discs(own, shape), _discs(true, shape)
    union = np.union1d(*discs)
    return {
        "mse": float(squared.mean()),
        "map_keypoints": _mean_precision(squared.sum(axis=-1)),
        "map_heatmaps": _row_precision(*discs, shape),
        "iou": len(np.intersect1d(*discs)) / len(union) if len(union) else math.nan,
        "mre": float(distances.mean()),
        **{_sdr_name(limit): float((distances <= limit).mean()) for limit in SDR_THRESHOLDS},
    }


def score_names() -> list[str]:
    """The names of these scores."""
    return ["mse", "map_keypoints", "map_heatmaps", "iou", "mre", *(_sdr_name(limit) for limit in SDR_THRESHOLDS)]


def _sdr_name(limit: float) -> str:
    return f"sdr_{limit:g}"


def _pixels(points: NDArray[np.floating]) -> Pixels:
    return np.rint(points + 0.5).astype(np.int64)


def _unit(true: Pixels, shape: Sequence[int]) -> NDArray[np.float64]:
    """What a pixel along each axis counts."""
    ones = np.ones(len(shape))
    if len(true) == _CEPHALOMETRIC and len(shape) == 2:
        return np.array(_CEPHALOMETRIC_SIZE) / np.array(shape) * _CEPHALOMETRIC_SPACING
    if len(true) == _HAND:
        wrist = float(np.linalg.norm(true[0] - true[4]))
        return ones * (_WRIST_MM / wrist if wrist else math.nan)
    return ones


def _discs(points: Pixels, shape: Sequence[int]) -> Pixels:
    """Flat indices of the fused heatmap's ones, without repetition."""
    radius = _DISC_SIGMA * math.sqrt(2 * math.log(2))
    reach = range(-int(radius), int(radius) + 1)
    near = np.array([step for step in itertools.product(reach, repeat=len(shape)) if math.hypot(*step) <= radius])
    voxels = (points[:, None] + near).reshape(-1, len(shape))
    inside = ((voxels >= 0) & (voxels < np.array(shape))).all(axis=-1)
    return np.unique(np.ravel_multi_index(tuple(voxels[inside].T), tuple(shape)))


def _mean_precision(squared: NDArray[np.float64]) -> float:
    similarity = np.exp(-squared / (2 * _OKS_SIGMA**2))
    return float((similarity[:, None] >= _OKS_THRESHOLDS).mean())


def _row_precision(one: Pixels, other: Pixels, shape: Sequence[int]) -> float:
    """Rows differ in whole pixels, so that a pair is above every threshold if it is equal and below all if not."""
    rows = math.prod(shape[:-1])
    counts = [_row_counts(voxels, rows, shape[-1]) for voxels in (one, other)]
    equal = sum(count * counts[1][row] for row, count in counts[0].items())
    return equal / rows**2


def _row_counts(voxels: Pixels, rows: int, width: int) -> Counter[bytes]:
    """How often each row occurs in a map with ones at `voxels`, rows known by the places of their ones."""
    numbers, places = np.divmod(voxels, width)
    occupied, starts = np.unique(numbers, return_index=True)
    counts = Counter(part.tobytes() for part in np.split(places, starts[1:])) if len(voxels) else Counter()
    counts[b""] = rows - len(occupied)
    return counts
