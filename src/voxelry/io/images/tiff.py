"""TIFF in its scientific dialects: OME-TIFF, ImageJ stacks, tifffile's own and plain pages.

A file holds one image, or `dataset` says which by number or name; pyramids are read at full resolution. How far apart
voxels are is read in `tiff_calibration`; a file that says it for some axes only is refused unless it is told the rest.
Pages without a name are planes of a volume. A picture is read as it is shown (`displayed`).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from voxelry.core.errors import FileError
from voxelry.core.space import Space
from voxelry.io.advice import choice
from voxelry.io.guard import check_numeric, check_stored
from voxelry.io.images.axes import AxisOrder, name_axes, order_axes
from voxelry.io.images.displayed import ORIENTATION_TAG, as_shown
from voxelry.io.images.record import ImageFile
from voxelry.io.images.tiff_calibration import NOTE, read_calibration
from voxelry.io.images.tiff_pages import check_pages
from voxelry.io.units import Lengths

__all__ = ["open_file", "write_file"]

_WHITE_IS_ZERO = (1.0, -1.0)  # 1 - pixel
_PHOTOMETRIC = 262  # the tag; without it black is zero
_SIGNED = (-32768.0, 1.0)  # how ImageJ calibrates signed 16-bit pixels, which it stores as unsigned ones
_EXACT = 2**53  # the largest whole number up to which float64 holds all of them
_HEADER = 8  # bytes at least, before anything else (TIFF 6.0, section 2)
_SLIDES = (
    "svs",
    "ndpi",
    "scn",
    "bif",
    "philips",
    "qpi",
    "lsm",
    "avs",
    "ets",
)  # the first series is the image, others thumbnails


def open_file(path: Path, *, dataset: str | None, channel_axis: int | None, ndim: int | None) -> ImageFile:
    """Header of a TIFF file; see `open_image` for the keywords.

    Raises:
        FileError: no pages, a size that the bytes can't hold, missing pages of a multi-file OME-TIFF.
    """
    with _complaints() as complaints, tifffile.TiffFile(path) as file:
        check_pages(path, file)
        number = _number(path, file, dataset)
        series = file.series[number].levels[0]
        lost = next((text for text in complaints if "invalid value offset" in text), None)
        if lost is not None:  # tifffile goes on without the tag, and axes or spacing are gone with it
            raise FileError(path, "is cut short: the value of a tag lies beyond its end")
        shape, letters = _stored_axes(series)
        stored = np.dtype(series.dtype)
        dtype = check_numeric(path, stored)
        _check_size(path, file, series)
        axes = _axes(path, letters, shape, ndim, channel_axis)
        order = order_axes(path, shape, axes, ndim=ndim, channel_axis=channel_axis)
        lengths = Lengths(path)
        found = read_calibration(file, number, lengths)
        orientation = series.keyframe.tags.valueof(ORIENTATION_TAG)
        values = found.values
    if values:
        dtype = np.dtype(np.int16 if stored == np.uint16 and values == _SIGNED else np.float32)
    elif stored.kind == "b" and series.keyframe.tags.valueof(_PHOTOMETRIC) == tifffile.PHOTOMETRIC.MINISWHITE:
        values = _WHITE_IS_ZERO  # as fax compression stores masks: what is white is 1, as in any other file
    worlds = {axis: "xyz"[world] for world, axis in enumerate(reversed(order.spatial))}
    untold = [letter for axis, letter in worlds.items() if letter not in found.spacing and shape[axis] > 1]
    if found.spacing and untold:
        lengths.lack(f"says how far apart voxels are along {', '.join(found.spacing)}, not along {', '.join(untold)}")
    space = order.plain_space({axis: found.spacing.get(letter, 1.0) for axis, letter in worlds.items()})
    affine = found.affine
    if affine is not None:
        axis = [index for index, letter in enumerate(axes) if letter in "zyx"]
        kept = [axis.index(index) for index in order.spatial] if len(axis) == affine.shape[1] - 1 else []
        if len(kept) == len(order.spatial):
            space = Space(order.spatial_shape, affine[:, [*kept, -1]])
        elif affine.shape[1] == space.ndim + 1:
            space = Space(order.spatial_shape, affine)
    image = ImageFile(
        path=path,
        space=space,
        channels=order.channels,
        dtype=dtype,
        format={"ome": "OME-TIFF", "imagej": "ImageJ TIFF"}.get(series.kind, "TIFF"),
        loader=partial(_load, path, number, order, values, dtype),
        has_orientation=affine is not None,
        metadata=found.metadata,
        order=None if values or number else order,  # others read the first series as it is stored
        spacing_fault=None if affine is not None else lengths.fault,
    )
    return as_shown(image, orientation)


def write_file(path: Path, array: np.ndarray, space: Space, channel_names: tuple[str, ...] | None) -> None:
    """OME-TIFF, axes `czyx` or `cyx`, zlib-compressed; float16 becomes float32, 64-bit integers int32 or float64.

    OME has no place for directions: the spacing is its PhysicalSize in mm, and the whole affine is kept in
    an annotation named `voxelry.affine`, which our reader uses.

    Raises:
        FileError: integers that no float64 holds.
    """
    if array.dtype == np.float16:
        array = array.astype(np.float32)
    if array.dtype.kind in "iu" and array.dtype.itemsize == 8:  # OME knows no 64-bit integers
        low, high = int(array.min()), int(array.max())
        if max(-low, high) > _EXACT:
            raise FileError(
                path.name, f"OME-TIFF can't hold whole numbers beyond {_EXACT}", "write .nii.gz, .mha or .zarr"
            )
        limits = np.iinfo(np.int32)
        array = array.astype(np.int32 if limits.min <= low and high <= limits.max else np.float64)
    metadata: dict[str, Any] = {
        "axes": "CZYX"[:1] + "ZYX"[-space.ndim :],
        "MapAnnotation": {"Namespace": NOTE, NOTE: json.dumps(space.affine.tolist())},
    }
    for letter, step in zip("ZYX"[-space.ndim :], space.spacing, strict=True):
        metadata[f"PhysicalSize{letter}"] = step
        metadata[f"PhysicalSize{letter}Unit"] = "mm"
    if channel_names is not None:
        metadata["Channel"] = {"Name": list(channel_names)}
    tifffile.imwrite(
        path,
        array,
        ome=True,
        photometric="minisblack",
        compression="zlib",
        metadata=metadata,
        bigtiff=array.nbytes > 2**31,
    )


class _Listener(logging.Handler):
    """Keeps what tifffile logs."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the text of one record."""
        self.messages.append(record.getMessage())


