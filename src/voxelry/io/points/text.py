"""Points in plain text: the originals' normalised .txt, and the point files of ITK's elastix."""

from __future__ import annotations

from os import PathLike

import numpy as np

from voxelry.core.errors import FileError
from voxelry.core.space import Space
from voxelry.io.points.format import PointFormat
from voxelry.io.points.landmark_set import FilePoints, Floats, LandmarkSet, from_world, parse_number

__all__ = ["ELASTIX", "ORIGINAL", "format_elastix", "format_original", "is_elastix", "parse_elastix", "parse_original"]

Lines = list[tuple[int, str]]  # numbered from 1, blank ones left out


def is_elastix(text: str) -> bool:
    """Whether the first word is `point` or `index`."""
    words = text.split(maxsplit=1)
    return bool(words) and words[0].lower() in ("point", "index")


def parse_original(path: str | PathLike[str], text: str) -> FilePoints:
    """First line the count, then `x y z` (or `x y`) a line, normalised to [0, 1]; `nan nan nan` is absent.

    Raises:
        FileError: no count, another number of points than it, a wrong number of columns, not a number.
    """
    lines = _lines(text)
    hint = "expected the number of points, then a line `x y z` for each"
    if not lines:
        raise FileError(path, "is empty", hint)
    count = _count(path, lines[0], hint)
    points, where = _points(path, lines[1:])
    if len(points) != count:
        raise FileError(path, f"line {lines[0][0]}: announces {count} points, but {len(points)} follow")
    return FilePoints(points, "normalised", where=where)


def parse_elastix(path: str | PathLike[str], text: str) -> FilePoints:
    """`point` (world, LPS mm) or `index`, the count, then `x y z` a line.

    Without that first word the coordinates could be either, so the system is left open.

    Raises:
        FileError: no count, another number of points than it, a wrong number of columns, not a number.
    """
    lines = _lines(text)
    hint = "expected `point` or `index`, the number of points, then a line `x y z` for each"
    system = ""
    if lines and is_elastix(lines[0][1]):
        number, first = lines[0]
        word, *rest = first.split(maxsplit=1)
        system = {"point": "LPS", "index": "index"}[word.lower()]
        lines = [*((number, text) for text in rest), *lines[1:]]  # the count may stand on the same line
    if not lines:
        raise FileError(path, "has no count of points", hint)
    count = _count(path, lines[0], hint)
    points, where = _points(path, lines[1:])
    if len(points) != count:
        raise FileError(path, f"line {lines[0][0]}: announces {count} points, but {len(points)} follow")
    return FilePoints(
        points, system, where=where, hint='first line `point` or `index`, or set coordinate_system="LPS" or "index"'
    )


def format_original(landmarks: LandmarkSet, system: str, *, space: Space | None, axis_order: str) -> str:
    """Normalised coordinates in the originals' format; an edge that came back from the world as 1 + 1e-16 is 1."""
    points = from_world(landmarks, system, space=space, axis_order=axis_order).clip(0, 1)
    return "\n".join([str(len(points)), *_rows(points)]) + "\n"


def format_elastix(landmarks: LandmarkSet, system: str, *, space: Space | None, axis_order: str) -> str:
    """LPS mm (`point`) or `index` coordinates as an elastix point file."""
    points = from_world(landmarks, system, space=space, axis_order=axis_order)
    return "\n".join(["point" if system == "LPS" else "index", str(len(points)), *_rows(points)]) + "\n"


def _rows(points: Floats) -> list[str]:
    return [" ".join(f"{value:.12g}" for value in point) for point in points]


def _lines(text: str) -> Lines:
    return [(number, line.strip()) for number, line in enumerate(text.splitlines(), start=1) if line.strip()]


def _count(path: str | PathLike[str], line: tuple[int, str], hint: str) -> int:
    number, content = line
    if not content.isascii() or not content.isdigit():
        raise FileError(path, f"line {number}: {content[:40]!r} is no count of points", hint)
    return int(content)


def _points(path: str | PathLike[str], lines: Lines) -> tuple[Floats, tuple[str, ...]]:
    """`(N, 2 | 3)` numbers, and the line of each."""
    rows: list[list[float]] = []
    for number, content in lines:
        words = content.replace(",", " ").split()
        if len(words) not in (2, 3) or (rows and len(words) != len(rows[0])):
            expected = len(rows[0]) if rows else "2 or 3"
            raise FileError(path, f"line {number}: {len(words)} columns, expected {expected} coordinates")
        try:
            rows.append([parse_number(word) for word in words])
        except ValueError:
            raise FileError(path, f"line {number}: expected numbers, got {content[:40]!r}") from None
        if any(np.isinf(value) for value in rows[-1]):
            raise FileError(path, f"line {number}: expected finite numbers, got {content[:40]!r}")
    points = np.array(rows, dtype=np.float64).reshape(len(rows), -1) if rows else np.zeros((0, 3))
    return points, tuple(f"line {number}" for number, _ in lines)


ORIGINAL = PointFormat(
    lambda path, text, _: (parse_elastix if is_elastix(text) else parse_original)(path, text),
    ("normalised",),
    format_original,
    inside=True,
)
ELASTIX = PointFormat(lambda path, text, _: parse_elastix(path, text), ("LPS", "index"), format_elastix)
