"""An index of crops: where each lies and which objects it shows, in one SQLite file.

Built once by `crop_build.build_crop_index`; here it is read, by any number of processes. Tables:

`files`: an image each, with its grid, statistics, digest and columns of the source.
`objects`: an object each: instance id (from 2^63 on less 2^64), class, volume, box in index coordinates of its image.
`crops`: first voxel (z, y, x) and first channel (c) of each crop. `id >> 32` is its file.
`crop_objects`: which objects a crop shows.

The views `store_index_map`, `bboxes` and `masks` give the same as one row per crop, box and id, boxes in
the crop's own coordinates. An image of rank 2 has z = 0 everywhere.
"""

from __future__ import annotations

import json
import os
import sqlite3
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import sqlalchemy as sql
from numpy.typing import NDArray

from voxelry.core.errors import DataError, FileError
from voxelry.core.space import Space
from voxelry.data.crops.digest import digest
from voxelry.data.crops.reader import Stored

__all__ = ["FILE_BITS", "VERSION", "VIEWS", "CropIndex", "CropRecord", "IndexedFile", "tables"]

VERSION = 2
FILE_BITS = 32  # crop and object ids: file << 32 | number in the file

tables = sql.MetaData()
sql.Table("meta", tables, sql.Column("key", sql.Text, primary_key=True), sql.Column("value", sql.Text, nullable=False))
sql.Table(
    "files",
    tables,
    sql.Column("id", sql.Integer, primary_key=True),
    sql.Column("name", sql.Text, nullable=False),
    sql.Column("split", sql.Text, nullable=False),
    sql.Column("file_path", sql.Text, nullable=False),
    sql.Column("label_path", sql.Text),
    sql.Column("image", sql.Text, nullable=False),
    sql.Column("label", sql.Text),
    sql.Column("shape", sql.Text, nullable=False),
    sql.Column("affine", sql.Text, nullable=False),
    sql.Column("channels", sql.Integer, nullable=False),
    sql.Column("columns", sql.Text, nullable=False),
    sql.Column("statistics", sql.Text),
    sql.Column("digest", sql.Text, nullable=False),
    sql.Column("label_digest", sql.Text, nullable=False),
    sql.Column("identity", sql.Text, nullable=False),
    sql.Column("crops", sql.Integer, nullable=False),
    sql.Column("objects", sql.Integer, nullable=False),
    sql.Column("knows_objects", sql.Boolean, nullable=False),
)
sql.Table(
    "objects",
    tables,
    sql.Column("id", sql.Integer, primary_key=True),
    sql.Column("instance", sql.Integer, nullable=False),
    sql.Column("class", sql.Integer, nullable=False),
    sql.Column("volume", sql.Float, nullable=False),
    *[sql.Column(f"{axis}{end}", sql.Float, nullable=False) for end in "12" for axis in "zyx"],
)
sql.Table(
    "crops",
    tables,
    sql.Column("id", sql.Integer, primary_key=True),
    *[sql.Column(axis, sql.Integer, nullable=False) for axis in "zyxc"],
)
sql.Table(
    "crop_objects",
    tables,
    sql.Column("crop", sql.Integer, primary_key=True),
    sql.Column("object", sql.Integer, primary_key=True),
    sqlite_with_rowid=False,
)

VIEWS = (
    "CREATE VIEW IF NOT EXISTS store_index_map AS SELECT c.id AS crop_id, f.file_path, f.label_path,"
    f" c.z, c.y, c.x, c.c FROM crops c JOIN files f ON f.id = c.id >> {FILE_BITS}",
    "CREATE VIEW IF NOT EXISTS bboxes AS SELECT j.crop AS crop_id, o.x1 - c.x AS x1, o.y1 - c.y AS y1,"
    " o.z1 - c.z AS z1, o.x2 - c.x AS x2, o.y2 - c.y AS y2, o.z2 - c.z AS z2"
    " FROM crop_objects j JOIN objects o ON o.id = j.object JOIN crops c ON c.id = j.crop",
    "CREATE VIEW IF NOT EXISTS masks AS SELECT j.crop AS crop_id, o.instance AS mask_id"
    " FROM crop_objects j JOIN objects o ON o.id = j.object",
)


