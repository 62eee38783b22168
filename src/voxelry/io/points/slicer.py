"""Points as 3D Slicer keeps them: Markups JSON (.mrk.json) and the older fiducial table (.fcsv).

Extras such as `uncertainty_mm` and `presence` go to the description as `key=value` and come back from it.
"""

from __future__ import annotations

import csv
import io
import json
import re
from os import PathLike
from typing import Any

import numpy as np

from voxelry.core.errors import FileError
from voxelry.io.points.format import PointFormat
from voxelry.io.points.landmark_set import (
    FilePoints,
    Floats,
    LandmarkSet,
    from_world,
    parse_number,
    system_advice,
    system_named,
)
from voxelry.io.units import millimetres

__all__ = ["FCSV", "format_fcsv", "format_markups", "parse_fcsv", "parse_markups", "position"]

_SCHEMA = (
    "https://raw.githubusercontent.com/slicer/slicer/master/Modules/Loadable/Markups/Resources/Schema/"
    "markups-schema-v1.0.3.json#"
)
_FCSV_COLUMNS = "id,x,y,z,ow,ox,oy,oz,vis,sel,lock,label,desc,associatedNodeID"
_STATUS_DEFINED = "2"
_SLICER3_COLUMNS = "label,x,y,z,sel,vis"


def parse_fcsv(path: str | PathLike[str], text: str) -> FilePoints:
    """A fiducial table of any Slicer version; a point that was never placed is NaN.

    Raises:
        FileError: too few columns, or not a number.
    """
    system, columns = "", _FCSV_COLUMNS.split(",")
    versioned, rows = False, []
    for number, line in enumerate(text.replace("\r\n", "\n").split("\n"), start=1):
        if line.startswith("#"):
            key, _, value = line.lstrip("# ").partition("=")
            key = key.strip().lower()
            versioned = versioned or key == "markups fiducial file version"
            if key == "coordinatesystem":
                system = system_named(path, value)
            elif key == "columns":
                columns = [name.strip() for name in value.split(",")]
        elif line.strip():
            # a quote inside an unquoted label is a quote, as Slicer reads it
            try:
                rows.append((f"line {number}", next(csv.reader([line]))))
            except csv.Error as error:
                raise FileError(path, f"line {number}: not a row of {_FCSV_COLUMNS}: {error}") from None
    if not versioned and rows and len(rows[0][1]) <= 6:
        columns = _SLICER3_COLUMNS.split(",")
    missing = [name for name in ("x", "y", "z", "label") if name not in columns]
    if missing:
        raise FileError(path, f"the line `# columns` has no {', '.join(missing)}", f"expected {_FCSV_COLUMNS}")
    points, names, descriptions = [], [], []
    for place, row in rows:
        if len(row) != len(columns) and not _has_status(row, columns):
            raise FileError(path, f"{place}: {len(row)} columns, expected {','.join(columns)}")
        cells = [row[columns.index(name)] for name in "xyz"]
        try:
            point = [parse_number(cell) for cell in cells]
        except ValueError:
            raise FileError(path, f"{place}: expected numbers, got {','.join(cells)[:60]!r}") from None
        if not np.isfinite(point).all() and not np.isnan(point).all():
            raise FileError(path, f"{place}: expected finite numbers, got {','.join(cells)[:60]!r}")
        placed = len(row) == len(columns) or row[len(columns)].strip() == _STATUS_DEFINED
        points.append(point if placed else [np.nan] * 3)
        names.append(_cell(row, columns, "label"))
        descriptions.append(_cell(row, columns, "desc"))
    return FilePoints(
        np.array(points, dtype=np.float64).reshape(-1, 3),
        system,
        tuple(names),
        _extras(descriptions),
        tuple(place for place, _ in rows),
        unit="" if system == "index" else "mm",
        hint=f"add a line `# CoordinateSystem = LPS` (or RAS), or {system_advice(('LPS', 'RAS'))}",
    )


def format_fcsv(landmarks: LandmarkSet, system: str, **grid: Any) -> str:
    """A fiducial table that every Slicer since 4.4 reads.

    The system is written as its number: releases before 4.11 take the word LPS for RAS.
    """
    points = from_world(landmarks, system, space=None)
    out = io.StringIO()
    out.write(f"# Markups fiducial file version = 4.11\n# CoordinateSystem = {('RAS', 'LPS').index(system)}\n")
    out.write(f"# columns = {_FCSV_COLUMNS}\n")
    writer = csv.writer(out, lineterminator="\n")
    for row, (name, present) in enumerate(zip(landmarks.names, landmarks.present, strict=True)):
        cells = [f"{value:.12g}" for value in points[row]] if present else ["0", "0", "0"]
        flags = [int(present), 1, 0]
        label, description = name, _description(landmarks, row)
        status = _STATUS_DEFINED if present else "0"
        writer.writerow([row + 1, *cells, 0, 0, 0, 1, *flags, label, description, "", status, 0])
    return out.getvalue()


