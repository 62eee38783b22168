"""Pictures of triangle meshes: parallel projection, a depth buffer, smooth shading; no graphics card, no window."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voxelry.core.choice import check_choice
from voxelry.core.space import Space
from voxelry.ops.surface import Mesh

__all__ = ["VIEWS", "View", "render_mesh"]

Floats = NDArray[np.floating]

_FINER = 2  # pictures are made this much larger and averaged
_PAIRS = 1 << 20  # triangle-pixel pairs looked at a time
_AMBIENT = 0.4
_LIGHT = np.array([-0.35, 0.5, 1.0])
_LINE = (0.11, 0.14, 0.19)


@dataclass(frozen=True)
class View:
    """From where the patient is looked at.

    Attributes:
        right: world direction that runs to the right of the picture.
        up: world direction that runs upwards.
        edges: what lies at the left, right, top and bottom edge.
    """

    right: tuple[float, float, float]
    up: tuple[float, float, float]
    edges: tuple[str, str, str, str]

    @property
    def axes(self) -> NDArray[np.float64]:
        """World to picture: rows are right, up and towards the viewer, `(3, 3)`."""
        return np.array([self.right, self.up, np.cross(self.right, self.up)], dtype=np.float64)


VIEWS = {
    "anterior": View((-1, 0, 0), (0, 0, 1), ("R", "L", "S", "I")),
    "posterior": View((1, 0, 0), (0, 0, 1), ("L", "R", "S", "I")),
    "left": View((0, -1, 0), (0, 0, 1), ("A", "P", "S", "I")),
    "right": View((0, 1, 0), (0, 0, 1), ("P", "A", "S", "I")),
    "superior": View((1, 0, 0), (0, 1, 0), ("L", "R", "A", "P")),
    "inferior": View((-1, 0, 0), (0, 1, 0), ("R", "L", "A", "P")),
}


def render_mesh(
    mesh: Mesh,
    view: str,
    *,
    centre: Sequence[float] | Floats,
    size: tuple[int, int],
    step: float,
    colours: Any,
    planes: Sequence[Space] = (),
) -> NDArray[np.float32]:
    """A shaded picture of a mesh.

    Args:
        mesh: closed, world mm; what faces away from the viewer is not drawn.
        view: a key of `VIEWS`: the side of the patient that is looked at.
        centre: world point in the middle of the picture.
        size: height and width in pixels.
        step: mm per pixel.
        colours: RGB in [0, 1], one triple or one per vertex `(V, 3)`.
        planes: grids of rank 2; where they cut the surface a dark line runs over it.

    Returns:
        `(height, width, 4)` RGBA in [0, 1], transparent beside the mesh; the first row is the upper edge.

    Raises:
        SettingError: an unknown view, colours that don't fit.
    """
    check_choice("view", view, VIEWS)
    paint = np.broadcast_to(np.asarray(colours, dtype=np.float64), (len(mesh.vertices), 3))
    axes = VIEWS[view].axes
    height, width = size[0] * _FINER, size[1] * _FINER
    fine = step / _FINER
    places = (mesh.vertices - np.asarray(centre, dtype=np.float64)) @ axes.T
    pixels = np.stack([(height - 1) / 2 - places[:, 1] / fine, (width - 1) / 2 + places[:, 0] / fine], axis=1)
    face, weights = _visible(pixels, places[:, 2], mesh.faces, (height, width))
    shown = face >= 0
    seen = _Seen(mesh.faces[face[shown]], weights[shown])
    normals = seen.blend(mesh.vertex_normals @ axes.T)
    normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)
    lit = np.clip(normals @ (_LIGHT / np.linalg.norm(_LIGHT)), 0, 1)[:, None]
    colour = seen.blend(paint) * (_AMBIENT + (1 - _AMBIENT) * lit) + 0.12 * lit**24
    for plane in planes:
        normal = np.cross(plane.affine[:3, 0], plane.affine[:3, 1])
        normal = normal / np.linalg.norm(normal)
        away = np.abs(seen.blend(((mesh.vertices - plane.origin) @ normal)[:, None]))
        # how fast the distance to the plane grows along the picture: the line is as wide on every slope
        across, towards = axes[:2] @ normal, axes[2] @ normal
        growth = np.linalg.norm(across - towards * normals[:, :2] / np.maximum(normals[:, 2:], 0.05), axis=1)
        colour = np.where(away < 0.9 * step * growth[:, None], np.array(_LINE), colour)
    picture = np.zeros((height, width, 4))
    picture[shown] = np.column_stack((np.clip(colour, 0, 1), np.ones(len(colour))))
    blocks = picture.reshape(size[0], _FINER, size[1], _FINER, 4).sum(axis=(1, 3))
    blocks[..., :3] /= np.maximum(blocks[..., 3:], 1)
    blocks[..., 3] /= _FINER**2
    return blocks.astype(np.float32)


@dataclass(frozen=True)
class _Seen:
    """What is seen at each of P pixels: three vertices `(P, 3)`, and their shares of it."""

    corners: NDArray[np.int64]
    shares: Floats

    def blend(self, values: Floats) -> Floats:
        """Values of vertices `(V, C)` at the pixels, `(P, C)`."""
        a, b, c = (self.shares[:, corner, None] * values[self.corners[:, corner]] for corner in range(3))
        return a + b + c


def _visible(
    pixels: Floats, depth: Floats, faces: NDArray[np.int64], size: tuple[int, int]
) -> tuple[NDArray[np.int64], Floats]:
    """For each pixel the face nearest to the viewer, -1 where there is none, and its barycentric weights.

    Args:
        pixels: `(V, 2)` row and column of each vertex.
        depth: `(V,)`, growing towards the viewer.
        faces: `(F, 3)`.
        size: rows and columns.
    """
    rows, columns = size
    found = np.full(rows * columns, -1, dtype=np.int64)
    shares = np.zeros((rows * columns, 3))
    nearest = np.full(rows * columns, -np.inf)
    corners = pixels[faces]
    u, v = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    area = u[:, 0] * v[:, 1] - u[:, 1] * v[:, 0]  # rows run downwards: positive faces the viewer
    low = np.maximum(np.ceil(corners.min(axis=1)), 0).astype(np.int64)
    high = np.minimum(np.floor(corners.max(axis=1)), [rows - 1, columns - 1]).astype(np.int64)
    sides = np.where((area > 0)[:, None], np.maximum(high - low + 1, 0), 0)
    counts = sides.prod(axis=1)
    kept = np.flatnonzero(counts)
    groups = np.cumsum(counts[kept]) // _PAIRS
    for group in np.unique(groups):
        chosen = kept[groups == group]
        number = np.repeat(chosen, counts[chosen])
        step = np.arange(len(number)) - np.repeat(np.cumsum(counts[chosen]) - counts[chosen], counts[chosen])
        place = low[number] + np.stack(np.divmod(step, sides[number, 1]), axis=1)
        offset = place - corners[number, 0]
        second = (offset[:, 0] * v[number, 1] - offset[:, 1] * v[number, 0]) / area[number]
        third = (u[number, 0] * offset[:, 1] - u[number, 1] * offset[:, 0]) / area[number]
        inside = np.flatnonzero((second >= -1e-9) & (third >= -1e-9) & (second + third <= 1 + 1e-9))
        number, second, third = number[inside], second[inside], third[inside]
        weights = np.stack([1 - second - third, second, third], axis=1)
        pixel = place[inside, 0] * columns + place[inside, 1]
        height = np.einsum("pc,pc->p", weights, depth[faces[number]])
        np.maximum.at(nearest, pixel, height)
        wins = height >= nearest[pixel]
        found[pixel[wins]], shares[pixel[wins]] = number[wins], weights[wins]
    return found.reshape(size), shares.reshape(*size, 3)
