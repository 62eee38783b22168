"""DICOM segmentations (PS3.3, A.51 and C.8.20): frames of segments, scattered over the planes of an image.

Binary frames hold one segment each, fractional ones its share of a voxel (one half and more counts), label maps all
segments at once. Planes without a frame are background. DICOM's world is LPS; x and y change sign here.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.errors import InvalidDicomError

from voxelry.core.errors import FileError
from voxelry.io.guard import check_stored
from voxelry.io.images.axes import AxisOrder, order_axes
from voxelry.io.images.record import ImageFile
from voxelry.io.images.segments import Segment, chosen_segments, merged

__all__ = ["open_file", "segmentation_file"]

_LPS = np.array([-1.0, -1.0, 1.0])
_CLASSES = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")
_NEAR = 0.05  # of the distance of planes: what rounding in the header may move one


@dataclass(frozen=True)
class _Frames:
    """Plane and segment number (0 for all of them) of each frame, and the geometry of the planes in LPS mm."""

    planes: NDArray[np.int64]
    segments: tuple[int, ...]
    origin: NDArray[np.float64]
    step: NDArray[np.float64]


def segmentation_file(path: Path) -> Path | None:
    """The segmentation that a path is, or that lies alone in a folder; None for any other DICOM object."""
    if path.is_dir():
        files = [item for item in path.iterdir() if item.is_file() and not item.name.startswith(".")]
        return segmentation_file(files[0]) if len(files) == 1 else None
    try:
        header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=["SOPClassUID"])
    except (InvalidDicomError, OSError):
        return None
    return path if str(header.get("SOPClassUID", "")) in _CLASSES else None


def open_file(path: Path, *, dataset: str | None, channel_axis: int | None, ndim: int | None) -> ImageFile:
    """Header of a segmentation; `dataset` names segments, see `segments.chosen_segments`.

    Raises:
        FileError: no place in the world, planes that aren't parallel and evenly apart, unknown kinds of segments.
    """
    found = segmentation_file(path)
    assert found is not None  # or another reader would have been asked
    header = pydicom.dcmread(found, stop_before_pixels=True)
    kind = str(header.get("SegmentationType", "BINARY")).upper()
    if kind not in ("BINARY", "FRACTIONAL", "LABELMAP"):
        raise FileError(path, f"unknown segmentation type {kind}", "BINARY, FRACTIONAL or LABELMAP")
    if not header.get("SegmentSequence"):
        raise FileError(path, "is a segmentation without segments (SegmentSequence)")
    listed = [item for item in header.SegmentSequence if int(item.SegmentNumber) > 0]
    names = [str(item.get("SegmentLabel", "")) or f"segment {item.SegmentNumber}" for item in listed]
    numbers = [int(item.SegmentNumber) for item in listed]
    segments = chosen_segments(path, names, numbers, dataset)
    rows, columns, sides = _plane(path, header)
    frames = _frames(path, header, np.cross(sides[0], sides[1]), kind)
    shape = (int(frames.planes.max()) + 1, int(header.Rows), int(header.Columns))
    bits = int(header.BitsAllocated)
    size = max(1, len(frames.planes) * shape[1] * shape[2] * bits // 8)
    check_stored(path, (size,), 1, found.stat().st_size, compressed=True)
    order = order_axes(path, shape, "zyx", ndim=ndim, channel_axis=channel_axis)
    steps = {0: frames.step, 1: sides[1] * rows, 2: sides[0] * columns}
    kept = {numbers[segment.place]: segment for segment in segments}
    return ImageFile(
        path=path,
        space=order.space({axis: steps[axis] * _LPS for axis in order.spatial}, frames.origin * _LPS),
        channels=1,
        dtype=np.dtype(np.int32),
        format="DICOM segmentation",
        loader=partial(_load, found, order, frames, kept),
        has_orientation=True,
        metadata={
            "Modality": "SEG",
            "segments": {segment.name: segment.number for segment in segments},
            "segment_names": names,
        },
    )


def _group(header: pydicom.Dataset, number: int, sequence: str, field: str) -> Any:
    """A field of a functional group: of one frame, or else shared by all."""
    groups = [*header.get("PerFrameFunctionalGroupsSequence", [])[number : number + 1]]
    for group in [*groups, *header.get("SharedFunctionalGroupsSequence", [])]:
        for item in group.get(sequence, []):
            if item.get(field) is not None:
                return item.get(field)
    return None


def _plane(path: Path, header: pydicom.Dataset) -> tuple[float, float, NDArray[np.float64]]:
    """Row and column spacing, and the directions along columns and rows, which all frames share."""
    count = int(header.get("NumberOfFrames", 1))
    sides = [_group(header, number, "PlaneOrientationSequence", "ImageOrientationPatient") for number in range(count)]
    steps = [_group(header, number, "PixelMeasuresSequence", "PixelSpacing") for number in range(count)]
    if not sides or None in sides or None in steps:
        raise FileError(path, "doesn't say where its frames lie", "expected orientation and pixel spacing of each")
    directions, spacing = np.array(sides, np.float64), np.array(steps, np.float64)
    if np.abs(directions - directions[0]).max() > 1e-3 or (np.ptp(spacing, axis=0) > 1e-3 * spacing[0]).any():
        raise FileError(path, "its frames don't lie in parallel planes of one pixel spacing")
    return float(spacing[0, 0]), float(spacing[0, 1]), directions[0].reshape(2, 3)


def _frames(path: Path, header: pydicom.Dataset, normal: NDArray[np.float64], encoding: str) -> _Frames:
    count = int(header.get("NumberOfFrames", 1))
    told = [_group(header, number, "PlanePositionSequence", "ImagePositionPatient") for number in range(count)]
    owners = [
        0 if encoding == "LABELMAP" else _group(header, n, "SegmentIdentificationSequence", "ReferencedSegmentNumber")
        for n in range(count)
    ]
    if None in told or None in owners:
        raise FileError(path, "doesn't say which segment and plane each of its frames is")
    positions = np.array(told, np.float64)
    heights = positions @ normal
    first = positions[int(heights.argmin())]
    gap = _gap(header, heights)
    planes = np.rint((heights - heights.min()) / gap)
    aside = positions - first - np.outer(heights - heights.min(), normal)
    uneven = np.abs((heights - heights.min()) / gap - planes).max() > _NEAR
    if uneven or np.abs(aside).max() > _NEAR * gap:
        raise FileError(path, "its planes aren't evenly apart on one line")
    return _Frames(planes.astype(np.int64), tuple(int(owner) for owner in owners), first, normal * gap)


def _gap(header: pydicom.Dataset, heights: NDArray[np.float64]) -> float:
    """mm between planes: as the file says, or the least distance of two frames, of which others are multiples."""
    told = [_group(header, 0, "PixelMeasuresSequence", field) for field in ("SpacingBetweenSlices", "SliceThickness")]
    apart = np.diff(np.unique(heights))
    apart = apart[apart > 1e-3 * max(apart.max(), 0)] if len(apart) else apart
    for value in told:
        gap = abs(float(value or 0))
        if gap and (not len(apart) or np.abs(apart / gap - np.rint(apart / gap)).max() <= _NEAR):
            return gap
    return float(apart.min()) if len(apart) else 1.0


def _load(
    path: Path, order: AxisOrder, frames: _Frames, kept: dict[int, Segment], window: tuple[slice, ...]
) -> np.ndarray:
    header = pydicom.dcmread(path)
    pixels = header.pixel_array
    pixels = pixels.reshape(-1, *pixels.shape[-2:])
    least = 1.0
    if str(header.get("SegmentationType", "")).upper() == "FRACTIONAL":
        least = int(header.get("MaximumFractionalValue", 255)) / 2
    labels = np.zeros(order.shape, np.int32)

    def parts() -> Any:
        for frame, plane, owner in zip(pixels, frames.planes.tolist(), frames.segments, strict=True):
            for number, segment in kept.items():
                if owner in (0, number):
                    mask = frame == number if owner == 0 else frame >= least
                    yield segment, (slice(plane, plane + 1),), mask[None]

    merged(path, parts(), labels)
    return order.arrange(labels[order.index(window)])
