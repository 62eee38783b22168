"""Pointmaps: the world position of every pixel or voxel, through the full affine.

A pointmap that is stored is `(3, H, W)` float32 in mm (RAS), NaN where nothing is known (outside of the mask, or
away from the click). It is never interpolated with zeros for NaN: values are averaged over what is known only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from voxelry.core.choice import check_choice
from voxelry.core.errors import DataError, SettingError
from voxelry.core.space import Space

__all__ = ["PointmapNormaliser", "masked_pointmap", "pointmap", "pointmap_plane"]

_FLAT = 0.05  # of a pixel: how far the points of a plane may lie from it, as stored numbers are rounded


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


def pointmap_plane(points: ArrayLike) -> Space:
    """The grid of rank 2 whose pixels lie where a pointmap says: the inverse of `pointmap`, by least squares.

    Args:
        points: `(3, H, W)` world x, y, z in mm, NaN where unknown.

    Raises:
        DataError: no point is known, too few for a plane, or points that aren't those of evenly spaced pixels.
    """
    array = np.asarray(points, dtype=np.float64)
    if array.ndim != 3 or len(array) != 3:
        raise DataError(f"pointmap: expected x, y and z of every pixel, (3, H, W), got shape {array.shape}")
    known = np.isfinite(array).all(axis=0)
    if not known.any():
        raise DataError("pointmap: expected at least one known point, got NaN only")
    index = np.column_stack([*np.nonzero(known), np.ones(int(known.sum()))])
    world = array[:, known].T
    fitted, _, independent, _ = np.linalg.lstsq(index, world, rcond=None)
    steps = np.linalg.norm(fitted[:2], axis=1)
    if independent < 3 or not np.linalg.norm(np.cross(*fitted[:2])) > 1e-3 * np.prod(steps):
        raise DataError("pointmap: its known points lie on a line; expected points of at least two rows and columns")
    away = float(np.linalg.norm(world - index @ fitted, axis=1).max())
    if away > _FLAT * steps.min():
        raise DataError(
            f"pointmap: points lie up to {away:.3g} mm from a plane of evenly spaced pixels of "
            f"{steps[0]:.3g} x {steps[1]:.3g} mm; expected mm along x, y, z, and none else than NaN where unknown"
        )
    affine = np.zeros((4, 3))
    affine[:3], affine[3, 2] = fitted.T, 1.0
    return Space(known.shape, affine)


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
        check_choice("method", method, ("median", "extent"))
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
