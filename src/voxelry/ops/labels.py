"""Label maps on another grid, with every label's volume and every border between two labels kept.

A new voxel gets the label with the largest share of it. Shares are each label's indicator, interpolated linearly at
the voxel's centre; where new voxels are larger than the old ones, their mean over places at most one old voxel apart.
Borders run half-way between voxels then, whichever labels meet there, so labels that touch go on touching. A centre
exactly on a border belongs to the side of the lower index.

Where the largest share decides alone, corners and thin parts lose and chance decides on which side of a centre a
surface lies: the less voxels, the more. So voxels on borders, those first where it is closest, are given to their
second label until each label has the number that its volume makes.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil

import numpy as np
from numpy.typing import ArrayLike, NDArray

from voxelry.core.errors import SettingError
from voxelry.core.rank import check_ndim

__all__ = ["resample_labels"]

_MOST = 65535
_SLAB = 1 << 24  # new voxels that are worked on at a time
_SCATTER = 2654435761  # spreads numbers evenly over 32 bits (Knuth 1998, section 6.4)
_TIE = 1e-4  # old voxels by which places are moved, so that a tie goes to the lower index


def resample_labels(
    labels: NDArray[np.integer], matrix: ArrayLike, offset: ArrayLike, shape: Sequence[int]
) -> NDArray[np.integer]:
    """The labels at index `matrix @ i + offset` for every index `i` of the new grid.

    Args:
        labels: `(*spatial)` of rank 2 or 3, up to 65535, 0 for background and beyond the grid.
        matrix, offset: `(ndim, ndim)` and `(ndim,)`, old index of a new one.
        shape: of the new grid.

    Returns:
        `shape`, of the type of `labels`. A label has the voxels that its volume on the part of the old grid makes
        that the new one covers, as far as its borders reach; one that fills no half of any new voxel may be lost.
        New voxels that each lie within an old one have its label.

    Raises:
        SettingError: labels out of range, shapes that don't fit together, a matrix without an inverse.
    """
    from voxelry.ops.kernels.labels import count_inside, exchange

    ndim = check_ndim(labels.ndim)
    linear, start, size = np.eye(3), np.zeros(3), (*(1,) * (3 - ndim), *(int(count) for count in shape))
    if len(size) != 3 or np.shape(matrix) != (ndim, ndim) or np.shape(offset) != (ndim,):
        raise SettingError(f"matrix, offset, shape: expected those of rank {ndim}, got {matrix!r}, {offset!r}, {shape}")
    linear[3 - ndim :, 3 - ndim :], start[3 - ndim :] = matrix, offset
    if labels.size == 0 or labels.min() < 0 or labels.max() > _MOST:
        raise SettingError(f"labels: expected whole numbers from 0 to {_MOST} and at least one voxel")
    if np.linalg.matrix_rank(linear) < 3:
        raise SettingError(f"matrix: expected an invertible one, got {linear.tolist()}")
    source = np.ascontiguousarray(labels.reshape(*(1,) * (3 - ndim), *labels.shape), dtype=np.uint16)
    inside_one = _cells(linear, start, size)
    if inside_one is not None:
        return _copied(source, *inside_one).reshape(size[3 - ndim :]).astype(labels.dtype)
    result, borders = _largest_shares(source, linear, start, size)
    count = int(source.max()) + 1
    inverse = np.linalg.inv(linear)
    inside = np.zeros(count)
    count_inside(source, inverse, -inverse @ start, np.array(size), inside)
    wanted = np.rint(inside * abs(np.linalg.det(inverse))).astype(np.int64)
    have = np.bincount(result.ravel(), minlength=count)
    excess = have - np.where(have > 0, np.maximum(wanted, 1), wanted)
    excess[0] = 0  # background takes part in the last exchange only
    place, first, second = borders
    chosen = first.copy()
    for free in _exchanges(first, second, excess):
        exchange(first, second, free, excess, chosen)
    result.reshape(-1)[place] = chosen
    return result.reshape(size[3 - ndim :]).astype(labels.dtype)


def _cells(
    matrix: NDArray[np.float64], offset: NDArray[np.float64], shape: tuple[int, ...]
) -> tuple[list[int], list[NDArray[np.int64]]] | None:
    """The old voxel that each new one lies in, where each lies in one: old axes of the new ones, old places along them.

    None where a new voxel reaches into several old ones.
    """
    used = np.abs(matrix) > _TIE * np.abs(matrix).max()
    if (used.sum(axis=0) != 1).any():
        return None
    axes = used.argmax(axis=0).tolist()
    places = []
    for axis, (old, count) in enumerate(zip(axes, shape, strict=True)):
        ends = np.sort(matrix[old, axis] * (np.arange(count) + np.array([[-0.5], [0.5]])) + offset[old] + 0.5, axis=0)
        low, high = np.floor(ends[0] + _TIE).astype(np.int64), np.ceil(ends[1] - _TIE).astype(np.int64)
        if (high - low != 1).any():
            return None
        places.append(low)
    return axes, places


def _copied(labels: NDArray[np.uint16], axes: list[int], places: list[NDArray[np.int64]]) -> NDArray[np.uint16]:
    """Labels at those places, 0 beyond the grid."""
    found = labels.transpose(axes)
    for axis, along in enumerate(places):
        there = (along >= 0) & (along < found.shape[axis])
        line = np.take(found, np.where(there, along, 0), axis=axis)
        found = line * there.reshape([-1 if other == axis else 1 for other in range(3)]).astype(np.uint16)
    return np.ascontiguousarray(found)


def _largest_shares(
    labels: NDArray[np.integer], matrix: NDArray[np.float64], offset: NDArray[np.float64], shape: tuple[int, ...]
) -> tuple[NDArray[np.integer], tuple[NDArray[np.int64], NDArray[np.integer], NDArray[np.integer]]]:
    """The map by the largest share; of the voxels with several labels flat index, first and second, closest first."""
    from voxelry.ops.kernels.labels import two_largest_shares

    points = _places(matrix)
    result = np.empty(shape, dtype=labels.dtype)
    depth = max(1, _SLAB // (shape[1] * shape[2]))
    found = []
    for low in range(0, shape[0], depth):
        slab = result[low : low + depth]
        second, lead = np.empty_like(slab), np.empty(slab.shape, dtype=np.float32)
        two_largest_shares(labels, matrix, offset + low * matrix[:, 0], points, slab, second, lead)
        border = np.flatnonzero(second != slab)
        near = low * shape[1] * shape[2] + border
        found.append((lead.ravel()[border], near, slab.ravel()[border], second.ravel()[border]))
    lead, place, first, second = (np.concatenate(parts) for parts in zip(*found, strict=True))
    # of voxels that are as close as each other any may be exchanged: those of one end of the grid would move the label
    order = np.lexsort((place * _SCATTER % (1 << 32), np.round(lead, 4)))
    return result, (place[order], first[order], second[order])


def _places(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """Offsets of a new index, evenly spread over its voxel and at most one old voxel apart, `(K, 3)`."""
    reach = np.abs(matrix).max(axis=0)
    counts = [max(1, ceil(step - 0.01)) for step in reach]
    axes = [(np.arange(count) + 0.5) / count - 0.5 - _TIE / step for count, step in zip(counts, reach, strict=True)]
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)


def _exchanges(
    first: NDArray[np.integer], second: NDArray[np.integer], excess: NDArray[np.int64]
) -> list[NDArray[np.bool_]]:
    """Who may have any number of voxels, exchange after exchange.

    Labels that lack background around them take from their neighbours, which make good for it at the background:
    first labels among themselves, then those inside of others with anybody, and last all with the background.
    """
    nobody, background = np.zeros((2, len(excess)), dtype=bool)
    background[0] = True
    beside = np.bincount(np.concatenate([first[second == 0], second[first == 0]]), minlength=len(excess))
    surrounded = beside < np.abs(excess)
    outer = ~surrounded
    outer[0] = False
    return [nobody, outer, background]
