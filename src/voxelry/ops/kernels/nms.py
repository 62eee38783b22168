"""Greedy suppression of boxes on the CPU, with the candidates found by a search along one axis.

Boxes are given in the order of `group`, then of their low on the sweep axis. What can overlap a box then lies
between two positions that a binary search finds: `reach` is the largest high so far in the group, so that
boxes before the first position end too early, and those from the second on begin too late.
"""

from __future__ import annotations

import math
from typing import Any

from voxelry.ops.kernels import jit

__all__ = ["decay", "overlap", "sweep"]


@jit
def overlap(low: Any, high: Any, volume: Any, first: int, second: int) -> Any:
    """Intersection over union, in the operations, the order and the precision of `voxelry.ops.boxes.iou`."""
    # No literal takes part: with one, Numba would go on in float64 and round otherwise.
    zero = low[first, 0] - low[first, 0]
    inner = min(high[first, 0], high[second, 0]) - max(low[first, 0], low[second, 0])
    if not inner > zero:
        return zero
    for axis in range(1, low.shape[1]):
        extent = min(high[first, axis], high[second, axis]) - max(low[first, axis], low[second, axis])
        if not extent > zero:
            return zero
        inner = inner * extent
    union = volume[first] + volume[second] - inner
    if not union > zero:
        return zero
    return inner / union


@jit
def _first_above(values: Any, bound: Any, start: int, stop: int) -> int:
    """The first position from `start` on whose value is above the bound; the values never fall."""
    while start < stop:
        middle = (start + stop) // 2
        if values[middle] > bound:
            stop = middle
        else:
            start = middle + 1
    return start


@jit
def _first_from(values: Any, bound: Any, start: int, stop: int) -> int:
    """The first position from `start` on whose value is the bound or above; the values never fall."""
    while start < stop:
        middle = (start + stop) // 2
        if values[middle] >= bound:
            stop = middle
        else:
            start = middle + 1
    return start


@jit
def sweep(low: Any, high: Any, volume: Any, group: Any, visits: Any, axis: int, threshold: Any, owner: Any) -> None:
    """Give every box its owner: itself if it is kept, otherwise the kept box of the best score that suppresses it.

    Args:
        low: `(N, ndim)`, and `high` alike.
        volume: `(N,)`.
        group: `(N,)` integers that don't fall.
        visits: `(N,)` positions by falling score.
        axis: the sweep axis.
        threshold: a box is suppressed by an IoU above it, of the type of the boxes.
        owner: `(N,)` int64, -1 everywhere; written.
    """
    starts = low[:, axis].copy()
    reach = high[:, axis].copy()
    for position in range(1, len(group)):
        if group[position] == group[position - 1]:
            reach[position] = max(reach[position], reach[position - 1])
    for position in visits:
        if owner[position] >= 0:
            continue
        owner[position] = position
        begin = _first_from(group, group[position], 0, position + 1)
        end = _first_above(group, group[position], position, len(group))
        stop = _first_from(starts, high[position, axis], begin, end)
        start = _first_above(reach, low[position, axis], begin, stop)
        for other in range(start, stop):
            if owner[other] < 0 and overlap(low, high, volume, position, other) > threshold:
                owner[other] = position


@jit
def decay(
    low: Any,
    high: Any,
    volume: Any,
    scores: Any,
    gaussian: bool,
    sigma: float,
    threshold: Any,
    min_score: float,
    order: Any,
) -> int:
    """Soft-NMS: take the best box, weaken what overlaps it, repeat; the number taken.

    Args:
        low: `(N, ndim)`, and `high` alike.
        volume: `(N,)`.
        scores: `(N,)` float64; becomes the weakened scores.
        gaussian: `exp(-IoU² / sigma)`; otherwise `1 - IoU` for an IoU above the threshold.
        sigma: see `gaussian`.
        threshold: see `gaussian`.
        min_score: boxes that aren't above it are no longer taken.
        order: `(N,)` int64, written: the boxes in the order they were taken.
    """
    count = len(scores)
    for box in range(count):
        order[box] = box
    for taken in range(count):
        best = taken
        for other in range(taken + 1, count):
            score, record = scores[order[other]], scores[order[best]]
            if score > record or (score == record and order[other] < order[best]):
                best = other
        order[taken], order[best] = order[best], order[taken]
        first = order[taken]
        if not scores[first] > min_score:
            return taken
        for other in range(taken + 1, count):
            second = order[other]
            shared = overlap(low, high, volume, first, second)
            if gaussian:
                wide = float(shared)
                scores[second] *= math.exp(-(wide * wide) / sigma)
            elif shared > threshold:
                scores[second] *= 1 - float(shared)
    return count
