"""Point selections of ImageJ and Fiji: a `.roi` file, and the `.zip` that the ROI Manager saves.

The layout is that of ImageJ's class RoiDecoder: a header of 64 big-endian bytes, integer coordinates, floating ones
where an option says so, and a second header with the position in the stack, the name and the counters of a
multi-point selection. Points are pixels, with the centre of a pixel at integers (ImageJ's convention for points).
"""

from __future__ import annotations

import io
import struct
import zipfile
from dataclasses import dataclass
from os import PathLike

import numpy as np

from voxelry.core.errors import FileError
from voxelry.io.points.format import PointFormat
from voxelry.io.points.landmark_set import FilePoints, Floats

__all__ = ["ROI", "ROI_SET", "parse_roi", "parse_roi_set"]

_KINDS = (
    "polygon",
    "rectangle",
    "oval",
    "line",
    "freeline",
    "polyline",
    "none",
    "freehand",
    "traced",
    "angle",
    "point",
)
_POINT = 10
_HEADER = 64
_FLOATING = 128  # option: floating coordinates follow the integer ones
_FIRST_FLOATING = 222  # version
_LARGEST = 64 << 20


@dataclass(frozen=True)
class _Selection:
    """One selection: `(N, 2)` x, y in pixels, the plane of each from 1 (0 where it isn't told), and its name."""

    points: Floats
    planes: list[int]
    name: str


def parse_roi(path: str | PathLike[str], data: bytes) -> FilePoints:
    """The points of one selection; several are numbered.

    Raises:
        FileError: no ROI file, cut short, or a selection that isn't made of points.
    """
    return _joined(path, [_decode(path, data, "")])


def parse_roi_set(path: str | PathLike[str], data: bytes) -> FilePoints:
    """The points of all selections of a ROI Manager's file, in its order.

    Raises:
        FileError: no zip file, no selections in it, or one that isn't made of points.
    """
    selections = []
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            for entry in archive.infolist():
                if not entry.filename.lower().endswith(".roi"):
                    continue
                if entry.file_size > _LARGEST:
                    raise FileError(path, f"{entry.filename} declares {entry.file_size} bytes, too many for points")
                selections.append(_decode(path, archive.read(entry), entry.filename))
    except (zipfile.BadZipFile, zipfile.LargeZipFile, NotImplementedError, RuntimeError, EOFError) as error:
        raise FileError(path, f"is no set of ImageJ's selections: {error}") from None
    if not selections:
        raise FileError(path, "holds no selections", "expected the .roi files that ImageJ's ROI Manager saves")
    return _joined(path, selections)


def _decode(path: str | PathLike[str], data: bytes, entry: str) -> _Selection:
    place = f"{entry}: " if entry else ""
    try:
        return _selection(path, data, place, entry)
    except struct.error:
        raise FileError(path, f"{place}is cut short") from None


def _selection(path: str | PathLike[str], data: bytes, place: str, entry: str) -> _Selection:
    if data[:4] != b"Iout":
        raise FileError(path, f"{place}doesn't begin with Iout, so it is no ImageJ selection")
    version, kind = struct.unpack_from(">hB", data, 4)
    if kind != _POINT:
        name = _KINDS[kind] if kind < len(_KINDS) else str(kind)
        raise FileError(path, f"{place}is a selection of type {name}, expected points", "use the point tools")
    top, left = struct.unpack_from(">hh", data, 8)
    (count,) = struct.unpack_from(">H", data, 16)
    if count == 0:  # more than 65535 points
        (count,) = struct.unpack_from(">i", data, 18)
    (options,) = struct.unpack_from(">h", data, 50)
    position, second = struct.unpack_from(">ii", data, 56)
    start = _HEADER + 4 * count
    if options & _FLOATING and version >= _FIRST_FLOATING:
        rows = struct.unpack_from(f">{2 * count}f", data, start)
        points = np.array(rows, dtype=np.float64).reshape(2, count).T
    else:
        rows = struct.unpack_from(f">{2 * count}h", data, _HEADER)
        points = np.array(rows, dtype=np.float64).reshape(2, count).T + np.array([left, top])
    if not np.isfinite(points).all():
        raise FileError(path, f"{place}expected finite coordinates")
    name, planes = entry.rpartition("/")[2].removesuffix(".roi"), [position] * count
    if second > 0:
        stacked, at, length = (
            struct.unpack_from(">iii", data, second + 8)[0],
            *struct.unpack_from(">ii", data, second + 16),
        )
        if stacked > 0:
            planes = [stacked] * count
        if at > 0 and length > 0:
            raw = struct.unpack_from(f">{2 * length}s", data, at)[0]
            name = raw.decode("utf-16-be", "replace")
        (counters,) = struct.unpack_from(">i", data, second + 48) if len(data) >= second + 52 else (0,)
        if counters > 0:
            own = [value >> 8 & 0xFFFFFF for value in struct.unpack_from(f">{count}i", data, counters)]
            planes = [plane or fallback for plane, fallback in zip(own, planes, strict=True)]
    return _Selection(points, planes, name)


def _joined(path: str | PathLike[str], selections: list[_Selection]) -> FilePoints:
    points = np.concatenate([selection.points for selection in selections])
    planes = [plane for selection in selections for plane in selection.planes]
    names, where = [], []
    for selection in selections:
        several = len(selection.points) > 1
        for number in range(1, len(selection.points) + 1):
            names.append(f"{selection.name}_{number}" if several and selection.name else selection.name)
            where.append(f"{selection.name}, point {number}" if selection.name else f"point {number}")
    if any(planes) and not all(planes):
        row = planes.index(0)
        raise FileError(
            path, f"{where[row]}: lies on no plane of the stack, but others do", "set its position in ImageJ"
        )
    if any(planes):
        points = np.column_stack([points, np.array(planes, dtype=np.float64) - 1])
    return FilePoints(points, "index", tuple(names) if all(names) else (), where=tuple(where), planes=any(planes))


ROI = PointFormat(lambda path, data, _: parse_roi(path, data), binary=True)
ROI_SET = PointFormat(lambda path, data, _: parse_roi_set(path, data), binary=True)
