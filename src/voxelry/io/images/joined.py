"""One image of several files: the channels of a scan, or a mask for each class of a label map."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from voxelry.core.errors import FileError
from voxelry.io.images.record import ImageFile

__all__ = ["join_channels", "join_masks"]

_ROUNDED = 1e-3  # so far from a whole number a value may be

Window = tuple[slice, ...]


def join_channels(files: Sequence[ImageFile]) -> ImageFile:
    """The channels of files one after the other, as one image on their common grid.

    Raises:
        FileError: files on different grids.
    """
    first = files[0]
    for file in files[1:]:
        _check_grid(file, first)
    return replace(
        first,
        channels=sum(file.channels for file in files),
        dtype=np.result_type(*(file.dtype for file in files)),
        loader=partial(_load_channels, tuple(files)),
        order=None,
        indices=None,
    )


def _load_channels(files: Sequence[ImageFile], window: Window) -> np.ndarray:
    return np.concatenate([file.read(window) for file in files])


def join_masks(folder: Path, files: Mapping[str, ImageFile], names: Sequence[str]) -> ImageFile:
    """A number per voxel from a mask for each class; where masks overlap, the first class has the voxel.

    Args:
        folder: that they are in.
        files: the masks by the names of their classes.
        names: the classes 1, 2, ... in this order; one without a mask is absent.

    Raises:
        FileError: none of them is there, several channels, or masks on different grids.
    """
    parts = [(number, files[name]) for number, name in enumerate(names, 1) if name in files]
    if not parts:
        raise FileError(folder, f"has no mask of {', '.join(names[:10])}")
    first = parts[0][1]
    for _, file in parts:
        _check_grid(file, first)
        if file.channels != 1:
            raise FileError(file.path, f"{file.channels} channels, expected a mask of one")
    return replace(
        first,
        path=folder,
        dtype=np.dtype(np.uint8 if len(names) < 256 else np.uint16),
        format="masks",
        loader=partial(_load_masks, tuple(parts)),
        metadata={"segments": {name: number for number, name in enumerate(names, 1) if name in files}},
        order=None,
        indices=None,
    )


def _load_masks(parts: Sequence[tuple[int, ImageFile]], window: Window) -> np.ndarray:
    labels = np.zeros((1, *(part.stop - part.start for part in window)), np.uint16)
    for number, file in parts:
        mask = file.read(window)
        if mask.dtype.kind == "f" and not (np.abs(mask - np.rint(mask)) <= _ROUNDED).all():
            raise FileError(file.path, "fractions, expected a mask of whole numbers", "0 outside of the organ")
        labels[(mask > _ROUNDED) & (labels == 0)] = number
    return labels


def _check_grid(file: ImageFile, first: ImageFile) -> None:
    if not file.space.matches(first.space):
        raise FileError(file.path, f"lies on another grid than {first.path}", "expected one grid for a case")
