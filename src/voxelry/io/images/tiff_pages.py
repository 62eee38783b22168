"""The chain of a TIFF file's pages, looked at before it is followed."""

from __future__ import annotations

import struct
from pathlib import Path

import tifffile

from voxelry.core.errors import FileError

__all__ = ["check_pages"]


def check_pages(path: Path, file: tifffile.TiffFile) -> None:
    """Refuse pages of which one leads back to an earlier one: reading would go round for hours.

    Each page ends with the place of the next (TIFF 6.0, section 2).

    Raises:
        FileError: they do.
    """
    form, stream = file.tiff, file.filehandle
    if form.is_ndpi:  # whose places have 32 bits here and 64 there
        return
    seen: set[int] = set()
    at = 8 if form.is_bigtiff else 4
    while (found := _number(stream, at, form.offsetformat)) not in (0, None):
        assert found is not None
        if found in seen:
            raise FileError(path, f"its pages begin again after {len(seen)} of them")
        seen.add(found)
        count = _number(stream, found, form.tagnoformat)
        if count is None:  # the reader says what is wrong
            return
        at = found + form.tagnosize + count * form.tagsize


def _number(stream: tifffile.FileHandle, at: int, form: str) -> int | None:
    """The number at a place of a file; None beyond its end."""
    size = struct.calcsize(form)
    if at + size > stream.size:
        return None
    stream.seek(at)
    return int(struct.unpack(form, stream.read(size))[0])
