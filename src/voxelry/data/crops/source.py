"""What is to be indexed: rows of a database, each an image with its labels, columns and maybe known boxes.

The table (`annotations`) has a column `file_path`, maybe `label_path`, and any others: those can be selected
by. A second table (`boxes`), if there is one, holds the objects, so that no pixel must be read: `file_path`,
`instance_id` (or `mask_id`), `z1 y1 x1 z2 y2 x2` (without z for images of rank 2), and maybe `class` and
`volume`. Any database that SQLAlchemy speaks to will do: a file is SQLite, else a URL.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voxelry.core.choice import check_choice
from voxelry.core.errors import DataError, FileError, MissingDependencyError, SettingError
from voxelry.data.crops.selection import Criterion
from voxelry.data.layouts.files import case_name

__all__ = ["Listed", "Objects", "Source", "checked_boxes", "id_array", "is_database", "open_table"]

SPLIT_COLUMNS = ("split", "train_val_test")
BOX_EDGES = ("voxel", "half_open")

_INSTANCE_COLUMNS = ("instance_id", "mask_id")
_SPLITS = {"training": "train", "val": "validation", "valid": "validation", "testing": "test"}


@dataclass(eq=False)
class Objects:
    """The objects of an image.

    Attributes:
        instance: `(K,)` id in the label image, from 1: int64, or uint64 where one is beyond that.
        boxes: `(K, 2 * ndim)` float64, index coordinates: voxel `i` spans `i - 0.5` to `i + 0.5`.
        volume: `(K,)` float64, voxels.
        classes: `(K,)` int64, from 1.
    """

    instance: NDArray[np.int64] | NDArray[np.uint64]
    boxes: NDArray[np.float64]
    volume: NDArray[np.float64]
    classes: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.instance)

    def take(self, kept: NDArray[Any]) -> Objects:
        """Some of them, by a mask or by places."""
        return Objects(self.instance[kept], self.boxes[kept], self.volume[kept], self.classes[kept])


@dataclass
class Listed:
    """A row of a source: where an image is, and what is said about it before it is opened."""

    name: str
    image: Path
    label: Path | None = None
    classes: Path | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    label_options: Mapping[str, Any] = field(default_factory=dict)
    columns: Mapping[str, Any] = field(default_factory=dict)
    objects: Objects | None = None

    @property
    def split(self) -> str:
        """`train`, `validation`, `test` or whatever else the source says; empty if it doesn't."""
        value = next((str(self.columns[key]) for key in SPLIT_COLUMNS if self.columns.get(key)), "")
        return _SPLITS.get(value, value)


@dataclass
class Source:
    """Rows to index: how many, one after the other, where relative paths start, and what to call it."""

    total: int
    rows: Iterator[Listed]
    root: Path
    title: str


def is_database(source: str | Path) -> bool:
    """Whether a source is a database: a URL, or a file that begins as SQLite's do."""
    if "://" in str(source):
        return True
    try:
        with Path(source).open("rb") as file:
            return file.read(16) == b"SQLite format 3\0"
    except OSError:
        return False


@contextmanager
def open_table(
    source: str | Path,
    criteria: Sequence[Criterion] = (),
    *,
    table: str = "annotations",
    boxes_table: str = "boxes",
    box_edges: str = "voxel",
    root: Path | None = None,
) -> Iterator[Source]:
    """The chosen rows of a database, read as they are asked for.

    Args:
        source: a URL, or an SQLite file.
        criteria: conditions on columns of the table; those about objects are not for here.
        table: with one row per image.
        boxes_table: with one row per object; need not be there.
        box_edges: `voxel` for boxes from the outer edge of the first voxel to that of the last (an object of
            one voxel at 5 is 4.5 to 5.5), `half_open` for first voxel and one beyond the last (5 to 6).
        root: where relative paths start; None: the folder of the SQLite file, or the current one.

    Raises:
        DataError: the database can't be reached, or lacks the table or a column; a password is never shown.
        SettingError: a criterion names no column, or unknown `box_edges`.
    """
    import sqlalchemy as sql
    from sqlalchemy.exc import SQLAlchemyError

    check_choice("box_edges", box_edges, BOX_EDGES)
    engine, title = _engine(source)
    if root is None:
        root = Path() if "://" in str(source) else Path(source).parent
    try:
        names = set(sql.inspect(engine).get_table_names()) | set(sql.inspect(engine).get_view_names())
        if table not in names:
            known = ", ".join(sorted(names)[:10]) or "none"
            raise DataError(f"{title}: no table {table!r} (tables: {known})")
        images = sql.Table(table, sql.MetaData(), autoload_with=engine)
        _check_columns(images, criteria, title)
        query = sql.select(images).order_by(images.c.file_path)
        with engine.connect() as connection:
            rows = [dict(row) for row in connection.execute(query).mappings()]
            found = [row for row in rows if all(one.holds(_plain(row[one.key])) for one in criteria)]
            boxes = None
            if boxes_table in names:
                known_boxes = sql.Table(boxes_table, sql.MetaData(), autoload_with=engine)
                paths = [str(row["file_path"]) for row in found]
                boxes = _BoxStream(connection, known_boxes, paths, box_edges, title)
            try:
                yield Source(len(found), _rows(found, boxes, root, title), root, title)
            finally:
                if boxes is not None:
                    boxes.close()
    except SQLAlchemyError as error:
        reason = str(getattr(error, "orig", None) or error).strip().splitlines()
        raise DataError(f"{title}: {reason[0] if reason else type(error).__name__}") from None
    except ModuleNotFoundError as error:
        raise MissingDependencyError(f"{title}: the driver {error.name} is not installed") from None
    finally:
        engine.dispose()


