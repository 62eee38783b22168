"""Triangle meshes of shapes, in patient millimetres.

A mesh is closed and its faces run counter-clockwise seen from outside, whatever the grid it came from: a
mirrored affine turns a surface inside out, which is undone here. Volumes are signed by that orientation, so
a mesh that is the right way round has a positive one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from voxelry.core.errors import SettingError
from voxelry.core.space import Space
from voxelry.ops.mask_window import mask_window

__all__ = [
    "Mesh",
    "distance_to_surface",
    "empty_mesh",
    "extract_surface",
    "sample_surface",
    "smooth_mesh",
    "volume_mismatch",
]

Floats = NDArray[np.floating]

_NUDGE = 1e-3  # of a voxel: no vertex closer than this to a grid point, where triangles would collapse
_UNLIKE = 0.1  # share of the volume of an organ's voxels that its mesh may lack or add without a word
_CANDIDATES = 12  # triangles tried for each point


@dataclass(frozen=True, eq=False)
class Mesh:
    """A triangle mesh in the world.

    Attributes:
        vertices: `(V, 3)` float64, world x, y, z in mm (RAS+).
        faces: `(F, 3)` int64 vertex numbers, counter-clockwise seen from outside.
        values: named quantities per vertex, each `(V,)`, such as `{"error_mm": ...}`.

    Raises:
        SettingError: arrays of other shapes, coordinates that aren't finite, faces of vertices that aren't there.
    """

    vertices: Floats
    faces: NDArray[np.int64]
    values: Mapping[str, Floats] = field(default_factory=dict)

    def __post_init__(self) -> None:
        vertices = np.array(self.vertices, dtype=np.float64)
        faces = np.array(self.faces, dtype=np.int64)
        if vertices.ndim != 2 or vertices.shape[1] != 3:
            raise SettingError(f"vertices: expected shape (V, 3), got {vertices.shape}")
        if faces.ndim != 2 or faces.shape[1] != 3:
            raise SettingError(f"faces: expected shape (F, 3), got {faces.shape}")
        if not np.isfinite(vertices).all():
            raise SettingError("vertices: expected finite coordinates")
        if faces.size and (faces.min() < 0 or faces.max() >= len(vertices)):
            raise SettingError(f"faces: expected vertex numbers from 0 to {len(vertices) - 1}")
        values = {name: np.array(numbers, dtype=np.float64) for name, numbers in self.values.items()}
        for name, numbers in values.items():
            if numbers.shape != (len(vertices),):
                raise SettingError(f"values {name!r}: expected one number per vertex, got shape {numbers.shape}")
        for array in (vertices, faces, *values.values()):
            array.setflags(write=False)
        object.__setattr__(self, "vertices", vertices)
        object.__setattr__(self, "faces", faces)
        object.__setattr__(self, "values", values)

    @property
    def is_empty(self) -> bool:
        """Whether there is no face."""
        return len(self.faces) == 0

    @cached_property
    def face_vectors(self) -> Floats:
        """Outward normals of the faces, as long as twice their area in mm²: `(F, 3)`."""
        a, b, c = (self.vertices[self.faces[:, corner]] for corner in range(3))
        return np.cross(b - a, c - a)

    @cached_property
    def face_normals(self) -> Floats:
        """Outward unit normals `(F, 3)`; zero for a face without area."""
        return _unit(self.face_vectors)

    @cached_property
    def vertex_normals(self) -> Floats:
        """Outward unit normals `(V, 3)`: the faces around each vertex weighted by area."""
        total = np.zeros((len(self.vertices), 3))
        for corner in range(3):
            for axis in range(3):
                total[:, axis] += np.bincount(self.faces[:, corner], self.face_vectors[:, axis], len(self.vertices))
        return _unit(total)

    @cached_property
    def area(self) -> float:
        """Surface in mm²."""
        return float(np.linalg.norm(self.face_vectors, axis=1).sum() / 2)

    @cached_property
    def volume(self) -> float:
        """Enclosed volume in mm³ (divergence theorem); positive where the faces point outwards."""
        if self.is_empty:
            return 0.0
        middle = self.vertices.mean(axis=0)  # near the mesh: the terms stay small
        return float(np.einsum("fa,fa->", self.vertices[self.faces[:, 0]] - middle, self.face_vectors) / 6)

    @property
    def volume_ml(self) -> float:
        """Enclosed volume in ml."""
        return self.volume / 1000

    @cached_property
    def is_watertight(self) -> bool:
        """Whether every edge is shared by exactly two faces that run along it in opposite directions.

        An empty mesh encloses nothing and is not watertight.
        """
        start, stop = self.faces.ravel(), np.roll(self.faces, -1, axis=1).ravel()
        forth = np.unique(start * len(self.vertices) + stop)
        back = np.unique(stop * len(self.vertices) + start)
        return bool(len(start) and len(forth) == len(start) and np.array_equal(forth, back) and (start != stop).all())

    def with_values(self, **values: NDArray[np.floating]) -> Mesh:
        """The same mesh with further quantities per vertex."""
        return replace(self, values={**self.values, **values})


def empty_mesh() -> Mesh:
    """The surface of nothing: no vertices, no faces, no volume."""
    return Mesh(np.zeros((0, 3)), np.zeros((0, 3), dtype=np.int64))


def extract_surface(sdf: NDArray[np.floating], space: Space, *, level: float = 0.0, smooth: int = 0) -> Mesh:
    """The closed surface of a signed distance, by marching cubes (Lewiner et al. 2003, JGT 8(2)).

    Args:
        sdf: `(D, H, W)`, negative inside, on `space`, in any unit. Where the shape reaches the edge of the grid
            it is closed there.
        space: the grid, of rank 3; may be oblique, mirrored, anisotropic.
        level: the value at which the surface lies, in the unit of `sdf`.
        smooth: rounds of `smooth_mesh`.

    Returns:
        a mesh in world mm, watertight and with outward faces; empty where no value is below `level`.

    Raises:
        SettingError: values that aren't finite, another shape than the grid's.
    """
    from skimage.measure import marching_cubes

    values = np.asarray(sdf, dtype=np.float32) - np.float32(level)
    if values.shape != space.shape:
        raise SettingError(f"sdf: expected shape {space.shape} of its grid, got {values.shape}")
    if not np.isfinite(values).all():
        raise SettingError("sdf: expected finite numbers")
    window = mask_window(values < 0, 1)
    if window is None:
        return empty_mesh()
    values = _off_zero(values[window])
    # beyond the grid the mirror image of what is inside it: the surface then lies on the edge of the border voxel
    closed = np.abs(np.pad(values, 1, mode="edge"))
    closed[1:-1, 1:-1, 1:-1] = values
    points, faces, _, _ = marching_cubes(closed, 0.0)
    index = points.astype(np.float64) - 1 + [side.start for side in window]
    if np.linalg.det(space.affine[:3, :3]) < 0:
        faces = faces[:, ::-1]
    mesh = Mesh(space.to_world(index), faces)
    return smooth_mesh(mesh, smooth) if smooth else mesh


def smooth_mesh(mesh: Mesh, rounds: int = 10, *, pull: float = 0.5, push: float = -0.53) -> Mesh:
    """Smooth a closed mesh without shrinking it.

    Taubin 1995 (SIGGRAPH, "A signal processing approach to fair surface design"): a step towards the mean of the
    neighbours and a slightly longer one back. Each part is then scaled about its middle to the volume it had.

    Args:
        mesh: a closed mesh.
        rounds: pairs of steps.
        pull: first step, in (0, 1).
        push: second step, below `-pull`.
    """
    if rounds < 1 or mesh.is_empty:
        return mesh
    from scipy.sparse import coo_array, diags_array
    from scipy.sparse.csgraph import connected_components

    count = len(mesh.vertices)
    start, stop = mesh.faces.ravel(), np.roll(mesh.faces, -1, axis=1).ravel()
    # in a closed mesh every edge occurs once in each direction
    links = coo_array((np.ones(len(start)), (start, stop)), shape=(count, count)).tocsr()
    degree = np.maximum(np.asarray(links.sum(axis=1)).ravel(), 1)
    average = diags_array(1 / degree) @ links
    vertices = mesh.vertices
    for _ in range(rounds):
        for step in (pull, push):
            vertices = vertices + step * (average @ vertices - vertices)
    _, part = connected_components(links, directed=False)
    size = np.bincount(part)
    centres = np.stack([np.bincount(part, vertices[:, axis]) / size for axis in range(3)], axis=1)
    before, after = (_part_volumes(place, mesh.faces, part) for place in (mesh.vertices, vertices))
    grown = np.divide(before, after, out=np.ones(len(before)), where=before * after > 0)
    return replace(mesh, vertices=centres[part] + np.cbrt(grown)[part, None] * (vertices - centres[part]))


def sample_surface(mesh: Mesh, count: int, generator: np.random.Generator) -> tuple[Floats, Floats]:
    """Points spread evenly over a surface, and its normals there.

    Args:
        mesh: with at least one face that has an area.
        count: points wanted.
        generator: where chance comes from.

    Returns:
        `(count, 3)` world mm, and `(count, 3)` outward unit normals of the faces they lie on.

    Raises:
        SettingError: a mesh without surface.
    """
    sizes = np.linalg.norm(mesh.face_vectors, axis=1)
    total = np.cumsum(sizes)
    if mesh.is_empty or total[-1] <= 0:
        raise SettingError("mesh: expected a surface to sample, got one without area")
    # one draw in each of `count` equal shares of the area: more even than independent draws
    places = (np.arange(count) + generator.random(count)) / count * total[-1]
    chosen = np.minimum(np.searchsorted(total, places, side="right"), len(total) - 1)
    u, v = generator.random((2, count))
    over = u + v > 1
    u, v = np.where(over, 1 - u, u), np.where(over, 1 - v, v)
    a, b, c = (mesh.vertices[mesh.faces[chosen, corner]] for corner in range(3))
    return a + u[:, None] * (b - a) + v[:, None] * (c - a), mesh.face_normals[chosen]


def volume_mismatch(name: str, mesh_ml: float, voxels_ml: float) -> str:
    """A line where a mesh doesn't hold what its voxels do, within a tenth, such as of an organ one voxel thin; else "".

    A surface runs between the centres of voxels inside and outside, and cuts off the corners of what is thin.

    Args:
        name: of the organ.
        mesh_ml: what the mesh encloses.
        voxels_ml: the volume of the voxels inside.
    """
    if abs(mesh_ml - voxels_ml) <= _UNLIKE * voxels_ml:
        return ""
    return f"{name}: its mesh encloses {mesh_ml:.3g} ml, its voxels {voxels_ml:.3g} ml; it is small or thin for them"


def distance_to_surface(points: NDArray[np.floating], mesh: Mesh) -> tuple[Floats, NDArray[np.int64]]:
    """Distance of points to the nearest place on a mesh, and the face it lies on.

    Of each point the triangles with the nearest centres are tried: exact for triangles of much the same size,
    as `extract_surface` makes them, and where they are not, never too small.

    Args:
        points: `(N, 3)` world mm.
        mesh: with at least one face.

    Returns:
        `(N,)` mm, not signed, and `(N,)` face numbers.

    Raises:
        SettingError: a mesh without faces.
    """
    from scipy.spatial import cKDTree

    if mesh.is_empty:
        raise SettingError("mesh: expected a surface, got one without faces")
    points = np.asarray(points, dtype=np.float64).reshape(-1, 3)
    corners = mesh.vertices[mesh.faces]
    tried = min(_CANDIDATES, len(corners))
    _, faces = cKDTree(corners.mean(axis=1)).query(points, k=tried)
    faces = np.asarray(faces).reshape(len(points), tried)
    best = np.full(len(points), np.inf)
    found = np.zeros(len(points), dtype=np.int64)
    for candidate in faces.T:
        distance = _to_triangle(points, corners[candidate])
        closer = distance < best
        best[closer], found[closer] = distance[closer], candidate[closer]
    return best, found


def _to_triangle(points: Floats, corners: Floats) -> Floats:
    """Distance of each point `(N, 3)` to its own triangle `(N, 3, 3)`."""
    a, b, c = corners[:, 0], corners[:, 1], corners[:, 2]
    normal = np.cross(b - a, c - a)
    length = np.maximum(np.einsum("na,na->n", normal, normal), 1e-30)
    height = np.einsum("na,na->n", points - a, normal) / np.sqrt(length)
    above = np.ones(len(points), dtype=bool)  # whether the foot of the point lies in the triangle
    edges = np.full(len(points), np.inf)
    for start, stop in ((a, b), (b, c), (c, a)):
        along, offset = stop - start, points - start
        above &= np.einsum("na,na->n", np.cross(along, offset), normal) >= 0
        share = np.einsum("na,na->n", offset, along) / np.maximum(np.einsum("na,na->n", along, along), 1e-30)
        edges = np.minimum(edges, np.linalg.norm(offset - np.clip(share, 0, 1)[:, None] * along, axis=1))
    return np.where(above & (length > 1e-30), np.abs(height), edges)


def _off_zero(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """No value so close to zero that the surface would touch a grid point; the sign stays, zero is outside."""
    steepest = max(float(np.abs(np.diff(values, axis=axis)).max(initial=0)) for axis in range(values.ndim))
    least = np.float32((steepest or 1.0) * _NUDGE)
    return np.where(values < 0, np.minimum(values, -least), np.maximum(values, least)).astype(np.float32)


def _part_volumes(vertices: Floats, faces: NDArray[np.int64], part: NDArray[np.integer]) -> Floats:
    """Signed volume of each connected part of a closed mesh; `part` is the number of each vertex's part."""
    a, b, c = (vertices[faces[:, corner]] - vertices.mean(axis=0) for corner in range(3))
    volumes = np.bincount(part[faces[:, 0]], np.einsum("fa,fa->f", a, np.cross(b, c)), int(part.max()) + 1)
    return volumes / 6


def _unit(vectors: Floats) -> Floats:
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.divide(vectors, length, out=np.zeros_like(vectors), where=length > 0)
