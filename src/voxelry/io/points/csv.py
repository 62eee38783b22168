"""Points in a table: a header, then one point a row.

Columns are found by name, in any order and case:

- `name` (or `label`, `landmark`, `point`, `id`, ...), else the one column of text that differs in every row;
- `x, y, z`, whose system a column `coordinateSystem` or a comment line `# coordinateSystem = RAS` above the header
  tells, and whose unit may stand beside them: `x_mm`, `X (µm)`, or `X [pixels]` for indices, or in a column `unit` or
  a comment `# unit = um`;
- `r, a, s` (also `x_ras`), `l, p, s` (also `x_lps`): mm that name their system;
- `i, j, k`, `index_x, index_y, index_z` (also `x_voxel`): voxel indices, i and x along the last array axis;
- `axis-0, axis-1, axis-2`: voxel indices in array order, as napari writes them;
- `x_normalised`: index / size;
- `slice` beside x and y: the number of the plane, from 1, as Fiji counts;
- `defined` or `positionStatus`, as 3D Slicer exports them: whether the point was placed at all.

Columns `i, j, k`, `index_x`, `axis-0` and `slice` name their axes, so `axis_order` has no say there; with it x, y, z on
the grid may be array axes, x the first. Other numeric columns are kept as extras. A table holds the points of one
image. Tables with commas, semicolons or tabs are read.
"""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from os import PathLike

import numpy as np

from voxelry.core.errors import FileError
from voxelry.core.space import Space
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
from voxelry.io.units import UnitError, millimetres

__all__ = ["CSV", "format_csv", "parse_csv"]

_SEPARATOR = re.compile("sep=.?", re.IGNORECASE)  # a line that spreadsheets put above the header
_COMMA = "numbers need decimal points: a decimal comma makes two cells of one"
_NAME_COLUMNS = ("name", "label", "landmark", "landmark_name", "point", "point_name", "fiducial", "structure", "id")
_SYSTEM_COLUMNS = ("coordinatesystem", "coordinate_system")
_UNIT_COLUMNS = ("unit", "units")
_IMAGE_COLUMNS = (
    "image", "image_name", "file", "filename", "file_name", "case", "subject", "patient", "scan", "frame",
)  # fmt: skip
_PLACED = {"defined": True, "1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
# MarkupsNode's PositionStatus: undefined, preview, defined, missing
_STATUS = {"0": False, "undefined": False, "1": False, "preview": False, "2": True, "defined": True}
_STATUS |= {"3": False, "missing": False}
_PLACED_COLUMNS = {"defined": _PLACED, "positionstatus": _STATUS, "position_status": _STATUS}
_NO_EXTRAS = (*_PLACED_COLUMNS, "selected", "visible", "visibility", "locked", "index", "slice", "")
# what the columns of x, y and z are called in each system; "" is a length in a system told elsewhere
_FAMILIES = {
    "RAS": (("r", "x_ras", "ras_x"), ("a", "y_ras", "ras_y"), ("s", "z_ras", "ras_z")),
    "LPS": (("l", "x_lps", "lps_x"), ("p", "y_lps", "lps_y"), ("s", "z_lps", "lps_z")),
    "": (("x",), ("y",), ("z",)),
    "index": (
        ("i", "index_x", "x_index", "voxel_x", "x_voxel"),
        ("j", "index_y", "y_index", "voxel_y", "y_voxel"),
        ("k", "index_z", "z_index", "voxel_z", "z_voxel"),
    ),
    "normalised": (
        ("x_normalised", "x_normalized"),
        ("y_normalised", "y_normalized"),
        ("z_normalised", "z_normalized"),
    ),
}
_COORDINATE_COLUMNS = {name for family in _FAMILIES.values() for names in family for name in names}


@dataclass(frozen=True)
class _Table:
    """A table's columns by plain name, the units that stand in them, its rows and where each is in the file."""

    header: list[str]
    titles: list[str]
    units: dict[str, str]
    body: list[list[str]]
    where: tuple[str, ...]

    def first(self, names: Iterable[str]) -> int | None:
        """The column that has one of these names."""
        return next((self.header.index(name) for name in names if name in self.header), None)


def parse_csv(path: str | PathLike[str], text: str, coordinate_system: str = "auto") -> FilePoints:
    """The points of a table; `coordinate_system` picks the columns where it holds several kinds.

    Raises:
        FileError: no header, no coordinate columns, a column twice, a row of another length, not a number, or rows
            of different coordinate systems, units or images.
    """
    comments, table = _table(path, text)
    _check_one_image(path, table)
    declared = _told(path, table, _SYSTEM_COLUMNS, comments, "of different coordinate systems")
    unit = _told(path, table, _UNIT_COLUMNS, comments, "in different units")
    declared = system_named(path, declared) if declared else ""
    system, columns, own_names = _coordinates(path, table.header, declared, coordinate_system)
    points = _points(path, table, columns)
    in_array_order = own_names and system in ("index", "normalised")
    planes = table.first(("slice",)) if len(columns) == 2 and not own_names else None
    if planes is not None:
        points = np.column_stack([points, _points(path, table, [planes]) - 1])
    points[~_placed(path, table)] = np.nan
    used = {table.header[column] for column in columns}
    units = {table.units.get(name, "") or unit for name in used}
    if len(units) > 1:
        raise FileError(path, f"its coordinates are in different units: {', '.join(sorted(units))}")
    return FilePoints(
        points[:, ::-1] if in_array_order else points,
        system,
        names=_names(table),
        extras=_extras(table),
        where=table.where,
        array_order=in_array_order,
        unit="".join(units),
        planes=planes is not None,
        stands="".join("xyz"[axis] for axis in np.argsort(columns)),
        hint=f"add a column coordinateSystem or a first line `# coordinateSystem = RAS`, or {system_advice()}",
    )


def format_csv(landmarks: LandmarkSet, system: str, *, space: Space | None, axis_order: str) -> str:
    """A table of name, x, y, z and their system; with a `space` also the voxel index of each point."""
    points = from_world(landmarks, system, space=space, axis_order=axis_order)
    header = ["name", *"xyz"[: points.shape[1]], "coordinateSystem"]
    index = None if space is None else landmarks.index(space)
    if index is not None:
        header += [f"index_{axis}" for axis in "zyx"[-index.shape[1] :]]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*header, *landmarks.extras])
    for row, name in enumerate(landmarks.names):
        numbers = [] if index is None else list(index[row])
        numbers += [values[row] for values in landmarks.extras.values()]
        cells = [f"{value:.12g}" for value in (*points[row], *numbers)]
        writer.writerow([name, *cells[: points.shape[1]], system, *cells[points.shape[1] :]])
    return out.getvalue()


