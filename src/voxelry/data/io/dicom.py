"""DICOM: a folder that holds one series, a single slice, or a multi-frame file.

Slices are sorted by their position along the normal (DICOM PS3.3, C.7.6.2); their distance comes from the
positions, not from the thickness. A series that visits every position equally often has that many channels,
in order of instance number. DICOM's world is LPS; x and y change sign here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pydicom
from pydicom.errors import InvalidDicomError

from voxelry.core.errors import FileError
from voxelry.data.io.axes import AxisOrder, order_axes
from voxelry.data.io.dicom_pixels import components, functional, pixel_type, read_frames, stored_size
from voxelry.data.io.guard import check_stored
from voxelry.data.io.record import ImageFile

__all__ = ["open_file"]

_LPS = np.array([-1.0, -1.0, 1.0])
_TOLERANCE = 0.02  # of the distance of slices: what rounding in headers may move one
_NOT_IMAGES = {
    "1.2.840.10008.1.3.10": "a DICOMDIR index; open the folder of one series",
    "1.2.840.10008.5.1.4.1.1.66.4": "a DICOM segmentation object, whose frames are segments",
    "1.2.840.10008.5.1.4.1.1.66.7": "a DICOM label map object",
    "1.2.840.10008.5.1.4.1.1.77.1.6": "a whole-slide image, whose frames are tiles",
}


@dataclass(frozen=True)
class _Frame:
    """One plane of pixels: its file and number there, and where the header says it lies (LPS mm)."""

    file: Path
    number: int
    instance: int
    position: np.ndarray | None


def open_file(path: Path, *, dataset: str | None, channel_axis: int | None, ndim: int | None) -> ImageFile:
    """Headers of a series folder or of one file; `dataset` is the SeriesInstanceUID to take from a folder.

    Raises:
        FileError: several series to choose from, a missing or doubled slice, slices that don't belong
            together, a file without pixels (RTSTRUCT, SR, ...), fewer bytes than declared.
    """
    headers = _series(path, dataset) if path.is_dir() else [_header(path)]
    first = headers[0]
    rotation = functional(first, "PlaneOrientationSequence", "ImageOrientationPatient")
    orientation = None if rotation is None else _directions(path, rotation)
    for header in headers:
        _check_alike(path, first, header)
        _check_size(header)
    frames = [frame for header in headers for frame in _frames(header, orientation)]
    grid, step = _sort(path, frames, orientation)
    dtype = pixel_type(headers, [_count(header) for header in headers])
    shape = (len(grid), len(grid[0]), int(first.Rows), int(first.Columns), components(first))
    order = order_axes(path, shape, "zcyxs", ndim=ndim, channel_axis=channel_axis)
    rows, columns = _pixel_spacing(first)
    if orientation is None or grid[0][0].position is None:
        space = order.plain_space({2: rows, 3: columns})
    else:
        if step is None:
            thickness = float(getattr(first, "SliceThickness", None) or 1.0)
            step = np.cross(orientation[0], orientation[1]) * thickness
        steps = {0: step, 2: orientation[1] * rows, 3: orientation[0] * columns}
        space = order.space(
            {axis: steps[axis] * _LPS for axis in order.spatial}, np.asarray(grid[0][0].position) * _LPS
        )
    return ImageFile(
        path=path,
        space=space,
        channels=order.channels,
        dtype=dtype,
        format="DICOM",
        loader=partial(_load, tuple(tuple((frame.file, frame.number) for frame in row) for row in grid), order, dtype),
        has_orientation=orientation is not None and grid[0][0].position is not None,
        metadata={
            key: str(getattr(first, key))
            for key in ("Modality", "SeriesInstanceUID", "SeriesDescription", "PhotometricInterpretation", "Units")
            if getattr(first, key, None) not in (None, "")
        },
    )


def _header(path: Path) -> pydicom.Dataset:
    try:
        header = pydicom.dcmread(path, stop_before_pixels=True)
    except InvalidDicomError:
        header = pydicom.dcmread(path, stop_before_pixels=True, force=True)  # files without a preamble exist
    kind = str(getattr(header, "SOPClassUID", None) or getattr(header.file_meta, "MediaStorageSOPClassUID", ""))
    if kind in _NOT_IMAGES:
        raise FileError(path, f"is {_NOT_IMAGES[kind]}")
    if getattr(header, "Rows", None) is None or getattr(header, "Columns", None) is None:
        name = pydicom.uid.UID(kind).name if kind else "unknown type"
        raise FileError(path, f"holds no pixels ({name})")
    return header


def _series(path: Path, dataset: str | None) -> list[pydicom.Dataset]:
    """Headers of the images of one series among the files directly in a folder; other objects are passed over."""
    found: dict[str, list[pydicom.Dataset]] = {}
    for item in sorted(path.iterdir()):
        if not item.is_file():
            continue
        try:
            header = pydicom.dcmread(item, stop_before_pixels=True)
        except InvalidDicomError as error:
            if item.suffix.lower() in (".dcm", ".dicom"):
                raise FileError(item, "isn't a DICOM file, though its name says so") from error
            continue
        if getattr(header, "Rows", None) is not None and str(getattr(header, "SOPClassUID", "")) not in _NOT_IMAGES:
            found.setdefault(str(getattr(header, "SeriesInstanceUID", "")), []).append(header)
    if dataset is None and len(found) > 1:
        listed = ", ".join(f"{uid} ({len(headers)} images)" for uid, headers in list(found.items())[:5])
        raise FileError(
            path, f"holds {len(found)} series", f"choose one with dataset=SeriesInstanceUID, among {listed}"
        )
    if not found:
        raise FileError(path, "holds no DICOM images")
    if dataset is not None and dataset not in found:
        raise FileError(path, f"holds no series {dataset}", f"there are {', '.join(list(found)[:5])}")
    return found[next(iter(found)) if dataset is None else dataset]


def _check_alike(path: Path, first: pydicom.Dataset, other: pydicom.Dataset) -> None:
    for key in ("Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation"):
        if getattr(other, key, None) != getattr(first, key, None):
            raise FileError(
                path, f"slices of one series differ in {key}: {getattr(first, key, None)}, {getattr(other, key, None)}"
            )
    for key, sequence in (
        ("ImageOrientationPatient", "PlaneOrientationSequence"),
        ("PixelSpacing", "PixelMeasuresSequence"),
    ):
        one, two = functional(first, sequence, key), functional(other, sequence, key)
        if (one is None) != (two is None) or (one is not None and not np.allclose(one, two, atol=1e-3)):
            raise FileError(path, f"slices of one series differ in {key}: {one}, {two}")


def _check_size(header: pydicom.Dataset) -> None:
    """Declared pixels against the bytes of the file; compression is bounded by deflate's."""
    shape = (_count(header), int(header.Rows), int(header.Columns))
    samples, itemsize, compressed = stored_size(header)
    path = Path(header.filename)
    check_stored(path, shape, samples * itemsize, path.stat().st_size, compressed=compressed)


