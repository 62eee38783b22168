"""The true shape of one organ, as a distance field on its own small grid, ready to be read off anywhere."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from voxelry.core.errors import SettingError
from voxelry.core.space import Space
from voxelry.ops.mask_window import mask_window
from voxelry.ops.sdf import canonical_sdf, canonical_space, resample_sdf, signed_distance

__all__ = ["OrganShape"]

_SPARE = 1.25  # distances are kept this much beyond the truncation, so that a shape may be made larger


class OrganShape:
    """Signed distances of an organ around it.

    Args:
        distances: `(d, h, w)` mm, negative inside, of any real type.
        space: their grid.
        truncation: mm at which they are clipped; beyond the grid they are that.
    """

    def __init__(self, distances: NDArray[np.floating], space: Space, truncation: float):
        self.distances, self.space, self.truncation = distances, space, truncation

    @classmethod
    def of_mask(cls, mask: NDArray[np.bool_], space: Space, truncation: float) -> OrganShape | None:
        """From voxels; None where there are none.

        Args:
            mask: `(D, H, W)` bool; beyond it there is background.
            space: its grid, oblique, mirrored, anisotropic or sheared.
            truncation: mm that `canonical` may be asked for.
        """
        window = mask_window(mask)
        if window is None:
            return None
        limit = truncation * _SPARE
        part = space.crop([side.start for side in window], [side.stop - side.start for side in window])
        angles = part.directions.T @ part.directions
        if np.abs(angles - np.eye(3)).max() > 1e-3:  # sheared: by way of a cube that holds it
            corners = np.stack(np.meshgrid(*[(-0.5, size - 0.5) for size in part.shape], indexing="ij"), axis=-1)
            box = np.asarray(part.to_world(corners.reshape(-1, 3)))
            edge = float(np.ptp(box, axis=0).max()) + 2 * limit
            n = int(np.ceil(edge / min(part.spacing)))
            middle = (box.min(axis=0) + box.max(axis=0)) / 2
            near = canonical_sdf(mask, space, middle, edge, n, limit)
            return None if near is None else cls(near.astype(np.float16), canonical_space(middle, edge, n), limit)
        width = np.ceil(limit / np.asarray(part.spacing)).astype(int) + 1
        padded = np.pad(mask[window], [(side, side) for side in width.tolist()])
        near = signed_distance(padded, part.spacing, truncation=limit)
        grid = part.crop((-width).tolist(), padded.shape)
        return None if near is None else cls(near.astype(np.float16), grid, limit)

    def moved(self, motion: NDArray[np.float64]) -> OrganShape:
        """The organ after a similarity of the world: `(4, 4)`, a rotation or reflection, one scale and a shift."""
        scale = float(np.cbrt(abs(np.linalg.det(motion[:3, :3]))))
        space = Space(self.space.shape, motion @ self.space.affine)
        shape = OrganShape(self.distances, space, self.truncation * scale)
        shape._unit = self._unit * scale
        shape._outline, shape._middle = self._outline, self._middle
        return shape

    _unit = 1.0  # mm per unit of `distances`, which are shared with the shape before it was moved

    def canonical(
        self, centre: Sequence[float] | NDArray[np.floating], edge: float, n: int, truncation: float
    ) -> NDArray[np.float32]:
        """On the canonical grid: `(n, n, n)` float32 mm, clipped to ±`truncation`.

        Raises:
            SettingError: a truncation beyond what is known.
        """
        return self.on(canonical_space(centre, edge, n), truncation)

    def on(self, target: Space, truncation: float | None = None) -> NDArray[np.float32]:
        """On any grid of the world, a volume or a plane; see `canonical`."""
        limit = self.truncation if truncation is None else truncation
        if limit > self.truncation * 1.001:
            raise SettingError(f"truncation: expected at most {self.truncation:.4g} mm, which is known, got {limit:g}")
        near = resample_sdf(self.distances, self.space, target, outside=self.truncation / self._unit)
        return np.clip(near * np.float32(self._unit), -limit, limit)

    @cached_property
    def _outline(self) -> NDArray[np.float64]:
        """Index coordinates `(N, 3)` of the first and last voxel inside on every line of the grid."""
        inside = self.distances < 0
        first, last = inside.argmax(axis=2), inside.shape[2] - 1 - inside[:, :, ::-1].argmax(axis=2)
        rows = np.argwhere(inside.any(axis=2))
        ends = [np.column_stack([rows, side[tuple(rows.T)]]) for side in (first, last)]
        return np.concatenate(ends).astype(np.float64)

    @property
    def box(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Lowest and highest world x, y, z in mm of its voxels, edge to edge."""
        points = np.asarray(self.space.to_world(self._outline))
        half = np.abs(self.space.affine[:3, :3]).sum(axis=1) / 2
        return points.min(axis=0) - half, points.max(axis=0) + half

    @property
    def extent(self) -> float:
        """Longest side of `box` in mm."""
        low, high = self.box
        return float((high - low).max())

    @property
    def centroid(self) -> NDArray[np.float64]:
        """Mean world x, y, z in mm of its voxels."""
        return np.asarray(self.space.to_world(self._middle))

    @cached_property
    def _middle(self) -> NDArray[np.float64]:
        return np.argwhere(self.distances < 0).mean(axis=0)

    @property
    def volume_ml(self) -> float:
        """Volume of the voxels inside."""
        voxel = abs(float(np.linalg.det(self.space.affine[:3, :3])))
        return float((self.distances < 0).sum()) * voxel / 1000.0
