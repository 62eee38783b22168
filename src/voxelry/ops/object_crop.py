"""A square around an object, cut out of an image, its mask and its pointmap, in any rank."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from voxelry.core.errors import DataError, SettingError

__all__ = ["crop_object"]

LEAST = 2  # pixels between the first and the last of an object, along every axis


def crop_object(
    image: Tensor, mask: Tensor, points: Tensor | None = None, *, box: float = 1.6, margin: float = 0.1
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Cut a square around a mask out, as SAM 3D Objects was trained on it.

    What lies beyond the image is 0, also of the points; around a box that isn't square, and in the margin, image and
    mask are 0 and points are NaN.

    Args:
        image: `(C, *spatial)`.
        mask: `(*spatial)`, not 0 inside.
        points: `(3, *spatial)`; None for none.
        box: side of the box as a multiple of the object's longest.
        margin: added on every side, as a share of the box.

    Returns:
        The three, `(C, side, ...)`, `(side, ...)` and `(3, side, ...)`.

    Raises:
        DataError: an empty mask, or one that is hardly a line.
        SettingError: a box or a margin out of range.
    """
    if box <= 0 or margin < 0:
        raise SettingError(f"box, margin: expected a positive number and one of 0 or more, got {box} and {margin}")
    low, high = _ends(mask)
    middle, half = (low + high) / 2, int(max((high - low).max().item(), LEAST) * box) // 2
    starts, stops = ((middle + side).trunc().long().tolist() for side in (-half, half))
    beyond = [(-start, stop - size) for start, stop, size in zip(starts, stops, mask.shape, strict=True)]
    sides = [stop - start for start, stop in zip(starts, stops, strict=True)]
    most = max(sides)
    wide, around = int(most * margin), []
    for side in sides:
        before = (most - side) // 2
        around.append((before + wide, most - side - before + wide))

    def cut(values: Tensor, fill: float) -> Tensor:
        return _padded(_padded(values, beyond, 0.0), around, fill)

    return cut(image, 0.0), cut(mask, 0.0), None if points is None else cut(points, torch.nan)


def _ends(mask: Tensor) -> tuple[Tensor, Tensor]:
    """First and last place of a mask along each axis, `(ndim,)` float64."""
    inside = torch.nonzero(mask)
    if not len(inside):
        raise DataError("mask: expected an object to cut out, got an empty mask")
    low, high = inside.amin(dim=0).double(), inside.amax(dim=0).double()
    if (high - low).min() < LEAST:
        raise DataError(f"mask: expected an object of more than {LEAST} pixels along every axis")
    return low, high


def _padded(values: Tensor, sides: Sequence[tuple[int, int]], fill: float) -> Tensor:
    """More pixels before and after, or fewer where a number is negative; the last axes of `values`."""
    return F.pad(values, [width for pair in reversed(sides) for width in pair], value=fill)
