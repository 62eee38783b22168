"""Which voxels lie inside a closed mesh."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from voxelry.core.errors import SettingError
from voxelry.core.space import Space
from voxelry.ops.surface import Mesh

__all__ = ["voxelise_mesh"]

_PAIRS = 1 << 20  # triangle-line pairs looked at a time
_STEPS = 1 << 16  # to which a voxel is divided


def voxelise_mesh(mesh: Mesh, space: Space) -> NDArray[np.bool_]:
    """Voxels whose centres a closed mesh encloses.

    A line runs through the voxel centres of every row of the grid; between entering and leaving the surface it
    is inside. A line through an edge or a vertex crosses exactly one of the triangles that share it, so no
    line leaks.

    Args:
        mesh: closed, world mm; may be larger than the grid.
        space: the grid, of rank 3; may be oblique, mirrored, anisotropic.

    Returns:
        bool of `space.shape`; all False for an empty mesh.

    Raises:
        SettingError: a mesh that isn't watertight, so that there is no inside; a grid that isn't a volume.
    """
    if len(space.shape) < len(mesh.vertices.T):
        raise SettingError(f"space: expected the grid of a volume, got shape {space.shape}")
    if mesh.is_empty:
        return np.zeros(space.shape, dtype=bool)
    if not mesh.is_watertight:
        raise SettingError("mesh: expected a watertight surface; nothing is inside an open one")
    depth, height, width = space.shape
    # sides of edges are found without rounding: products of such coordinates fit into float64
    places = np.round(space.to_index(mesh.vertices) * _STEPS) / _STEPS
    # every triangle is given in the order of its vertex numbers: an edge is the same numbers for both its sides
    order = np.argsort(mesh.faces, axis=1)
    corners = places[np.take_along_axis(mesh.faces, order, axis=1)]
    turned = np.isin(order @ np.array([9, 3, 1]), (7, 11, 21))  # odd permutations of 0, 1, 2, read in base 3
    low = np.maximum(np.ceil(corners[..., :2].min(axis=1)), 0).astype(np.int64)
    high = np.minimum(np.floor(corners[..., :2].max(axis=1)), [depth - 1, height - 1]).astype(np.int64)
    sides = np.maximum(high - low + 1, 0)
    lines = sides.prod(axis=1)
    crossings = np.zeros((depth * height, width + 1), dtype=np.int32)
    kept = np.flatnonzero(lines)
    groups = np.cumsum(lines[kept]) // _PAIRS
    for group in np.unique(groups):
        chosen = kept[groups == group]
        number = np.repeat(chosen, lines[chosen])
        step = np.arange(len(number)) - np.repeat(np.cumsum(lines[chosen]) - lines[chosen], lines[chosen])
        line = low[number] + np.stack(np.divmod(step, sides[number, 1]), axis=1)
        a, b, c = (corners[number, corner] for corner in range(3))
        ab, bc, ac = _is_left(a, b, line), _is_left(b, c, line), _is_left(a, c, line)
        hit = (ab == bc) & (ab != ac)  # on the same side of all three edges; that of a to c is given backwards
        number, line, a, b, c = number[hit], line[hit], a[hit], b[hit], c[hit]
        normal = np.cross(b - a, c - a)
        along = a[:, 2] - ((line - a[:, :2]) * normal[:, :2]).sum(axis=1) / normal[:, 2]
        ends = np.stack([a[:, 2], b[:, 2], c[:, 2]])  # between them, however steep the triangle
        first = np.clip(np.ceil(np.clip(along, ends.min(axis=0), ends.max(axis=0))), 0, width).astype(np.int64)
        turn = np.where(ab[hit] != turned[number], 1, -1)
        np.add.at(crossings, (line[:, 0] * height + line[:, 1], first), turn)
    return (np.cumsum(crossings, axis=1)[:, :width] != 0).reshape(space.shape)


def _is_left(start: NDArray[np.float64], stop: NDArray[np.float64], line: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether a line is left of an edge seen along it, `(N, 3), (N, 3), (N, 2) -> (N,)`.

    A line on the edge is moved by an infinitesimal step along the first axis and a still smaller one along the
    second (Edelsbrunner and Muecke 1990, ACM TOG 9(1)), the same step for all edges.
    """
    along, offset = stop[:, :2] - start[:, :2], line - start[:, :2]
    side = along[:, 0] * offset[:, 1] - along[:, 1] * offset[:, 0]
    side = np.where(side == 0, -along[:, 1], side)
    return np.where(side == 0, along[:, 0], side) > 0
