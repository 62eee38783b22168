"""NumPy's .npy, an array and nothing else, and .npz, several of them in a zip file.

Axes are `yx`, `zyx` or, at rank 4, `zyxc`; `ndim=2` makes a 3-D array `yxc`, `channel_axis` says anything
else. Spacing is 1 mm unless the user gives it. Of an .npz the only array of two or more axes is the image, or the one
that `dataset` names. Pickled objects are never loaded.
"""

from __future__ import annotations

import zipfile
from functools import partial
from pathlib import Path
from typing import IO

import numpy as np

from voxelry.core.errors import FileError
from voxelry.core.space import Space
from voxelry.io.advice import choice
from voxelry.io.guard import check_numeric, check_stored
from voxelry.io.images.axes import AxisOrder, name_axes, order_axes
from voxelry.io.images.record import ImageFile
from voxelry.io.units import Lengths

__all__ = ["open_file", "write_file"]


def open_file(path: Path, *, dataset: str | None, channel_axis: int | None, ndim: int | None) -> ImageFile:
    """Header of a .npy or .npz file; see `open_image` for the keywords.

    Raises:
        FileError: no .npy header, pickled objects, fewer bytes than declared, a rank that needs `channel_axis`, several
            arrays to choose from.
    """
    lengths, metadata, member = Lengths(path), {}, None
    if path.suffix.lower() == ".npz":
        member, shape, stored = _member(path, dataset, lengths)
        metadata = {"dataset": member.removesuffix(".npy")}
    else:
        with path.open("rb") as file:
            shape, stored = _header(path, file)
            start = file.tell()
        check_stored(path, shape, 0 if stored.hasobject else stored.itemsize, path.stat().st_size - start)
    if stored.hasobject:
        raise FileError(path, "holds pickled Python objects, which are never loaded", "save a numeric array")
    dtype = check_numeric(path, stored)
    axes = name_axes(path, shape, ndim=ndim, channel_axis=channel_axis)
    order = order_axes(path, shape, axes, ndim=ndim)
    return ImageFile(
        path=path,
        space=order.plain_space({}),
        channels=order.channels,
        dtype=dtype,
        format="npy" if member is None else "npz",
        loader=partial(_load, path, member, order),
        metadata=metadata,
        spacing_fault=lengths.fault,
    )


def write_file(path: Path, array: np.ndarray, space: Space, channel_names: tuple[str, ...] | None) -> None:
    """`(*spatial)` for one channel, `(*spatial, C)` for more; the space is lost."""
    stored = array[0] if len(array) == 1 else np.moveaxis(array, 0, -1)
    np.save(path, np.ascontiguousarray(stored), allow_pickle=False)


def _header(path: Path, file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and type of the array that begins here."""
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0), (3, 0)):
        raise FileError(path, f"expected npy version 1, 2 or 3, got {version}")
    # version 3 differs from 2 in the encoding of field names only, and there are none in numeric arrays
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, stored = read(file)
    return shape, stored


def _member(path: Path, dataset: str | None, lengths: Lengths) -> tuple[str, tuple[int, ...], np.dtype]:
    """The array of an .npz that is meant: its name in the zip file, its shape and type."""
    with zipfile.ZipFile(path) as archive:
        entries = {entry.filename: entry for entry in archive.infolist() if entry.filename.endswith(".npy")}
        found = {}
        for name in entries:
            with archive.open(name) as file:
                found[name] = _header(path, file)
        names = [name for name, (shape, _) in found.items() if len(shape) >= 2]
        if dataset is not None:
            names = [f"{dataset}.npy"] if f"{dataset}.npy" in found else []
        if len(names) != 1:
            fault = f"holds {len(names)} arrays of two or more axes" if dataset is None else f"no array {dataset!r}"
            arrays = [name.removesuffix(".npy") for name, (shape, _) in found.items() if len(shape) >= 2]
            raise FileError(path, fault, choice(arrays))
        for name, (shape, stored) in found.items():
            if shape in ((2,), (3,)) and stored.kind in "uif":
                with archive.open(name) as file:
                    lengths.overlook({name.removesuffix(".npy"): np.lib.format.read_array(file, allow_pickle=False)})
        shape, stored = found[names[0]]
        check_stored(path, shape, stored.itemsize, entries[names[0]].compress_size, compressed=True)
        return names[0], shape, stored


def _load(path: Path, member: str | None, order: AxisOrder, window: tuple[slice, ...]) -> np.ndarray:
    index = order.index(window)
    if member is None:
        return order.arrange(np.load(path, mmap_mode="r", allow_pickle=False)[index])
    with zipfile.ZipFile(path) as archive, archive.open(member) as file:
        return order.arrange(np.lib.format.read_array(file, allow_pickle=False)[index])
