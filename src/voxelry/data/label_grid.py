"""Labels beside an image: voxel by voxel on its grid, in whole numbers. The one check of all that reads labels.

A file of labels is taken as it is where it lies on the grid of its image, to a tenth of a voxel. Where it holds the
same voxels of the world along other axes, or in reverse, it is turned, which is exact. Anything else is an error:
labels are never interpolated. A file of segments (Slicer's, DICOM's) may cover a part of the image. A file that
doesn't say where it lies, or beside an image that doesn't, is taken to lie where the image does, if it has its shape.

A closed surface (PLY, STL, OBJ, GLB) is a label, too: 1 in the voxels whose centres it encloses.

Values are classes or ids: 0 and -1 are background. Numbers within 0.001 of whole ones are rounded, as a scale in
the header or a conversion leaves them. Ids may be as large as 64 bits hold.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from voxelry.core.errors import DataError, FileError
from voxelry.core.space import Space
from voxelry.io import ImageFile, open_image
from voxelry.io.images.image import split_dataset
from voxelry.io.meshes import is_mesh, read_mesh
from voxelry.ops.voxelise import voxelise_mesh

__all__ = [
    "LabelFile",
    "Placement",
    "Reference",
    "class_numbers",
    "difference",
    "fit",
    "open_labels",
    "place",
    "whole_numbers",
]

Window = tuple[slice, ...]

_ROUNDED = 1e-3  # so far from a whole number a value may be
_LOSSY = (".jpg", ".jpeg")
_LARGEST = np.iinfo(np.int64).max


@dataclass(frozen=True, eq=False)
class Reference:
    """The image that labels belong to.

    Attributes:
        path: for messages.
        space: its grid as its file has it.
        oriented: whether it says where it lies in the world.
        spacing: what the user said instead of the file.
    """

    path: Path
    space: Space
    oriented: bool
    spacing: float | Sequence[float] | None = None

    @classmethod
    def of_file(cls, path: Path, options: Mapping[str, Any]) -> Self:
        """By the header of an image that is read with these options of `open_image`.

        Raises:
            FileError: it can't be read.
        """
        spacing = options.get("spacing")
        try:
            file = open_image(path, **{key: value for key, value in options.items() if key != "spacing"})
        except FileError:  # such as a unit that isn't known
            if spacing is None:
                raise
            file = open_image(path, **options)
        return cls(path, file.space, file.has_orientation, spacing)


@dataclass(frozen=True)
class Placement:
    """How stored labels lie on the grid of their image: transposed, reversed along some axes, background around.

    Attributes:
        axes: the stored axis that runs along each axis of the image.
        flips: whether it runs against it.
        shape: of the image's grid.
        start: where the turned labels begin on it.
        size: of the turned labels; less than `shape` where only a part is stored.
    """

    axes: tuple[int, ...]
    flips: tuple[bool, ...]
    shape: tuple[int, ...]
    start: tuple[int, ...]
    size: tuple[int, ...]

    @classmethod
    def as_is(cls, shape: Sequence[int]) -> Self:
        """Of labels that are stored as their image is."""
        ndim, whole = len(shape), tuple(shape)
        return cls(tuple(range(ndim)), (False,) * ndim, whole, (0,) * ndim, whole)

    @property
    def is_whole(self) -> bool:
        """Whether the stored labels cover the image."""
        return self.size == self.shape

    def turn(self, array: NDArray[Any]) -> NDArray[Any]:
        """Stored pixels `(..., *stored)` along the axes of the image."""
        leading = array.ndim - len(self.axes)
        turned = array.transpose(*range(leading), *(leading + axis for axis in self.axes))
        against = tuple(leading + axis for axis, flip in enumerate(self.flips) if flip)
        return np.ascontiguousarray(np.flip(turned, against))

    def read(self, load: Callable[[Window], NDArray[Any]], window: Window) -> NDArray[Any]:
        """A window of the image's grid, by a function that reads a window of the stored pixels, `(..., *window)`."""
        stored, around = [slice(0)] * len(self.axes), []
        parts = zip(self.axes, self.flips, window, self.start, self.size, strict=True)
        for axis, flip, part, start, size in parts:
            low, high = (min(max(end - start, 0), size) for end in (part.start, part.stop))
            before = min(max(start - part.start, 0), part.stop - part.start)
            around.append((before, part.stop - part.start - before - (high - low)))
            stored[axis] = slice(size - high, size - low) if flip else slice(low, high)
        turned = self.turn(load(tuple(stored)))
        return np.pad(turned, [(0, 0)] * (turned.ndim - len(around)) + around) if np.any(around) else turned


