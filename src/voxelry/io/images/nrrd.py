"""NRRD with attached (.nrrd) or detached (.nhdr) data; its definition is at teem.sourceforge.net/nrrd/format.html.

Axes with a space direction are spatial (without a space: those of kind domain or space), all others are
channels wherever they stand. Directions in a left-posterior-superior, right-anterior-superior or
left-anterior-superior space are brought to RAS; a file that names no such space is taken as LPS, as ITK does.

Not left to SimpleITK, which passes over `space units` (a file in micrometres comes out in millimetres) and can't
unpack bzip2.
"""

from __future__ import annotations

import bz2
import gzip
import re
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np

from voxelry.core.errors import FileError
from voxelry.io.guard import check_beside, check_numeric, check_stored
from voxelry.io.images.axes import AxisOrder, order_axes
from voxelry.io.images.record import ImageFile
from voxelry.io.units import Lengths

__all__ = ["open_file"]

_LONGEST_HEADER = 1 << 20
_TYPES = {
    "int8": "signed char|int8|int8_t",
    "uint8": "uchar|unsigned char|uint8|uint8_t",
    "int16": "short|short int|signed short|signed short int|int16|int16_t",
    "uint16": "ushort|unsigned short|unsigned short int|uint16|uint16_t",
    "int32": "int|signed int|int32|int32_t",
    "uint32": "uint|unsigned int|uint32|uint32_t",
    "int64": "longlong|long long|long long int|signed long long|signed long long int|int64|int64_t",
    "uint64": "ulonglong|unsigned long long|unsigned long long int|uint64|uint64_t",
    "float32": "float",
    "float64": "double",
}
_ENCODINGS = {"gz": "gzip", "bz2": "bzip2", "txt": "text", "ascii": "text"}
_TO_RAS = {  # space -> signs of x, y, z
    "right-anterior-superior": (1, 1, 1),
    "ras": (1, 1, 1),
    "left-anterior-superior": (-1, 1, 1),
    "las": (-1, 1, 1),
}
_LPS = (-1, -1, 1)
_AS_LPS = ("", "left-posterior-superior", "lps", "scanner-xyz", "3d-right-handed", "3d-left-handed")
_SPACES = (*_TO_RAS, *_AS_LPS[1:])


@dataclass(frozen=True)
class _Data:
    """Where the stored numbers are and how they are coded."""

    file: Path
    start: int
    encoding: str
    dtype: np.dtype
    shape: tuple[int, ...]
    line_skip: int
    byte_skip: int


def open_file(path: Path, *, dataset: str | None, channel_axis: int | None, ndim: int | None) -> ImageFile:
    """Header of a NRRD file; see `open_image` for the keywords.

    Raises:
        FileError: a header that lacks or contradicts something, a missing or short data file, an encoding other
            than raw, gzip, bzip2 and text, data spread over several files.
    """
    fields, end = _header(path)
    data = _data(path, fields, end)
    dtype = check_numeric(path, data.dtype)
    lengths = Lengths(path)
    steps, origin, oriented = _geometry(path, fields, len(data.shape), lengths)
    rank = len(data.shape)
    axes = ["c"] * rank
    for letter, axis in zip("xyz", sorted(steps), strict=False):
        axes[rank - 1 - axis] = letter  # the header counts axes from the fastest
    order = order_axes(path, data.shape, "".join(axes), ndim=ndim, channel_axis=channel_axis)
    stored_steps = {rank - 1 - axis: step for axis, step in steps.items()}
    return ImageFile(
        path=path,
        space=order.space(stored_steps, origin) if set(order.spatial) <= set(stored_steps) else order.plain_space({}),
        channels=order.channels,
        dtype=dtype,
        format="NRRD",
        loader=partial(_load, data, order),
        has_orientation=oriented,
        metadata=fields,
        spacing_fault=lengths.fault,
        in_windows=data.encoding == "raw",
    )


def _header(path: Path) -> tuple[dict[str, Any], int]:
    """Fields by lower-case name, and the byte after the blank line that ends the header."""
    with path.open("rb") as file:
        if not re.match(rb"NRRD000\d", file.readline(64)):
            raise FileError(path, "doesn't begin with a NRRD magic line")
        fields: dict[str, Any] = {}
        while line := file.readline(_LONGEST_HEADER):
            text = line.decode("utf-8", "replace").strip()
            if not text:
                break
            if file.tell() > _LONGEST_HEADER:
                raise FileError(path, "its header has no end")
            if text.startswith("#") or ":=" in text or ":" not in text:
                continue
            name, _, value = text.partition(":")
            fields[name.strip().lower()] = value.strip()
        return fields, file.tell()


