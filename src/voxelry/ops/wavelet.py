"""The Haar transform: half the resolution, all of the information.

Along each axis a pair of neighbours `a, b` becomes `(a + b) / sqrt(2)`, the smooth half, and `(a - b) / sqrt(2)`,
the detail (Haar 1910; Mallat 2009, section 7.2). The transform is orthonormal: it keeps lengths, so a mean squared
error is the same before and after, and white noise stays white.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt

import torch
from torch import Tensor

from voxelry.core.errors import SettingError

__all__ = ["check_axes", "haar", "inverse_haar"]


def check_axes(axes: Sequence[int] | None, ndim: int) -> tuple[int, ...]:
    """Spatial axes in ascending order, 0 the first of the array; None stands for all of them.

    Raises:
        SettingError: an axis that the rank does not have, one given twice, or none at all.
    """
    chosen = tuple(range(ndim)) if axes is None else tuple(sorted(axes))
    if not chosen or len(set(chosen)) != len(chosen) or not set(chosen) <= set(range(ndim)):
        raise SettingError(f"axes: expected different numbers from 0 to {ndim - 1}, got {axes}")
    return chosen


def haar(x: Tensor, axes: Sequence[int] | None = None) -> Tensor:
    """One level of the transform, `(B, C, *S) -> (B, C * 2^k, *ceil(S / 2))` along the `k` axes.

    All channels of one band stand together; the first `C` are the smooth ones, `2^(k / 2)` times the mean of each
    block. The edge of an odd axis is repeated, which `inverse_haar` takes back.

    Args:
        x: images.
        axes: spatial axes that are halved, 0 the first; None for all. A thick axis may be left out.

    Raises:
        SettingError: see `check_axes`.
    """
    for axis in check_axes(axes, x.ndim - 2):
        even, odd = _repeat_edge(x, 2 + axis).unflatten(2 + axis, (-1, 2)).unbind(3 + axis)
        x = torch.cat((even + odd, even - odd), dim=1) * sqrt(0.5)
    return x


def inverse_haar(bands: Tensor, shape: Sequence[int], axes: Sequence[int] | None = None) -> Tensor:
    """The images that `haar` was given, `(B, C * 2^k, *ceil(S / 2)) -> (B, C, *S)`.

    Args:
        bands: as `haar` gives them.
        shape: spatial size `S` of the images.
        axes: as given to `haar`.

    Raises:
        SettingError: see `check_axes`; channels or sizes that no image of that shape has.
    """
    chosen = check_axes(axes, bands.ndim - 2)
    halved = tuple(-(-size // 2) if axis in chosen else size for axis, size in enumerate(shape))
    if bands.shape[1] % 2 ** len(chosen) or tuple(bands.shape[2:]) != halved:
        raise SettingError(
            f"bands: expected a multiple of {2 ** len(chosen)} channels of size {halved}, got {tuple(bands.shape)}"
        )
    x = bands
    for axis in reversed(chosen):
        smooth, detail = (x * sqrt(0.5)).chunk(2, dim=1)
        x = torch.stack((smooth + detail, smooth - detail), dim=3 + axis).flatten(2 + axis, 3 + axis)
        x = x.narrow(2 + axis, 0, shape[axis])
    return x


def _repeat_edge(x: Tensor, dim: int) -> Tensor:
    """One more voxel at the end of an odd axis."""
    return x if x.shape[dim] % 2 == 0 else torch.cat((x, x.narrow(dim, x.shape[dim] - 1, 1)), dim=dim)