@dataclass(frozen=True, eq=False)
class LabelFile:
    """Labels of an image, of which only the header has been read.

    Attributes:
        file: the stored labels.
        placement: how they lie on the image's grid.
        options: what they were opened with.
    """

    file: ImageFile
    placement: Placement
    options: Mapping[str, Any] = field(default_factory=dict)

    def read(
        self, window: Window | None = None, steps: Sequence[int] | None = None
    ) -> NDArray[np.int64] | NDArray[np.uint64]:
        """Whole numbers `(*window)` on the image's grid, by default all of it; see `whole_numbers`.

        Args:
            window: of the image's grid.
            steps: along each axis, every so many voxels of the window alone.

        Raises:
            FileError: broken pixels.
            DataError: fractions, or values below -1.
        """
        whole = tuple(slice(0, size) for size in self.placement.shape) if window is None else window
        array = self.placement.read(lambda part: self.file.read(part)[0], whole)
        if steps is not None:
            array = array[tuple(slice(None, None, step) for step in steps)]
        return whole_numbers(array, self.file.path)


def open_labels(path: Path, image: Reference, options: Mapping[str, Any] | None = None) -> LabelFile:
    """Labels that lie on the grid of an image, by their header.

    Args:
        path: a file of one channel, or a surface.
        image: what they belong to.
        options: for `open_image`, such as `dataset`.

    Raises:
        FileError: it can't be read.
        DataError: JPEG, colours or other channels, another grid, a surface that isn't closed or whose image doesn't
            say where it lies; names both files, what differs and the way out.
    """
    if path.suffix.lower() in _LOSSY:
        raise DataError(f"{path}: JPEG changes values, so classes and ids are lost; save labels as PNG or TIFF")
    chosen = {"ndim": image.space.ndim, **(options or {})}
    if is_mesh(path):
        return LabelFile(_enclosed(path, image), Placement.as_is(image.space.shape), chosen)
    stored, inside = split_dataset(path, chosen.get("dataset"))
    if inside is not None:
        chosen["dataset"] = inside
    file, chosen = _opened(stored, chosen, image)
    file = file.indices or file  # of a palette the numbers are the classes, its colours are for show
    if file.channels != 1:
        raise DataError(
            f"{path}: {file.channels} channels, expected one number per voxel (of a mask in colours, save each "
            "colour as its own number in a single channel)"
        )
    placement = fit(file.space, file.has_orientation, image)
    if placement is None or not (placement.is_whole or "segments" in file.metadata):
        raise DataError(f"{path}: {difference(file.space, image)} {_way_out(file.space, image)}")
    return LabelFile(file, placement, chosen)


def _enclosed(path: Path, image: Reference) -> ImageFile:
    """A surface as an image on the grid of another, voxelised where it is read."""
    if not image.oriented or image.space.ndim != 3:
        raise DataError(
            f"{path}: a surface is in mm of the patient, so its image {image.path} has to be a volume that says where "
            "it lies (NIfTI, NRRD, MetaImage or DICOM)"
        )
    space = image.space if image.spacing is None else image.space.with_spacing(image.spacing)
    if not read_mesh(path).is_watertight:
        raise DataError(f"{path}: expected a closed surface; nothing is inside an open one (close its holes)")
    return ImageFile(path, space, 1, np.dtype(np.uint8), "surface", partial(_inside, path, space), has_orientation=True)


def _inside(path: Path, space: Space, window: Window) -> NDArray[np.uint8]:
    grid = space.crop([part.start for part in window], [part.stop - part.start for part in window])
    return voxelise_mesh(read_mesh(path), grid)[None].astype(np.uint8)


def _opened(path: Path, options: dict[str, Any], image: Reference) -> tuple[ImageFile, dict[str, Any]]:
    """The header of labels as their file has it, and what it was opened with.

    Where their own spacing can't be understood, what the user says of the image counts or, for a file that doesn't say
    where it lies, what the image says.
    """
    try:
        return open_image(path, **options), options
    except FileError:
        told = {**options, "spacing": image.space.spacing if image.spacing is None else image.spacing}
        file = open_image(path, **told)
        if image.spacing is None and file.has_orientation:
            raise
        return file, told


def fit(grid: Space, oriented: bool, image: Reference) -> Placement | None:
    """How pixels on `grid` lie on that of an image, None where they don't.

    Args:
        grid: as its file has it.
        oriented: whether the file says where it lies in the world.
        image: what they are to lie on.

    The pixels may cover a part of the image only; see `Placement.is_whole`.
    """
    if not (oriented and image.oriented):
        return Placement.as_is(grid.shape) if grid.shape == image.space.shape else None
    found = place(grid, image.space)
    if found is None and image.spacing is not None and grid.ndim == image.space.ndim:
        # what the user says counts, where the files don't agree
        found = place(grid.with_spacing(image.spacing), image.space.with_spacing(image.spacing))
    return found


