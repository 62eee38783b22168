"""From heatmaps back to points: decoders in any rank.

Every decoder takes non-negative maps `(B, N, *spatial)` and returns index coordinates
`(B, N, ndim)` in array order, NaN for an empty map. `spacing` is mm per voxel as in
`ops.heatmaps`; windows are in mm.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from voxelry.ops.heatmaps import per_sample

__all__ = ["argmax", "centroid", "gaussian_fit", "local_expectation"]


def argmax(heatmaps: Tensor) -> Tensor:
    """The voxel with the largest value; never closer than the grid allows."""
    flat = heatmaps.flatten(2)
    best, where = flat.max(dim=-1)
    points = torch.stack(torch.unravel_index(where, heatmaps.shape[2:]), dim=-1).float()
    return torch.where(best[..., None] > 0, points, torch.nan)


def centroid(heatmaps: Tensor, *, threshold: float = 0.5) -> Tensor:
    """The original's decoder: the largest connected part above `threshold * max`, its unweighted centre.

    Connectivity is by faces; of parts of equal size the first in array order counts.
    """
    from scipy import ndimage

    maps = heatmaps.detach().float().cpu().numpy()
    points = np.full((*maps.shape[:2], maps.ndim - 2), np.nan, dtype=np.float32)
    for index in np.ndindex(*maps.shape[:2]):
        peak = maps[index].max()
        if not peak > 0:
            continue
        parts, _ = ndimage.label(maps[index] >= threshold * peak)
        largest = np.bincount(parts.ravel())[1:].argmax() + 1
        points[index] = np.argwhere(parts == largest).mean(axis=0)
    return torch.from_numpy(points).to(heatmaps.device)


def local_expectation(
    heatmaps: Tensor,
    *,
    window: float | Sequence[float] = 5.0,
    spacing: float | Sequence[float] | Tensor = 1.0,
    iterations: int = 5,
) -> Tensor:
    """Centre of mass near the peak: sub-voxel, and deaf to a second mode elsewhere.

    A box of half-width `window` (mm) starts at the largest voxel and is moved to the centre of mass
    inside it, `iterations` times (mean shift). The box ends between voxels with a linear ramp, so that
    the answer moves smoothly with the map and does not lean towards the voxel it started from.

    Args:
        window: half-width in mm, one number or one per axis; two to three standard deviations of the
            blob are a good choice. At least one voxel is taken on each side.
    """
    maps = heatmaps.detach().float()
    points = argmax(maps)
    step = per_sample(spacing, points, "spacing").expand_as(points)
    radius = (per_sample(window, points, "window") / step).clamp(min=1.0)
    for batch, landmark in torch.isfinite(points[..., 0]).nonzero().tolist():
        start = points[batch, landmark].clone()
        # The window can move by its own width at most; what lies further never enters.
        reach = (2 * radius[batch, landmark]).ceil().long().tolist()
        patch, origin = _patch(maps[batch, landmark], start, reach)
        centre = start - origin
        for _ in range(iterations):
            centre = _centre(patch, centre, radius[batch, landmark])
        points[batch, landmark] = centre + origin
    return points


def gaussian_fit(
    heatmaps: Tensor,
    *,
    window: float | Sequence[float] = 3.0,
    spacing: float | Sequence[float] | Tensor = 1.0,
) -> Tensor:
    """Centre of the Gaussian that fits the map around its largest voxel best.

    A Gaussian is a parabola in its logarithm, so the fit is one weighted least-squares problem with
    all cross terms; the weights are the squared values, which makes errors count as they do in the
    map itself (Guo 2011, IEEE Signal Processing Magazine 28(5), eq. 6). Exact for any Gaussian, also
    an anisotropic, oblique one, and near a border, where a centre of mass leans inwards. Where the
    parabola has no maximum within the window, the centre of mass around the peak is returned.

    Args:
        window: half-width in mm of the box that is fitted; at least one voxel on each side.
    """
    maps = heatmaps.detach().float()
    points = argmax(maps)
    fallback = local_expectation(maps, window=window, spacing=spacing)
    step = per_sample(spacing, points, "spacing").expand_as(points)
    radius = (per_sample(window, points, "window") / step).clamp(min=1.0)
    for batch, landmark in torch.isfinite(points[..., 0]).nonzero().tolist():
        start = points[batch, landmark].clone()
        reach = radius[batch, landmark].floor().long().tolist()
        patch, origin = _patch(maps[batch, landmark], start, reach)
        offset = _parabola_top(patch.cpu().double(), (start - origin).cpu().double())
        inside = offset is not None and bool((offset.abs() <= radius[batch, landmark].cpu()).all())
        if offset is not None and inside:
            points[batch, landmark] = start + offset.to(start)
        else:
            points[batch, landmark] = fallback[batch, landmark]
    return points


def _patch(heatmap: Tensor, centre: Tensor, reach: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The window of `heatmap` within `reach` voxels of an integer centre, and the index of its voxel 0."""
    where = [int(value) for value in centre.tolist()]
    low = [max(0, middle - extent) for middle, extent in zip(where, reach, strict=True)]
    high = [min(size, middle + extent + 1) for size, middle, extent in zip(heatmap.shape, where, reach, strict=True)]
    window = tuple(slice(first, last) for first, last in zip(low, high, strict=True))
    return heatmap[window], torch.tensor(low, dtype=centre.dtype, device=centre.device)


def _centre(patch: Tensor, centre: Tensor, radius: Tensor) -> Tensor:
    """Centre of mass of a patch under a box with soft ends around `centre`."""
    weighted = patch
    grids = []
    for axis, size in enumerate(patch.shape):
        grid = torch.arange(size, device=patch.device, dtype=patch.dtype)
        ramp = (radius[axis] + 0.5 - (grid - centre[axis]).abs()).clamp(0, 1)
        weighted = weighted * ramp.reshape(-1, *(1,) * (patch.ndim - 1 - axis))
        grids.append(grid)
    axes = range(patch.ndim)
    total = weighted.sum()
    return torch.stack(
        [(weighted.sum(dim=[other for other in axes if other != axis]) * grids[axis]).sum() / total for axis in axes]
    )


def _parabola_top(patch: Tensor, centre: Tensor) -> Tensor | None:
    """Offset from `centre` of the maximum of the weighted quadratic fit to `log(patch)`; None without one."""
    ndim = patch.ndim
    grids = torch.meshgrid(*[torch.arange(size, dtype=patch.dtype) for size in patch.shape], indexing="ij")
    offsets = [grid.flatten() - centre[axis] for axis, grid in enumerate(grids)]
    values = patch.flatten() / patch.max()
    # Values under a millionth of the peak carry no weight, and zeros have no logarithm.
    kept = values > 1e-6
    values = values[kept]
    offsets = [offset[kept] for offset in offsets]
    pairs = [(row, column) for row in range(ndim) for column in range(row, ndim)]
    design = torch.stack(
        [torch.ones_like(values), *offsets, *(offsets[row] * offsets[column] for row, column in pairs)], dim=-1
    )
    if len(values) < design.shape[1]:
        return None
    weighted = design * values[:, None]
    solution = torch.linalg.lstsq(weighted, values * values.log(), driver="gelsd").solution
    hessian = patch.new_zeros(ndim, ndim)
    for (row, column), coefficient in zip(pairs, solution[1 + ndim :], strict=True):
        hessian[row, column] += coefficient
        hessian[column, row] += coefficient
    if not bool((torch.linalg.eigvalsh(hessian) < -1e-9).all()):
        return None
    return torch.linalg.solve(hessian, -solution[1 : 1 + ndim])
