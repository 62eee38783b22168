"""Points in a table: a header, then one point a row.

Columns are found by name, in any order and case:

- `name` (or `label`, `landmark`, `id`);
- `x, y, z` (also `x_mm`), whose system a column `coordinateSystem` or a comment line
  `# coordinateSystem = RAS` above the header tells;
- `r, a, s` (also `x_ras`), `l, p, s` (also `x_lps`): mm that name their system;
- `i, j, k`, `index_x, index_y, index_z` (also `x_voxel`): voxel indices, i and x along the last array axis;
- `x_normalised`: index / size.

Other numeric columns are kept as extras. Tables with commas, semicolons or tabs are read.
"""

from __future__ import annotations

import csv
import io
import re
from os import PathLike

import numpy as np

from voxelry.core.errors import FileError
from voxelry.core.space import Space
from voxelry.data.io.landmark_set import FilePoints, Floats, LandmarkSet, from_world, system_named

__all__ = ["format_csv", "parse_csv"]

_NAME_COLUMNS = ("name", "label", "landmark", "landmark_name", "id")
_SYSTEM_COLUMNS = ("coordinatesystem", "coordinate_system")
# what the columns of x, y and z are called in each system; "" is mm in a system told elsewhere
_FAMILIES = {
    "RAS": (("r", "x_ras", "ras_x"), ("a", "y_ras", "ras_y"), ("s", "z_ras", "ras_z")),
    "LPS": (("l", "x_lps", "lps_x"), ("p", "y_lps", "lps_y"), ("s", "z_lps", "lps_z")),
    "": (("x", "x_mm"), ("y", "y_mm"), ("z", "z_mm")),
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


def parse_csv(path: str | PathLike[str], text: str, coordinate_system: str = "auto") -> FilePoints:
    """The points of a table; `coordinate_system` picks the columns where it holds several kinds.

    Raises:
        FileError: no header, no coordinate columns, a row of another length, not a number, or rows
            of different coordinate systems.
    """
    declared, rows, where = _table(path, text)
    header, body = [re.sub(r"[^a-z0-9]+", "_", cell.lower()).strip("_") for cell in rows[0]], rows[1:]
    for row, place in zip(body, where, strict=True):
        if len(row) != len(header):
            raise FileError(path, f"{place}: {len(row)} columns, expected {len(header)} as in the header")
    named = next((header.index(name) for name in _NAME_COLUMNS if name in header), None)
    told = next((header.index(name) for name in _SYSTEM_COLUMNS if name in header), None)
    if told is not None:
        words = sorted({row[told].strip() for row in body})
        if len(words) > 1:
            raise FileError(path, f"rows of different coordinate systems: {', '.join(words)}", "split the file")
        declared = "".join(words) or declared
    system, columns, own_names = _coordinates(
        path, header, system_named(path, declared) if declared else "", coordinate_system
    )
    points = np.array(
        [
            [_number(path, row[column], place, rows[0][column]) for column in columns]
            for row, place in zip(body, where, strict=True)
        ],
        dtype=np.float64,
    ).reshape(len(body), len(columns))
    in_array_order = own_names and system in ("index", "normalised")
    extras = {}
    for column, name in enumerate(header):
        if column not in (named, told) and name not in _COORDINATE_COLUMNS:
            values = _numeric([row[column] for row in body])
            if values is not None:
                extras[rows[0][column].strip()] = values
    return FilePoints(
        points[:, ::-1] if in_array_order else points,
        system,
        names=() if named is None else tuple(row[named] for row in body),
        extras=extras,
        where=where,
        array_order=in_array_order,
        hint="add a column coordinateSystem or a first line `# coordinateSystem = RAS`, "
        'or set coordinate_system="RAS", "LPS", "index" or "normalised"',
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


def _table(path: str | PathLike[str], text: str) -> tuple[str, list[list[str]], tuple[str, ...]]:
    """The system that a comment declares or "", header and rows, and the place of each row."""
    declared = ""
    lines = list(io.StringIO(text, newline=""))
    start = 0
    for line in lines:
        content = line.strip()
        if content and not content.startswith("#"):
            break
        key, _, value = content.lstrip("# ").partition("=")
        if key.strip().lower() in _SYSTEM_COLUMNS:
            declared = value.strip().strip(",;")
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
    return declared, rows, tuple(where[1:])


def _coordinates(
    path: str | PathLike[str], header: list[str], declared: str, wanted: str
) -> tuple[str, list[int], bool]:
    """The system, the columns of x, y(, z), and whether the columns' own names tell the system."""
    families: dict[str, list[int]] = {}
    for system, axes in _FAMILIES.items():
        columns = [next((header.index(name) for name in names if name in header), -1) for names in axes]
        if columns[0] >= 0 and columns[1] >= 0:
            families[system] = columns if columns[2] >= 0 else columns[:2]
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


def _number(path: str | PathLike[str], cell: str, place: str, column: str) -> float:
    try:
        value = float(cell) if cell.strip() else np.nan
    except ValueError:
        raise FileError(path, f"{place}: expected a number in column {column.strip()!r}, got {cell[:40]!r}") from None
    if np.isinf(value):
        raise FileError(path, f"{place}: expected a finite number in column {column.strip()!r}, got {cell[:40]!r}")
    return value


def _numeric(cells: list[str]) -> Floats | None:
    """A column of numbers (empty is NaN), or None where it holds something else."""
    try:
        return np.array([float(cell) if cell.strip() else np.nan for cell in cells], dtype=np.float64)
    except ValueError:
        return None
