"""Heatmaps of points, and their moments, in any rank.

Heatmaps are `(B, N, *spatial)`: one map per landmark. Points are `(B, N, ndim)` index coordinates in
array order, continuous, a voxel centre at an integer, NaN for an absent one. Widths are in mm and
meet the grid through `spacing` (mm per voxel), which may differ per axis and per sample, so that a
blob is round in the patient and not on the grid.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from voxelry.core.errors import SettingError

__all__ = [
    "covariance",
    "disc_heatmaps",
    "expectation",
    "gaussian_heatmaps",
    "marginals",
    "outer",
    "per_sample",
    "within",
]


def gaussian_heatmaps(
    points: Tensor,
    shape: Sequence[int],
    *,
    sigma: float | Sequence[float] | Tensor,
    spacing: float | Sequence[float] | Tensor = 1.0,
    normalised: bool = False,
) -> Tensor:
    """Gaussians at sub-voxel positions, `(B, N, ndim) -> (B, N, *shape)` float32.

    The profile of each axis is computed alone and the map is their outer product, so that the cost
    is one multiplication per voxel.

    Args:
        points: index coordinates; a NaN point gives an empty map.
        shape: spatial shape of the maps.
        sigma: standard deviation in mm, one number or one per axis.
        spacing: mm per voxel: one number, one per axis, or `(B, ndim)`.
        normalised: divide so that each map sums to 1 (a distribution over voxels); otherwise it is 1
            at the point itself. A normalised map stays finite for points outside the grid too.

    Raises:
        SettingError: `sigma` or `spacing` is not positive or has another length.
    """
    _check(points, shape)
    width = _positive(sigma, points, "sigma") / _positive(spacing, points, "spacing")
    present = points.isfinite().all(dim=-1)
    profiles = []
    for axis, size in enumerate(shape):
        centre = torch.where(present, points[..., axis], 0.0).float()
        grid = torch.arange(size, device=points.device, dtype=torch.float32)
        exponent = -0.5 * ((grid - centre[..., None]) / width[..., axis, None]).square()
        if normalised:
            profiles.append(exponent.softmax(dim=-1))
        else:
            profiles.append(exponent.exp())
    profiles[0] = profiles[0] * present[..., None]
    return outer(profiles)


def disc_heatmaps(
    points: Tensor,
    shape: Sequence[int],
    *,
    sigma: float | Sequence[float] | Tensor,
    spacing: float | Sequence[float] | Tensor = 1.0,
) -> Tensor:
    """The original's targets: a Gaussian at the nearest voxel, cut at half of its maximum to 0 and 1.

    Shapes and arguments as `gaussian_heatmaps`. The disc's radius is `sigma * sqrt(2 ln 2)`; rounding
    moves its centre by up to half a voxel, which the Gaussian variant avoids.
    """
    gaussian = gaussian_heatmaps(points.round(), shape, sigma=sigma, spacing=spacing)
    return (gaussian >= 0.5).to(gaussian.dtype)


def within(points: Tensor, shape: Sequence[int]) -> Tensor:
    """Which points are present and inside some voxel of a grid, `(..., ndim) -> (...)` bool."""
    size = torch.tensor(list(shape), device=points.device, dtype=points.dtype)
    return ((points >= -0.5) & (points <= size - 0.5)).all(dim=-1)


def outer(profiles: Sequence[Tensor]) -> Tensor:
    """Outer product of one profile per axis, each `(B, N, size)`, to `(B, N, *sizes)`."""
    result = profiles[0]
    for axis, profile in enumerate(profiles[1:], start=1):
        result = result[..., None] * profile.reshape(*profile.shape[:-1], *(1,) * axis, profile.shape[-1])
    return result


def marginals(heatmaps: Tensor) -> list[Tensor]:
    """Sums of every map over all axes but one: a list with `(B, N, size)` for each axis."""
    axes = range(2, heatmaps.ndim)
    return [heatmaps.sum(dim=[other for other in axes if other != axis]) for axis in axes]


def expectation(heatmaps: Tensor) -> Tensor:
    """Centre of mass of non-negative maps, `(B, N, *spatial) -> (B, N, ndim)` index coordinates.

    Differentiable: with a softmax before it this is the soft-argmax (DSNT, Nibali et al. 2018,
    arXiv:1801.07372, eq. 6). An empty map gives NaN.
    """
    heatmaps = heatmaps.float()
    centres = []
    for profile in marginals(heatmaps):
        grid = torch.arange(profile.shape[-1], device=profile.device, dtype=profile.dtype)
        centres.append((profile * grid).sum(dim=-1) / profile.sum(dim=-1))
    return torch.stack(centres, dim=-1)


def covariance(heatmaps: Tensor, *, spacing: float | Sequence[float] | Tensor = 1.0) -> Tensor:
    """Second central moments of non-negative maps in mm², `(B, N, *spatial) -> (B, N, ndim, ndim)`.

    Axes are in array order. An empty map gives NaN. Off-diagonal moments come from sums over pairs of
    axes, so nothing larger than the maps themselves is held.
    """
    heatmaps = heatmaps.float()
    ndim = heatmaps.ndim - 2
    centres = expectation(heatmaps)
    step = per_sample(spacing, centres, "spacing").expand_as(centres)
    total = heatmaps.sum(dim=list(range(2, heatmaps.ndim)))
    offsets = [
        (torch.arange(size, device=heatmaps.device, dtype=heatmaps.dtype) - centres[..., axis, None])
        * step[..., axis, None]
        for axis, size in enumerate(heatmaps.shape[2:])
    ]
    result = heatmaps.new_empty(*centres.shape, ndim)
    for row in range(ndim):
        for column in range(row, ndim):
            others = [axis + 2 for axis in range(ndim) if axis not in (row, column)]
            pair = heatmaps.sum(dim=others) if others else heatmaps
            if row == column:
                moment = (pair * offsets[row].square()).sum(dim=-1)
            else:
                moment = torch.einsum("bnij,bni,bnj->bn", pair, offsets[row], offsets[column])
            result[..., row, column] = result[..., column, row] = moment / total
    return result


def per_sample(value: float | Sequence[float] | Tensor, points: Tensor, name: str) -> Tensor:
    """A setting in mm as a float32 tensor that broadcasts against points `(B, N, ndim)`.

    Accepts one number, one per axis, or `(B, ndim)`.

    Raises:
        SettingError: any other shape; the message names the setting.
    """
    ndim = points.shape[-1]
    tensor = torch.as_tensor(value, dtype=torch.float32, device=points.device)
    if tensor.shape == () or tensor.shape == (ndim,):
        return tensor.expand(ndim)[None, None]
    if tensor.shape == (len(points), ndim):
        return tensor[:, None]
    raise SettingError(
        f"{name}: expected one number, {ndim} (one per axis) or ({len(points)}, {ndim}), "
        f"got shape {tuple(tensor.shape)}"
    )


def _positive(value: float | Sequence[float] | Tensor, points: Tensor, name: str) -> Tensor:
    tensor = per_sample(value, points, name)
    if not bool((tensor > 0).all()):
        raise SettingError(f"{name}: expected positive millimetres, got {value}")
    return tensor


def _check(points: Tensor, shape: Sequence[int]) -> None:
    if points.ndim != 3 or points.shape[-1] != len(shape):
        raise SettingError(f"points: expected shape (B, N, {len(shape)}), got {tuple(points.shape)}")