def _check_columns(images: Any, criteria: Sequence[Criterion], title: str) -> None:
    """Refuse a table without paths, and criteria on columns that it lacks."""
    if "file_path" not in images.c:
        raise DataError(f"{title}: table {images.name} has no column file_path")
    for criterion in criteria:
        if criterion.key not in images.c:
            known = ", ".join(column.name for column in images.c)
            raise SettingError(f"selection: {title} has no column {criterion.key!r} (columns: {known})")


def _engine(source: str | Path) -> tuple[Any, str]:
    import sqlalchemy as sql
    from sqlalchemy.exc import ArgumentError, NoSuchModuleError

    if "://" not in str(source):
        path = Path(source)
        if not path.is_file():
            raise FileError(path, "no such file")
        uri = f"{path.resolve().as_uri()}?mode=ro"
        return sql.create_engine(
            "sqlite://", creator=lambda: sqlite3.connect(uri, uri=True), poolclass=sql.NullPool
        ), str(path)
    try:
        url = sql.engine.make_url(str(source))
        if url.drivername == "postgresql":  # SQLAlchemy's default driver differs between its versions
            url = url.set(drivername="postgresql+psycopg")
        return sql.create_engine(url), url.render_as_string(hide_password=True)
    except (ArgumentError, NoSuchModuleError, ValueError):
        raise SettingError("source: expected a database URL such as postgresql://user@host/name") from None
    except ModuleNotFoundError as error:
        raise MissingDependencyError(f"the database driver {error.name} is not installed") from None


def _rows(found: Sequence[Mapping[str, Any]], boxes: _BoxStream | None, root: Path, title: str) -> Iterator[Listed]:
    stems: dict[str, int] = {}
    for row in found:
        stem = case_name(Path(str(row["file_path"])))
        stems[stem] = stems.get(stem, 0) + 1
    seen: set[str] = set()
    for row in found:
        path = str(row["file_path"])
        if boxes is not None and path in seen:  # whose objects would they be?
            raise DataError(f"{title}: two rows of {path}, expected one for each image that has boxes")
        seen.add(path)
        label = row.get("label_path")
        stem = case_name(Path(path))
        columns = {key: _plain(value) for key, value in row.items() if key not in ("file_path", "label_path")}
        yield Listed(
            name=stem if stems[stem] == 1 else path,
            image=root / path,
            label=root / str(label) if label else None,
            columns=columns,
            objects=None if boxes is None else boxes.take(path),
        )


def _plain(value: Any) -> Any:
    if isinstance(value, Decimal):
        return float(value)
    return value if isinstance(value, str | int | float | None) else str(value)