@dataclass(frozen=True, eq=False)
class IndexedFile:
    """An image of the index.

    Attributes:
        id: number in the index.
        name: unique in the index; `split`: as the source says, or empty.
        image, label: how to read it and its instance ids, None without labels.
        space: grid of the whole image.
        channels: of the image.
        columns: what else the source says.
        statistics: per channel, see `crop_scan.intensities`; None if they weren't taken.
        digest, label_digest: of the contents when it was indexed.
        crops, objects: how many.
        knows_objects: whether there are labels or boxes, so that no object means that there is none.
    """

    id: int
    name: str
    split: str
    image: Stored
    label: Stored | None
    space: Space
    channels: int
    columns: dict[str, Any]
    statistics: list[dict[str, Any]] | None
    digest: str
    label_digest: str
    crops: int
    objects: int
    knows_objects: bool


@dataclass(frozen=True, eq=False)
class CropRecord:
    """A crop of the index.

    Attributes:
        file: the image it is cut from.
        start: first voxel per axis; `channel`: first channel.
        instance, classes: `(K,)` int64 ids in the label image (uint64 where one is beyond) and classes, by rising id.
        boxes: `(K, 2 * ndim)` float64 in index coordinates of the crop, clipped at its outer edges.
    """

    file: IndexedFile
    start: tuple[int, ...]
    channel: int
    instance: NDArray[np.int64] | NDArray[np.uint64]
    classes: NDArray[np.int64]
    boxes: NDArray[np.float64]