@contextmanager
def _complaints() -> Iterator[list[str]]:
    """tifffile logs faults that it works around; hear them, and let nobody else."""
    logger, listener = logging.getLogger("tifffile"), _Listener()
    before = logger.disabled, logger.propagate
    logger.disabled, logger.propagate = False, False
    logger.addHandler(listener)
    try:
        yield listener.messages
    finally:
        logger.removeHandler(listener)
        logger.disabled, logger.propagate = before


def _number(path: Path, file: tifffile.TiffFile, dataset: str | None) -> int:
    """Which series is meant: the only one that is no thumbnail, or that of this number or name."""
    if not file.pages or not file.series:
        raise FileError(path, "holds no pages")
    names = [series.name for series in file.series]
    if dataset is not None:
        numbers = [str(number) for number in range(len(names))]
        found = numbers.index(dataset) if dataset in numbers else names.index(dataset) if dataset in names else None
        if found is None:
            raise FileError(path, f"no image {dataset!r}", _choices(file))
        return found
    images = [number for number, series in enumerate(file.series) if not series.keyframe.is_reduced]
    images = [
        number for number in images if number == images[0] or not _halved(file.series[images[0]], file.series[number])
    ]
    if len(images) > 1 and file.series[0].kind not in _SLIDES:
        raise FileError(path, f"holds {len(images)} images, expected one to be chosen", _choices(file))
    return images[0] if images else 0


def _halved(series: tifffile.TiffPageSeries, other: tifffile.TiffPageSeries) -> bool:
    """Whether the other is the series' size halved once or more: a level of a pyramid that isn't marked as one."""
    if series.axes != other.axes or series.shape == other.shape:
        return False
    levels = range(1, 16)
    return any(
        all(
            small in ((size >> level, -(-size >> level)) if letter in "YX" else (size,))
            for size, small, letter in zip(series.shape, other.shape, series.axes, strict=True)
        )
        for level in levels
    )


