"""Masks and label maps in files, for the image that is shown: of the paths that were named, or uploaded."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voxelry.core.errors import DataError, SettingError, VoxelryError
from voxelry.data.layouts.files import case_name
from voxelry.io import is_image, open_image
from voxelry.io.meshes import is_mesh
from voxelry.ops.rle import Crop
from voxelry.serve import later
from voxelry.serve.within import is_within

__all__ = ["Mask", "Masks", "found_masks", "read_mask"]

_MOST_FILES = 20_000  # that are looked at for names
_FEW = 50  # files beside an image
MOST_VALUES = 256


class Masks:
    """The files that a mask of an image may be loaded from; a page names them by their number.

    Args:
        images: all that were named, or are in the folders.
        folders: that were named.
        scratch: folder for what is uploaded.
    """

    def __init__(self, images: Sequence[Path], folders: Sequence[Path], scratch: Path):
        self._images, self._folders, self._scratch = images, folders, scratch
        self._known: dict[int, list[Path]] = {}

    def listed(self, case: int) -> list[str]:
        """Their names, looked for anew: see `found_masks`; uploaded ones come last."""
        uploads = [path for path in self._known.get(case, ()) if path.is_relative_to(self._scratch)]
        self._known[case] = [*found_masks(self._images[case], self._images, self._folders), *uploads]
        return [self._called(path) for path in self._known[case]]

    def file(self, case: int, number: Any) -> Path:
        """One of them.

        Raises:
            SettingError: there is none of that number.
        """
        known = self._known.get(case, [])
        if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < len(known):
            raise SettingError(f"mask: expected the number of a file that was listed, got {number!r}")
        return known[number]

    def place(self, name: str) -> Path:
        """Where a file of that name can be written that is uploaded.

        Raises:
            SettingError: a path, or no name.
        """
        if not name or name != Path(name).name or name.startswith(".") or "\0" in name:
            raise SettingError(f"name: expected that of a file, got {name!r}")
        return Path(tempfile.mkdtemp(prefix="upload-", dir=self._scratch)) / name

    def add(self, case: int, path: Path) -> int:
        """Take up a file that was uploaded; its number."""
        self._known.setdefault(case, []).append(path)
        return len(self._known[case]) - 1

    def _called(self, path: Path) -> str:
        """A file's name, from the folder on that was named."""
        within = next((folder for folder in self._folders if path.is_relative_to(folder)), path.parent)
        return path.relative_to(within).as_posix()


def found_masks(image: Path, images: Sequence[Path], folders: Sequence[Path]) -> list[Path]:
    """Files that may hold a mask of an image.

    Those are its labels where a folder is in a layout of docs/data.md, files in the folders whose name begins with
    that of the image or the other way round, all beside it where those are few, and whatever else was named; no links
    out of what was named.

    Args:
        images: all that were named, or are in the folders.
        folders: that were named.
    """
    name, found = case_name(image), list[Path]()
    roots = [path.resolve() for path in (*folders, *images)]
    for folder in folders:
        found += _labels(image, folder, roots)
        files = list(islice(_files(folder, roots), _MOST_FILES))
        beside = [path for path in files if path.parent == image.parent]
        found += [path for path in files if _related(name, case_name(path))]
        found += beside if len(beside) <= _FEW else []
    within = [path for path in images if not any(path.is_relative_to(folder) for folder in folders)]
    return [path for path in dict.fromkeys([*found, *within]) if path != image]


def _related(one: str, other: str) -> bool:
    return one.startswith(other) or other.startswith(one)


def _labels(image: Path, folder: Path, roots: Sequence[Path]) -> list[Path]:
    try:
        cases = [case for case in later.find_cases(folder) if case.image == image]
    except VoxelryError:  # a folder in no layout
        return []
    return [
        path for case in cases for path in (case.labels, case.instances) if path is not None and is_within(path, roots)
    ]


def _files(folder: Path, roots: Sequence[Path]) -> Iterator[Path]:
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.name.startswith(".") or not is_within(path, roots):
            continue
        if is_image(path) or is_mesh(path):
            yield path
        elif path.is_dir() and not path.is_symlink():
            yield from _files(path, roots)


@dataclass(frozen=True)
class Mask:
    """A mask on the grid of an image.

    Attributes:
        crop: its window and what is in it.
        values: of the file, without background, the first 256 of them.
        told: how it came onto the grid, where that isn't its own.
    """

    crop: Crop
    values: list[int]
    told: str = ""


def read_mask(path: Path, image: Path, options: Mapping[str, Any], value: int | None = None) -> Mask:
    """A mask where it lies on an image: its voxels, in any order of axes, or of another grid the nearest ones.

    Args:
        path: a mask, a label map or a closed surface.
        image: what it belongs to.
        options: of that image's reader.
        value: the label that is meant; None for all that is no background.

    Raises:
        DataError: it lies beside the image, on another grid that doesn't say where it is, holds no labels, or nothing
            of that value.
        FileError: it can't be read.
    """
    labels, told = _labels_on(path, image, options)
    values = np.unique(labels)
    mask = labels > 0 if value is None else labels == value
    held = [np.flatnonzero(mask.any(axis=tuple(set(range(mask.ndim)) - {axis}))) for axis in range(mask.ndim)]
    if not held[0].size:
        raise DataError(f"{path}: no foreground" if value is None else f"{path}: nothing has the value {value}")
    window = tuple(slice(int(places[0]), int(places[-1]) + 1) for places in held)
    return Mask((window, mask[window]), values[values > 0][:MOST_VALUES].tolist(), told)


def _labels_on(path: Path, image: Path, options: Mapping[str, Any]) -> tuple[NDArray[Any], str]:
    reference = later.Reference.of_file(image, options)
    try:
        opened = later.open_labels(path, reference)
    except DataError:
        known = open_image(image, **options)
        other = None if is_mesh(path) or known.space.ndim != 3 else open_image(path, ndim=3)
        if other is None or other.channels != 1 or not (other.has_orientation and known.has_orientation):
            raise
    else:
        return opened.read(), ""
    stored = later.whole_numbers((other.indices or other).read()[0], path).astype(np.int64)
    placed = later.nearest_labels(stored, other.space, known.space)
    if placed is None:
        raise DataError(f"{path}: lies beside its image {image}: no place is in both")
    steps = " x ".join(f"{step:.3g}" for step in other.space.spacing)
    return placed, f"it has another grid, of {steps} mm: each voxel of the image is as the nearest of it is"
