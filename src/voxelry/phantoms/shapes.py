"""Solids of a phantom as approximate signed distances, any rank.

Points are `(ndim, *grid)` in mm; a distance is negative inside, exact on the surface and to first order
near it. Landmarks on a solid are known in closed form.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from voxelry.ops.resample import spline_grid

__all__ = ["Ovoid", "Tube", "rotation_to", "smooth_noise"]

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Ovoid:
    """A superellipsoid that may narrow towards the positive end of its first axis.

    Args:
        centre: mm, `(ndim,)`.
        radii: mm along its own axes, `(ndim,)`.
        axes: its own axes as columns, orthonormal `(ndim, ndim)`.
        exponent: 2 is an ellipsoid, more is boxier.
        taper: 0 is symmetric; the cross-section is `1 - taper * s` times its middle for `s` from -1 to 1 along
            the first axis. Below 1.
    """

    centre: NDArray[np.float64]
    radii: NDArray[np.float64]
    axes: NDArray[np.float64]
    exponent: float = 2.0
    taper: float = 0.0

    def distance(self, points: Array) -> Array:
        """Signed distance in mm, `(ndim, *grid) -> grid`."""
        offset = (points.reshape(len(points), -1) - self.centre[:, None].astype(np.float32)).astype(np.float32)
        own = (self.axes / self.radii).T.astype(np.float32) @ offset  # in radii, along its own axes
        width = 1 - np.float32(self.taper) * np.clip(own[0], -1, 1)
        own[1:] /= width
        size = np.abs(own)
        steep = size ** np.float32(self.exponent - 1)
        total = np.einsum("ap,ap->p", steep, size)
        total = np.maximum(total, 1e-12)
        level = total ** np.float32(1 / self.exponent)
        slope = steep / self.radii[:, None].astype(np.float32)
        slope[1:] /= width
        steepness = np.sqrt(np.einsum("ap,ap->p", slope, slope)) * level / total
        distance = (level - 1) / np.maximum(steepness, 1e-6)
        return distance.reshape(points.shape[1:]).astype(np.float32)

    def tip(self) -> NDArray[np.float64]:
        """The end of the first axis, `(ndim,)` mm: where a tapered one is narrowest."""
        return self.centre + self.axes[:, 0] * self.radii[0]


@dataclass(frozen=True)
class Tube:
    """Round tubes along straight segments, `(segments, 2, ndim)` mm, of one radius in mm."""

    segments: NDArray[np.float64]
    radius: float

    def distance(self, points: Array) -> Array:
        """Signed distance in mm, `(ndim, *grid) -> grid`."""
        flat = points.reshape(len(points), -1)
        nearest = np.full(flat.shape[1], np.inf, dtype=np.float32)
        for start, end in self.segments.astype(np.float32):
            along = end - start
            offset = flat - start[:, None]
            part = np.clip(along @ offset / (along @ along), 0, 1)
            offset -= along[:, None] * part
            np.minimum(nearest, np.einsum("ap,ap->p", offset, offset), out=nearest)
        return (np.sqrt(nearest) - np.float32(self.radius)).reshape(points.shape[1:])


def rotation_to(direction: NDArray[np.float64]) -> tuple[NDArray[np.float64], list[int]]:
    """Own axes of a solid that points along `direction`, and the frame's axes they are nearest to.

    Returns:
        Orthonormal axes `(ndim, ndim)` as columns, the first along `direction`, and for each column the axis of
        the frame that it replaces.
    """
    ndim = len(direction)
    main = int(np.argmax(np.abs(direction)))
    order = [main, *(axis for axis in range(ndim) if axis != main)]
    basis = np.eye(ndim)[:, order]
    basis[:, 0] = direction
    axes = np.linalg.qr(basis)[0]
    return axes * np.where(np.einsum("ij,ij->j", axes, basis) < 0, -1.0, 1.0), order


def smooth_noise(
    size: Sequence[int], spacing: NDArray[np.float64], grain: float, generator: np.random.Generator
) -> Array:
    """Smooth noise of unit deviation, `(*size)`, whose blobs are about `grain` mm wide."""
    grid = [max(1, round((count - 1) * step / grain)) + 3 for count, step in zip(size, spacing, strict=True)]
    noise = spline_grid(torch.from_numpy(generator.standard_normal((1, *grid), dtype=np.float32)), size)[0].numpy()
    return (noise / max(float(noise.std()), 1e-6)).astype(np.float32)
