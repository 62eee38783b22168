"""Images that lie elsewhere, read from a copy; `zarr` alone reads its chunks where they are."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from voxelry.core.fetch import fetch, named_as
from voxelry.core.guard import guarded
from voxelry.core.remote import Remote
from voxelry.io.images.companions import companions
from voxelry.io.images.record import ImageFile, Loader

__all__ = ["open_copy"]

Reader = Callable[[Path], ImageFile]


def open_copy(path: Path, reader: Reader) -> ImageFile:
    """The header of an image by its format's reader, from a copy where it lies elsewhere.

    Args:
        path: a file or a folder; the image is named after it.
        reader: of its format.

    Raises:
        FileError: it can't be reached, or whatever the reader raises.
    """
    if not isinstance(path, Remote):
        return reader(path)
    copy = fetch(path, list(companions(path)))
    with named_as(path, copy), guarded(copy):
        return _of_original(reader(copy), path, copy, reader)


def _of_original(image: ImageFile, path: Path, copy: Path, reader: Reader) -> ImageFile:
    """The image of a copy as one of the original: its pixels are read from the copy as long as there is one."""
    indices = image.indices
    return dataclasses.replace(
        image,
        path=path,
        loader=partial(_load, image.loader, path, copy, reader),
        indices=None if indices is None else dataclasses.replace(indices, path=path),
    )


def _load(load: Loader, path: Path, copy: Path, reader: Reader, window: tuple[slice, ...]) -> np.ndarray:
    there = fetch(path, list(companions(path)) if not copy.exists() else ())
    with named_as(path, there), guarded(there):
        return load(window) if there == copy else reader(there).loader(window)
