"""Points in JSON: our own schema, and the simple lists people keep.

Ours: `{"coordinateSystem": "RAS", "unit": "mm", "landmarks": [{"name": ..., "position": [x, y, z]}, ...]}`;
an absent point has `"position": null`, other numbers beside it are extras; `"axisOrder": "zyx"` says that
coordinates on the grid begin with the first array axis. Also read: a list in place of the object, lists of bare
positions, and objects `{name: [x, y, z]}`.
"""

from __future__ import annotations

import json
from os import PathLike
from typing import Any

import numpy as np

from voxelry.core.errors import FileError
from voxelry.core.space import Space
from voxelry.io.points.format import PointFormat
from voxelry.io.points.landmark_set import FilePoints, Floats, LandmarkSet, from_world, system_advice, system_named
from voxelry.io.points.slicer import format_markups, parse_markups, position

__all__ = ["JSON", "MARKUPS", "format_json", "load_json", "parse_json"]

_SYSTEMS = ("coordinateSystem", "coordinate_system")
_UNITS = ("unit", "units")
_ORDERS = ("axisOrder", "axis_order")
_NAMES = ("name", "label")
_POSITIONS = ("position", "point", "coordinates")
_HINT = f'add "coordinateSystem": "RAS" beside the landmarks, or {system_advice()}'


def load_json(path: str | PathLike[str], text: str) -> Any:
    """What the text holds.

    Raises:
        FileError: it is no JSON.
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise FileError(path, f"line {error.lineno}: not valid JSON: {error.msg}") from None
    except (RecursionError, ValueError):  # nested a thousand deep, or an integer of thousands of digits
        raise FileError(path, "not valid JSON for a list of points") from None


def parse_json(path: str | PathLike[str], text: str) -> FilePoints:
    """The points of any JSON file named above, Slicer's Markups included.

    Raises:
        FileError: no JSON, or none of these forms.
    """
    content = load_json(path, text)
    if isinstance(content, dict) and "markups" in content:
        return parse_markups(path, content)
    entries = content
    if isinstance(content, dict):
        entries = content.get("landmarks", content.get("points", content))
    if isinstance(entries, dict):
        skip = (*_SYSTEMS, *_UNITS, *_ORDERS) if entries is content else ()
        entries = [{"name": name, "position": value} for name, value in entries.items() if name not in skip]
    if not isinstance(entries, list):
        raise FileError(path, "holds no list of landmarks", 'expected {"coordinateSystem": ..., "landmarks": [...]}')
    told = _told(path, content, entries, _SYSTEMS)
    system = system_named(path, told) if told else ""
    points, names, extras = [], [], []
    for number, entry in enumerate(entries, start=1):
        point, name, extra = _entry(path, entry, f"landmark {number}")
        points.append(point)
        names.append(name)
        extras.append(extra)
    stacked, order = _stack(path, points), _told(path, content, entries, _ORDERS)
    if order not in ("", "xyz", "zyx"):
        raise FileError(path, f"axisOrder: expected xyz or zyx, got {order[:40]!r}")
    on_grid = bool(order) and system in ("index", "normalised", "scaled")
    return FilePoints(
        stacked[:, ::-1] if on_grid and order == "xyz" else stacked,
        system,
        tuple(names) if any(names) else (),
        {
            key: np.array([extra.get(key, np.nan) for extra in extras])
            for key in dict.fromkeys(k for e in extras for k in e)
        },
        tuple(f"landmark {number}" for number in range(1, len(points) + 1)),
        array_order=on_grid,
        unit=_told(path, content, entries, _UNITS),
        hint=_HINT,
    )


def format_json(landmarks: LandmarkSet, system: str, *, space: Space | None, axis_order: str) -> str:
    """The points in our schema; `unit` is mm, `axisOrder` the order of coordinates on the grid."""
    points = from_world(landmarks, system, space=space, axis_order=axis_order)
    entries = []
    for row, name in enumerate(landmarks.names):
        present = bool(landmarks.present[row])
        entry: dict[str, Any] = {"name": name, "position": [float(v) for v in points[row]] if present else None}
        for key, values in landmarks.extras.items():
            entry[key] = float(values[row]) if np.isfinite(values[row]) else None
        entries.append(entry)
    told = {"unit": "mm"} if system in ("RAS", "LPS") else {"axisOrder": axis_order}
    content = {"coordinateSystem": system, **told, "landmarks": entries}
    return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _told(path: str | PathLike[str], content: object, entries: list[Any], keys: tuple[str, ...]) -> str:
    """The one word that the file and its landmarks give for their coordinate system or unit, or ""."""
    holders = [holder for holder in (content, *entries) if isinstance(holder, dict)]
    words = {str(holder[key]) for holder in holders for key in keys if holder.get(key) is not None}
    if len(words) > 1:
        raise FileError(path, f"{keys[0]}: {', '.join(sorted(words))} in one file, expected one of them")
    return words.pop() if words else ""


def _entry(path: str | PathLike[str], entry: object, place: str) -> tuple[Floats, str, dict[str, float]]:
    """One landmark: its position, its name or "", its further numbers."""
    if isinstance(entry, list) or entry is None:
        return position(path, entry, place), "", {}
    if not isinstance(entry, dict):
        raise FileError(path, f"{place}: expected an object with name and position, got {str(entry)[:60]}")
    name = next((str(entry[key]) for key in _NAMES if key in entry), "")
    if "x" in entry and "y" in entry:
        value: object = [entry[axis] for axis in "xyz" if axis in entry]
    else:
        key = next((key for key in _POSITIONS if key in entry), None)
        if key is None:
            raise FileError(path, f"{place}: has no position", 'expected {"name": ..., "position": [x, y, z]}')
        value = entry[key]
    extras = {
        key: np.nan if number is None else float(number)
        for key, number in entry.items()
        if key not in (*_NAMES, *_POSITIONS, "x", "y", "z", "id")
        and (number is None or (isinstance(number, (int, float)) and not isinstance(number, bool)))
    }
    return position(path, value, place), name, extras


def _stack(path: str | PathLike[str], points: list[Floats]) -> Floats:
    """`(N, 2 | 3)`; absent points take the length of the others."""
    sizes = {len(point) for point in points if not np.isnan(point).all()} or {3}
    if len(sizes) > 1:
        raise FileError(path, "some positions have two coordinates, some three")
    size = sizes.pop()
    return np.array([point[:size] for point in points], dtype=np.float64).reshape(-1, size)


JSON = PointFormat(lambda path, text, _: parse_json(path, text), ("RAS", "LPS", "index", "normalised"), format_json)
MARKUPS = PointFormat(lambda path, text, _: parse_json(path, text), ("LPS", "RAS"), format_markups)
