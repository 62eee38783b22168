"""Signed distances of a shape: from a mask, on a canonical grid, back to a mask; any rank.

A signed distance is in mm, negative inside. The surface of a mask runs half a voxel before the nearest voxel
of the other side: of the distance `d` along `n` voxels (Euclidean, in index steps) `d / (2 |n|)` is taken off,
which is half the spacing along an axis, so the sign at every voxel is the mask's own. Beyond its grid a mask
is taken as background: an organ cut off by the field of view is closed there.

Truncated means clipped to ±`truncation` mm; nothing further away than that is ever computed.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from voxelry.core.errors import SettingError
from voxelry.core.rank import check_ndim, per_axis
from voxelry.core.space import Space
from voxelry.ops.mask_window import mask_window
from voxelry.ops.masks import largest_component
from voxelry.ops.resample import resample

__all__ = [
    "canonical_sdf",
    "canonical_space",
    "decode_int8",
    "encode_int8",
    "largest_shape",
    "resample_sdf",
    "signed_distance",
    "voxelise_sdf",
]

Array = NDArray[np.float32]

_LEVELS = 127


def signed_distance(
    mask: NDArray[np.bool_], spacing: float | Sequence[float], *, truncation: float | None = None
) -> Array | None:
    """Euclidean distance to the surface of a mask.

    Args:
        mask: `(*spatial)` bool, True inside.
        spacing: mm per voxel, one number or one per axis in array order; axes at right angles.
        truncation: mm beyond which distances are clipped; with it only the mask's box and a margin of that
            width is looked at.

    Returns:
        `(*spatial)` float32 mm, negative inside; None where the mask is empty.

    Raises:
        SettingError: a mask that isn't of rank 2 or 3, a spacing or truncation that isn't positive.
    """
    mask = np.asarray(mask)
    steps = _steps(spacing, check_ndim(mask.ndim))
    window = mask_window(mask, 0.0 if truncation is None else _positive(truncation, "truncation") / steps)
    if window is None:
        return None
    if truncation is None:
        return _distances(mask.astype(bool), steps)
    result = np.full(mask.shape, truncation, dtype=np.float32)
    result[window] = np.clip(_distances(mask[window].astype(bool), steps), -truncation, truncation)
    return result


def canonical_space(centre: Sequence[float] | NDArray[np.floating], edge: float, n: int) -> Space:
    """The cube of `n` cells a side with its axes along the world's: array order is superior, anterior, right.

    The centre of cell `i` is at `centre + ((i + 0.5) / n - 0.5) * edge` along each axis.

    Args:
        centre: world x, y, z in mm of the middle of the cube.
        edge: its side in mm.
        n: cells along each side.
    """
    step = _positive(edge, "edge") / int(n)
    origin = np.asarray(centre, dtype=np.float64) + (0.5 / int(n) - 0.5) * edge
    return Space.from_spacing((int(n),) * 3, step, tuple(origin.tolist()))


def canonical_sdf(
    mask: NDArray[np.bool_],
    space: Space,
    centre: Sequence[float] | NDArray[np.floating],
    edge: float,
    n: int,
    truncation: float,
) -> Array | None:
    """Signed distance of a mask on the canonical grid, without a distance map of the whole volume.

    Args:
        mask: `(D, H, W)` bool on `space`, such as `labels == 2`.
        space: its grid; oblique, mirrored, anisotropic and sheared ones are at home here.
        centre, edge, n: the cube, as for `canonical_space`.
        truncation: mm at which distances are clipped.

    Returns:
        `(n, n, n)` float32 mm in ±`truncation`, array order S, A, R; None where the mask is empty. A mask that
        lies outside the cube gives `truncation` everywhere.

    Raises:
        SettingError: a mask that doesn't have the shape of `space`.
    """
    if tuple(mask.shape) != space.shape:
        raise SettingError(f"mask: expected shape {space.shape} of its grid, got {tuple(mask.shape)}")
    return _sdf_on(np.asarray(mask), space, canonical_space(centre, edge, n), _positive(truncation, "truncation"))


def resample_sdf(sdf: NDArray[np.floating], source: Space, target: Space, *, outside: float | None = None) -> Array:
    """Signed distances read off another grid: linear between voxels.

    Args:
        sdf: `(*spatial)` mm on `source`.
        source, target: the two grids; `target` may be a plane (rank 2) in the volume of `source`.
        outside: mm of what lies beyond `source`; by default the largest value of `sdf`, at least 1 mm.

    Returns:
        float32 mm, of the shape of `target`.
    """
    if tuple(sdf.shape) != source.shape:
        raise SettingError(f"sdf: expected shape {source.shape} of its grid, got {tuple(sdf.shape)}")
    fill = max(1.0, float(sdf.max())) if outside is None else float(outside)
    inverse = np.linalg.inv(source.affine[:3, :3]) if source.ndim == target.ndim + 1 else None
    if inverse is None:
        matrix, offset = _between(source, target)
        return resample(_tensor(sdf), matrix, offset, target.shape, order=1, fill=fill)[0].numpy()
    # a plane is a volume one voxel thick: its normal is the third axis
    matrix = np.empty((3, 3))
    matrix[:, 1:] = inverse @ target.affine[:3, :2]
    matrix[:, 0] = inverse @ np.cross(target.affine[:3, 0], target.affine[:3, 1])
    offset = inverse @ (target.origin - source.origin)
    return resample(_tensor(sdf), matrix, offset, (1, *target.shape), order=1, fill=fill)[0, 0].numpy()


def voxelise_sdf(sdf: NDArray[np.floating], source: Space, target: Space) -> NDArray[np.bool_]:
    """Which voxel centres of `target` lie inside the shape, of the shape of `target` (a volume or a plane)."""
    return resample_sdf(sdf, source, target) < 0


def encode_int8(sdf: NDArray[np.floating], truncation: float) -> NDArray[np.int8]:
    """Distances clipped to ±`truncation` mm in 255 steps; the error is `truncation / 254` at most."""
    scaled = np.asarray(sdf, dtype=np.float32) * np.float32(_LEVELS / _positive(truncation, "truncation"))
    return np.rint(np.clip(scaled, -_LEVELS, _LEVELS)).astype(np.int8)


def decode_int8(codes: NDArray[np.int8], truncation: float) -> Array:
    """What `encode_int8` made, back in mm (float32)."""
    if np.asarray(codes).dtype != np.int8:
        raise SettingError(f"codes: expected int8 as written by encode_int8, got {np.asarray(codes).dtype}")
    return np.asarray(codes).astype(np.float32) * np.float32(_positive(truncation, "truncation") / _LEVELS)


def largest_shape(sdf: NDArray[np.floating]) -> Array:
    """The shape without all its parts but the largest (by voxels, face neighbours); others turn to outside."""
    sdf = np.asarray(sdf, dtype=np.float32)
    inside = sdf < 0
    # mirrored, not filled: the field stays smooth and the surface of what is kept doesn't move
    return np.where(inside & ~largest_component(inside), np.abs(sdf), sdf)


def _sdf_on(mask: NDArray[np.bool_], space: Space, target: Space, truncation: float) -> Array | None:
    window = mask_window(mask)
    if window is None:
        return None
    if _is_sheared(space):
        mask, space = _at_right_angles(mask[window], space.crop([side.start for side in window], _shape(mask[window])))
        window = mask_window(mask)
        if window is None:
            return None
    steps = np.asarray(space.spacing)
    # a voxel more than the truncation: a cell that lies between it and the next is still interpolated right
    width = np.ceil(truncation / steps).astype(int) + 1
    shape = [side.stop - side.start for side in window]
    padded = np.pad(mask[window].astype(bool), [(side, side) for side in width.tolist()])
    start = np.array([side.start for side in window]) - width
    near = np.clip(_distances(padded, steps), -truncation, truncation)
    grid = space.crop(start.tolist(), (np.asarray(shape) + 2 * width).tolist())
    return resample_sdf(near, grid, target, outside=truncation)


def _distances(mask: NDArray[np.bool_], steps: NDArray[np.float64]) -> Array:
    """Signed distances over the whole array, which is closed by one voxel of background."""
    from scipy.ndimage import distance_transform_edt

    closed = np.pad(mask, 1)
    result = np.zeros(closed.shape, dtype=np.float32)
    places: tuple[NDArray[np.int32], ...] = np.indices(closed.shape, dtype=np.int32, sparse=True)
    for inside, sign in ((closed, -1.0), (~closed, 1.0)):
        distance, nearest = distance_transform_edt(inside, sampling=steps, return_indices=True)
        hops = np.zeros(closed.shape, dtype=np.float32)
        for axis, place in enumerate(places):
            hops += (nearest[axis] - place).astype(np.float32) ** 2
        np.sqrt(hops, out=hops)
        result[inside] = sign * (distance[inside] * (1 - 0.5 / hops[inside]))
    return result[(slice(1, -1),) * mask.ndim]


def _at_right_angles(mask: NDArray[np.bool_], space: Space) -> tuple[NDArray[np.bool_], Space]:
    """The mask on a grid of the same spacing whose axes are at right angles, wide enough to hold it."""
    base, triangle = np.linalg.qr(space.directions)
    directions = base * np.sign(np.diag(triangle))
    corners = np.stack(np.meshgrid(*[(-1, size) for size in space.shape], indexing="ij"), axis=-1)
    steps = np.asarray(space.spacing)
    places = space.to_world(corners.reshape(-1, space.ndim)) @ directions / steps
    low, high = np.floor(places.min(axis=0)), np.ceil(places.max(axis=0))
    affine = np.eye(4, space.ndim + 1)
    affine[3] = [0.0] * space.ndim + [1.0]
    affine[:3, : space.ndim] = directions * steps
    affine[:3, space.ndim] = (directions * steps) @ low
    target = Space(tuple(int(size) + 1 for size in high - low), affine)
    matrix, offset = _between(space, target)
    share = resample(_tensor(mask.astype(np.float32)), matrix, offset, target.shape, order=1, fill=0.0)
    return share[0].numpy() >= 0.5, target


def _between(source: Space, target: Space) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Index of `target` to index of `source`: matrix and offset."""
    inverse = np.linalg.pinv(source.affine[:3, : source.ndim])
    return inverse @ target.affine[:3, : target.ndim], inverse @ (target.origin - source.origin)


def _is_sheared(space: Space, tolerance: float = 1e-3) -> bool:
    angles = space.directions.T @ space.directions
    return bool(np.abs(angles - np.eye(space.ndim)).max() > tolerance)


def _shape(array: NDArray[np.bool_]) -> tuple[int, ...]:
    return tuple(int(size) for size in array.shape)


def _tensor(array: NDArray[np.floating]) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))[None]


def _steps(spacing: float | Sequence[float], ndim: int) -> NDArray[np.float64]:
    steps = np.asarray(per_axis(spacing, ndim, "spacing"), dtype=np.float64)
    if not (np.isfinite(steps).all() and (steps > 0).all()):
        raise SettingError(f"spacing: expected positive millimetres, got {spacing}")
    return steps


def _positive(value: float, name: str) -> float:
    if not (np.isfinite(value) and value > 0):
        raise SettingError(f"{name}: expected a positive number of millimetres, got {value!r}")
    return float(value)