def parse_markups(path: str | PathLike[str], content: dict[str, Any]) -> FilePoints:
    """All point lists of a Markups file, one after the other; a point that is not `defined` is NaN.

    A list without `coordinateSystem` is LPS, the schema's default. Lists of other systems are brought to the
    first one's.

    Raises:
        FileError: no point list, or an entry of another form than the schema's.
    """
    markups = content.get("markups")
    if not isinstance(markups, list) or not all(isinstance(markup, dict) for markup in markups):
        raise FileError(path, "`markups` is no list of markups", "expected Slicer's Markups schema 1.0")
    lists = [markup for markup in markups if markup.get("type") == "Fiducial"]
    if not lists:
        kinds = ", ".join(sorted({str(markup.get("type")) for markup in markups})) or "nothing"
        raise FileError(path, f"holds no point list (Fiducial), only {kinds[:80]}")
    system = ""
    points: list[Floats] = []
    names, descriptions, where = [], [], []
    for markup in lists:
        own = system_named(path, markup.get("coordinateSystem", "LPS"))
        if own not in ("RAS", "LPS"):
            raise FileError(path, f"coordinateSystem: {own}, expected LPS or RAS", "a Markups file holds world points")
        system = system or own
        flip = np.array([1.0, 1.0, 1.0]) if own == system else np.array([-1.0, -1.0, 1.0])
        units = markup.get("coordinateUnits", "mm")
        unit = units[0] if isinstance(units, list) and units else units
        length = millimetres(path, unit, "coordinateUnits", "expected mm, um, nm or the like")
        if length is None:
            raise FileError(path, f"coordinateUnits: {str(units)[:40]!r} is no length")
        controls = markup.get("controlPoints", [])
        if not isinstance(controls, list) or not all(isinstance(control, dict) for control in controls):
            raise FileError(path, "`controlPoints` is no list of points", "expected Slicer's Markups schema 1.0")
        for control in controls:
            where.append(f"control point {len(points) + 1}")
            placed = control.get("positionStatus", "defined") == "defined"
            point = position(path, control.get("position") if placed else None, where[-1], sizes=(3,))
            points.append(point * flip * length)
            names.append(str(control.get("label", "")))
            descriptions.append(str(control.get("description", "")))
    stacked = np.array(points, dtype=np.float64).reshape(-1, 3)
    return FilePoints(stacked, system, tuple(names), _extras(descriptions), tuple(where), unit="mm")


def format_markups(landmarks: LandmarkSet, system: str, **grid: Any) -> str:
    """A Markups file with one point list; absent points are there, without a position."""
    points = from_world(landmarks, system, space=None)
    controls = []
    for row, name in enumerate(landmarks.names):
        control: dict[str, Any] = {"id": str(row + 1), "label": name, "description": _description(landmarks, row)}
        if landmarks.present[row]:
            control |= {"position": [float(value) for value in points[row]], "positionStatus": "defined"}
        else:
            control |= {"positionStatus": "undefined"}
        controls.append(control | {"selected": True, "locked": False, "visibility": True})
    markup = {"type": "Fiducial", "coordinateSystem": system, "coordinateUnits": "mm", "locked": False}
    content = {"@schema": _SCHEMA, "markups": [markup | {"controlPoints": controls}]}
    return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def position(path: str | PathLike[str], value: object, place: str, sizes: tuple[int, ...] = (2, 3)) -> Floats:
    """A JSON list of numbers as an array of one of `sizes`; None, an empty list and nulls are an absent point."""
    if value is None or value == []:
        return np.full(3, np.nan)
    numbers = [np.nan if number is None else number for number in value] if isinstance(value, list) else []
    numeric = all(isinstance(number, (int, float)) and not isinstance(number, bool) for number in numbers)
    if len(numbers) not in sizes or not numeric or any(abs(number) > 1e300 for number in numbers):
        expected = " or ".join(str(size) for size in sizes)
        raise FileError(path, f"{place}: expected a position of {expected} numbers, got {str(value)[:60]}")
    return np.array(numbers, dtype=np.float64)


def _has_status(row: list[str], columns: list[str]) -> bool:
    """Whether the position's status and a flag follow the named columns: Slicer 5 writes but doesn't name them."""
    return len(row) == len(columns) + 2 and all(cell.strip().isdigit() for cell in row[len(columns) :])


def _cell(row: list[str], columns: list[str], name: str) -> str:
    at = columns.index(name) if name in columns else len(row)
    return row[at] if at < len(row) else ""


def _description(landmarks: LandmarkSet, row: int) -> str:
    return " ".join(f"{key}={values[row]:.12g}" for key, values in landmarks.extras.items())


def _extras(descriptions: list[str]) -> dict[str, Floats]:
    """The numbers that stand as `key=value` in descriptions, NaN where a point has none."""
    extras: dict[str, Floats] = {}
    for row, text in enumerate(descriptions):
        for key, value in re.findall(r"(?:^|\s)(\w+)=([-+]?(?:[\d.]+(?:e[-+]?\d+)?|nan|inf))(?=\s|$)", text):
            try:
                extras.setdefault(key, np.full(len(descriptions), np.nan))[row] = float(value)
            except ValueError:  # 1.2.3 is no number and stays prose
                continue
    return extras


FCSV = PointFormat(lambda path, text, _: parse_fcsv(path, text), ("LPS", "RAS"), format_fcsv)
