"""Writing the rows of a crop index, many at a time."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voxelry.data.crops.index import FILE_BITS, tables
from voxelry.data.crops.source import Objects

__all__ = ["insert_crops", "insert_objects", "note", "remove"]


def insert_objects(connection: Any, base: int, objects: Objects, ndim: int) -> None:
    """The objects of an image, with ids from `base`."""
    missing = 3 - ndim  # images of rank 2 lie in plane 0
    boxes = np.zeros((len(objects), 6))
    boxes[:, :missing] = -0.5
    boxes[:, 3 : 3 + missing] = 0.5
    boxes[:, missing:3], boxes[:, 3 + missing :] = objects.boxes[:, :ndim], objects.boxes[:, ndim:]
    rows = zip(
        (base + np.arange(len(objects))).tolist(),
        objects.instance.view(np.int64).tolist(),  # SQLite has no unsigned numbers
        objects.classes.tolist(),
        objects.volume.tolist(),
        *boxes.T.tolist(),
        strict=True,
    )
    _insert(connection, "objects", 10, rows)


def insert_crops(
    connection: Any,
    base: int,
    first: int,
    starts: Sequence[NDArray[np.int64]],
    channels: NDArray[np.int64],
    pairs: tuple[NDArray[np.int64], NDArray[np.int64]] | None,
    min_objects: int,
) -> int:
    """The crops of a slab that show enough objects, numbered on from `first`; how many there are."""
    total = int(np.prod([len(axis) for axis in starts]))
    shown = np.full(total, min_objects) if pairs is None else np.bincount(pairs[0], minlength=total)
    kept = np.flatnonzero(shown >= min_objects)
    place = np.unravel_index(np.repeat(kept, len(channels)), [len(axis) for axis in starts])
    corner = [axis[step] for axis, step in zip(starts, place, strict=True)]
    corner = [np.zeros_like(corner[0])] * (3 - len(corner)) + corner
    number = base + first + np.arange(len(corner[0]))
    columns = [number, *corner, np.tile(channels, len(kept))]
    _insert(connection, "crops", 5, zip(*[column.tolist() for column in columns], strict=True))
    if pairs is not None:
        new = np.full(total, -1)
        new[kept] = np.arange(len(kept)) * len(channels)
        crop, owner = new[pairs[0]], pairs[1]
        crop, owner = crop[crop >= 0], owner[crop >= 0]
        for channel in range(len(channels)):
            keys = base + first + crop + channel
            _insert(connection, "crop_objects", 2, zip(keys.tolist(), (base + owner).tolist(), strict=True))
    return len(number)


def _insert(connection: Any, table: str, columns: int, rows: Iterator[tuple[Any, ...]]) -> None:
    """Straight to the driver, in batches: a row takes less than a microsecond of Python."""
    statement = f"INSERT INTO {table} VALUES ({', '.join('?' * columns)})"
    while batch := list(itertools.islice(rows, 10_000)):
        connection.exec_driver_sql(statement, batch)


def remove(connection: Any, number: int) -> None:
    """An image and all that belongs to it."""
    low, high = number << FILE_BITS, (number + 1) << FILE_BITS
    for table, column in (("crop_objects", "crop"), ("crops", "id"), ("objects", "id")):
        key = tables.tables[table].c[column]
        connection.execute(tables.tables[table].delete().where(key >= low, key < high))
    files = tables.tables["files"]
    connection.execute(files.delete().where(files.c.id == number))


def note(connection: Any, **values: str) -> None:
    """Keep values under keys, whatever was there."""
    meta = tables.tables["meta"]
    for key, value in values.items():
        connection.execute(meta.delete().where(meta.c.key == key))
        connection.execute(meta.insert().values(key=key, value=value))
