"""DICOM: a folder that holds one series, a single slice, or a multi-frame file.

Where its frames lie, and which of them share a grid, `dicom_geometry` finds out: slices are sorted by their position
along the normal, their distance comes from the positions, not from the thickness. A series that visits every position
equally often has that many channels (`dicom_channels`). Frames that can't lie on one grid are stacks, of
which one is chosen. DICOM's world is LPS; x and y change sign here.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from math import prod
from pathlib import Path

import numpy as np
import pydicom
from pydicom.errors import InvalidDicomError

from voxelry.core.errors import FileError
from voxelry.core.space import Space
from voxelry.io.advice import way_to_say
from voxelry.io.guard import check_stored
from voxelry.io.images import dicom_seg
from voxelry.io.images.axes import AxisOrder, order_axes
from voxelry.io.images.dicom_geometry import (
    Frame,
    Grid,
    arrange,
    differences,
    frame_count,
    frames_of,
    plane_name,
    split_stacks,
    untold,
)
from voxelry.io.images.dicom_pixels import components, pixel_type, read_frames, stored_size
from voxelry.io.images.dicom_values import functional
from voxelry.io.images.record import ImageFile
from voxelry.io.units import Lengths

__all__ = ["open_file"]

_LPS = np.array([-1.0, -1.0, 1.0])
_NOT_IMAGES = {
    "1.2.840.10008.1.3.10": "a DICOMDIR index; open the folder of one series",
    "1.2.840.10008.5.1.4.1.1.66.4": "a DICOM segmentation object, whose frames are segments",
    "1.2.840.10008.5.1.4.1.1.66.7": "a DICOM label map object",
    "1.2.840.10008.5.1.4.1.1.77.1.6": "a whole-slide image, whose frames are tiles; export the region as OME-TIFF,"
    " such as by QuPath",
}


def open_file(
    path: Path, *, dataset: str | None, channel_axis: int | None, ndim: int | None, stack: int | None = None
) -> ImageFile:
    """Headers of a series folder or of one file; `dataset` is the SeriesInstanceUID to take from a folder.

    Raises:
        FileError: several series or stacks to choose from, a missing or doubled slice, frames that don't say whether
            they are planes or moments, a file without pixels (RTSTRUCT, SR, ...), fewer bytes than declared.
    """
    if dicom_seg.segmentation_file(path) is not None:  # made of frames in another way than images are
        return dicom_seg.open_file(path, dataset=dataset, channel_axis=channel_axis, ndim=ndim)
    headers = _series(path, dataset) if path.is_dir() else [_header(path)]
    for header in headers:
        _check_size(header)
        _check_mosaic(header)
    told = ndim is not None or not any(untold(header) for header in headers)
    apart = 1.0 if ndim == 3 else 0.0
    frames = _stack(path, [frame for header in headers for frame in frames_of(header, apart=apart)], stack)
    first = frames[0]
    if not told:
        raise _untold(path, first)
    grid = arrange(path, frames)
    dtype = pixel_type([(frame.header, frame.number) for frame in frames])
    shape = (
        len(grid.frames),
        len(grid.frames[0]),
        int(first.header.Rows),
        int(first.header.Columns),
        components(first.header),
    )
    order = order_axes(path, shape, "zcyxs", ndim=ndim, channel_axis=channel_axis)
    lengths = Lengths(path)
    if first.doubt:
        lengths.lack(first.doubt)
    if first.spacing is None and grid.step is not None:
        lengths.lack("says how far apart its planes are, not its rows and columns (PixelSpacing)")
    if ndim == 3 and untold(first.header) and len(grid.frames) > 1:
        lengths.lack("doesn't say how far apart its frames are")
    sources = tuple(tuple((frame.file, frame.number) for frame in row) for row in grid.frames)
    return ImageFile(
        path=path,
        space=_space(grid, order),
        channels=order.channels,
        dtype=dtype,
        format="DICOM",
        loader=partial(_load, sources, order, dtype),
        has_orientation=grid.first.position is not None,
        metadata={**_metadata(first.header), **_windows(frames[len(frames) // 2])},
        spacing_fault=lengths.fault,
    )


def _stack(path: Path, frames: list[Frame], stack: int | None) -> list[Frame]:
    """Frames that share a grid: all of them, or those of the stack that was chosen."""
    stacks = split_stacks(frames)
    if stack is not None:
        if isinstance(stack, bool) or not isinstance(stack, int) or not 0 <= stack < len(stacks):
            raise FileError(path, f"has no stack {stack!r}", f"there are {len(stacks)}, counted from 0")
        return stacks[stack]
    if len(stacks) == 1:
        return stacks[0]
    keys = ", ".join(differences(stacks[0][0], stacks[1][0]))
    listed = ", ".join(
        f"{number} ({len(part)} frames of {part[0].size[0]} x {part[0].size[1]}, {plane_name(part[0])})"
        for number, part in enumerate(stacks[:5])
    )
    more = f", ... {len(stacks) - 1}" if len(stacks) > 5 else ""
    raise FileError(
        path,
        f"its frames lie on {len(stacks)} grids: they differ in {keys}",
        f"choose a stack by its number: {way_to_say(stack=0)}; there are {listed}{more}",
    )


def _untold(path: Path, first: Frame) -> FileError:
    rows, columns = first.spacing or (1.0, 1.0)
    planes, channels = way_to_say(ndim=3, spacing=[1, rows, columns]), way_to_say(ndim=2)
    return FileError(
        path,
        f"doesn't say whether its {frame_count(first.header)} frames are planes or moments, or how far apart they are",
        f"of planes, if they are 1 mm apart, {planes}; of channels {channels}",
    )


def _space(grid: Grid, order: AxisOrder) -> Space:
    first = grid.first
    rows, columns = first.spacing or (1.0, 1.0)
    thickness = grid.gap or _thickness(first)
    if first.orientation is None or first.position is None:
        return order.plain_space({0: thickness, 2: rows, 3: columns})
    step = first.normal * thickness if grid.step is None else grid.step
    steps = {0: step, 2: first.orientation[1] * rows, 3: first.orientation[0] * columns}
    return order.space({axis: steps[axis] * _LPS for axis in order.spatial}, first.position * _LPS)


def _thickness(frame: Frame) -> float:
    """What a single plane is taken to be thick, in mm."""
    thickness = functional(frame.header, "PixelMeasuresSequence", "SliceThickness", frame.number)
    return abs(float(thickness or 0.0)) or 1.0


def _metadata(header: pydicom.Dataset) -> dict[str, str]:
    keys = ("Modality", "SeriesInstanceUID", "SeriesDescription", "PhotometricInterpretation", "Units", "DoseUnits")
    return {key: str(getattr(header, key)) for key in keys if getattr(header, key, None) not in (None, "")}


def _windows(frame: Frame) -> dict[str, list[tuple[float, float, str]]]:
    """The windows that a plane is to be looked at in, `(low, high, explanation)` each; nothing where it says none.

    DICOM PS3.3, C.11.2.1.2; half of the width on either side of the centre.
    """
    found = [
        functional(frame.header, "FrameVOILUTSequence", key, frame.number)
        for key in ("WindowCenter", "WindowWidth", "WindowCenterWidthExplanation")
    ]
    centres, widths, names = ([] if one is None else [one] if isinstance(one, str | float) else [*one] for one in found)
    windows = [
        (float(centre) - float(width) / 2, float(centre) + float(width) / 2, str(name))
        for centre, width, name in zip(centres, widths, [*names, *[""] * len(centres)], strict=False)
        if np.isfinite([float(centre), float(width)]).all() and float(width) > 0
    ]
    return {"windows": windows} if windows else {}


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
    objects: dict[str, pydicom.Dataset] = {}
    others: dict[str, int] = {}
    for item in sorted(path.iterdir()):
        if not item.is_file() or item.name.startswith("."):  # such as the `._` notes that macOS leaves
            continue
        header = _member(item)
        if header is None:
            continue
        kind = str(getattr(header, "SOPClassUID", ""))
        if getattr(header, "Rows", None) is not None and kind not in _NOT_IMAGES:
            uid = str(header.get("SOPInstanceUID") or item)
            if not _is_copy(header, objects.get(uid)):
                found.setdefault(str(getattr(header, "SeriesInstanceUID", "")), []).append(header)
            objects.setdefault(uid, header)
        elif kind:
            name = pydicom.uid.UID(kind).name
            others[name] = others.get(name, 0) + 1
    if dataset is None and len(found) > 1:
        listed = ", ".join(f"{uid} ({_counted(headers)})" for uid, headers in list(found.items())[:5])
        way = way_to_say(dataset=next(iter(found)))
        raise FileError(path, f"holds {len(found)} series", f"choose one by its UID: {way}; there are {listed}")
    if not found:
        beside = ", ".join(f"{count} x {name}" for name, count in others.items())
        raise FileError(path, "holds no DICOM images" + (f", but {beside}" if beside else ""))
    if dataset is not None and dataset not in found:
        raise FileError(path, f"holds no series {dataset}", f"there are {', '.join(list(found)[:5])}")
    return found[next(iter(found)) if dataset is None else dataset]


def _member(item: Path) -> pydicom.Dataset | None:
    """The header of a file in a series folder; None for files that aren't DICOM and don't claim to be."""
    try:
        return pydicom.dcmread(item, stop_before_pixels=True)
    except InvalidDicomError as error:
        if item.suffix.lower() not in (".dcm", ".dicom"):
            return None
        header = pydicom.dcmread(item, stop_before_pixels=True, force=True)  # files without a preamble exist
        if "SOPClassUID" not in header:
            raise FileError(item, "isn't a DICOM file, though its name says so") from error
        return header


def _is_copy(header: pydicom.Dataset, other: pydicom.Dataset | None) -> bool:
    """Whether two files hold the same object; a UID alone proves nothing, as some programs repeat it."""
    if other is None or Path(header.filename).stat().st_size != Path(other.filename).stat().st_size:
        return False
    return bool(header == other)


def _counted(headers: Sequence[pydicom.Dataset]) -> str:
    told = (f"{len(headers)} images", headers[0].get("Modality"), headers[0].get("SeriesDescription"))
    return ", ".join(str(part) for part in told if part)


def _check_size(header: pydicom.Dataset) -> None:
    """Declared pixels against the bytes of the file; compression is bounded by deflate's."""
    samples, bits, compressed = stored_size(header)
    shape: tuple[int, ...] = (frame_count(header), int(header.Rows), int(header.Columns), samples)
    path = Path(header.filename)
    if bits < 8 and 0 not in shape:  # single bits are packed, across rows and frames
        shape, bits = ((prod(shape) * bits + 7) // 8,), 8
    check_stored(path, shape, bits // 8, path.stat().st_size, compressed=compressed)


def _check_mosaic(header: pydicom.Dataset) -> None:
    """Refuse slices tiled into one plane; enhanced objects may keep the word though their frames are whole."""
    if "MOSAIC" in (header.get("ImageType") or ()) and frame_count(header) == 1 and "Enhanced" not in _kind(header):
        count = header.get((0x0019, 0x100A))
        raise FileError(
            header.filename,
            f"is a mosaic of {count.value if count is not None else 'several'} slices tiled in one plane (ImageType)",
            "convert it to NIfTI first, such as by dcm2niix, which knows where Siemens keeps the slices' places",
        )


def _kind(header: pydicom.Dataset) -> str:
    return str(pydicom.uid.UID(str(header.get("SOPClassUID", ""))).name)


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
