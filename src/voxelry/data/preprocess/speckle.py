"""Ultrasound without its speckle."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["despeckle"]


def despeckle(image: NDArray[np.floating], *, size: int = 5) -> NDArray[np.float32]:
    """Lee's filter for multiplicative noise, rank-free (Lee 1980, IEEE TPAMI 2(2), 165-168).

    Where the local coefficient of variation is that of the speckle alone, a voxel becomes the local mean; where it
    is larger, as on edges, more of the voxel is kept. The speckle's is the median of all local ones.

    Args:
        image: `(C, *spatial)`, black at 0; where there are negative values, the smallest is black.
        size: voxels of the neighbourhood along each axis.
    """
    from scipy.ndimage import uniform_filter

    out = np.empty(image.shape, dtype=np.float32)
    for channel, values in enumerate(np.asarray(image, dtype=np.float64)):
        low = min(0.0, float(values.min()))
        values = values - low
        mean = uniform_filter(values, size, mode="nearest")
        variance = np.maximum(uniform_filter(values**2, size, mode="nearest") - mean**2, 0.0)
        lit = mean > 1e-6 * max(float(values.max()), 1e-30)
        relative = np.divide(variance, mean**2, out=np.zeros_like(mean), where=lit)
        speckle = float(np.median(relative[lit])) if lit.any() else 0.0
        kept = np.clip(1 - np.divide(speckle, relative, out=np.ones_like(mean), where=relative > 0), 0, 1)
        out[channel] = mean + kept * (values - mean) + low
    return out
