"""Bricks: a line of JSON with the shape and the mm per voxel, z, y, x, and then 16-bit voxels."""

import json
from functools import partial
from pathlib import Path

import numpy as np

from voxelry.core.space import Space
from voxelry.io import ImageFile


def open_file(path: Path, *, dataset: str | None, channel_axis: int | None, ndim: int | None) -> ImageFile:
    """The header; a window of the voxels is read when it is asked for."""
    with path.open("rb") as file:
        header = json.loads(file.readline())
        start = file.tell()
    shape = tuple(header["shape"])
    return ImageFile(
        path=path,
        space=Space.from_spacing(shape, header["spacing"]),
        channels=1,
        dtype=np.dtype("<i2"),
        format="brick",
        loader=partial(load, path, start, shape),  # goes to other processes
    )


def load(path: Path, start: int, shape: tuple[int, ...], window: tuple[slice, ...]) -> np.ndarray:
    return np.memmap(path, "<i2", "r", start, shape)[window][None]