def _count(header: pydicom.Dataset) -> int:
    return int(getattr(header, "NumberOfFrames", None) or 1)


def _directions(path: Path, rotation: Sequence[float]) -> np.ndarray:
    """ImageOrientationPatient as two unit vectors `(2, 3)`: along a row, along a column; its digits may be few."""
    vectors = np.asarray(rotation, dtype=np.float64).reshape(2, 3)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    if not np.allclose(lengths, 1.0, atol=1e-2) or abs(vectors[0] @ vectors[1]) > 1e-2:
        raise FileError(path, f"ImageOrientationPatient isn't two orthogonal unit vectors: {vectors.ravel().tolist()}")
    return vectors / lengths


def _pixel_spacing(header: pydicom.Dataset) -> tuple[float, float]:
    """Distance of rows and of columns in mm; that on the detector where nothing better is known."""
    spacing = functional(header, "PixelMeasuresSequence", "PixelSpacing")
    for key in ("ImagerPixelSpacing", "NominalScannedPixelSpacing"):
        spacing = spacing or getattr(header, key, None)
    if not spacing:
        return 1.0, 1.0
    rows, columns = (float(step) for step in spacing)
    if not (rows > 0 and columns > 0):
        raise FileError(header.filename, f"expected a positive pixel spacing, got {rows}, {columns}")
    return rows, columns


