"""Where the crops of a volume lie, and which objects each of them shows.

Boxes are all lows, then all highs, in array order; voxel `i` spans `i - 0.5` to `i + 0.5`.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np
from numpy.typing import NDArray

__all__ = ["crop_starts", "crops_showing", "slabs"]

_SLAB = 1 << 15  # crops handled at a time, so that memory doesn't grow with the volume


def crop_starts(size: int, crop: int, overlap: int) -> NDArray[np.int64]:
    """First voxels of crops along an axis of `size` voxels: every `crop - overlap`, the last moved back to end there.

    An axis shorter than a crop has one, from 0.
    """
    if size <= crop:
        return np.zeros(1, np.int64)
    starts = np.arange(0, size - crop + 1, crop - overlap)
    return starts if starts[-1] + crop == size else np.append(starts, size - crop)


def slabs(starts: Sequence[NDArray[np.int64]]) -> list[list[NDArray[np.int64]]]:
    """The grid of crops in parts along its first axis, in order, each small enough to be held at once."""
    step = max(1, _SLAB // prod(len(axis) for axis in starts[1:]))
    return [[starts[0][first : first + step], *starts[1:]] for first in range(0, len(starts[0]), step)]


def crops_showing(
    starts: Sequence[NDArray[np.int64]],
    crop: Sequence[int],
    boxes: NDArray[np.float64],
    *,
    min_visible: float = 0.0,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Every pair of a crop and an object whose box it meets.

    Args:
        starts: first voxels per axis, ascending; crop number `i` is number `i` of their grid, last axis fastest.
        crop: voxels per axis.
        boxes: `(K, 2 * ndim)`.
        min_visible: share of a box's volume that must lie in the crop, in [0, 1].

    Returns:
        Crop numbers and box numbers, `(P,)` each, by crop, then by box.
    """
    ndim = len(crop)
    first = np.empty((ndim, len(boxes)), np.int64)
    count = np.empty_like(first)
    for axis in range(ndim):
        first[axis] = np.searchsorted(starts[axis], boxes[:, axis] + 0.5 - crop[axis], side="right")
        last = np.searchsorted(starts[axis], boxes[:, ndim + axis] + 0.5, side="left")
        count[axis] = np.maximum(last - first[axis], 0)
    total = count.prod(axis=0)
    owner = np.repeat(np.arange(len(boxes)), total)
    place = np.arange(len(owner)) - np.repeat(np.cumsum(total) - total, total)
    number = np.zeros(len(owner), np.int64)
    share = np.ones(len(owner))
    stride = 1
    for axis in reversed(range(ndim)):
        place, within = np.divmod(place, count[axis][owner])
        index = first[axis][owner] + within
        number += index * stride
        stride *= len(starts[axis])
        if min_visible > 0:
            edge = starts[axis][index] - 0.5
            low, high = boxes[owner, axis], boxes[owner, ndim + axis]
            share *= (np.minimum(high, edge + crop[axis]) - np.maximum(low, edge)) / (high - low)
    if min_visible > 0:
        kept = share >= min_visible
        number, owner = number[kept], owner[kept]
    order = np.lexsort((owner, number))
    return number[order], owner[order]
