"""What a header promises, checked before anything is allocated; the libraries' errors are `core.guard`'s."""

from __future__ import annotations

import os
from collections.abc import Sequence
from math import prod
from pathlib import Path

import numpy as np

from voxelry.core.errors import FileError
from voxelry.core.memory import available_memory

__all__ = ["check_beside", "check_memory", "check_numeric", "check_stored"]

_DEFLATE_RATIO = 1032  # the most that deflate can shrink anything (zlib technical details)
_SLACK = 1 << 26  # a size that no machine minds, whatever the header says


def check_numeric(path: str | Path, dtype: np.dtype) -> np.dtype:
    """The dtype as the array will have it: native byte order, real numbers; bool becomes uint8.

    Raises:
        FileError: complex numbers, strings, objects or records.
    """
    dtype = np.dtype(dtype)
    if dtype.kind == "c":
        raise FileError(path, f"holds complex numbers ({dtype})", "save the magnitude or the phase on its own")
    if dtype.kind == "b":
        return np.dtype(np.uint8)
    if dtype.kind not in "uif":
        raise FileError(path, f"expected numbers, got elements of type {dtype}")
    if dtype.kind == "f" and dtype.itemsize > 8:
        return np.dtype(np.float64)
    return dtype.newbyteorder("=")


def check_beside(path: Path, named: str) -> Path:
    """The file that a header names, in the header's folder or below it.

    Raises:
        FileError: it would lie elsewhere.
    """
    file = Path(os.path.normpath(path.parent / named))
    if not file.is_relative_to(os.path.normpath(path.parent)):
        raise FileError(path, f"names a file outside of its folder: {named}", "put it beside this one and name it so")
    return file


def check_stored(
    path: str | Path, shape: Sequence[int], itemsize: int, stored: int, *, compressed: bool = False
) -> None:
    """Compare what a header promises with the `stored` bytes that can hold it, before anything is allocated.

    Raises:
        FileError: an empty or negative axis; fewer bytes than uncompressed pixels need; more pixels than
            any compression of `stored` bytes could give.
    """
    if not shape or any(size < 1 for size in shape):
        raise FileError(
            path, f"the header declares an image of shape {tuple(shape)}; expected at least one voxel per axis"
        )
    needed = prod(int(size) for size in shape) * int(itemsize)
    if not compressed and needed > stored:
        raise FileError(path, f"is cut short: {needed} bytes of pixels declared (shape {tuple(shape)}), {stored} there")
    if compressed and needed > _DEFLATE_RATIO * stored + _SLACK:
        raise FileError(path, f"declares {needed} bytes of pixels (shape {tuple(shape)}), impossible in {stored} bytes")


def check_memory(path: str | Path, needed: int) -> None:
    """Refuse what can't fit into this machine before trying.

    Raises:
        FileError: `needed` bytes are more than there are.
    """
    available = available_memory()
    if available is not None and needed > available:
        raise FileError(
            path, f"needs {needed / 1e9:.1f} GB, and there are {available / 1e9:.1f} GB", "read a window of it"
        )
