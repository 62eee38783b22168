"""Zarr arrays of which few chunks were ever written: those that are there are read, not millions asked for."""

from __future__ import annotations

import re
from collections.abc import Iterator
from math import prod

import numpy as np
import tensorstore

__all__ = ["read_part"]

_MANY = 1 << 14  # chunks of a part, from which on it pays to list those that are there
_SPARSE = 16  # so many times fewer of them are there
_KEY = re.compile(r"(?:c[/.])?(\d+(?:[/.]\d+)*)")


def read_part(store: tensorstore.TensorStore, part: tuple[slice, ...]) -> np.ndarray:
    """A part of an array on disk (start and stop within it, step 1); absent chunks have the fill value."""
    chunk = [size or 1 for size in store.chunk_layout.write_chunk.shape or ()]
    touched = prod(-(-one.stop // size) - one.start // size for one, size in zip(part, chunk, strict=False))
    there = list(_there(store)) if touched >= _MANY else []
    if touched < max(_MANY, len(there) * _SPARSE):
        return store[part].read().result()
    fill = 0 if store.fill_value is None else store.fill_value
    whole = np.full([one.stop - one.start for one in part], fill, dtype=store.dtype.numpy_dtype)
    for index in there:
        starts = [max(one.start, number * size) for one, number, size in zip(part, index, chunk, strict=True)]
        stops = [min(one.stop, (number + 1) * size) for one, number, size in zip(part, index, chunk, strict=True)]
        if all(start < stop for start, stop in zip(starts, stops, strict=True)):
            asked = tuple(map(slice, starts, stops))
            inside = tuple(slice(one.start - p.start, one.stop - p.start) for one, p in zip(asked, part, strict=True))
            whole[inside] = store[asked].read().result()
    return whole


def _there(store: tensorstore.TensorStore) -> Iterator[tuple[int, ...]]:
    """Indices of the chunks, or shards, that are on disk."""
    assert store.kvstore is not None
    for key in store.kvstore.list().result():
        found = _KEY.fullmatch(key.decode(errors="replace"))
        index = tuple(map(int, re.split(r"[/.]", found[1]))) if found else ()
        if len(index) == store.rank:
            yield index
