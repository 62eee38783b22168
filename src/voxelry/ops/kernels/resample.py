"""Resampling on the CPU, one voxel after another, with the displacement evaluated on the way.

All arrays are of rank 3 here (`voxelry.ops.resample` lifts rank 2 to depth one). The spline is a tensor
product, so it is reduced over planes once per plane and over rows once per row: what is left for a voxel
is four products per axis, and no field of displacements is ever held.

`starts` and `weights` are the basis along each axis: output index `i` uses the coefficients
`starts[i] ... starts[i] + 3` with `weights[i]`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from voxelry.ops.kernels import jit

__all__ = ["resample_linear", "resample_nearest"]

# Rounding must not decide whether a point on the border is inside, nor which voxel a tie goes to.
SLACK = 1e-6


@jit
def _reduce_plane(control: Any, start: int, weights: Any, plane: Any) -> None:
    for component in range(3):
        for row in range(plane.shape[1]):
            for column in range(plane.shape[2]):
                value = 0.0
                for tap in range(4):
                    value += weights[tap] * control[component, start + tap, row, column]
                plane[component, row, column] = value


@jit
def _reduce_row(plane: Any, start: int, weights: Any, line: Any) -> None:
    for component in range(3):
        for column in range(line.shape[1]):
            value = 0.0
            for tap in range(4):
                value += weights[tap] * plane[component, start + tap, column]
            line[component, column] = value


@jit
def _row_points(
    z: int, y: int, matrix: Any, offset: Any, line: Any, starts: Any, weights: Any, displaced: bool, points: Any
) -> None:
    """Input coordinates of output row `(z, y)` into `points`, `(3, columns)`."""
    for axis in range(3):
        base = matrix[axis, 0] * z + matrix[axis, 1] * y + offset[axis]
        step = matrix[axis, 2]
        if displaced:
            for x in range(points.shape[1]):
                k = starts[x]
                points[axis, x] = (
                    base
                    + step * x
                    + weights[x, 0] * line[axis, k]
                    + weights[x, 1] * line[axis, k + 1]
                    + weights[x, 2] * line[axis, k + 2]
                    + weights[x, 3] * line[axis, k + 3]
                )
        else:
            for x in range(points.shape[1]):
                points[axis, x] = base + step * x


@jit
def _is_inside(z: float, y: float, x: float, depth: int, height: int, width: int) -> bool:
    return (
        -0.5 - SLACK <= z <= depth - 0.5 + SLACK
        and -0.5 - SLACK <= y <= height - 0.5 + SLACK
        and -0.5 - SLACK <= x <= width - 0.5 + SLACK
    )


@jit
def resample_linear(
    image: Any,
    matrix: Any,
    offset: Any,
    control: Any,
    starts: Any,
    weights: Any,
    displaced: bool,
    edge: bool,
    fill: Any,
    out: Any,
) -> None:
    """Trilinear values of `image` `(C, D, H, W)` float32 into `out` `(C, d, h, w)` float32; `fill` is `(C,)`."""
    channels, depth, height, width = image.shape
    plane = np.zeros((3, control.shape[2], control.shape[3]))
    line = np.zeros((3, control.shape[3]))
    points = np.empty((3, out.shape[3]))
    for z in range(out.shape[1]):
        if displaced:
            _reduce_plane(control, starts[0][z], weights[0][z], plane)
        for y in range(out.shape[2]):
            if displaced:
                _reduce_row(plane, starts[1][y], weights[1][y], line)
            _row_points(z, y, matrix, offset, line, starts[2], weights[2], displaced, points)
            for x in range(out.shape[3]):
                pz, py, px = points[0, x], points[1, x], points[2, x]
                if not edge and not _is_inside(pz, py, px, depth, height, width):
                    for channel in range(channels):
                        out[channel, z, y, x] = fill[channel]
                    continue
                pz = min(max(pz, 0.0), depth - 1.0)
                py = min(max(py, 0.0), height - 1.0)
                px = min(max(px, 0.0), width - 1.0)
                z0, y0, x0 = int(pz), int(py), int(px)  # not negative, so this is the floor
                z1, y1, x1 = min(z0 + 1, depth - 1), min(y0 + 1, height - 1), min(x0 + 1, width - 1)
                fz, fy, fx = np.float32(pz - z0), np.float32(py - y0), np.float32(px - x0)
                for channel in range(channels):
                    volume = image[channel]
                    v00 = volume[z0, y0, x0] + fx * (volume[z0, y0, x1] - volume[z0, y0, x0])
                    v01 = volume[z0, y1, x0] + fx * (volume[z0, y1, x1] - volume[z0, y1, x0])
                    v10 = volume[z1, y0, x0] + fx * (volume[z1, y0, x1] - volume[z1, y0, x0])
                    v11 = volume[z1, y1, x0] + fx * (volume[z1, y1, x1] - volume[z1, y1, x0])
                    v0 = v00 + fy * (v01 - v00)
                    v1 = v10 + fy * (v11 - v10)
                    out[channel, z, y, x] = v0 + fz * (v1 - v0)


@jit
def resample_nearest(
    image: Any,
    matrix: Any,
    offset: Any,
    control: Any,
    starts: Any,
    weights: Any,
    displaced: bool,
    edge: bool,
    fill: Any,
    out: Any,
) -> None:
    """Nearest voxels of `image` `(C, D, H, W)` into `out` `(C, d, h, w)`; both and `fill` are of one integer type."""
    channels, depth, height, width = image.shape
    plane = np.zeros((3, control.shape[2], control.shape[3]))
    line = np.zeros((3, control.shape[3]))
    points = np.empty((3, out.shape[3]))
    for z in range(out.shape[1]):
        if displaced:
            _reduce_plane(control, starts[0][z], weights[0][z], plane)
        for y in range(out.shape[2]):
            if displaced:
                _reduce_row(plane, starts[1][y], weights[1][y], line)
            _row_points(z, y, matrix, offset, line, starts[2], weights[2], displaced, points)
            for x in range(out.shape[3]):
                pz, py, px = points[0, x], points[1, x], points[2, x]
                if not edge and not _is_inside(pz, py, px, depth, height, width):
                    for channel in range(channels):
                        out[channel, z, y, x] = fill[channel]
                    continue
                # clamped first, so that truncation is the floor; a tie goes to the lower voxel
                z0 = int(min(max(pz, 0.0), depth - 1.0) + (0.5 - SLACK))
                y0 = int(min(max(py, 0.0), height - 1.0) + (0.5 - SLACK))
                x0 = int(min(max(px, 0.0), width - 1.0) + (0.5 - SLACK))
                for channel in range(channels):
                    out[channel, z, y, x] = image[channel, z0, y0, x0]