def _need(path: Path, fields: dict[str, Any], name: str) -> str:
    if name not in fields:
        raise FileError(path, f"its header lacks the field {name!r}")
    return fields[name]


def _data(path: Path, fields: dict[str, Any], end: int) -> _Data:
    kind = _need(path, fields, "type").lower()
    dtype = next((np.dtype(name) for name, spellings in _TYPES.items() if kind in spellings.split("|")), None)
    if dtype is None:
        raise FileError(path, f"unknown type {kind!r}")
    order = fields.get("endian", "").lower()
    if order not in ("", "little", "big"):
        raise FileError(path, f"endian: expected little or big, got {order!r}")
    dtype = dtype.newbyteorder(">" if order == "big" else "<")
    sizes = tuple(int(size) for size in _need(path, fields, "sizes").split())
    rank = int(_need(path, fields, "dimension"))
    if len(sizes) != rank or rank < 2:
        raise FileError(path, f"expected two or more sizes, one per dimension, got {rank} dimensions and sizes {sizes}")
    encoding = _need(path, fields, "encoding").lower()
    encoding = _ENCODINGS.get(encoding, encoding)
    if encoding not in ("raw", "gzip", "bzip2", "text"):
        raise FileError(path, f"unknown encoding {encoding!r}", "raw, gzip, bzip2 or text")
    line_skip, byte_skip = int(fields.get("line skip", 0)), int(fields.get("byte skip", 0))
    if byte_skip < -1 or line_skip < 0:
        raise FileError(path, f"expected a byte skip of -1 or more, got {byte_skip}, and lines {line_skip}")
    name = fields.get("data file") or fields.get("datafile")
    file = path if name is None else check_beside(path, name)
    if name is not None and not file.is_file() and (name.upper().startswith("LIST") or "%" in name):
        raise FileError(path, "its pixels are spread over several files", "convert it to one file")
    start = end if name is None else 0
    if not file.is_file():
        raise FileError(path, f"its data file {name} is missing")
    shape = sizes[::-1]
    stored = file.stat().st_size - start
    # a text number takes two bytes at least; bzip2 packs constant data far better than deflate
    itemsize = {"text": 2, "bzip2": 1}.get(encoding, dtype.itemsize)
    check_stored(path, shape, itemsize, stored + (encoding == "text"), compressed=encoding in ("gzip", "bzip2"))
    if not order and dtype.itemsize > 1 and encoding != "text":
        raise FileError(path, f"its header lacks the field 'endian', needed for {dtype.itemsize}-byte numbers")
    return _Data(file, start, encoding, dtype, shape, line_skip, byte_skip)


def _vector(text: str) -> np.ndarray | None:
    text = text.strip()
    return None if text.lower() == "none" else np.array([float(part) for part in text.strip("()").split(",")])


