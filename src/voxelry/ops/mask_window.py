"""The box that a mask fills, at any rank."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["mask_window"]


def mask_window(
    mask: NDArray[np.bool_], margin: float | Sequence[float] | NDArray[np.floating] = 0.0
) -> tuple[slice, ...] | None:
    """The box of a mask, `margin` voxels wider on every side (rounded up), inside the array; None if empty."""
    mask = np.asarray(mask)
    widths = np.ceil(np.broadcast_to(np.asarray(margin, dtype=np.float64), (mask.ndim,))).astype(int)
    window = []
    for axis in range(mask.ndim):
        others = tuple(other for other in range(mask.ndim) if other != axis)
        found = np.flatnonzero(mask.any(axis=others))
        if not len(found):
            return None
        low, high = int(found[0]) - widths[axis], int(found[-1]) + 1 + widths[axis]
        window.append(slice(max(0, int(low)), min(mask.shape[axis], int(high))))
    return tuple(window)