def _check_one_image(path: str | PathLike[str], table: _Table) -> None:
    for name in _IMAGE_COLUMNS:
        column = table.first((name,))
        values = {row[column].strip() for row in table.body} if column is not None else set()
        if len(values) > 1:
            listed = ", ".join(sorted(values)[:3])
            raise FileError(
                path, f"holds points of {len(values)} different {name}s ({listed})", "write a table for each image"
            )


def _told(path: str | PathLike[str], table: _Table, names: Sequence[str], comments: dict[str, str], fault: str) -> str:
    """The one word of a column, else of a comment line above the table, or ""."""
    column = table.first(names)
    words = sorted({row[column].strip() for row in table.body}) if column is not None else []
    if len(words) > 1:
        raise FileError(path, f"rows {fault}: {', '.join(words)}", "split the file")
    return "".join(words) or next((comments[name] for name in names if name in comments), "")


def _table(path: str | PathLike[str], text: str) -> tuple[dict[str, str], _Table]:
    """What comments above the table say, by lower-case name, and the table."""
    comments: dict[str, str] = {}
    lines = list(io.StringIO(text, newline=""))
    start = 0
    for line in lines:
        content = line.strip()
        if content and not content.startswith("#") and not _SEPARATOR.fullmatch(content):
            break
        key, _, value = content.lstrip("# ").partition("=")
        comments[key.strip().lower()] = value.strip().strip(",;")
        start += 1
    delimiter = max(",;\t", key=lines[start].count) if start < len(lines) else ","
    reader = csv.reader(lines[start:], delimiter=delimiter)
    rows, where = [], []
    try:
        for row in reader:
            if any(cell.strip() for cell in row):
                rows.append(row)
                where.append(f"line {start + reader.line_num}")
    except csv.Error as error:
        raise FileError(path, f"line {start + reader.line_num}: not a table: {error}") from None
    if not rows:
        raise FileError(path, "has no header", "expected a first row of column names such as name,x,y,z")
    columns = [_column(title) for title in rows[0]]
    header = [name for name, _ in columns]
    twice = [name for name, count in Counter(header).items() if count > 1 and name]
    if twice:
        raise FileError(path, f"{where[0]}: two columns are called {twice[0]!r}", "leave one of them out")
    for row, place in zip(rows[1:], where[1:], strict=True):
        if len(row) != len(header):
            raise FileError(path, f"{place}: {len(row)} columns, expected {len(header)} as in the header", _COMMA)
    return comments, _Table(header, rows[0], dict(columns), rows[1:], tuple(where[1:]))


def _column(title: str) -> tuple[str, str]:
    """A column's plain name, and the unit of length that stands in its title."""
    name = re.sub(r"[^a-z0-9]+", "_", title.lower()).strip("_")
    parts = re.fullmatch(r"([xyz])\s*[_\s\[(]\s*([^\W\d_]+)\s*[\])]?", title.strip(), re.IGNORECASE)
    if name in _COORDINATE_COLUMNS or parts is None:
        return name, ""
    try:
        length = millimetres("", parts[2], "")
    except UnitError:
        return name, ""
    return (parts[1].lower(), parts[2]) if length is not None else (f"index_{parts[1].lower()}", "")


