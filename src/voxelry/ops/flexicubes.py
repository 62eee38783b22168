"""Surfaces of signed distances on cubes, differentiable in everything: FlexiCubes.

Shen et al. 2023 (arXiv:2308.05371): dual marching cubes (Nielson 2004) whose vertices and diagonals are led by weights
of each cube. Corners of a cube are numbered with the first axis fastest; a corner is inside where its distance is
negative. Cubes are a list, so those far from a surface need not be there.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from voxelry.core.errors import SettingError

__all__ = ["CORNERS", "EDGES", "CubeWeights", "FlexiSurface", "flexicubes"]

RANK = 3
CORNERS = torch.tensor([[corner >> axis & 1 for axis in range(RANK)] for corner in range(8)])
"""Offsets of the corners, `(8, 3)`."""

EDGES = torch.tensor([[0, 1], [1, 5], [4, 5], [0, 4], [2, 3], [3, 7], [6, 7], [2, 6], [2, 0], [3, 1], [7, 5], [6, 4]])
"""Corners of the edges, `(12, 2)`, in the order of the weights beta."""

SCALE = 0.99  # weights stay away from 0 by the rest of it
TINY = 1e-8


@dataclass(frozen=True)
class CubeWeights:
    """What leads a cube's surface; zeros lead nowhere.

    Attributes:
        edges: `(F, 12)`, beta: how much a vertex is drawn to each edge's crossing.
        corners: `(F, 8)`, alpha: how much a crossing is drawn to each corner.
        diagonal: `(F,)`, gamma: along which vertices quadrilaterals are cut.
    """

    edges: Tensor
    corners: Tensor
    diagonal: Tensor


@dataclass(frozen=True)
class FlexiSurface:
    """A triangle mesh.

    Attributes:
        vertices: `(V, 3)`.
        faces: `(T, 3)` int64, counter-clockwise seen from outside (positive distances) in a right-handed frame.
        deviation: `(K,)`, how much the distances of a vertex to its edges' crossings differ; its mean is a
            regulariser (Shen et al. 2023, eq. 8).
        colours: `(V, C)` in (0, 1), or None.
    """

    vertices: Tensor
    faces: Tensor
    deviation: Tensor
    colours: Tensor | None


def flexicubes(
    points: Tensor,
    sdf: Tensor,
    cubes: Tensor,
    places: Tensor,
    weights: CubeWeights | None = None,
    *,
    colours: Tensor | None = None,
    centred: bool = False,
) -> FlexiSurface:
    """The surface where distances change sign.

    Args:
        points: `(V, 3)`, grid points, deformed or not.
        sdf: `(V,)`, their distances, negative inside.
        cubes: `(F, 8)` int64, the points at each cube's corners.
        places: `(F, 3)` integers, where each cube is in its grid, each place once.
        weights: of each cube; None for the plain dual surface.
        colours: `(V, C)` of the points, before the logistic function.
        centred: cut quadrilaterals into four triangles around a middle, smoothly in the weights, as for training,
            instead of into two.

    Returns:
        The surface; empty where nothing changes sign. A quadrilateral is made for each edge that changes sign and has
        all four cubes around it.

    Raises:
        SettingError: arrays that don't fit.
    """
    _check(points, sdf, cubes, places)
    inside = sdf.detach()[cubes] < 0
    kept = inside.any(dim=1) & ~inside.all(dim=1)
    crossing = _Crossings.of(sdf, cubes[kept], inside[kept], places[kept], points.shape)
    edge_weights, corner_weights, diagonal = _normalised(weights, kept, points)
    values = points if colours is None else torch.cat((points, colours.sigmoid()), dim=1)
    ends = values[crossing.edges]
    levels = sdf[crossing.edges]
    pull = corner_weights[:, EDGES.to(points.device)][crossing.cube, crossing.side]
    crossed = _between(ends[crossing.edge], levels[crossing.edge] * pull)
    amount = edge_weights[crossing.cube, crossing.side][:, None]
    total = points.new_zeros(crossing.count, 1).index_add(0, crossing.vertex, amount)
    sums = values.new_zeros(crossing.count, values.shape[1]).index_add(0, crossing.vertex, crossed * amount)
    found = sums / total
    deviation = _deviation(found[:, :RANK], _between(points[crossing.edges], levels)[crossing.edge], crossing.vertex)
    gamma = points.new_zeros(crossing.count).index_copy(0, crossing.vertex, diagonal[crossing.cube])
    quads = crossing.quads(levels.detach())
    found, faces = _centred(found, quads, gamma) if centred else (found, _halved(quads, gamma))
    return FlexiSurface(found[:, :RANK], faces, deviation, None if colours is None else found[:, RANK:])


@dataclass(frozen=True)
class _Crossings:
    """Where edges of cubes change sign, once for each cube around an edge.

    Attributes:
        edges: `(E, 2)` points of the edges.
        edge: `(K,)` edge of each crossing.
        cube: `(K,)` its cube.
        side: `(K,)` which of the cube's edges it is.
        vertex: `(K,)` the surface's vertex that it belongs to.
        count: number of vertices.
    """

    edges: Tensor
    edge: Tensor
    cube: Tensor
    side: Tensor
    vertex: Tensor
    count: int

    @classmethod
    def of(cls, sdf: Tensor, cubes: Tensor, inside: Tensor, places: Tensor, shape: torch.Size) -> _Crossings:
        """All of them."""
        device = sdf.device
        powers = 1 << torch.arange(8, device=device)
        cases = _untangled((inside * powers).sum(dim=1), places)
        groups, counts, _, _ = (table.to(device) for table in _tables())
        group = groups[cases]
        cube, side = (group >= 0).nonzero(as_tuple=True)
        corners = cubes[cube[:, None], EDGES.to(device)[side]]
        keys, edge = torch.unique(corners[:, 0] * shape[0] + corners[:, 1], return_inverse=True)
        edges = torch.stack((keys // shape[0], keys % shape[0]), dim=1)
        offsets = counts[cases].cumsum(0) - counts[cases]
        vertex = offsets[cube] + group[cube, side]
        return cls(edges, edge, cube, side, vertex, int(counts[cases].sum()))

    def quads(self, levels: Tensor) -> Tensor:
        """Vertices around each edge that has four cubes, `(Q, 4)`, counter-clockwise seen from outside.

        Args:
            levels: `(E, 2)` distances at the ends of the edges.
        """
        slots = _slots().to(self.edge.device)
        around = self.edge.new_full((len(self.edges), 4), -1)
        around[self.edge, slots[self.side]] = self.vertex
        whole = (around >= 0).all(dim=1)
        around, turned = around[whole], levels[whole, 0] >= 0
        return torch.where(turned[:, None], around[:, [0, 1, 3, 2]], around[:, [2, 3, 1, 0]])


def _check(points: Tensor, sdf: Tensor, cubes: Tensor, places: Tensor) -> None:
    for name, array, shape in (("points", points, (len(sdf), RANK)), ("cubes", cubes, (len(places), 8))):
        if tuple(array.shape) != shape:
            raise SettingError(f"{name}: expected shape {shape}, got {tuple(array.shape)}")
    if sdf.ndim != 1 or places.shape[1:] != (RANK,):
        raise SettingError(f"sdf, places: expected shapes (V,) and (F, 3), got {sdf.shape} and {places.shape}")


def _normalised(weights: CubeWeights | None, kept: Tensor, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Positive weights of the kept cubes, from numbers that may be any."""
    count = int(kept.sum())
    if weights is None:
        return points.new_ones(count, 12), points.new_ones(count, 8), points.new_ones(count)
    edges, corners = (each[kept].tanh() * SCALE + 1 for each in (weights.edges, weights.corners))
    return edges, corners, weights.diagonal[kept].sigmoid() * SCALE + (1 - SCALE) / 2


