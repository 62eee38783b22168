"""Landmark files: one way in, one way out, whatever the format.

| format | file | coordinates | names |
|---|---|---|---|
| `txt` | the seed's: count, then `x y z` | normalised; needs the image's grid | no |
| `csv` | table with a header | told by a column, a comment or the columns' names | yes |
| `json` | our schema, simple lists | told by `coordinateSystem` | yes |
| `mrk.json` | Slicer Markups | LPS or RAS mm, the file says | yes |
| `fcsv` | Slicer fiducials | LPS, RAS or IJK, the file says | yes |
| `pts` | ITK / elastix, also as .txt | `point` (LPS mm) or `index` | no |
| `roi`, `zip` | points of ImageJ and Fiji, read only | index | yes |

A file that does not say what its coordinates are is an error that says what to set.
"""

from __future__ import annotations

import io
import json
from os import PathLike
from pathlib import Path

from voxelry.core.atomic import replacing
from voxelry.core.errors import FileError, SettingError
from voxelry.core.space import Space
from voxelry.io.points.csv import format_csv, parse_csv
from voxelry.io.points.json import format_json, parse_json
from voxelry.io.points.landmark_set import COORDINATE_SYSTEMS, ROUNDING, FilePoints, LandmarkSet, from_world, to_world
from voxelry.io.points.roi import parse_roi, parse_roi_set
from voxelry.io.points.slicer import format_fcsv, format_markups, parse_fcsv
from voxelry.io.points.text import format_elastix, format_seed, is_elastix, parse_elastix, parse_seed

__all__ = ["LANDMARK_FORMATS", "POINT_OPTIONS", "LandmarkSet", "landmark_format", "read_landmarks", "write_landmarks"]

# format -> the coordinate systems it can hold, the first being what is written when nothing is said
_SYSTEMS = {
    "mrk.json": ("LPS", "RAS"),
    "fcsv": ("LPS", "RAS"),
    "csv": ("RAS", "LPS", "index", "normalised"),
    "json": ("RAS", "LPS", "index", "normalised"),
    "txt": ("normalised",),
    "pts": ("LPS", "index"),
}
_BINARY = {"roi": parse_roi, "zip": parse_roi_set}
LANDMARK_FORMATS = (*_SYSTEMS, *_BINARY)
POINT_OPTIONS = ("axis_order", "coordinate_system", "unit")
"""What `read_landmarks` can be told beside the path and the image's grid."""

_MOST_BYTES = 64 << 20  # a million points; anything larger is no landmark file


def landmark_format(path: str | PathLike[str]) -> str | None:
    """The format that a file's name stands for, one of `LANDMARK_FORMATS`, or None."""
    name = Path(path).name.lower()
    if name.endswith(".tsv"):
        return "csv"
    return next((fmt for fmt in LANDMARK_FORMATS if name.endswith(f".{fmt}")), None)


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
        axis_order: `xyz`: index and normalised coordinates begin with the last array axis, as the seed's
            do; `zyx`: with the first. World coordinates and columns that name their axis don't ask.
        coordinate_system: `auto` takes what the file says; `RAS`, `LPS` (mm), `index`, `normalised` (index /
            size) or `scaled` (index * spacing) say it for files that don't, and overrule those that do.
        unit: unit of `RAS`, `LPS` and `scaled` coordinates where the file doesn't say it, such as `um`.
        format: one of `LANDMARK_FORMATS`, instead of the file's name.

    Raises:
        FileError: unreadable, malformed, or it can't be known what its coordinates are; names the line.
        SettingError: an unknown option.
    """
    path = Path(path)
    _check_option("axis_order", axis_order, ("xyz", "zyx"))
    _check_option("coordinate_system", coordinate_system, ("auto", *COORDINATE_SYSTEMS))
    kind = _format_of(path, format)
    if kind in _BINARY:
        found = _BINARY[kind](path, _content(path))
    else:
        found = _parse(path, _text(path), kind, coordinate_system)
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
        format: one of `LANDMARK_FORMATS`; by default the file's name tells.
        coordinate_system: LPS for Slicer's and ITK's files and RAS for `csv` and `json` unless set.
        axis_order: as in `read_landmarks`.

    Raises:
        FileError: it can't be written, or a point outside the image in the seed's `txt`.
        SettingError: an unknown option, a system that the format doesn't have, or no `space` where needed.
    """
    path = Path(path)
    _check_option("axis_order", axis_order, ("xyz", "zyx"))
    kind = _format_of(path, format)
    if kind in _BINARY:
        raise FileError(path, "ImageJ's regions are read only", f"write one of .{', .'.join(_SYSTEMS)}")
    system = coordinate_system or _SYSTEMS[kind][0]
    _check_option(f"coordinate_system of {kind}", system, _SYSTEMS[kind])
    if kind == "mrk.json":
        text = json.dumps(format_markups(landmarks, system), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    elif kind == "json":
        content = format_json(landmarks, system, space=space, axis_order=axis_order)
        text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    elif kind == "fcsv":
        text = format_fcsv(landmarks, system)
    elif kind == "csv":
        text = format_csv(landmarks, system, space=space, axis_order=axis_order)
    elif kind == "pts":
        text = format_elastix(from_world(landmarks, system, space=space, axis_order=axis_order), system)
    else:
        points = from_world(landmarks, system, space=space, axis_order=axis_order)
        inside = points.clip(0, 1)  # an edge may come back from the world as 1.0000000000000002
        outside = (abs(points - inside) > ROUNDING).any(axis=1)
        if outside.any():
            name = landmarks.names[int(outside.argmax())]
            raise FileError(
                path, f"{name!r} lies outside the image, which txt can't say", "write mrk.json, fcsv or csv"
            )
        text = format_seed(inside)
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8", newline="\n")
    return path


def _parse(path: Path, text: str, kind: str, coordinate_system: str) -> FilePoints:
    if kind == "csv":
        return parse_csv(path, text, coordinate_system)
    if kind == "fcsv":
        return parse_fcsv(path, text)
    if kind in ("json", "mrk.json"):
        return parse_json(path, text)
    if kind == "pts" or is_elastix(text):
        return parse_elastix(path, text)
    return parse_seed(path, text)


def _format_of(path: Path, named: str | None) -> str:
    if named is not None:
        named = named.lower().removeprefix(".")
        _check_option("format", named, LANDMARK_FORMATS)
        return named
    kind = landmark_format(path)
    if kind is None:
        raise FileError(path, "unknown landmark format", f"expected one of .{', .'.join(LANDMARK_FORMATS)}")
    return kind


def _check_option(name: str, value: str, expected: tuple[str, ...]) -> None:
    if value not in expected:
        raise SettingError(f"{name}: expected one of {', '.join(expected)}, got {value!r}")


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