def _coordinates(
    path: str | PathLike[str], header: list[str], declared: str, wanted: str
) -> tuple[str, list[int], bool]:
    """The system, the columns of x, y(, z), and whether the columns' own names tell the system."""
    families: dict[str, list[int]] = {}
    for system, axes in _FAMILIES.items():
        columns = [next((header.index(name) for name in names if name in header), -1) for names in axes]
        if columns[0] >= 0 and columns[1] >= 0:
            families[system] = columns if columns[2] >= 0 else columns[:2]
    if "index" not in families and "axis_0" in header:
        families["index"] = _numbered_axes(path, header)
    if wanted != "auto":
        if wanted in families:
            return wanted, families[wanted], True
        if "" in families:
            return wanted, families[""], False
        raise FileError(path, f"has no columns of {wanted} coordinates", f"its columns: {', '.join(header)[:120]}")
    if not families:
        raise FileError(
            path, "has no coordinate columns", f"expected name,x,y,z; its columns: {', '.join(header)[:120]}"
        )
    if "" in families and declared:
        return declared, families[""], False
    told = [system for system in families if system]
    if told:
        return told[0], families[told[0]], True
    return "", families[""], False


def _numbered_axes(path: str | PathLike[str], header: list[str]) -> list[int]:
    """napari's `axis-0`, `axis-1`, ...: the last of them is x."""
    if "shape_type" in header:
        raise FileError(path, "holds shapes, expected points", "save napari's points layer")
    axes = [name for name in header if re.fullmatch(r"axis_\d+", name)]
    if sorted(axes) != [f"axis_{number}" for number in range(len(axes))] or len(axes) not in (2, 3):
        raise FileError(path, f"has the axes {', '.join(axes)}, expected 2 or 3 spatial ones, from axis-0 on")
    return [header.index(f"axis_{number}") for number in reversed(range(len(axes)))]


def _points(path: str | PathLike[str], table: _Table, columns: list[int]) -> Floats:
    return np.array(
        [
            [_number(path, row[column], place, table.titles[column]) for column in columns]
            for row, place in zip(table.body, table.where, strict=True)
        ],
        dtype=np.float64,
    ).reshape(len(table.body), len(columns))


def _placed(path: str | PathLike[str], table: _Table) -> np.ndarray:
    """Which points have a position, by the columns that say so; an empty cell says nothing."""
    placed = np.ones(len(table.body), dtype=bool)
    for name, words in _PLACED_COLUMNS.items():
        column = table.first((name,))
        if column is None:
            continue
        for number, (row, place) in enumerate(zip(table.body, table.where, strict=True)):
            word = row[column].strip().lower().removesuffix(".0")
            if word not in words and word:
                expected = ", ".join(words)
                raise FileError(path, f"{place}: {table.titles[column]} is {word[:40]!r}, expected one of {expected}")
            placed[number] &= words.get(word, True)
    return placed


def _names(table: _Table) -> tuple[str, ...]:
    """The points' names; the `Label` of Fiji's results is the image's title, the same for all of them."""
    column = table.first(_NAME_COLUMNS)
    if column is None:
        texts = [tuple(row[place] for row in table.body) for place in _texts(table)]
        distinct = [names for names in texts if all(names) and len(set(names)) == len(names)]
        return distinct[0] if len(distinct) == 1 else ()
    names = tuple(row[column] for row in table.body)
    results = table.header[0] == "" and table.header[column] == "label"
    return () if results and len(set(names)) < len(names) else names


def _texts(table: _Table) -> list[int]:
    """The columns of text that have no meaning of their own."""
    known = (*_NO_EXTRAS, *_SYSTEM_COLUMNS, *_UNIT_COLUMNS, *_IMAGE_COLUMNS, *_COORDINATE_COLUMNS, "description")
    plain = [place for place, name in enumerate(table.header) if name not in known]
    return [place for place in plain if _numeric([row[place] for row in table.body]) is None]


def _extras(table: _Table) -> dict[str, Floats]:
    extras = {}
    told = (table.first(_NAME_COLUMNS), table.first(_SYSTEM_COLUMNS), table.first(_UNIT_COLUMNS))
    for column, name in enumerate(table.header):
        known = name in _COORDINATE_COLUMNS or name in _NO_EXTRAS or name.startswith("axis_")
        values = None if known or column in told else _numeric([row[column] for row in table.body])
        if values is not None:
            extras[table.titles[column].strip()] = values
    return extras


def _number(path: str | PathLike[str], cell: str, place: str, column: str) -> float:
    try:
        value = parse_number(cell) if cell.strip() else np.nan
    except ValueError:
        hint = _COMMA if "," in cell else ""
        fault = f"{place}: expected a number in column {column.strip()!r}, got {cell[:40]!r}"
        raise FileError(path, fault, hint) from None
    if np.isinf(value):
        raise FileError(path, f"{place}: expected a finite number in column {column.strip()!r}, got {cell[:40]!r}")
    return value


def _numeric(cells: list[str]) -> Floats | None:
    """A column of numbers (empty is NaN), or None where it holds something else."""
    try:
        return np.array([parse_number(cell) if cell.strip() else np.nan for cell in cells], dtype=np.float64)
    except ValueError:
        return None


CSV = PointFormat(parse_csv, ("RAS", "LPS", "index", "normalised"), format_csv)
