"""Landmark files: one way in, one way out, whatever the format.

| format | file | coordinates | names |
|---|---|---|---|
| `txt` | the originals': count, then `x y z` | normalised; needs the image's grid | no |
| `csv` | table with a header | told by a column, a comment or the columns' names | yes |
| `json` | our schema, simple lists | told by `coordinateSystem` | yes |
| `mrk.json` | Slicer Markups | LPS or RAS mm, the file says | yes |
| `fcsv` | Slicer fiducials | LPS, RAS or IJK, the file says | yes |
| `pts` | ITK / elastix, also as .txt | `point` (LPS mm) or `index` | no |
| `roi`, `zip` | points of ImageJ and Fiji, read only | index | yes |

A file that does not say what its coordinates are is an error that says what to set. Other packages add formats through
entry points that are named by the suffix without its dot, `vtk = "my_package:VTK"` in the group
`voxelry.point_formats`: a `PointFormat`.
"""

from __future__ import annotations

import io
from os import PathLike
from pathlib import Path

from voxelry.core.atomic import replacing
from voxelry.core.choice import check_choice
from voxelry.core.errors import FileError
from voxelry.core.registry import Registry
from voxelry.core.remote import as_path
from voxelry.core.space import Space
from voxelry.io.points.format import PointFormat
from voxelry.io.points.landmark_set import COORDINATE_SYSTEMS, ROUNDING, LandmarkSet, from_world, to_world

__all__ = ["POINT_FORMATS", "POINT_OPTIONS", "LandmarkSet", "landmark_format", "read_landmarks", "write_landmarks"]

POINT_FORMATS: Registry[PointFormat] = Registry(
    "point_formats",
    "format",
    {
        "mrk.json": "voxelry.io.points.json:MARKUPS",
        "fcsv": "voxelry.io.points.slicer:FCSV",
        "csv": "voxelry.io.points.csv:CSV",
        "json": "voxelry.io.points.json:JSON",
        "txt": "voxelry.io.points.text:ORIGINAL",
        "pts": "voxelry.io.points.text:ELASTIX",
        "roi": "voxelry.io.points.roi:ROI",
        "zip": "voxelry.io.points.roi:ROI_SET",
    },
)
"""Formats of points by suffix, without its dot."""

POINT_OPTIONS = ("axis_order", "coordinate_system", "unit")
"""What `read_landmarks` can be told beside the path and the image's grid."""

_MOST_BYTES = 64 << 20  # a million points; anything larger is no landmark file


def landmark_format(path: str | PathLike[str]) -> str | None:
    """The format that a file's name stands for, one of `POINT_FORMATS`, or None."""
    name = as_path(path).name.lower()
    if name.endswith(".tsv"):
        return "csv"
    return max((one for one in POINT_FORMATS if name.endswith(f".{one}")), key=len, default=None)


def read_landmarks(
    path: str | PathLike[str],
    *,
    space: Space | None = None,
    axis_order: str = "xyz",
    coordinate_system: str = "auto",
    unit: str = "mm",
    format: str | None = None,
) -> LandmarkSet:
    """Read named points into world RAS mm.

    Args:
        path: the file; its format is told by its name, and for `.txt` by its first word.
        space: the grid of the image the points belong to; needed for normalised and index coordinates.
        axis_order: `xyz`: index and normalised coordinates begin with the last array axis, as the originals'
            do; `zyx`: with the first. World coordinates and columns that name their axis don't ask.
        coordinate_system: `auto` takes what the file says; `RAS`, `LPS` (mm), `index`, `normalised` (index /
            size) or `scaled` (index * spacing) say it for files that don't, and overrule those that do.
        unit: unit of `RAS`, `LPS` and `scaled` coordinates where the file doesn't say it, such as `um`.
        format: one of `POINT_FORMATS`, instead of the file's name.

    Raises:
        FileError: unreadable, malformed, or it can't be known what its coordinates are; names the line.
        SettingError: an unknown option.
    """
    path = as_path(path)
    check_choice("axis_order", axis_order, ("xyz", "zyx"))
    check_choice("coordinate_system", coordinate_system, ("auto", *COORDINATE_SYSTEMS))
    chosen = POINT_FORMATS[_format_of(path, format)]
    found = chosen.parse(path, _content(path) if chosen.binary else _text(path), coordinate_system)
    return to_world(path, found, space=space, coordinate_system=coordinate_system, axis_order=axis_order, unit=unit)


def write_landmarks(
    path: str | PathLike[str],
    landmarks: LandmarkSet,
    *,
    space: Space | None = None,
    format: str | None = None,
    coordinate_system: str | None = None,
    axis_order: str = "xyz",
) -> Path:
    """Write named points; the file appears whole or not at all.

    Absent points (NaN) are kept: `nan` in text and tables, without a position in JSON and Slicer's formats.
    Coordinates keep twelve digits. `txt` and `pts` hold no names and no extras.

    Args:
        path: where to; folders on the way are made.
        landmarks: the points.
        space: the grid of their image; needed for `txt` and for index coordinates, adds index columns to `csv`.
        format: one of `POINT_FORMATS`; by default the file's name tells.
        coordinate_system: LPS for Slicer's and ITK's files and RAS for `csv` and `json` unless set.
        axis_order: as in `read_landmarks`.

    Raises:
        FileError: it can't be written, or a point outside the image in the originals' `txt`.
        SettingError: an unknown option, a system that the format doesn't have, or no `space` where needed.
    """
    path = as_path(path)
    check_choice("axis_order", axis_order, ("xyz", "zyx"))
    name = _format_of(path, format)
    chosen = POINT_FORMATS[name]
    if chosen.format is None:
        written = [one for one in POINT_FORMATS if POINT_FORMATS[one].format is not None]
        raise FileError(path, f"{name} is read only", f"write one of .{', .'.join(written)}")
    system = coordinate_system or chosen.systems[0]
    check_choice(f"coordinate_system of {name}", system, chosen.systems)
    if chosen.inside:
        points = from_world(landmarks, system, space=space, axis_order=axis_order)
        outside = (abs(points - points.clip(0, 1)) > ROUNDING).any(axis=1)
        if outside.any():
            first = landmarks.names[int(outside.argmax())]
            raise FileError(
                path, f"{first!r} lies outside the image, which {name} can't say", "write mrk.json, fcsv or csv"
            )
    text = chosen.format(landmarks, system, space=space, axis_order=axis_order)
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8", newline="\n")
    return path


def _format_of(path: Path, named: str | None) -> str:
    found = landmark_format(path) if named is None else named.lower().removeprefix(".")
    if found is None:
        raise FileError(path, "unknown landmark format", f"expected one of .{', .'.join(POINT_FORMATS)}")
    return found


def _content(path: Path) -> bytes:
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise FileError(path, f"is larger than {_MOST_BYTES >> 20} MiB, so no landmark file")
        return path.read_bytes()
    except FileNotFoundError:
        raise FileError(path, "no such file") from None
    except OSError as error:
        raise FileError(path, f"can't be read: {error.strerror or error}") from None


def _text(path: Path) -> str:
    try:
        return io.TextIOWrapper(io.BytesIO(_content(path)), encoding="utf-8-sig").read()
    except UnicodeDecodeError:
        raise FileError(path, "is no UTF-8 text", "save it as UTF-8") from None