def _choices(file: tifffile.TiffFile) -> str:
    return choice({str(number): str(series.name or series.shape) for number, series in enumerate(file.series)})


def _stored_axes(series: tifffile.TiffPageSeries) -> tuple[tuple[int, ...], str]:
    """Shape and axis letters, where the file names its axes with those of length one."""
    squeeze = series.kind not in ("ome", "imagej")
    return tuple(int(size) for size in series.get_shape(squeeze)), series.get_axes(squeeze).lower()


def _axes(path: Path, axes: str, shape: tuple[int, ...], ndim: int | None, channel_axis: int | None) -> str:
    """Name the pages that the file doesn't name: planes if the file has none, channels beyond that."""
    unnamed = [index for index, letter in enumerate(axes) if letter in "iq"]
    if "y" not in axes or "x" not in axes:
        return name_axes(path, shape, ndim=ndim, channel_axis=channel_axis)
    if not unnamed or "z" in axes or ndim == 2 or channel_axis in unnamed[-1:]:
        return axes
    return axes[: unnamed[-1]] + "z" + axes[unnamed[-1] + 1 :]


def _check_size(path: Path, file: tifffile.TiffFile, series: tifffile.TiffPageSeries) -> None:
    """Before decoding: a page may not promise more than its bytes, or the most generous compression, can give."""
    page = series.keyframe
    size = file.filehandle.size
    itemsize = np.dtype(series.dtype).itemsize
    compressed = page.compression != 1 or page.bitspersample != itemsize * 8  # packed bits become whole bytes
    check_stored(path, page.shape, itemsize, size, compressed=compressed)
    if series.dataoffset is not None:
        if series.dataoffset < _HEADER:
            raise FileError(path, "its pixels would begin inside of the file's own header")
        check_stored(path, series.shape, itemsize, size - series.dataoffset)
    if len(page.dataoffsets) == 0:
        raise FileError(path, "its first page has no pixels")


def _load(
    path: Path, number: int, order: AxisOrder, values: tuple[float, ...], dtype: np.dtype, window: tuple[slice, ...]
) -> np.ndarray:
    pixels = order.arrange(_read(path, number, order, window))
    return np.polynomial.Polynomial(values)(pixels.astype(np.float64)).astype(dtype) if values else pixels


def _read(path: Path, number: int, order: AxisOrder, window: tuple[slice, ...]) -> np.ndarray:
    index = order.index(window)
    with tifffile.TiffFile(path) as file:
        series = file.series[number].levels[0]
        if series.dataoffset is not None:
            stored = np.dtype(series.dtype).newbyteorder(file.byteorder)
            return np.array(np.memmap(path, stored, "r", offset=series.dataoffset, shape=order.shape)[index])
        return _read_pages(path, series, order.shape, index)


def _read_pages(
    path: Path, series: tifffile.TiffPageSeries, shape: tuple[int, ...], index: tuple[slice, ...]
) -> np.ndarray:
    """Decode only the pages that the window touches, one at a time."""
    count = len(series.pages)
    leading = next((axes for axes in range(len(shape) + 1) if prod(shape[:axes]) == count), None)
    if leading is None or prod(shape[leading:]) != prod(series.keyframe.shape):
        return series.asarray().reshape(shape)[index]
    outer = np.arange(count).reshape(shape[:leading])[index[:leading]]
    inner = index[leading:]
    out = np.empty((outer.size, *(part.stop - part.start for part in inner)), series.dtype)
    for slot, number in enumerate(outer.ravel()):
        page = series.pages[int(number)]
        if page is None:
            raise FileError(path, f"page {number} is missing", "a multi-file OME-TIFF needs all its files beside it")
        ends = [start + length for start, length in zip(page.dataoffsets, page.databytecounts, strict=False)]
        if max(ends, default=0) > page.parent.filehandle.size:
            raise FileError(path, f"is cut short: page {number} ends at byte {max(ends)}")
        out[slot] = page.asarray().reshape(shape[leading:])[inner]
    return out.reshape(outer.shape + out.shape[1:])
