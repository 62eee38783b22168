"""Overlap of label maps, class by class."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from voxelry.core.errors import SettingError

__all__ = ["dice"]


def dice(prediction: Any, truth: Any) -> dict[int, float]:
    """Dice of every class above 0 that occurs in either map, `2 |A and B| / (|A| + |B|)` (Dice 1945).

    Args:
        prediction, truth: `(*spatial)` integers or booleans, 0 and below for background. To judge a translated image,
            give what one segmentation method makes of it and of the real image.

    Returns:
        Class to a number in [0, 1]; empty where both maps are.

    Raises:
        SettingError: maps of different shapes, or of grey values, whose products are no overlap.
    """
    first, second = _labels(prediction, "prediction"), _labels(truth, "truth")
    if first.shape != second.shape:
        raise SettingError(f"prediction: expected shape {second.shape} like the truth, got {first.shape}")
    scores = {}
    for value in np.union1d(first, second):
        if value > 0:
            a, b = first == value, second == value
            scores[int(value)] = float(2 * np.count_nonzero(a & b) / (np.count_nonzero(a) + np.count_nonzero(b)))
    return scores


def _labels(values: Any, name: str) -> NDArray[np.integer]:
    array: NDArray[np.integer] = np.asarray(values)
    if array.dtype.kind not in "iub":
        raise SettingError(f"{name}: Dice is of label maps, expected integers, got {array.dtype}")
    return array
