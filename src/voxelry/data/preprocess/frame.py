"""Which box of the world an image is cut to, and along which axes: before any resizing, see `Preprocess`.

Padding is what tools put where an image has nothing to show: voxels of one value (a vector of them where there are
several channels), the one that most corners hold (of equally frequent ones the smallest), as far as they are
connected with such a corner. A box that sticks out of another one does so with a corner.
"""

from __future__ import annotations

from math import prod

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from voxelry.core.space import Space
from voxelry.ops.resample import resample

__all__ = ["filled", "find_content", "index_map", "trimmed", "untilted", "world_aligned"]

_LEAST_PADDING = 0.01  # share of a box; below, a tilt hardly shows
_EXPLAINED = 0.5  # of the padding in an image's own box, what may be left in the world's


def find_content(image: Tensor) -> Tensor:
    """Which voxels are no padding, `(C, *spatial) -> (*spatial)` bool."""
    from scipy.ndimage import label

    ends = np.ix_(*[(0, size - 1) for size in image.shape[1:]])
    corners = np.stack([channel.numpy()[ends].ravel() for channel in image])
    values, counts = np.unique(corners, axis=1, return_counts=True)
    padding = torch.from_numpy(values[:, counts.argmax()]).reshape(-1, *[1] * (image.ndim - 1))
    parts, _ = label((image == padding).all(dim=0).numpy())
    reached = np.unique(parts[ends])
    return torch.from_numpy(~np.isin(parts, reached[reached > 0]))


def trimmed(grid: Space, content: Tensor, space: Space) -> Space:
    """The smallest grid of the axes and spacing of `grid` that holds the content of an image.

    Along the image's own axes it ends with the outermost voxels of the content. Along others, at the outermost
    voxel centres, rounded to whole voxels: an image that was put onto a tilted grid lent a value to all centres
    that lie in it, and some lie close to its edge.

    Args:
        grid: as `world_aligned` of `space`, or `space`.
        content: `(*spatial)` bool on `space`. Without any, `grid` is returned.
    """
    ends = _row_ends(content.numpy())
    if not len(ends):
        return grid
    matrix, offset = index_map(grid, space)
    own_axes = bool(np.abs(matrix - np.eye(space.ndim)).max() < 1e-6)
    places = ends @ matrix.T + offset
    low, high = places.min(axis=0), places.max(axis=0)
    shape = np.maximum(1, np.round(high - low + own_axes)).astype(int)
    start = (low + high - (shape - 1)) / 2
    if own_axes:
        start = np.round(start)
        if shape.tolist() == list(grid.shape) and not start.any():
            return grid
    return grid.crop(start.tolist(), shape.tolist())


def untilted(image: Tensor, space: Space) -> tuple[Space, Tensor] | None:
    """The box along the world's axes that was put onto a tilted grid, as the padding around it tells.

    It does where the box along the world's axes that holds all content has less than half as much padding in it
    as the one along the image's own axes. With an image that was never resampled, or whose background is one value,
    both have about the same.

    Returns:
        The box, and which voxels of the image are none of its padding, `(*spatial)` bool; None where the image's
        own axes are as good.
    """
    grid = world_aligned(space)
    if grid is space:
        return None
    content = find_content(image)
    own = trimmed(space, content, space)
    padding = _count(~content, space, own)
    if padding < _LEAST_PADDING * prod(own.shape):
        return None
    box = trimmed(grid, content, space)
    if _count(~content, space, box) >= _EXPLAINED * padding:
        return None
    return box, content


def filled(image: Tensor, content: Tensor) -> Tensor:
    """The image with each voxel that isn't content replaced by the nearest one that is."""
    from scipy.ndimage import distance_transform_edt

    nearest = distance_transform_edt(~content.numpy(), return_distances=False, return_indices=True)
    return image[(slice(None), *torch.from_numpy(nearest).long())]


def world_aligned(space: Space) -> Space:
    """The grid of the same spacing and centre, along the world's axes, that holds all of `space`.

    At rank 2 it stays in the plane of `space`, as near to the world's axes as the plane allows. A grid that
    is aligned already is returned as it is.
    """
    axes = np.zeros((3, space.ndim))
    for axis, (world, sign) in enumerate(space.closest_axes()):
        axes[world, axis] = sign
    plane, _ = np.linalg.qr(space.directions)  # orthonormal basis of the image's own plane or volume
    left, _, right = np.linalg.svd(plane.T @ axes)
    directions = plane @ (left @ right)  # orthonormal, in that plane, nearest to the world's axes
    if np.abs(directions - space.directions).max() < 1e-6:
        return space
    spacing = np.asarray(space.spacing)
    reach = np.abs(directions.T @ (space.directions * spacing)) @ np.asarray(space.shape)  # mm along each new axis
    shape = np.ceil(reach / spacing - 1e-3).astype(int)
    centre = space.to_world((np.asarray(space.shape) - 1) / 2)
    affine = np.zeros((4, space.ndim + 1))
    affine[:3, : space.ndim] = directions * spacing
    affine[:3, space.ndim] = centre - affine[:3, : space.ndim] @ ((shape - 1) / 2)
    affine[3, space.ndim] = 1.0
    return Space(tuple(shape.tolist()), affine)


def index_map(of: Space, to: Space) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Matrix and offset with which index `i` of `to` is index `matrix @ i + offset` of `of`."""
    matrix = np.linalg.pinv(of.affine[:3, : of.ndim]) @ to.affine[:3, : to.ndim]
    return matrix, np.asarray(of.to_index(to.origin), dtype=np.float64)


def _row_ends(content: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Index of the first and last voxel of every row that has some, `(N, ndim)`: no other can be outermost."""
    rows = np.argwhere(content.any(axis=-1))
    chosen = content[tuple(rows.T)]
    first, last = chosen.argmax(axis=1), content.shape[-1] - 1 - chosen[:, ::-1].argmax(axis=1)
    return np.concatenate([np.column_stack([rows, end]) for end in (first, last)]).astype(np.float64)


def _count(mask: Tensor, space: Space, box: Space) -> int:
    """Voxels of a box that the mask of an image fills."""
    return int(resample(mask[None], *index_map(space, box), box.shape, order=0).sum())