class CropIndex:
    """Reads an index; never writes. May be sent to other processes and used after a fork.

    Crops are numbered from 0, by the names of their files, then plane, row, column and channel.

    Args:
        path: the index.
        root: where relative paths of images start; None: where they did when it was built, or else, as when
            both were moved together, the folder of the index.

    Raises:
        FileError: no such file, not an index, of another version, or one whose building isn't finished.
    """

    def __init__(self, path: str | Path, *, root: str | Path | None = None):
        self.path = Path(path)
        if not self.path.is_file():
            raise FileError(self.path, "no such file", "build it with: voxelry index SOURCE --out FILE")
        self._connection: sqlite3.Connection | None = None
        self._lock = threading.RLock()
        _indexes.add(self)
        try:
            meta = dict(self._query("SELECT key, value FROM meta"))
        except sqlite3.DatabaseError:
            raise FileError(self.path, "is not a crop index") from None
        if meta.get("version") != str(VERSION):
            raise FileError(self.path, f"has version {meta.get('version')}, expected {VERSION}", "build it anew")
        if meta.get("complete") != "1":
            raise FileError(self.path, "is not finished", "run voxelry index again: it goes on where it stopped")
        self.settings: dict[str, Any] = json.loads(meta["settings"])
        built = Path(meta["root"])
        self.root = Path(root) if root is not None else built if built.is_dir() else self.path.parent
        rows = self._query("SELECT * FROM files ORDER BY name", named=True)
        self.files = [self._file(row) for row in rows]
        self._ends = np.cumsum([file.crops for file in self.files])

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key not in ("_connection", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._connection, self._lock = None, threading.RLock()
        _indexes.add(self)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def shape(self, file: IndexedFile) -> tuple[int, ...]:
        """Voxels of a crop per axis, as it is delivered."""
        size = self.settings["crop_size"]
        return tuple(size) if isinstance(size, list) else (size,) * file.space.ndim

    def channels(self, file: IndexedFile) -> int:
        """Channels of a crop."""
        count = self.settings["channels"]
        return file.channels if count is None else int(count)

    def place(self, number: int) -> tuple[IndexedFile, int]:
        """The file of a crop, and its number there."""
        if not 0 <= number < len(self):
            raise IndexError(f"crop {number} of an index of {len(self)}")
        at = int(np.searchsorted(self._ends, number, side="right"))
        file = self.files[at]
        return file, number - int(self._ends[at]) + file.crops

    def crop(self, number: int) -> CropRecord:
        """Crop `number`, by two look-ups by primary key."""
        return self.crop_of(*self.place(number))

    def crop_of(self, file: IndexedFile, number: int) -> CropRecord:
        """Crop `number` of a file."""
        key = file.id << FILE_BITS | number
        ndim = file.space.ndim
        (corner,) = self._query("SELECT z, y, x, c FROM crops WHERE id = ?", key)
        rows = self._query(
            "SELECT o.instance, o.class, o.z1, o.y1, o.x1, o.z2, o.y2, o.x2 FROM crop_objects j"
            " JOIN objects o ON o.id = j.object WHERE j.crop = ?",
            key,
        )
        values = np.array(rows, np.float64).reshape(len(rows), 8)
        start = tuple(corner[3 - ndim : 3])
        edges = np.array(self.shape(file)) - 0.5
        low = np.maximum(values[:, 5 - ndim : 5] - start, -0.5)
        high = np.minimum(values[:, 8 - ndim :] - start, edges)
        ids = np.array([row[0] for row in rows], np.int64)
        if (ids < 0).any():  # as SQLite has no unsigned numbers
            ids = ids.view(np.uint64)
        order = np.argsort(ids)
        boxes = np.concatenate([low, high], axis=1)[order]
        return CropRecord(file, start, int(corner[3]), ids[order], values[order, 1].astype(np.int64), boxes)

    def extents(self, limit: int = 100_000) -> NDArray[np.float64]:
        """Box sizes of up to `limit` objects, `(K, 3)` voxels in array order; z is 1 for images of rank 2."""
        (count,) = self._query("SELECT count(*) FROM objects")
        step = -(-int(count[0]) // limit) or 1
        rows = self._query("SELECT z2 - z1, y2 - y1, x2 - x1 FROM objects WHERE id % ? = 0", step)
        return np.array(rows, np.float64).reshape(len(rows), 3)

    def shown(self) -> int:
        """How many objects all crops show together."""
        (count,) = self._query("SELECT count(*) FROM crop_objects")
        return int(count[0])

    def changes(self, progress: Callable[[int, int], None] | None = None) -> list[str]:
        """What isn't as it was when it was indexed, a line each; by contents (see `crop_digest`), not by names."""
        whole = self.settings["digest"] == "whole"
        lines = []
        for done, file in enumerate(self.files, 1):
            for stored, known in ((file.image, file.digest), (file.label, file.label_digest)):
                if stored is None:
                    continue
                try:
                    if digest(stored.path, whole=whole) != known:
                        lines.append(f"{stored.path}: has other contents than when it was indexed")
                except FileError as error:
                    lines.append(str(error))
            if progress is not None:
                progress(done, len(self.files))
        return lines

    def check(self) -> None:
        """Refuse an index whose files have changed.

        Raises:
            DataError: names the first file and how many more there are.
        """
        lines = self.changes()
        if lines:
            more = f", and {len(lines) - 1} more" if len(lines) > 1 else ""
            raise DataError(f"{self.path} is stale: {lines[0]}{more} (build it again with voxelry index)")

    def close(self) -> None:
        """Close the connection; the next look-up opens another."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    def _query(self, statement: str, *values: Any, named: bool = False) -> list[Any]:
        with self._lock:
            if self._connection is None:
                uri = f"{self.path.resolve().as_uri()}?mode=ro"
                self._connection = sqlite3.connect(uri, uri=True, check_same_thread=False)
            cursor = self._connection.execute(statement, values)
            rows = cursor.fetchall()
        if named:
            keys = [column[0] for column in cursor.description]
            return [dict(zip(keys, row, strict=True)) for row in rows]
        return rows

    def _file(self, row: dict[str, Any]) -> IndexedFile:
        affine = np.array(json.loads(row["affine"]))
        return IndexedFile(
            id=row["id"],
            name=row["name"],
            split=row["split"],
            image=Stored.from_json(row["image"], self.root),
            label=None if row["label"] is None else Stored.from_json(row["label"], self.root),
            space=Space(tuple(json.loads(row["shape"])), affine),
            channels=row["channels"],
            columns=json.loads(row["columns"]),
            statistics=None if row["statistics"] is None else json.loads(row["statistics"]),
            digest=row["digest"],
            label_digest=row["label_digest"],
            crops=row["crops"],
            objects=row["objects"],
            knows_objects=bool(row["knows_objects"]),
        )


_indexes: weakref.WeakSet[CropIndex] = weakref.WeakSet()


def _before_fork() -> None:
    for index in list(_indexes):
        index.close()  # SQLite's connections must not cross a fork


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork)