class _BoxStream:
    """The objects of images, which must be asked for in the order of the database: both are sorted by it."""

    def __init__(self, connection: Any, table: Any, paths: Sequence[str], box_edges: str, title: str):
        import sqlalchemy as sql

        instance = next((name for name in _INSTANCE_COLUMNS if name in table.c), None)
        axes = [letter for letter in "zyx" if f"{letter}1" in table.c]
        columns = [f"{letter}{end}" for end in "12" for letter in axes]
        missing = [name for name in ("file_path", *columns) if name not in table.c]
        if instance is None or missing or axes[-2:] != ["y", "x"]:
            wanted = "file_path, instance_id, y1, x1, y2, x2 and for volumes z1, z2"
            raise DataError(f"{title}: table {table.name} lacks a column (expected {wanted})")
        self.optional = [name for name in ("class", "volume") if name in table.c]
        chosen = [table.c[name] for name in ("file_path", instance, *columns, *self.optional)]
        query = sql.select(*chosen).order_by(table.c.file_path)
        rows = connection.execution_options(stream_results=True, yield_per=10_000).execute(query)
        self._result, self._title = rows, title
        self._groups = groupby(rows, key=lambda row: str(row[0]))
        self._places = {path: place for place, path in enumerate(paths)}
        self._next = next(self._groups, None)
        self._shift = 0.5 if box_edges == "half_open" else 0.0

    def close(self) -> None:
        """Let the cursor of the server go."""
        self._result.close()

    def take(self, path: str) -> Objects:
        """Objects of the image at `path`; none if the table has none."""
        while self._next is not None and self._places.get(self._next[0], -1) < self._places[path]:
            self._next = next(self._groups, None)
        rows: list[Any] = []
        if self._next is not None and self._next[0] == path:
            rows = [tuple(row)[1:] for row in self._next[1]]
        ends = len(rows[0]) - len(self.optional) if rows else 5
        values = np.array(rows, dtype=np.float64).reshape(len(rows), -1 if rows else ends)
        boxes = values[:, 1:ends] - self._shift
        volume = (boxes[:, (ends - 1) // 2 :] - boxes[:, : (ends - 1) // 2]).prod(axis=1)
        if "volume" in self.optional and rows:
            volume = values[:, ends + self.optional.index("volume")]
        classes = np.ones(len(rows), np.int64)
        if "class" in self.optional and rows:
            classes = values[:, ends + self.optional.index("class")].astype(np.int64)
        try:
            instance = id_array([int(row[0]) for row in rows])
        except (TypeError, ValueError, OverflowError):
            raise DataError(f"{self._title}: an instance id of {path} isn't a whole number of 64 bits") from None
        return Objects(instance, boxes, volume, classes)


def id_array(ids: Sequence[int]) -> NDArray[np.int64] | NDArray[np.uint64]:
    """Ids of instances as int64, or as uint64 where one is too large for that."""
    if max(ids, default=0) > np.iinfo(np.int64).max:
        return np.array(ids, np.uint64)
    return np.array(ids, np.int64)


def checked_boxes(
    objects: Objects, shape: tuple[int, ...], path: Path, *, drop: bool = False
) -> tuple[Objects, int, int]:
    """Boxes that a source gave, held against the image they are of.

    Args:
        shape: of the image, spatial.
        path: named in errors.
        drop: whether bad boxes are left out; otherwise they are an error.

    Returns:
        The objects, boxes cut at the edges of the image; how many were left out, and how many cut.

    Raises:
        DataError: a box that is NaN, empty or outside of the image, an id or a class below 1, another rank.
    """
    ndim = len(shape)
    boxes = objects.boxes if len(objects) else np.zeros((0, 2 * ndim))
    if boxes.shape[1] != 2 * ndim:
        raise DataError(f"{path}: boxes of {boxes.shape[1]} numbers, but the image has rank {ndim}")
    low, high = boxes[:, :ndim], boxes[:, ndim:]
    edge = np.array(shape) - 0.5
    unknown = ~np.isfinite(boxes).all(axis=1) | ~np.isfinite(objects.volume)
    empty = ~unknown & (high <= low).any(axis=1)
    outside = ~unknown & ~empty & ((high <= -0.5) | (low >= edge)).any(axis=1)
    bad = unknown | empty | outside
    if bad.any() and not drop:
        first = int(np.argmax(bad))
        fault = "is not finite" if unknown[first] else "is empty" if empty[first] else "lies outside"
        more = f", and {int(bad.sum()) - 1} more" if bad.sum() > 1 else ""
        raise DataError(
            f"{path}: the box of instance {objects.instance[first]} {fault}: "
            f"{[round(float(value), 2) for value in boxes[first]]} in an image of {shape}{more} "
            "(set bad_boxes=drop to leave them out)"
        )
    kept = Objects(objects.instance, boxes, objects.volume, objects.classes).take(~bad)
    if (kept.instance < 1).any() or (kept.classes < 1).any():
        raise DataError(f"{path}: expected instance ids and classes from 1 in its boxes")
    clipped = np.concatenate([np.maximum(kept.boxes[:, :ndim], -0.5), np.minimum(kept.boxes[:, ndim:], edge)], axis=1)
    cut = int((clipped != kept.boxes).any(axis=1).sum())
    return Objects(kept.instance, clipped, kept.volume, kept.classes), int(bad.sum()), cut