def _between(ends: Tensor, levels: Tensor) -> Tensor:
    """Where a line between two ends is zero, `(K, 2, C), (K, 2) -> (K, C)`."""
    first, second = levels[:, :1], levels[:, 1:]
    return (ends[:, 0] * second - ends[:, 1] * first) / (second - first)


def _deviation(vertices: Tensor, crossings: Tensor, vertex: Tensor) -> Tensor:
    """Differences of crossings' distances to their vertex from the mean of those."""
    away = (crossings - vertices[vertex]).norm(dim=-1)
    sums = away.new_zeros(len(vertices)).index_add(0, vertex, away)
    mean = sums / torch.bincount(vertex, minlength=len(vertices))
    return (away - mean[vertex]).abs()


def _halved(quads: Tensor, gamma: Tensor) -> Tensor:
    """Two triangles of each quadrilateral, cut where gamma is larger."""
    first, second = _diagonals(quads, gamma)
    cut = torch.where((first > second)[:, None], quads[:, [0, 1, 2, 0, 2, 3]], quads[:, [0, 1, 3, 3, 1, 2]])
    return cut.reshape(-1, 3)


def _centred(found: Tensor, quads: Tensor, gamma: Tensor) -> tuple[Tensor, Tensor]:
    """Four triangles of each quadrilateral around a mean of its diagonals' middles, and all vertices."""
    first, second = (each[:, None] for each in _diagonals(quads, gamma))
    corners = found[quads]
    one, other = (corners[:, [0, 2]].mean(dim=1), corners[:, [1, 3]].mean(dim=1))
    middle = (one * first + other * second) / (first + second + TINY)
    own = len(found) + torch.arange(len(quads), device=quads.device)
    pairs = torch.stack((quads, quads.roll(-1, dims=1)), dim=2)
    faces = torch.cat((pairs, own[:, None, None].expand(-1, 4, 1)), dim=2)
    return torch.cat((found, middle)), faces.reshape(-1, 3)


