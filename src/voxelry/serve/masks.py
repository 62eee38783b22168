"""Masks and label maps in files, for the image that is shown: of the paths that were named, or uploaded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from voxelry.core.errors import DataError, SettingError, VoxelryError
from voxelry.data.layouts.files import case_name
from voxelry.io import is_image
from voxelry.io.meshes import is_mesh
from voxelry.ops.rle import Crop
from voxelry.serve import later

__all__ = ["found_masks", "read_mask", "upload_name"]

_MOST_FILES = 20_000  # that are looked at for names
MOST_VALUES = 256


def found_masks(image: Path, images: Sequence[Path], folders: Sequence[Path]) -> list[Path]:
    """Files that may hold a mask of an image.

    Those are its labels where a folder is in a layout of docs/data.md, files in the folders whose name begins with
    that of the image or the other way round, and whatever else was named.

    Args:
        images: all that were named, or are in the folders.
        folders: that were named.
    """
    name, found = case_name(image), list[Path]()
    for folder in folders:
        found += _labels(image, folder)
        found += [path for path in islice(_files(folder), _MOST_FILES) if _related(name, case_name(path))]
    within = [path for path in images if not any(path.is_relative_to(folder) for folder in folders)]
    return [path for path in dict.fromkeys([*found, *within]) if path != image]


def _related(one: str, other: str) -> bool:
    return one.startswith(other) or other.startswith(one)


def _labels(image: Path, folder: Path) -> list[Path]:
    try:
        cases = [case for case in later.find_cases(folder) if case.image == image]
    except VoxelryError:  # a folder in no layout
        return []
    return [path for case in cases for path in (case.labels, case.instances) if path is not None]


def _files(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.name.startswith("."):
            continue
        if is_image(path) or is_mesh(path):
            yield path
        elif path.is_dir():
            yield from _files(path)


def read_mask(path: Path, image: Path, options: Mapping[str, Any], value: int | None = None) -> tuple[Crop, list[int]]:
    """A mask where it lies on an image, in any order of axes, and the values that the file has.

    Args:
        path: a mask, a label map or a closed surface.
        image: what it belongs to.
        options: of that image's reader.
        value: the label that is meant; None for all that is no background.

    Returns:
        The mask on the image's grid, and the values without background, the first 256 of them.

    Raises:
        DataError: it lies on another grid, holds no labels, or nothing of that value.
        FileError: it can't be read.
    """
    labels = later.open_labels(path, later.Reference.of_file(image, options)).read()
    values = np.unique(labels)
    mask = labels > 0 if value is None else labels == value
    held = [np.flatnonzero(mask.any(axis=tuple(set(range(mask.ndim)) - {axis}))) for axis in range(mask.ndim)]
    if not held[0].size:
        raise DataError(f"{path}: no foreground" if value is None else f"{path}: nothing has the value {value}")
    window = tuple(slice(int(places[0]), int(places[-1]) + 1) for places in held)
    return (window, mask[window]), values[values > 0][:MOST_VALUES].tolist()


def upload_name(name: str) -> str:
    """The name of a file that was uploaded, as it can be written.

    Raises:
        SettingError: a path, or no name.
    """
    if not name or name != Path(name).name or name.startswith(".") or "\0" in name:
        raise SettingError(f"name: expected that of a file, got {name!r}")
    return name
