"""Label maps on another grid: what share of a new voxel each label fills, one voxel after another.

Arrays are of rank 3. However many labels there are, a voxel keeps a list of those few that are near it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from voxelry.ops.kernels import jit
from voxelry.ops.kernels.resample import SLACK

__all__ = ["count_inside", "exchange", "two_largest_shares"]


@jit
def _add(label: int, weight: float, known: Any, weights: Any, count: int) -> int:
    for place in range(count):
        if known[place] == label:
            weights[place] += weight
            return count
    known[count], weights[count] = label, weight
    return count + 1


@jit
def _add_corners(labels: Any, z: float, y: float, x: float, share: float, known: Any, weights: Any, count: int) -> int:
    """Add `share` to the labels around a point, by their linear weights; beyond the grid to the background."""
    depth, height, width = labels.shape
    if not (
        -0.5 - SLACK <= z <= depth - 0.5 + SLACK
        and -0.5 - SLACK <= y <= height - 0.5 + SLACK
        and -0.5 - SLACK <= x <= width - 0.5 + SLACK
    ):
        return _add(0, share, known, weights, count)
    z, y, x = min(max(z, 0.0), depth - 1.0), min(max(y, 0.0), height - 1.0), min(max(x, 0.0), width - 1.0)
    z0, y0, x0 = int(z), int(y), int(x)
    parts_z, parts_y, parts_x = z - z0, y - y0, x - x0
    for corner in range(8):
        high_z, high_y, high_x = corner >> 2, (corner >> 1) & 1, corner & 1
        weight = share
        weight *= parts_z if high_z else 1.0 - parts_z
        weight *= parts_y if high_y else 1.0 - parts_y
        weight *= parts_x if high_x else 1.0 - parts_x
        if weight > 0.0:
            label = labels[min(z0 + high_z, depth - 1), min(y0 + high_y, height - 1), min(x0 + high_x, width - 1)]
            count = _add(label, weight, known, weights, count)
    return count


@jit
def two_largest_shares(labels: Any, matrix: Any, offset: Any, points: Any, first: Any, second: Any, lead: Any) -> None:
    """The labels with the largest and the second largest share of every new voxel, and by how much the first leads.

    `points` `(K, 3)` are the places within a new voxel that are looked at, as offsets of its index. Where a voxel
    has one label only, it is the second as well.
    """
    known = np.zeros(8 * len(points), np.int64)
    weights = np.zeros(8 * len(points), np.float64)
    share = 1.0 / len(points)
    for i in range(first.shape[0]):
        for j in range(first.shape[1]):
            for k in range(first.shape[2]):
                count = 0
                for point in points:
                    a, b, c = i + point[0], j + point[1], k + point[2]
                    z = matrix[0, 0] * a + matrix[0, 1] * b + matrix[0, 2] * c + offset[0]
                    y = matrix[1, 0] * a + matrix[1, 1] * b + matrix[1, 2] * c + offset[1]
                    x = matrix[2, 0] * a + matrix[2, 1] * b + matrix[2, 2] * c + offset[2]
                    count = _add_corners(labels, z, y, x, share, known, weights, count)
                best, next_best = 0, -1
                for place in range(1, count):
                    if weights[place] > weights[best]:
                        best, next_best = place, best
                    elif next_best < 0 or weights[place] > weights[next_best]:
                        next_best = place
                first[i, j, k] = known[best]
                second[i, j, k] = known[best if next_best < 0 else next_best]
                lead[i, j, k] = 1.0 if next_best < 0 else weights[best] - weights[next_best]


@jit
def count_inside(labels: Any, matrix: Any, offset: Any, shape: Any, counts: Any) -> None:
    """Add to `counts` `(L,)` how many voxels of each label lie in a grid of `shape`, cut ones by the share inside.

    `matrix` and `offset` map an index of `labels` to one of that grid.
    """
    reach = np.zeros(3)
    for axis in range(3):
        reach[axis] = max(abs(matrix[axis, 0]), abs(matrix[axis, 1]), abs(matrix[axis, 2]))
    for z in range(labels.shape[0]):
        for y in range(labels.shape[1]):
            for x in range(labels.shape[2]):
                if labels[z, y, x] > 0:
                    share = 1.0
                    for axis in range(3):
                        place = matrix[axis, 0] * z + matrix[axis, 1] * y + matrix[axis, 2] * x + offset[axis]
                        margin = min(place + 0.5, shape[axis] - 0.5 - place)
                        share *= min(max(margin / reach[axis] + 0.5, 0.0), 1.0)
                    counts[labels[z, y, x]] += share


@jit
def exchange(first: Any, second: Any, free: Any, excess: Any, chosen: Any) -> None:
    """Give voxels on borders, in their order, to their second label where that brings both nearer to their number.

    Args:
        first, second: `(N,)` labels of the voxels.
        free: `(L,)` bool, labels that may have any number of voxels.
        excess: `(L,)`, by how many voxels each has too many; brought up to date.
        chosen: `(N,)`, the labels that voxels have, `first` until they are given away; brought up to date.
    """
    for place in range(len(first)):
        giver, taker = first[place], second[place]
        if chosen[place] != giver or (free[giver] and free[taker]):
            continue
        if (free[giver] or excess[giver] > 0) and (free[taker] or excess[taker] < 0):
            chosen[place] = taker
            excess[giver] -= 1
            excess[taker] += 1