def _geometry(
    path: Path, fields: dict[str, Any], rank: int, lengths: Lengths
) -> tuple[dict[int, np.ndarray], np.ndarray, bool]:
    """RAS step in mm by spatial axis (counted from the fastest), RAS origin, and whether directions are given."""
    space = fields.get("space", "").lower()
    named = space.removesuffix("-time") if len(space) > 4 else space.removesuffix("t")
    if named not in _TO_RAS and named not in _AS_LPS:
        raise FileError(path, f"space: {space!r} isn't known", f"expected one of {', '.join(_SPACES)}")
    signs = np.array(_TO_RAS.get(named, _LPS), dtype=np.float64)
    origin = np.zeros(3)
    steps: dict[int, np.ndarray] = {}
    if "space directions" in fields:
        vectors = [_vector(part) for part in re.findall(r"none|\([^)]*\)", fields["space directions"], re.IGNORECASE)]
        if len(vectors) != rank:
            raise FileError(path, f"expected {rank} space directions, got {len(vectors)}")
        units = re.findall(r'"([^"]*)"', fields.get("space units", ""))
        factors = [lengths.factor(unit, "space units") or 1.0 for unit in units]
        factor = np.ones(3)
        factor[: min(3, len(factors))] = factors[:3]
        for axis, vector in enumerate(vectors):
            # of four numbers the fourth is time
            if vector is not None and np.isfinite(vector).all() and (len(vector) <= 3 or vector[:3].any()):
                steps[axis] = signs * factor * np.pad(vector, (0, max(0, 3 - len(vector))))[:3]
        start = _vector(fields.get("space origin", "none"))
        if start is not None:
            origin = signs * factor * np.pad(start, (0, max(0, 3 - len(start))))[:3]
    else:
        kinds = [kind.lower() for kind in fields.get("kinds", "").split()] or ["domain"] * rank
        spatial = [axis for axis, kind in enumerate(kinds[:rank]) if kind in ("domain", "space", "none", "???")][:3]
        spacings = [float(step) for step in fields.get("spacings", "").split()] or [1.0] * rank
        units = re.findall(r'"([^"]*)"', fields.get("units", ""))
        sizes = fields["sizes"].split()
        told = [bool(np.isfinite(spacings[axis]) and spacings[axis]) for axis in spatial if int(sizes[axis]) > 1]
        if any(told) and not all(told):
            lengths.lack(f"says how far apart voxels are along some axes only: spacings {fields['spacings']}")
        if "spacings" not in fields and {"axis mins", "axismins", "axis maxs", "axismaxs"} & set(fields):
            lengths.lack("says the ends of its axes (axis mins, axis maxs), not how far apart voxels are")
        for world, axis in enumerate(spatial):
            step = spacings[axis] if np.isfinite(spacings[axis]) and spacings[axis] else 1.0
            length = (lengths.factor(units[axis], "units") if axis < len(units) else None) or 1.0
            steps[axis] = signs * np.eye(3)[world] * step * length
            origin += signs * np.eye(3)[world] * _first_centre(fields, axis, step) * length
    if len(steps) not in (2, 3):
        raise FileError(path, f"expected 2 or 3 spatial axes, got {len(steps)}")
    if np.linalg.matrix_rank(np.stack(list(steps.values()))) < len(steps):
        raise FileError(path, "its space directions flatten an axis")
    return steps, origin, "space directions" in fields


def _first_centre(fields: dict[str, Any], axis: int, step: float) -> float:
    """Where `axis mins` puts the middle of an axis' first voxel: a cell, as most are, begins there; 0 if it isn't told.

    Formula: nrrdAxisInfoPos of teem, whose default is the cell, too.
    """
    mins = [float(start) for start in (fields.get("axis mins") or fields.get("axismins") or "").split()]
    if axis >= len(mins) or not np.isfinite(mins[axis]):
        return 0.0
    centres = (fields.get("centerings") or fields.get("centers") or "").lower().split()
    node = axis < len(centres) and centres[axis] == "node"
    return mins[axis] + (0.0 if node else step / 2)


def _load(data: _Data, order: AxisOrder, window: tuple[slice, ...]) -> np.ndarray:
    index = order.index(window)
    count = prod(data.shape)
    with data.file.open("rb") as file:
        file.seek(data.start)
        for _ in range(data.line_skip):
            if not file.readline(_LONGEST_HEADER):
                raise FileError(data.file, f"has fewer lines than the {data.line_skip} that are to be skipped")
        if data.encoding == "text":
            numbers = np.array(file.read().split()[:count], dtype=data.dtype)
            return order.arrange(numbers.reshape(data.shape)[index])
        if data.encoding == "raw":
            nbytes = count * data.dtype.itemsize
            start = file.seek(0, 2) - nbytes if data.byte_skip == -1 else file.tell() + data.byte_skip
            return order.arrange(np.array(np.memmap(data.file, data.dtype, "r", start, data.shape)[index]))
        with cast(BinaryIO, gzip.GzipFile(fileobj=file) if data.encoding == "gzip" else bz2.BZ2File(file)) as stream:
            buffer = _last(stream, count * data.dtype.itemsize) if data.byte_skip == -1 else _next(stream, data)
    return order.arrange(np.frombuffer(buffer, data.dtype).reshape(data.shape)[index])


def _next(stream: BinaryIO, data: _Data) -> bytes:
    needed = prod(data.shape) * data.dtype.itemsize
    stream.seek(data.byte_skip)  # read in blocks, however far
    buffer = stream.read(needed)
    if len(buffer) < needed:
        raise ValueError(f"its pixels end after {len(buffer)} of {needed} bytes")
    return buffer


def _last(stream: BinaryIO, needed: int) -> bytes:
    """The last `needed` bytes of a stream whose length isn't known."""
    tail = b""
    while block := stream.read(max(needed, 1 << 16)):
        tail = (tail + block)[-needed:]
    if len(tail) < needed:
        raise ValueError(f"its pixels end after {len(tail)} of {needed} bytes")
    return tail
