"""Pointmaps: the world position of every pixel or voxel, through the full affine.

A pointmap that is stored is `(3, H, W)` float32 in mm (RAS), NaN where nothing is known (outside of the mask, or
away from the click). It is never interpolated with zeros for NaN: values are averaged over what is known only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from voxelry.core.errors import DataError, SettingError
from voxelry.core.space import Space
from voxelry.ops.resample import resample

__all__ = ["PointmapNormaliser", "masked_pointmap", "pointmap", "resize_pointmap"]


def pointmap(space: Space) -> NDArray[np.float64]:
    """World x, y, z in mm of every index of a grid of any rank, `(*shape, 3)`."""
    index = np.stack(np.meshgrid(*[np.arange(size) for size in space.shape], indexing="ij"), axis=-1)
    return np.asarray(space.to_world(index.astype(np.float64)), dtype=np.float64)


def masked_pointmap(space: Space, region: Tensor) -> Tensor:
    """The pointmap of a grid as it is stored, `(3, *shape)` float32: NaN outside of `region` `(*shape)` bool.

    Raises:
        SettingError: a region of another shape.
    """
    if tuple(region.shape) != space.shape:
        raise SettingError(f"region: expected shape {space.shape}, got {tuple(region.shape)}")
    points = torch.from_numpy(pointmap(space)).movedim(-1, 0).to(torch.float32)
    return torch.where(region.to(torch.bool), points, torch.nan)


def resize_pointmap(points: Tensor, shape: Sequence[int], *, coverage: float = 0.5) -> Tensor:
    """Resize a pointmap with unknown pixels by normalised convolution; outer edges stay where they are.

    Values and certainty (1 known, 0 unknown) are interpolated alike and divided (Knutsson & Westin 1993, CVPR,
    515-523, order zero), so a result is a mean of known values and nothing else: points of a plane stay in it.
    Where pixels grow, both are averaged over the size of the new ones first.

    Args:
        points: `(C, *spatial)`, NaN (in any channel) where unknown.
        shape: the new spatial shape.
        coverage: certainty in (0, 1] from which a new pixel is known.

    Returns:
        `(C, *shape)` float32, NaN where unknown.

    Raises:
        SettingError: sizes or a coverage out of range.
    """
    if not 0 < coverage <= 1:
        raise SettingError(f"coverage: expected a number in (0, 1], got {coverage!r}")
    old = np.asarray(points.shape[1:])
    new = np.asarray([int(size) for size in shape])
    if new.shape != old.shape or new.min() < 1:
        raise SettingError(f"shape: expected {len(old)} positive sizes, got {tuple(shape)}")
    known = torch.isfinite(points).all(dim=0)
    out = torch.full((len(points), *new.tolist()), torch.nan)
    if not known.any():
        return out
    # float32 has 7 digits: the middle is taken off, so that they are spent on the differences.
    middle = points[:, known].to(torch.float64).mean(dim=1).reshape(-1, *[1] * len(old))
    values = torch.where(known, points.to(torch.float64) - middle, 0.0).to(torch.float32)
    stacked = torch.cat([values, known[None].to(torch.float32)])
    scale = old / new
    for axis, factor in enumerate(scale):
        stacked = _averaged(stacked, axis + 1, float(factor))
    moved = resample(stacked, np.diag(scale), (scale - 1) / 2, new.tolist(), fill="edge")
    certainty = moved[-1]
    sure = certainty >= coverage - 1e-5
    mean = moved[:-1] / certainty.clamp(min=1e-6) + middle.to(torch.float32)
    return torch.where(sure, mean, out)


def _averaged(stacked: Tensor, axis: int, factor: float) -> Tensor:
    """Smoothed along one axis for pixels `factor` times as large, as `data.preprocess.move` does it."""
    from scipy.ndimage import gaussian_filter1d

    variance = (factor**2 - 1) / (8 * np.log(2))
    if variance <= 0.04:
        return stacked
    # Beyond the edge nothing is known: zeros with a certainty of zero.
    weight = gaussian_filter1d(stacked.numpy(), float(np.sqrt(variance)), axis=axis, mode="constant")
    whole = gaussian_filter1d(np.ones(stacked.shape[axis]), float(np.sqrt(variance)), mode="constant")
    return torch.from_numpy(weight / whole.reshape(-1, *[1] * (stacked.ndim - 1 - axis)).astype(np.float32))


@dataclass(frozen=True)
class PointmapNormaliser:
    """World mm to the numbers of a network and back: `(point - shift) / scale`.

    Attributes:
        shift: mm, x, y, z.
        scale: mm, one positive number: distances keep their proportions.

    Raises:
        SettingError: numbers that aren't finite, a scale that isn't positive.
    """

    shift: tuple[float, float, float]
    scale: float

    def __post_init__(self) -> None:
        shift = tuple(float(value) for value in self.shift)
        if len(shift) != 3 or not np.isfinite(shift).all():
            raise SettingError(f"shift: expected three finite numbers in mm, got {self.shift}")
        if not (np.isfinite(self.scale) and self.scale > 0):
            raise SettingError(f"scale: expected a positive number of mm, got {self.scale}")
        object.__setattr__(self, "shift", shift)
        object.__setattr__(self, "scale", float(self.scale))

    @classmethod
    def of_frame(cls, centre: ArrayLike, edge: float) -> Self:
        """By a canonical cube: its middle becomes 0, its faces -0.5 and 0.5."""
        x, y, z = (float(value) for value in np.asarray(centre, dtype=np.float64).reshape(3))
        return cls((x, y, z), float(edge))

    @classmethod
    def of_points(cls, points: Tensor, *, method: str = "median") -> Self:
        """By the known points of a pointmap `(3, ...)`.

        Args:
            points: NaN where unknown.
            method: `median`: their median, and the mean distance from it; `extent`: the middle and the longest
                side of the box around them.

        Raises:
            DataError: no point is known, or all are one.
            SettingError: an unknown method.
        """
        flat = points.reshape(3, -1).to(torch.float64)
        flat = flat[:, torch.isfinite(flat).all(dim=0)]
        if method not in ("median", "extent"):
            raise SettingError(f"method: expected median or extent, got {method!r}")
        if not flat.numel():
            raise DataError("pointmap: expected at least one known point, got NaN only")
        if method == "median":
            middle = torch.from_numpy(np.median(flat.numpy(), axis=1))
            scale = float((flat - middle[:, None]).norm(dim=0).mean())
        else:
            low, high = flat.amin(dim=1), flat.amax(dim=1)
            middle, scale = (low + high) / 2, float((high - low).max())
        if scale <= 0:
            raise DataError("pointmap: all known points are one, so there is no scale")
        return cls.of_frame(middle.numpy(), scale)

    def normalise(self, points: Tensor) -> Tensor:
        """mm to normalised, `(..., 3, *spatial)` with `spatial` of the last two axes; NaN stays NaN."""
        return (points - self._shift(points)) / self.scale

    def restore(self, points: Tensor) -> Tensor:
        """Normalised to mm: the inverse of `normalise`."""
        return points * self.scale + self._shift(points)

    def settings(self) -> dict[str, Any]:
        """Plain values: `PointmapNormaliser(**settings)` is the same again."""
        return {"shift": list(self.shift), "scale": self.scale}

    def _shift(self, points: Tensor) -> Tensor:
        return torch.tensor(self.shift, dtype=points.dtype, device=points.device).reshape(3, 1, 1)
