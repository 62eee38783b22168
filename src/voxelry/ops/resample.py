"""The one resampling: an affine map and a smooth displacement, any rank.

Output index `i` takes its value from input index `matrix @ i + offset + displacement(i)`; both are
continuous, in array order, with voxel centres at integers.

The displacement is a uniform cubic B-spline over the output grid (Rueckert et al. 1999, IEEE TMI 18(8),
eq. 4). It is given by its coefficients, `(ndim, *grid)` in input voxels, four or more per axis. An axis of
`n` output voxels and `g` coefficients is cut into `g - 3` equal spans from the centre of the first voxel to
the centre of the last; beyond them the spline keeps the value it has there. The coefficients are not
interpolated: where all are equal the displacement equals them, elsewhere it is smoother than they are.

A point is inside the input while it is within half a voxel of a voxel centre, on every axis. Inside, the
outermost half voxel repeats the edge; outside is `fill`, without blending.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from voxelry.core.errors import SettingError
from voxelry.core.rank import check_ndim, per_axis

__all__ = ["resample", "resample_points", "spline_at", "spline_grid", "spline_lipschitz"]

Fill = float | Sequence[float] | Literal["edge"]

_SLACK = 1e-6  # as in the kernels
_BIT_TYPES = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def resample(
    image: Tensor,
    matrix: ArrayLike | Tensor,
    offset: ArrayLike | Tensor,
    shape: Sequence[int],
    *,
    displacement: ArrayLike | Tensor | None = None,
    order: int = 1,
    fill: Fill = 0.0,
) -> Tensor:
    """Values of `image` at `matrix @ i + offset + displacement(i)` for every output index `i`.

    On the CPU a Numba kernel does it in one pass (one thread, without the interpreter lock); on other
    devices, and where the gradient with respect to the image is wanted, plain PyTorch does the same.

    Args:
        image: `(C, *spatial)`, 2 or 3 spatial axes.
        matrix: `(ndim, ndim)`, input voxels per output voxel.
        offset: `(ndim,)`, input index of output index 0.
        shape: output spatial shape.
        displacement: spline coefficients `(ndim, *grid)` in input voxels, see the top of this file.
        order: 1 linear, 0 nearest (a tie goes to the lower index).
        fill: value of what lies outside (one, or one per channel), or `"edge"` to repeat the nearest voxel.

    Returns:
        `(C, *shape)`: float32 for order 1, the type of `image` for order 0.

    Raises:
        SettingError: shapes that don't fit together, numbers that aren't finite, an unknown order, a fill
            that the image's type can't hold.
    """
    ndim = check_ndim(image.ndim - 1)
    if order not in (0, 1):
        raise SettingError(f"order: expected 0 (nearest) or 1 (linear), got {order!r}")
    size = tuple(int(count) for count in shape)
    if len(size) != ndim or min(size) < 1:
        raise SettingError(f"shape: expected {ndim} positive sizes for an image of rank {ndim}, got {size}")
    if 0 in image.shape[1:]:
        raise SettingError(f"image: expected at least one voxel per axis, got shape {tuple(image.shape)}")
    if order == 1 and image.is_complex():
        raise SettingError("image: expected real numbers for linear interpolation, got complex ones")
    linear, start, control = _checked_map(matrix, offset, displacement, ndim)
    if order == 1:
        image = image.to(torch.float32)
    outside = _checked_fill(fill, image)
    if image.device.type == "cpu" and not (image.requires_grad and torch.is_grad_enabled()):
        return _on_cpu(image.detach(), linear, start, control, size, order, outside)
    return _in_torch(image, linear, start, control, size, order, outside)


def resample_points(
    points: Tensor,
    matrix: ArrayLike | Tensor,
    offset: ArrayLike | Tensor,
    shape: Sequence[int],
    *,
    displacement: ArrayLike | Tensor | None = None,
    tolerance: float = 1e-3,
) -> Tensor:
    """Where `resample` with the same arguments moves points of the input to: the inverse of its map.

    Exact for the affine part. With a displacement, `i = matrix^-1 (p - offset - displacement(i))` is iterated
    until no point moves by more than `tolerance`; it converges where `matrix^-1 displacement` is a
    contraction (`spline_lipschitz` below one).

    Args:
        points: `(..., ndim)` input index coordinates; NaN stays NaN.
        matrix, offset, shape, displacement: as for `resample`.
        tolerance: largest last step in output voxels.

    Returns:
        `(..., ndim)` output index coordinates, of the points' type and device; they may lie outside `shape`.

    Raises:
        SettingError: shapes that don't fit together, a matrix without an inverse, no convergence.
    """
    ndim = check_ndim(points.shape[-1])
    linear, start, control = _checked_map(matrix, offset, displacement, ndim)
    try:
        inverse = np.linalg.inv(linear)
    except np.linalg.LinAlgError as error:
        raise SettingError(f"matrix: expected an invertible one, got {linear.tolist()}") from error
    source = points.detach().cpu().to(torch.float64).numpy()
    known = np.isfinite(source).all(axis=-1)
    target = (source[known] - start) @ inverse.T
    moved = target
    if control is not None and len(target):
        pulled = np.tensordot(inverse, control, axes=1)  # in output voxels
        for _ in range(200):
            last, moved = moved, target - spline_at(moved, pulled, shape)
            if np.abs(moved - last).max() <= tolerance / 10:
                break
        else:
            raise SettingError("displacement: too steep to be inverted; expected smaller coefficients or fewer of them")
    result = np.full_like(source, np.nan)
    result[known] = moved
    return torch.from_numpy(result).to(dtype=points.dtype, device=points.device)


def spline_at(
    points: NDArray[np.floating], coefficients: NDArray[np.floating], shape: Sequence[int]
) -> NDArray[np.float64]:
    """The spline of `coefficients` `(K, *grid)` over a grid of `shape` at index coordinates `(N, ndim)`: `(N, K)`."""
    ndim = points.shape[-1]
    values = np.asarray(coefficients, dtype=np.float64)[None]
    for axis in range(ndim):
        starts, weights = _basis(points[:, axis], shape[axis], coefficients.shape[1 + axis])
        taps = np.arange(4)
        # (N or 1, K, g, ...) -> (N, K, ...): each point keeps its own four coefficients of this axis
        if axis == 0:
            chosen = np.moveaxis(values[0][:, starts[:, None] + taps], 1, 0)
        else:
            index = (starts[:, None] + taps).reshape(len(points), 1, 4, *[1] * (values.ndim - 3))
            chosen = np.take_along_axis(values, index, axis=2)
        values = np.einsum("nkt...,nt->nk...", chosen, weights)
    return values


def spline_grid(coefficients: Tensor, shape: Sequence[int]) -> Tensor:
    """The spline of `coefficients` `(K, *grid)` at every index of a grid of `shape`: `(K, *shape)`, of their type."""
    values = coefficients
    for axis, size in enumerate(shape, start=1):
        count = values.shape[axis]
        starts, weights = _basis(np.arange(size), size, count)
        dense = np.zeros((size, count))
        np.put_along_axis(dense, starts[:, None] + np.arange(4), weights, axis=1)
        values = torch.tensordot(values, _tensor(dense.T, values), dims=([axis], [0])).movedim(-1, axis)
    return values


def spline_lipschitz(
    coefficients: NDArray[np.floating], shape: Sequence[int], spacing: float | Sequence[float] = 1.0
) -> float:
    """An upper bound of how much a spline over a grid changes: `|u(a) - u(b)| <= bound * |a - b|`.

    With `spacing` in mm, distances are `spacing * index`. Where `u` is a displacement in the same unit and the
    bound is below 1, `a + u(a)` is invertible and its Jacobian is positive everywhere. (A derivative of a
    cubic B-spline is a convex combination of differences of neighbouring coefficients over their distance.)
    """
    steps = per_axis(spacing, len(shape), "spacing")
    bound = np.zeros((len(coefficients), len(shape)))
    for axis, (size, step) in enumerate(zip(shape, steps, strict=True)):
        distance = max(size - 1, 1) * step / (coefficients.shape[1 + axis] - 3)
        change = np.abs(np.diff(coefficients, axis=1 + axis)).reshape(len(coefficients), -1)
        bound[:, axis] = change.max(axis=1) / distance
    return float(np.linalg.norm(bound, ord=2))


def _basis(index: NDArray[Any], size: int, count: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """First coefficient and the four weights at each index coordinate of an axis: `(N,)`, `(N, 4)`."""
    spans = count - 3
    position = np.clip(np.asarray(index, dtype=np.float64) * (spans / max(size - 1, 1)), 0, spans)
    start = np.minimum(position.astype(np.int64), spans - 1)
    t = position - start
    weights = np.stack([(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3], axis=-1)
    return start, weights / 6


def _on_cpu(
    image: Tensor,
    matrix: NDArray[np.float64],
    offset: NDArray[np.float64],
    control: NDArray[np.float64] | None,
    shape: tuple[int, ...],
    order: int,
    outside: Tensor | None,
) -> Tensor:
    from voxelry.ops.kernels.resample import resample_linear, resample_nearest

    ndim = len(shape)
    lifted = 3 - ndim  # leading axes of length one
    matrix3, offset3 = np.eye(3), np.zeros(3)
    matrix3[lifted:, lifted:], offset3[lifted:] = matrix, offset
    shape3 = (1,) * lifted + shape
    if control is None:
        control3 = np.zeros((3, 4, 4, 4))
    else:
        # four equal planes are a spline that is constant along the lifted axis
        control3 = np.zeros((3, *(4,) * lifted, *control.shape[1:]))
        control3[lifted:] = control[(slice(None), *(None,) * lifted)]
    axes = [_basis(np.arange(n), n, g) for n, g in zip(shape3, control3.shape[1:], strict=True)]
    starts, weights = zip(*axes, strict=True)

    channels = image.shape[0]
    source = image.reshape(channels, *(1,) * lifted, *image.shape[1:]).contiguous()
    out = torch.empty((channels, *shape3), dtype=image.dtype)
    fill = torch.zeros(channels, dtype=image.dtype) if outside is None else outside
    rest = (matrix3, offset3, control3, starts, weights, control is not None, outside is None)
    if order == 1:
        resample_linear(source.numpy(), *rest, fill.numpy(), out.numpy())
    elif (bits := _BIT_TYPES.get(image.element_size())) is None:
        return _in_torch(image, matrix, offset, control, shape, order, outside)
    else:
        # nearest neighbours are copied, so integers of the same size stand for every type
        resample_nearest(source.view(bits).numpy(), *rest, fill.view(bits).numpy(), out.view(bits).numpy())
    return out.reshape(channels, *shape)


def _in_torch(
    image: Tensor,
    matrix: NDArray[np.float64],
    offset: NDArray[np.float64],
    control: NDArray[np.float64] | None,
    shape: tuple[int, ...],
    order: int,
    outside: Tensor | None,
) -> Tensor:
    """The same on any device by gathering, one corner of the surrounding voxels after another."""
    ndim = len(shape)
    device = image.device
    real = torch.float32 if device.type == "mps" else torch.float64
    axes = [torch.arange(size, device=device, dtype=real) for size in shape]
    points = torch.stack(torch.meshgrid(*axes, indexing="ij"))
    source = torch.tensordot(_tensor(matrix, points), points, dims=1)
    source += _tensor(offset, points).reshape(ndim, *[1] * ndim)
    if control is not None:
        source += spline_grid(_tensor(control, points), shape)

    last = torch.tensor(image.shape[1:], device=device, dtype=real).reshape(ndim, *[1] * ndim) - 1
    inside = ((source >= -0.5 - _SLACK) & (source <= last + 0.5 + _SLACK)).all(dim=0)
    source = torch.minimum(source.clamp(min=0), last)
    flat = image.flatten(1)
    strides = torch.tensor([math.prod(image.shape[2 + axis :]) for axis in range(ndim)], device=device)
    strides = strides.reshape(ndim, *[1] * ndim)
    if order == 0:
        values = flat[:, ((source + (0.5 - _SLACK)).long() * strides).sum(dim=0)]
    else:
        low = source.floor()
        part = (source - low).to(torch.float32)
        values = torch.zeros(image.shape[0], *shape, device=device)
        for corner in np.ndindex(*(2,) * ndim):
            high = torch.tensor(corner, device=device).reshape(ndim, *[1] * ndim)
            index = (torch.minimum(low + high, last).long() * strides).sum(dim=0)
            values = values + torch.where(high == 1, part, 1 - part).prod(dim=0) * flat[:, index]
    if outside is None:
        return values
    return torch.where(inside, values, outside.reshape(-1, *[1] * ndim))


def _tensor(array: NDArray[np.float64], like: Tensor) -> Tensor:
    return torch.as_tensor(np.ascontiguousarray(array), dtype=like.dtype, device=like.device)


def _checked_map(
    matrix: Any, offset: Any, displacement: Any, ndim: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64] | None]:
    linear, start = _array(matrix, "matrix"), _array(offset, "offset")
    if linear.shape != (ndim, ndim):
        raise SettingError(f"matrix: expected shape ({ndim}, {ndim}) for an image of rank {ndim}, got {linear.shape}")
    if start.shape != (ndim,):
        raise SettingError(f"offset: expected {ndim} numbers for an image of rank {ndim}, got shape {start.shape}")
    if displacement is None:
        return linear, start, None
    control = _array(displacement, "displacement")
    if control.ndim != ndim + 1 or control.shape[0] != ndim or min(control.shape[1:]) < 4:
        raise SettingError(
            f"displacement: expected ({ndim}, *grid) with at least 4 coefficients per axis, got shape {control.shape}"
        )
    return linear, start, control


def _array(values: Any, name: str) -> NDArray[np.float64]:
    if isinstance(values, Tensor):
        values = values.detach().cpu().numpy()
    array = np.asarray(values, dtype=np.float64)
    if not np.isfinite(array).all():
        raise SettingError(f"{name}: expected finite numbers")
    return array


def _checked_fill(fill: Any, image: Tensor) -> Tensor | None:
    """One value per channel of the image's type, `(C,)`; None stands for repeating the edge."""
    if isinstance(fill, str):
        if fill != "edge":
            raise SettingError(f'fill: expected a number or "edge", got {fill!r}')
        return None
    values = np.atleast_1d(np.asarray(fill, dtype=np.float64))
    if values.shape not in ((1,), (image.shape[0],)):
        raise SettingError(f"fill: expected one number or one for each of {image.shape[0]} channels, got {fill!r}")
    if not (image.is_floating_point() or image.is_complex()):
        integers = image.dtype != torch.bool
        low, high = (torch.iinfo(image.dtype).min, torch.iinfo(image.dtype).max) if integers else (0, 1)
        if not np.all((values >= low) & (values <= high) & (np.floor(values) == values)):
            raise SettingError(f"fill: expected whole numbers from {low} to {high} for {image.dtype}, got {fill!r}")
    return torch.as_tensor(values, device="cpu").to(image.dtype).expand(image.shape[0]).contiguous().to(image.device)
