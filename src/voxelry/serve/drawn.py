"""What is drawn in the page: voxels of the image as it is shown, and those of its file that they stand for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voxelry.core.errors import SettingError
from voxelry.core.space import Space
from voxelry.io import write_image
from voxelry.ops.rle import Crop, decode_rle, encode_rle

__all__ = ["as_drawn", "read_drawn", "write_drawn"]

_TINY = 1e-4  # of a voxel


def read_drawn(drawn: Any, grid: Space, space: Space) -> Crop:
    """A drawing on the grid of the image that it was drawn over.

    Args:
        drawn: run lengths as `ops.rle` has them, order "C", over the image as it is shown.
        grid: of the image as it is shown, whose axes are the image's.
        space: of the image. Each of its voxels is as the nearest shown one is.

    Raises:
        DataError: no run lengths, or none that fill that grid.
        SettingError: those of another grid, or of nothing at all.
    """
    size = drawn.get("size") if isinstance(drawn, Mapping) else None
    if size != list(grid.shape):
        raise SettingError(f"drawn: expected run lengths of size {list(grid.shape)}, as the image is shown, got {size}")
    window, mask = decode_rle({**drawn, "order": "C"})
    if not mask.any():
        raise SettingError("drawn: expected a voxel at least")
    starts, places = [], []
    for nearest, part in zip(_nearest(space, grid), window, strict=True):
        held = np.flatnonzero((nearest >= part.start) & (nearest < part.stop))
        starts.append(int(held[0]))
        places.append(nearest[held] - part.start)
    crop = mask[np.ix_(*places)]
    return tuple(slice(start, start + size) for start, size in zip(starts, crop.shape, strict=True)), crop


def as_drawn(crop: Crop, space: Space, grid: Space) -> dict[str, Any]:
    """A mask on the grid of an image as what `read_drawn` takes: each shown voxel is as the one at its centre is."""
    window, places = [], []
    for nearest, part in zip(_nearest(grid, space), crop[0], strict=True):
        held = np.flatnonzero((nearest >= part.start) & (nearest < part.stop))
        window.append(slice(int(held[0]), int(held[-1]) + 1) if held.size else slice(0, 0))
        places.append(nearest[held] - part.start)
    return encode_rle(crop[1][np.ix_(*places)], window, grid.shape)


def _nearest(space: Space, grid: Space) -> list[NDArray[np.int64]]:
    """For each axis, the voxel of `grid` that is nearest to each of `space`; their axes are the same ones."""
    ndim = space.ndim
    steps = np.diag(np.linalg.pinv(grid.affine[:3, :ndim]) @ space.affine[:3, :ndim])
    starts = np.asarray(grid.to_index(space.origin))
    return [  # halfway between two the next one, whatever the affine's last digits say
        np.clip(np.floor(start + step * np.arange(size) + 0.5 + _TINY), 0, most - 1).astype(np.int64)
        for start, step, size, most in zip(starts, steps, space.shape, grid.shape, strict=True)
    ]


def write_drawn(path: Path, crop: Crop, space: Space) -> Path:
    """A drawing as a label volume of 0 and 1 on the grid of its image.

    Raises:
        FileError: the disk refuses.
    """
    whole = np.zeros(space.shape, dtype=np.uint8)
    whole[crop[0]] = crop[1]
    return write_image(path, whole[None], space)