def _frames(header: pydicom.Dataset, orientation: np.ndarray | None) -> list[_Frame]:
    file, instance = Path(header.filename), int(getattr(header, "InstanceNumber", None) or 0)
    count = _count(header)
    offsets = getattr(header, "GridFrameOffsetVector", None)
    frames = []
    for number in range(count):
        position = functional(header, "PlanePositionSequence", "ImagePositionPatient", number)
        place = None if position is None else np.asarray(position, dtype=np.float64)
        if place is not None and offsets is not None and orientation is not None and count > 1:
            shift = float(offsets[number]) - float(offsets[0])
            place = place + np.cross(orientation[0], orientation[1]) * shift
        elif count > 1 and getattr(header, "ImagePositionPatient", None) is not None:
            place = None  # one position for many frames: they are moments, not planes
        frames.append(_Frame(file, number, instance, place))
    return frames


def _sort(
    path: Path, frames: list[_Frame], orientation: np.ndarray | None
) -> tuple[list[list[_Frame]], np.ndarray | None]:
    """Frames as `[plane][channel]`, and the LPS step from plane to plane if there are two."""
    if orientation is None or any(frame.position is None for frame in frames):
        if len({frame.file for frame in frames}) > 1:
            raise FileError(path, "its slices don't say where they are (ImagePositionPatient, ImageOrientationPatient)")
        return [frames], None
    normal = np.cross(orientation[0], orientation[1])
    heights = [float(normal @ np.asarray(frame.position)) for frame in frames]
    grid: list[list[_Frame]] = []
    levels: list[float] = []
    for i in sorted(range(len(frames)), key=heights.__getitem__):
        if levels and heights[i] - levels[-1] < 1e-2:
            grid[-1].append(frames[i])
        else:
            grid.append([frames[i]])
            levels.append(heights[i])
    grid = [sorted(row, key=lambda frame: (frame.instance, frame.number)) for row in grid]
    if len({len(row) for row in grid}) > 1:
        raise FileError(path, "some slice positions occur more often than others: a slice is missing or doubled")
    if len(grid) == 1:
        return grid, None
    gaps = np.diff(levels)
    usual = float(np.median(gaps))
    worst = int(np.argmax(np.abs(gaps - usual)))
    if abs(gaps[worst] - usual) > _TOLERANCE * usual + 1e-2:
        raise FileError(
            path,
            f"slices {worst} and {worst + 1} (sorted) are {gaps[worst]:.4g} mm apart, the others {usual:.4g}",
            "a slice is missing, or the spacing is irregular",
        )
    places = np.array([row[0].position for row in grid])
    step = (places[-1] - places[0]) / (len(grid) - 1)
    stray = np.abs(places - places[0] - np.arange(len(grid))[:, None] * step).max()
    if stray > _TOLERANCE * len(grid) * usual + 1e-2:
        raise FileError(path, f"slices don't lie in a row: one is {stray:.3g} mm beside it")
    return grid, step


def _load(
    grid: tuple[tuple[tuple[Path, int], ...], ...], order: AxisOrder, dtype: np.dtype, window: tuple[slice, ...]
) -> np.ndarray:
    index = order.index(window)
    wanted = [source for row in grid[index[0]] for source in row[index[1]]]
    stack = np.empty((len(wanted), *(part.stop - part.start for part in index[2:])), dtype)
    for file in dict.fromkeys(file for file, _ in wanted):
        slots = [slot for slot, source in enumerate(wanted) if source[0] == file]
        for slot, plane in zip(slots, read_frames(file, [wanted[slot][1] for slot in slots], dtype), strict=True):
            stack[slot] = plane[index[2:]]
    return order.arrange(stack.reshape(-1, len(grid[0]), *stack.shape[1:]))
