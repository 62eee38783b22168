"""What an image on disk holds, as a short digest: a changed file is told by its bytes, not by name or date.

Up to 64 MiB every byte counts. Beyond that the digest covers the name and size of every file, all metadata,
and 256 blocks of 64 KiB spread evenly from the first byte to the last, over at most 256 files: reading 16 MiB
tells whether terabytes are the same data. A change of some pixels of such a large file that misses every block
and keeps every size goes unseen; `whole=True` reads everything.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from voxelry.core.errors import FileError
from voxelry.data.cache import stamps
from voxelry.io.images.image import split_dataset

__all__ = ["digest"]

_WHOLE = 64 << 20  # bytes: read in a tenth of a second from any disk
_BLOCK = 64 << 10
_BLOCKS = 256
_METADATA = (".json", ".zarray", ".zgroup", ".zattrs", ".zmetadata")


def digest(path: Path, *, whole: bool = False) -> str:
    """Digest of a file (with its data file, if it is a header) or of a folder; the path itself doesn't count.

    Raises:
        FileError: something can't be read.
    """
    path = split_dataset(path)[0]
    parts = [(name, size) for name, size, _ in stamps(path)]
    state = hashlib.blake2b(digest_size=20)
    for name, size in parts:
        state.update(f"{name}\0{size}\0".encode())
    everything = whole or sum(size for _, size in parts) <= _WHOLE
    metadata = [part for part in parts if part[0].endswith(_METADATA)]
    pixels = [part for part in parts if not part[0].endswith(_METADATA) and part[1]]
    if not everything and len(pixels) > _BLOCKS:
        pixels = [pixels[place] for place in np.linspace(0, len(pixels) - 1, _BLOCKS).astype(int)]
    share = max(1, _BLOCKS // max(1, len(pixels)))
    for name, size in metadata:
        _feed(state, _file(path, name), _blocks(size, None))
    for name, size in pixels:
        _feed(state, _file(path, name), _blocks(size, None if everything else share))
    return state.hexdigest()


def _file(path: Path, name: str) -> Path:
    if path.is_dir():
        return path / name
    return path.parent / name if name else path


def _blocks(size: int, count: int | None) -> Iterator[tuple[int, int]]:
    """Start and length of the parts of a file that count: all of it, or `count` blocks."""
    if count is None or size <= count * _BLOCK:
        for start in range(0, size, 1 << 20):
            yield start, 1 << 20
    else:
        for start in np.linspace(0, size - _BLOCK, count).astype(int).tolist():
            yield start, _BLOCK


def _feed(state: hashlib.blake2b, file: Path, blocks: Iterator[tuple[int, int]]) -> None:
    try:
        with file.open("rb") as stream:
            for start, length in blocks:
                stream.seek(start)
                state.update(stream.read(length))
    except OSError as error:
        raise FileError(file, f"can't be read: {error.strerror}") from None
