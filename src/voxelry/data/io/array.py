"""NumPy's .npy: an array and nothing else.

Axes are `yx`, `zyx` or, at rank 4, `zyxc`; `ndim=2` makes a 3-D array `yxc`, `channel_axis` says anything
else. Spacing is 1 mm unless the user gives it. Pickled objects are never loaded.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from voxelry.core.errors import FileError
from voxelry.core.space import Space
from voxelry.data.io.axes import AxisOrder, name_axes, order_axes
from voxelry.data.io.guard import check_numeric, check_stored
from voxelry.data.io.record import ImageFile

__all__ = ["open_file", "write_file"]


def open_file(path: Path, *, dataset: str | None, channel_axis: int | None, ndim: int | None) -> ImageFile:
    """Header of a .npy file; see `open_image` for the keywords.

    Raises:
        FileError: no .npy header, pickled objects, fewer bytes than declared, a rank that needs `channel_axis`.
    """
    with path.open("rb") as file:
        version = np.lib.format.read_magic(file)
        if version not in ((1, 0), (2, 0), (3, 0)):
            raise FileError(path, f"expected npy version 1, 2 or 3, got {version}")
        # version 3 differs from 2 in the encoding of field names only, and there are none in numeric arrays
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, stored = read(file)
        start = file.tell()
    if stored.hasobject:
        raise FileError(path, "holds pickled Python objects, which are never loaded", "save a numeric array")
    dtype = check_numeric(path, stored)
    check_stored(path, shape, stored.itemsize, path.stat().st_size - start)
    axes = name_axes(path, len(shape), ndim=ndim, channel_axis=channel_axis)
    order = order_axes(path, shape, axes, ndim=ndim)
    return ImageFile(
        path=path,
        space=order.plain_space({}),
        channels=order.channels,
        dtype=dtype,
        format="npy",
        loader=partial(_load, path, order),
    )


def write_file(path: Path, array: np.ndarray, space: Space, channel_names: tuple[str, ...] | None) -> None:
    """`(*spatial)` for one channel, `(*spatial, C)` for more; the space is lost."""
    stored = array[0] if len(array) == 1 else np.moveaxis(array, 0, -1)
    np.save(path, np.ascontiguousarray(stored), allow_pickle=False)


def _load(path: Path, order: AxisOrder, window: tuple[slice, ...]) -> np.ndarray:
    return order.arrange(np.load(path, mmap_mode="r", allow_pickle=False)[order.index(window)])
