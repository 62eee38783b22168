"""Where a phantom lies: its grid in the world, the body frame in which its solids are drawn, and the scanner.

The body frame is in mm (superior, anterior, right; at rank 2 superior, right), its origin in the middle of
the grid. A smooth invertible displacement takes part in the way from a voxel to it: no solid keeps its
textbook shape, and points follow exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from voxelry.core.errors import SettingError
from voxelry.core.rank import per_axis
from voxelry.core.space import Space
from voxelry.ops.resample import resample_points, spline_grid, spline_lipschitz
from voxelry.phantoms.anatomy import BODY_AXES

__all__ = ["BodyFrame", "draw_frame", "draw_space", "grid_shape", "grid_steps", "scan"]

_STEEPEST = 0.6  # of the displacement, mm per mm; below 1 it is invertible


@dataclass(frozen=True)
class BodyFrame:
    """`body = matrix @ index + offset + displacement(index)`, in mm.

    Attributes:
        space: the grid.
        matrix, offset: `(ndim, ndim)` and `(ndim,)`.
        displacement: spline coefficients `(ndim, *grid)` over the grid of the image.
    """

    space: Space
    matrix: NDArray[np.float64]
    offset: NDArray[np.float64]
    displacement: NDArray[np.float64]

    def points(self) -> NDArray[np.float32]:
        """Body coordinates of every voxel, `(ndim, *shape)`."""
        size = self.space.shape
        points = spline_grid(torch.from_numpy(self.displacement).float(), size).numpy()
        for axis, count in enumerate(size):
            along = [count if other == axis else 1 for other in range(len(size))]
            points += (self.matrix[:, axis, None] * np.arange(count)).reshape(-1, *along).astype(np.float32)
        points += self.offset.reshape(-1, *[1] * len(size)).astype(np.float32)
        return points

    def find(self, body: Tensor) -> Tensor:
        """Index coordinates of points `(N, ndim)` of the body; NaN outside of the grid."""
        found = resample_points(
            body, self.matrix, self.offset, self.space.shape, displacement=self.displacement, tolerance=1e-4
        )
        found[~torch.as_tensor(self.space.contains(found.numpy()))] = torch.nan
        return found


def grid_shape(shape: Sequence[int] | None, usual: Sequence[int], ndim: int, least: int) -> tuple[int, ...]:
    """A shape as it was asked for, or the last axes of the usual one.

    Raises:
        SettingError: another number of sizes than `ndim`, or one below `least`.
    """
    size = tuple(int(count) for count in (usual[-ndim:] if shape is None else shape))
    if len(size) != ndim or min(size) < least:
        raise SettingError(f"shape: expected {ndim} sizes of at least {least}, got {size}")
    return size


def grid_steps(spacing: float | Sequence[float] | None, usual: Sequence[float], ndim: int) -> NDArray[np.float64]:
    """mm per axis as they were asked for, or the last axes of the usual ones.

    Raises:
        SettingError: not one number or one per axis, or not positive.
    """
    steps = np.asarray(per_axis(tuple(usual[-ndim:]) if spacing is None else spacing, ndim, "spacing"), np.float64)
    if not (np.isfinite(steps).all() and (steps > 0).all()):
        raise SettingError(f"spacing: expected positive millimetres, got {spacing}")
    return steps


def draw_space(
    shape: tuple[int, ...], spacing: NDArray[np.float64], generator: np.random.Generator, oblique: bool
) -> Space:
    """A grid whose axes are the world's, or one turned by up to 12 degrees, mirrored at random, elsewhere."""
    ndim = len(shape)
    straight = Space.from_spacing(shape, spacing.tolist())
    angles = np.deg2rad(generator.uniform(-12, 12, 3))
    flips = generator.random(ndim) < 0.5
    place = generator.uniform(-80, 80, 3)
    if not oblique:
        return straight
    turn = np.eye(3)
    planes = ((0, 1), (0, 2), (1, 2))[: comb(ndim, 2)]  # a plane stays in its plane: the body has no depth
    place[ndim:] = 0
    for (a, b), angle in zip(planes, angles, strict=False):
        one = np.eye(3)
        one[[a, a, b, b], [a, b, a, b]] = np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)
        turn = turn @ one
    affine = straight.reorder(range(ndim), flips.tolist()).affine.copy()
    affine[:3] = turn @ affine[:3]
    affine[:3, ndim] += place
    return Space(shape, affine)


def draw_frame(space: Space, generator: np.random.Generator, largest: NDArray[np.float64]) -> BodyFrame:
    """A body on this grid, displaced by up to `largest` mm along each of its axes."""
    ndim = space.ndim
    world_axes = [axis for _, axis, _ in BODY_AXES[ndim]]
    signs = np.array([sign for *_, sign in BODY_AXES[ndim]])
    matrix = space.affine[world_axes, :ndim] * signs[:, None]
    offset = -matrix @ ((np.asarray(space.shape) - 1) / 2)
    coefficients = generator.uniform(-1, 1, (ndim, *(6,) * ndim)) * largest.reshape(-1, *[1] * ndim)
    coefficients *= min(1.0, _STEEPEST / spline_lipschitz(coefficients, space.shape, space.spacing))
    return BodyFrame(space, matrix, offset, coefficients)


def scan(image: NDArray[np.float32], noise: float, generator: np.random.Generator) -> NDArray[np.float32]:
    """Blur over half a voxel, a bias field and the noise of a magnitude image."""
    from scipy.ndimage import gaussian_filter

    bias = generator.uniform(-0.25, 0.25, (1, *(4,) * image.ndim))
    factor = spline_grid(torch.from_numpy(bias).float(), image.shape)[0].exp_().numpy()
    image = gaussian_filter(image, sigma=0.5) * factor
    real, imaginary = generator.standard_normal((2, *image.shape), dtype=np.float32) * np.float32(noise)
    return np.hypot(image + real, imaginary).astype(np.float32).clip(0, 1)
