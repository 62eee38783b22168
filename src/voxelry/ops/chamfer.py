"""Chamfer distance of two point sets, and points of a surface that carry a gradient.

Definition here and everywhere in voxelry: the mean Euclidean distance (not squared) from each point to the
nearest of the other set, in both directions, and the mean of the two; in the unit of the points, so mm for mm.
"""

from __future__ import annotations

import torch
from torch import Tensor

from voxelry.core.errors import SettingError

__all__ = ["chamfer", "nearest", "zero_crossings"]


def chamfer(points: Tensor, others: Tensor, *, chunk: int = 2048) -> Tensor:
    """Chamfer distance with a gradient to both sets.

    The nearest partners are found without a graph, `chunk` points at a time; only their distances are
    differentiated, so memory grows with `N + M`, not with `N * M`.

    Args:
        points: `(N, D)` or `(B, N, D)`.
        others: `(M, D)` or `(B, M, D)`.
        chunk: rows of the distance matrix that exist at a time.

    Returns:
        a number, or `(B,)`; float32 at least. Coincident points have the gradient 0.

    Raises:
        SettingError: an empty set (its distance to anything is not defined), shapes that don't fit.
    """
    if points.ndim not in (2, 3) or points.ndim != others.ndim or points.shape[-1] != others.shape[-1]:
        raise SettingError(f"chamfer: expected (N, D) and (M, D), got {tuple(points.shape)} and {tuple(others.shape)}")
    if points.shape[-2] == 0 or others.shape[-2] == 0:
        raise SettingError("chamfer: expected at least one point in each set")
    if points.ndim == 3:
        if len(points) != len(others):
            raise SettingError(f"chamfer: expected as many sets as sets, got {len(points)} and {len(others)}")
        return torch.stack([chamfer(one, other, chunk=chunk) for one, other in zip(points, others, strict=True)])
    one, other = (cloud if cloud.dtype == torch.float64 else cloud.float() for cloud in (points, others))
    there = torch.linalg.vector_norm(one - other[nearest(one, other, chunk=chunk)], dim=-1)
    back = torch.linalg.vector_norm(other - one[nearest(other, one, chunk=chunk)], dim=-1)
    return (there.mean() + back.mean()) / 2


@torch.no_grad()
def nearest(points: Tensor, others: Tensor, *, chunk: int = 2048) -> Tensor:
    """For each of `points` `(N, D)` the index of the nearest of `others` `(M, D)`: `(N,)` int64, no gradient."""
    found = [
        # by differences: the matrix product form loses small distances of points far from the origin
        torch.cdist(part, others, compute_mode="donot_use_mm_for_euclid_dist").argmin(dim=1)
        for part in points.split(chunk)
    ]
    return torch.cat(found)


def zero_crossings(field: Tensor) -> Tensor:
    """Where a field changes sign along the edges of its grid, `(*spatial) -> (K, ndim)` index coordinates.

    A crossing lies where the line between the two values is zero, so it follows the values: the gradient of a
    loss on these points moves the surface of a signed distance. Without a change of sign `K` is 0.
    """
    crossings = []
    for axis in range(field.ndim):
        low, high = field.narrow(axis, 0, field.shape[axis] - 1), field.narrow(axis, 1, field.shape[axis] - 1)
        places = torch.nonzero((low < 0) != (high < 0))
        first, second = low[places.unbind(1)], high[places.unbind(1)]
        along = torch.zeros(field.ndim, dtype=field.dtype, device=field.device)
        along[axis] = 1
        crossings.append(places + (first / (first - second))[:, None] * along)
    return torch.cat(crossings)