def _diagonals(quads: Tensor, gamma: Tensor) -> tuple[Tensor, Tensor]:
    each = gamma[quads]
    return each[:, 0] * each[:, 2], each[:, 1] * each[:, 3]


def _untangled(cases: Tensor, places: Tensor) -> Tensor:
    """Cases such that no edge of the surface has four faces.

    Where two cubes both reach all four edges of a face between them in one patch, both take the other way to join
    these edges (Wenger 2013, "Isosurfaces", section 3.3.5).
    """
    _, _, tangled, steps = (table.to(cases.device) for table in _tables())
    (rows,) = tangled[cases].nonzero(as_tuple=True)
    if not len(rows):
        return cases
    sizes = places.amax(dim=0) + 3  # an empty border on either side

    def keys(where: Tensor) -> Tensor:
        return ((where[:, 0] + 1) * sizes[1] + where[:, 1] + 1) * sizes[2] + where[:, 2] + 1

    own, beyond = keys(places[rows].long()), keys(places[rows].long() + steps[cases[rows]])
    both = rows[torch.isin(beyond, own)]
    return cases.index_copy(0, both, 255 - cases[both])


@cache
def _slots() -> Tensor:
    """Place of a cube around each of its edges, `(12,)`: 2 for the farther one on the edge's first other axis, 1 for
    that on the second."""
    first, second = CORNERS[EDGES[:, 0]], CORNERS[EDGES[:, 1]]
    found = []
    for one, other in zip(first, second, strict=True):
        low, high = (int(1 - one[axis]) for axis in range(RANK) if one[axis] == other[axis])
        found.append(2 * low + high)
    return torch.tensor(found)


@cache
def _tables() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What each of the 256 cases is.

    Returns:
        Number of the patch that each edge belongs to, `(256, 12)`, -1 where it doesn't change sign; number of patches,
        `(256,)`; whether all four edges of a face are in one patch, `(256,)`; and the step beyond that face,
        `(256, 3)`.
    """
    groups, counts = torch.full((256, 12), -1), torch.zeros(256, dtype=torch.int64)
    tangled, steps = torch.zeros(256, dtype=torch.bool), torch.zeros(256, RANK, dtype=torch.int64)
    for case in range(256):
        inside = [bool(case >> corner & 1) for corner in range(8)]
        patch = _patches(inside)
        for number, whole in enumerate(dict.fromkeys(patch.values())):
            counts[case] += 1
            for edge in whole:
                groups[case, edge] = number
        for axis, side, edges in _faces():
            if len({patch.get(edge) for edge in edges}) == 1 and edges[0] in patch:
                tangled[case] = True
                steps[case, axis] = 2 * side - 1
    return groups, counts, tangled, steps


def _patches(inside: list[bool]) -> dict[int, frozenset[int]]:
    """The patch of each edge that changes sign; on a face with four of them, inside corners stay apart."""
    edges = EDGES.tolist()
    patch: dict[int, frozenset[int]] = {
        edge: frozenset({edge}) for edge, (one, other) in enumerate(edges) if inside[one] != inside[other]
    }
    for _, _, around in _faces():
        crossed = [edge for edge in around if edge in patch]
        corners = {corner for edge in around for corner in edges[edge]}
        joined = [crossed]
        if len(crossed) == 4:
            joined = [[edge for edge in crossed if corner in edges[edge]] for corner in corners if inside[corner]]
        for some in joined:
            whole = frozenset[int]().union(*(patch[edge] for edge in some))
            patch |= dict.fromkeys(whole, whole)
    return patch


@cache
def _faces() -> list[tuple[int, int, list[int]]]:
    """Axis, side and edges of each face."""
    found = []
    for axis in range(RANK):
        for side in (0, 1):
            on = [bool((CORNERS[corners][:, axis] == side).all()) for corners in EDGES]
            found.append((axis, side, [edge for edge, lies in enumerate(on) if lies]))
    return found
