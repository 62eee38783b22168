"""Where an array lies in the world.

An index coordinate is a voxel centre at an integer, in array order (plane, row, column). The world is
RAS+ in millimetres, as in NIfTI. An image of rank 2 is a plane in that same world, so its affine has
three columns, not four: a slice cut from a volume still knows where in the patient it was.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from voxelry.core.errors import SettingError
from voxelry.core.rank import check_ndim, per_axis

if TYPE_CHECKING:
    import torch

__all__ = ["Space"]

Points = TypeVar("Points", NDArray[np.floating], "torch.Tensor")

_AXIS_CODES = ("LR", "PA", "IS")  # world axis -> code when it falls, when it grows


@dataclass(frozen=True, eq=False)
class Space:
    """The grid of an image: its spatial shape and the affine from index to world.

    Args:
        shape: spatial shape in array order, `ndim` numbers.
        affine: `(4, ndim + 1)`, index (array order, homogeneous) to world x, y, z in mm (RAS+).

    Raises:
        SettingError: the affine has another shape, is not finite, or flattens an axis.
    """

    shape: tuple[int, ...]
    affine: NDArray[np.float64]

    def __post_init__(self) -> None:
        shape = tuple(int(size) for size in self.shape)
        ndim = check_ndim(len(shape))
        affine = np.array(self.affine, dtype=np.float64)
        if affine.shape != (4, ndim + 1):
            raise SettingError(
                f"affine: expected shape (4, {ndim + 1}) for an image of rank {ndim}, got {affine.shape}"
            )
        if not np.isfinite(affine).all():
            raise SettingError("affine: expected finite numbers")
        matrix = affine[:3, :ndim]
        if np.linalg.matrix_rank(matrix) < ndim:
            raise SettingError("affine: expected independent axes of non-zero length")
        affine.setflags(write=False)
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "affine", affine)

    @classmethod
    def from_spacing(
        cls,
        shape: Sequence[int],
        spacing: float | Sequence[float] = 1.0,
        origin: Sequence[float] = (0.0, 0.0, 0.0),
    ) -> Space:
        """A grid without orientation of its own: column along x, row along y, plane along z.

        Args:
            shape: spatial shape in array order.
            spacing: mm per voxel, one number or one per axis in array order.
            origin: world x, y, z in mm of voxel 0.
        """
        ndim = check_ndim(len(shape))
        affine = np.zeros((4, ndim + 1))
        for axis, step in enumerate(per_axis(spacing, ndim, "spacing")):
            affine[ndim - 1 - axis, axis] = step
        affine[:3, ndim] = origin
        affine[3, ndim] = 1.0
        return cls(tuple(shape), affine)

    @property
    def ndim(self) -> int:
        """Number of spatial axes, 2 or 3."""
        return len(self.shape)

    @property
    def spacing(self) -> tuple[float, ...]:
        """Distance between neighbouring voxel centres in mm, per axis in array order."""
        return tuple(float(step) for step in np.linalg.norm(self.affine[:3, : self.ndim], axis=0))

    @property
    def origin(self) -> NDArray[np.float64]:
        """World x, y, z in mm of voxel 0."""
        return self.affine[:3, self.ndim]

    @property
    def directions(self) -> NDArray[np.float64]:
        """Unit vectors of the axes in the world, `(3, ndim)`, one column per axis in array order."""
        return self.affine[:3, : self.ndim] / np.asarray(self.spacing)

    @property
    def extent(self) -> tuple[float, ...]:
        """Length of each axis in mm, voxel edge to voxel edge."""
        return tuple(size * step for size, step in zip(self.shape, self.spacing, strict=True))

    @property
    def orientation(self) -> str:
        """Nearest anatomical direction of each axis in array order, such as `SAR`.

        A NIfTI file that nibabel calls RAS is `SAR` here, because array order is its reverse.
        """
        return "".join(_AXIS_CODES[world][int(sign > 0)] for world, sign in self.closest_axes())

    def closest_axes(self) -> list[tuple[int, int]]:
        """For each array axis the world axis it runs along most (0, 1, 2) and its sign; no world axis twice."""
        directions = self.directions
        remaining = np.abs(directions)
        found: dict[int, tuple[int, int]] = {}
        for _ in range(self.ndim):
            world, axis = np.unravel_index(int(np.argmax(remaining)), remaining.shape)
            found[int(axis)] = (int(world), 1 if directions[world, axis] >= 0 else -1)
            remaining[world, :] = -1.0
            remaining[:, axis] = -1.0
        return [found[axis] for axis in range(self.ndim)]

    def to_world(self, points: Points) -> Points:
        """Index coordinates `(..., ndim)` to world mm `(..., 3)`; NaN stays NaN, the array type is kept."""
        matrix, shift = self.affine[:3, : self.ndim], self.origin
        if (like := _maker(points)) is not None:
            return points @ like(matrix.T) + like(shift)
        placed: Any = np.asarray(points) @ matrix.T + shift
        return placed

    def to_index(self, points: Points) -> Points:
        """World mm `(..., 3)` to index coordinates `(..., ndim)`; at rank 2 the nearest point of the plane."""
        inverse = np.linalg.pinv(self.affine[:3, : self.ndim])
        if (like := _maker(points)) is not None:
            return (points - like(self.origin)) @ like(inverse.T)
        placed: Any = (np.asarray(points) - self.origin) @ inverse.T
        return placed

    def contains(self, points: NDArray[np.floating]) -> NDArray[np.bool_]:
        """Whether index coordinates `(..., ndim)` lie inside some voxel of the grid; NaN does not."""
        points = np.asarray(points)
        return np.all((points >= -0.5) & (points <= np.asarray(self.shape) - 0.5), axis=-1)

    def crop(self, start: Sequence[float], shape: Sequence[int]) -> Space:
        """The window of `shape` voxels whose voxel 0 is this grid's index `start` (may lie outside)."""
        return self.remap(np.eye(self.ndim), np.asarray(start, dtype=np.float64), shape)

    def resize(self, shape: Sequence[int]) -> Space:
        """The same extent cut into `shape` voxels: outer edges stay, centres move (half-pixel rule)."""
        scale = np.asarray(self.shape) / np.asarray(shape)
        return self.remap(np.diag(scale), (scale - 1) / 2, shape)

    def respace(self, spacing: float | Sequence[float]) -> Space:
        """The same centre at another spacing in mm; the extent is rounded to whole voxels."""
        wanted = np.asarray(per_axis(spacing, self.ndim, "spacing"), dtype=np.float64)
        if not np.all(wanted > 0):
            raise SettingError(f"spacing: expected positive millimetres, got {spacing}")
        shape = np.maximum(1, np.round(np.asarray(self.extent) / wanted - 1e-6)).astype(int)
        scale = wanted / np.asarray(self.spacing)
        start = (np.asarray(self.shape) - 1) / 2 - scale * (shape - 1) / 2
        return self.remap(np.diag(scale), start, shape.tolist())

    def with_spacing(self, spacing: float | Sequence[float]) -> Space:
        """The same voxels at other distances in mm: origin and directions stay, the extent changes."""
        steps = np.asarray(per_axis(spacing, self.ndim, "spacing"), dtype=np.float64)
        if not np.all(np.isfinite(steps) & (steps > 0)):
            raise SettingError(f"spacing: expected positive millimetres, got {spacing}")
        affine = self.affine.copy()
        affine[:3, : self.ndim] = self.directions * steps
        return Space(self.shape, affine)

    def reorder(self, axes: Sequence[int], flips: Sequence[bool]) -> Space:
        """The grid after `array.transpose(axes)` and then a reversal of the axes marked in `flips`."""
        matrix = np.zeros((self.ndim, self.ndim))
        start = np.zeros(self.ndim)
        shape = [self.shape[axis] for axis in axes]
        for new, (old, flip) in enumerate(zip(axes, flips, strict=True)):
            matrix[old, new] = -1.0 if flip else 1.0
            start[old] = self.shape[old] - 1 if flip else 0.0
        return self.remap(matrix, start, shape)

    def remap(self, matrix: NDArray[np.float64], start: NDArray[np.float64], shape: Sequence[int]) -> Space:
        """The grid whose index `i` is this grid's index `matrix @ i + start`."""
        step = np.eye(self.ndim + 1)
        step[: self.ndim, : self.ndim] = matrix
        step[: self.ndim, self.ndim] = start
        return Space(tuple(int(size) for size in shape), self.affine @ step)

    def matches(self, other: Space, tolerance: float = 0.1) -> bool:
        """Same shape, and every corner of the grid within `tolerance` voxels of its counterpart, at any scale."""
        if self.shape != other.shape:
            return False
        corners = np.stack(np.meshgrid(*[(0, size - 1) for size in self.shape], indexing="ij"), axis=-1)
        matrix = self.affine[:3, : self.ndim]
        apart = other.to_world(corners) - self.to_world(corners)
        voxels = apart @ np.linalg.pinv(matrix).T
        off_plane = np.linalg.norm(apart - voxels @ matrix.T, axis=-1) / min(self.spacing)
        return bool(np.abs(voxels).max() <= tolerance and off_plane.max() <= tolerance)

    def is_close(self, other: Space, tolerance: float = 1e-3) -> bool:
        """Same shape, and every corner of the grid within `tolerance` shortest sides of a voxel."""
        if self.shape != other.shape:
            return False
        corners = np.stack(np.meshgrid(*[(0, size - 1) for size in self.shape], indexing="ij"), axis=-1)
        return bool(np.abs(self.to_world(corners) - other.to_world(corners)).max() <= tolerance * min(self.spacing))


def _maker(points: Any) -> Callable[[NDArray[np.floating]], Any] | None:
    """Of a tensor what makes others of its kind, without torch, which whoever reads files may do without."""
    make = getattr(points, "new_tensor", None)
    return None if make is None else lambda array: make(np.ascontiguousarray(array))
