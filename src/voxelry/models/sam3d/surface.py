"""Meshes of what a decoder says of fine cells near a surface.

The cells that are there, and those around them that a surface may pass, are all that is looked at; the grid itself,
256³ points and cubes with twenty numbers each, is never made.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from voxelry.core.errors import SettingError
from voxelry.ops.flexicubes import CORNERS, CubeWeights, FlexiSurface, flexicubes

__all__ = ["DecodedSurface", "decode_surface", "surface_channels"]

SDF, DEFORM, EDGE, CORNER, DIAGONAL, COLOUR = 8, 24, 12, 8, 1, 48
WEIGHTS = EDGE + CORNER + DIAGONAL
OUTSIDE = 1.0  # distance of points that no cell tells of
NEARLY = 1 - 1e-8  # a deformed point stays within half a cell
DEVIATION_WEIGHT, SIZE_WEIGHT = 0.5, 0.2


def surface_channels(colours: bool) -> int:
    """Numbers of a cell: distances (8) and deformations (24) of its corners, its weights (21), colours (48)."""
    return SDF + DEFORM + WEIGHTS + (COLOUR if colours else 0)


@dataclass(frozen=True)
class DecodedSurface:
    """A mesh in the cube from -0.5 to 0.5, and what it was made of.

    Attributes:
        vertices: `(V, 3)`.
        faces: `(T, 3)` int64, counter-clockwise seen from outside in a right-handed frame.
        colours: `(V, 6)` in (0, 1): colour and normal; None without.
        points: `(P, 3)`, the corners of the cells, deformed.
        sdf: `(P,)`, their distances, negative inside.
        regulariser: for training: corners that cells agree on, even quadrilaterals, small weights.
    """

    vertices: Tensor
    faces: Tensor
    colours: Tensor | None
    points: Tensor
    sdf: Tensor
    regulariser: Tensor


def decode_surface(
    places: Tensor, features: Tensor, grid: int, *, training: bool = False, inside: Tensor | None = None
) -> DecodedSurface:
    """The mesh of one item.

    Args:
        places: `(N, 3)` cells.
        features: `(N, 53)`, or `(N, 101)` with colours.
        grid: cells per axis.
        training: cut quadrilaterals smoothly, see `flexicubes`.
        inside: `(G, G, G)` bool, coarser cells that lie inside where no cell tells of a point; None for nowhere, as
            the original. With it surfaces are closed at the border of the grid, too.

    Returns:
        The mesh; without vertices where nothing changes sign.

    Raises:
        SettingError: another number of features, or cells beyond the grid.
    """
    if features.shape[1] not in (surface_channels(False), surface_channels(True)):
        raise SettingError(f"features: expected 53 or 101 of a cell, got {features.shape[1]}")
    if places.min() < 0 or places.max() >= grid:
        raise SettingError(
            f"places: expected cells from 0 to {grid - 1}, got {int(places.min())} to {int(places.max())}"
        )
    places = places.long()
    each = _corner_values(features, grid)
    keys, corner = torch.unique(_corner_keys(places, grid), return_inverse=True)
    counts = torch.bincount(corner.flatten(), minlength=len(keys))
    values = each.new_zeros(len(keys), each.shape[2]).index_add(0, corner.flatten(), each.flatten(0, 1))
    values = values / counts[:, None]
    if inside is not None:
        open_end = _at_border(_unkeyed(keys, grid), grid)
        values = torch.cat((values[:, :1].masked_fill(open_end[:, None], OUTSIDE), values[:, 1:]), dim=1)
    weights = features[:, SDF + DEFORM : SDF + DEFORM + WEIGHTS]
    whole = _with_border(_Neighbourhood(places, weights, keys, values), grid, inside)
    surface = _surface(whole, grid, training)
    regulariser = SIZE_WEIGHT * weights[:, : EDGE + CORNER].abs().mean()
    if training:
        regulariser = regulariser + (each - values[corner]).square().mean()
    if len(surface.vertices):
        regulariser = regulariser + DEVIATION_WEIGHT * surface.deviation.mean()
    points = _deformed(_unkeyed(keys, grid), values[:, 1:4], grid)
    return DecodedSurface(surface.vertices, surface.faces, surface.colours, points, values[:, 0], regulariser)


@dataclass(frozen=True)
class _Neighbourhood:
    """Cells, and those around them that a surface may pass.

    Attributes:
        places: `(F, 3)` cells.
        weights: `(F, 21)`.
        keys: `(V,)` of the points.
        values: `(V, C)` of the points.
    """

    places: Tensor
    weights: Tensor
    keys: Tensor
    values: Tensor


def _corner_values(features: Tensor, grid: int) -> Tensor:
    """Distance, deformation and colours of each corner, `(N, 8, 4 or 10)`."""
    sdf = features[:, :SDF, None] - 1 / grid
    deform = features[:, SDF : SDF + DEFORM].unflatten(1, (8, 3))
    colours = features[:, SDF + DEFORM + WEIGHTS :]
    parts = [sdf, deform, colours.unflatten(1, (8, -1))] if colours.shape[1] else [sdf, deform]
    return torch.cat(parts, dim=2)


def _with_border(known: _Neighbourhood, grid: int, inside: Tensor | None) -> _Neighbourhood:
    """All cells beside those that are there that touch a point on another side than what is around them.

    New weights are 0; new points are outside, or on the side that `inside` says.
    """
    places, keys, values, weights = known.places, known.keys, known.values, known.weights
    other = (values[:, 0].detach() < 0) != _sides(keys, grid, inside)
    around = (_unkeyed(keys[other], grid)[:, None] - CORNERS.to(keys)).flatten(0, 1)
    around = torch.unique(_keyed(around[((around >= 0) & (around < grid)).all(dim=1)], grid))
    new = _unkeyed(around[~torch.isin(around, _keyed(places, grid))], grid)
    needed = torch.unique(_corner_keys(new, grid))
    more = needed[~torch.isin(needed, keys)]
    side = values.new_zeros(len(more), values.shape[1])
    side[:, 0] = torch.where(_sides(more, grid, inside), -OUTSIDE, OUTSIDE)
    return _Neighbourhood(
        torch.cat((places, new)),
        torch.cat((weights, weights.new_zeros(len(new), weights.shape[1]))),
        torch.cat((keys, more)),
        torch.cat((values, side)),
    )


def _sides(keys: Tensor, grid: int, inside: Tensor | None) -> Tensor:
    """Whether points are inside where no cell tells of them, `(V,)` bool; never on the grid's border."""
    if inside is None:
        return torch.zeros_like(keys, dtype=torch.bool)
    points = _unkeyed(keys, grid)
    at = (points * len(inside) // grid).clamp(max=len(inside) - 1)
    return inside[at.unbind(1)] & ~_at_border(points, grid)


def _at_border(points: Tensor, grid: int) -> Tensor:
    return ((points == 0) | (points == grid)).any(dim=1)


def _surface(whole: _Neighbourhood, grid: int, training: bool) -> FlexiSurface:
    order = torch.argsort(whole.keys)
    keys, values = whole.keys[order], whole.values[order]
    sdf = values[:, 0]
    inside = sdf.detach() < 0
    corner = torch.searchsorted(keys, _corner_keys(whole.places, grid))
    passed = inside[corner].any(dim=1) & ~inside[corner].all(dim=1)  # all that the surface needs
    edges, corners, diagonal = whole.weights[passed].split((EDGE, CORNER, DIAGONAL), dim=1)
    return flexicubes(
        _deformed(_unkeyed(keys, grid), values[:, 1:4], grid),
        sdf,
        corner[passed],
        whole.places[passed],
        CubeWeights(edges, corners, diagonal[:, 0]),
        colours=values[:, 4:] if values.shape[1] > 4 else None,
        centred=training,
    )


def _deformed(points: Tensor, deform: Tensor, grid: int) -> Tensor:
    """Points of the grid in the cube, moved by at most half a cell."""
    return points.to(deform) / grid - 0.5 + NEARLY / (2 * grid) * deform.tanh()


def _corner_keys(places: Tensor, grid: int) -> Tensor:
    """One number for each corner's point, `(N, 3) -> (N, 8)`, in the order of places."""
    return _keyed(places, grid)[:, None] + _keyed(CORNERS.to(places), grid)


def _keyed(points: Tensor, grid: int) -> Tensor:
    """One number for each point, `(V, 3) -> (V,)`, in the order of places."""
    side = grid + 1
    return (points * points.new_tensor([side**2, side, 1])).sum(dim=1)


def _unkeyed(keys: Tensor, grid: int) -> Tensor:
    """The inverse of `_keyed`."""
    side = grid + 1
    return torch.stack((keys // side**2, keys // side % side, keys % side), dim=1)
