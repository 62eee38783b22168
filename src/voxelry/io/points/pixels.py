"""Points of a case, in index coordinates of its image.

The general formats are read by `voxelry.io.read_landmarks`; here is what is particular to the tables of
pixels in the hand and cephalometric layouts. A pixel coordinate is `x, y` = column, row, with the centre of
the first pixel at 0.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from voxelry.core.errors import DataError, FileError

__all__ = ["CEPHALOMETRIC_NAMES", "observer_points", "pixel_row", "pixel_table"]

Table = Mapping[str, NDArray[np.float64]]

CEPHALOMETRIC_NAMES = (
    "sella",
    "nasion",
    "orbitale",
    "porion",
    "subspinale",
    "supramentale",
    "pogonion",
    "menton",
    "gnathion",
    "gonion",
    "lower incisal incision",
    "upper incisal incision",
    "upper lip",
    "lower lip",
    "subnasale",
    "soft tissue pogonion",
    "posterior nasal spine",
    "anterior nasal spine",
    "articulate",
)
"""The 19 points of the ISBI 2015 challenge, in its order (Wang et al. 2016, Medical Image Analysis 31, 63-76)."""


def pixel_table(path: Path) -> Table:
    """The rows `id,x0,y0,x1,y1,...` of a table: id -> index coordinates `(N, 2)`, row then column.

    A first line without numbers is a header.

    Raises:
        FileError: not such a table, or an id twice; the message names the line.
    """
    status = _status(path)
    return _pixel_table(path, status.st_size, status.st_mtime_ns)


def pixel_row(table: Table, name: str) -> NDArray[np.float64] | None:
    """The row of an image; `0042` and `42` are the same id. None if there is none."""
    return table.get(_identifier(name))


def observer_points(paths: Sequence[Path]) -> NDArray[np.float64]:
    """Mean over observers of the `x,y` lines of their files: index coordinates `(N, 2)`, row then column.

    Lines after the last point (the challenge's classes, one number each) are ignored.

    Raises:
        FileError: a file without points, or a line that isn't two numbers.
        DataError: observers with different counts; the message names both files.
    """
    sets = [_observer(path) for path in paths]
    for path, points in zip(paths, sets, strict=True):
        if len(points) != len(sets[0]):
            raise DataError(f"{path}: {len(points)} landmarks, but {paths[0]} has {len(sets[0])}")
    return np.mean(sets, axis=0)


@lru_cache(maxsize=8)
def _pixel_table(path: Path, size: int, modified: int) -> Table:
    """`size` and `modified` make a changed file another entry."""
    table: dict[str, NDArray[np.float64]] = {}
    columns = 0
    for number, cells in enumerate(csv.reader(_text(path).splitlines()), 1):
        if not any(cell.strip() for cell in cells):
            continue
        columns = columns or len(cells)
        if len(cells) != columns:
            raise FileError(
                path,
                f"line {number}: {len(cells)} columns, expected {columns} as in the first row",
                "numbers need decimal points: a decimal comma makes two cells of one",
            )
        values = _numbers(cells[1:])
        if values is None and number == 1:
            continue
        if values is None or not values or len(values) % 2:
            raise FileError(path, f"line {number}: expected an id and pairs x,y of numbers in pixels")
        if np.isinf(values).any():
            raise FileError(path, f"line {number}: expected finite numbers")
        name = _identifier(cells[0])
        if name in table:
            raise FileError(path, f"line {number}: a second row for {cells[0].strip()}")
        table[name] = np.asarray(values).reshape(-1, 2)[:, ::-1]
    return table


def _observer(path: Path) -> NDArray[np.float64]:
    points: list[list[float]] = []
    ended = 0
    for number, line in enumerate(_text(path).splitlines(), 1):
        if "," not in line:
            ended = ended or number
            continue
        if ended and line.strip():
            raise FileError(path, f"line {number}: points go on after line {ended}, which isn't x,y in pixels")
        values = _numbers(line.split(","))
        if values is None or len(values) != 2 or np.isinf(values).any():
            raise FileError(path, f"line {number}: expected x,y in pixels, got {line.strip()!r}")
        points.append(values[::-1])
    if not points:
        raise FileError(path, "line 1: expected x,y in pixels")
    return np.asarray(points)


def _numbers(cells: Sequence[str]) -> list[float] | None:
    try:
        return [float(cell) for cell in cells]
    except ValueError:
        return None


def _identifier(name: str) -> str:
    name = name.strip()
    return name.lstrip("0") or "0" if name.isdigit() else name


def _status(path: Path):  # type: ignore[no-untyped-def]
    try:
        return path.stat()
    except OSError as error:
        raise FileError(path, f"can't be read: {error.strerror}") from None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise FileError(path, "not a text file") from None
    except OSError as error:
        raise FileError(path, f"can't be read: {error.strerror}") from None