def place(grid: Space, onto: Space) -> Placement | None:
    """How an array on `grid` is turned to lie on `onto` or inside of it; None where they don't share their voxels."""
    if grid.ndim != onto.ndim:
        return None
    ndim = onto.ndim
    steps = np.linalg.pinv(onto.affine[:3, :ndim]) @ grid.affine[:3, :ndim]  # of `onto`, for one of `grid`
    axes = [int(np.argmax(np.abs(row))) for row in steps]
    if len(set(axes)) < ndim:
        return None
    flips = [bool(row[axis] < 0) for row, axis in zip(steps, axes, strict=True)]
    turned = grid.reorder(axes, flips)
    start = np.rint(np.asarray(onto.to_index(turned.origin))).astype(int)
    inside = (start >= 0).all() and (start + turned.shape <= onto.shape).all()
    if not inside or not onto.crop(start.tolist(), turned.shape).matches(turned):
        return None
    return Placement(tuple(axes), tuple(flips), onto.shape, tuple(start.tolist()), turned.shape)


def difference(grid: Space, image: Reference) -> str:
    """What keeps a grid from being that of an image, for messages."""
    if grid.shape != image.space.shape:
        return f"shape {grid.shape}, but its image {image.path} has {image.space.shape}"
    return f"lies elsewhere than its image {image.path}: {_deviation(grid, image.space)}"


def _way_out(grid: Space, image: Reference) -> str:
    if sorted(grid.shape) == sorted(image.space.shape):
        return "(if they do match voxel by voxel, give the labels their image's affine and order of axes)"
    return "(bring the labels to their image's grid, by the nearest voxel)"


def _deviation(grid: Space, other: Space) -> str:
    if not np.allclose(grid.spacing, other.spacing, rtol=0.01, atol=0):
        return f"spacing {_few(grid.spacing)} mm, expected {_few(other.spacing)}"
    if not np.allclose(grid.directions, other.directions, atol=0.01):
        return f"its axes run {grid.orientation}, expected {other.orientation}, or aren't parallel to those"
    moved = np.round(other.to_index(grid.origin), 3) + 0.0
    return f"moved by {_few(moved)} voxels, expected the same affine"


def _few(values: Any) -> str:
    return "(" + ", ".join(f"{float(value):.4g}" for value in values) + ")"


def whole_numbers(array: NDArray[Any], path: Path) -> NDArray[np.int64] | NDArray[np.uint64]:
    """Classes or ids as whole numbers from 0, of the same shape: int64, or uint64 where one of them needs it.

    Floats within 0.001 of whole numbers are rounded; -1 is background, as 0 is.

    Raises:
        DataError: fractions, NaN, floats too large to tell neighbours apart, values below -1.
    """
    if array.dtype.kind == "f":
        array = _rounded(array, path)
    lowest = int(array.min()) if array.size and array.dtype.kind == "i" else 0
    if lowest < -1:
        raise DataError(
            f"{path}: label value {lowest}, expected classes or ids from 1, 0 or -1 for background (is it an image?)"
        )
    if array.dtype == np.uint64 and array.size and array.max() > _LARGEST:
        return array
    numbers = array.astype(np.int64)
    return np.maximum(numbers, 0) if lowest < 0 else numbers


def _rounded(array: NDArray[np.floating], path: Path) -> NDArray[np.int64]:
    with np.errstate(invalid="ignore"):  # an infinity isn't near to itself
        whole = np.rint(array)
        fractions = ~(np.abs(array - whole) <= _ROUNDED)
    if fractions.any():
        raise DataError(
            f"{path}: value {float(array[fractions][0]):.6g}, expected whole numbers (a class or an id per voxel; "
            "of a map of probabilities, make classes first)"
        )
    limit = 2 ** (np.finfo(array.dtype).nmant + 1)
    if array.size and np.abs(whole).max() >= limit:
        raise DataError(
            f"{path}: ids from {limit} as {array.dtype}, which can't tell them apart (save them as integers)"
        )
    return whole.astype(np.int64)


def class_numbers(array: NDArray[Any], path: Path) -> NDArray[np.int64]:
    """Whole numbers that are classes, as int64.

    Raises:
        DataError: one that only an id can be.
    """
    numbers = whole_numbers(array, path)
    if numbers.dtype == np.uint64:
        raise DataError(f"{path}: label value {int(numbers.max())}, expected a class (ids belong in instances/)")
    return numbers.astype(np.int64, copy=False)
