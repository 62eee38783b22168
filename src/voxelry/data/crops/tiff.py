"""Windows of a TIFF stack, decoding only the strips and tiles that they touch."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from voxelry.core.errors import FileError
from voxelry.core.guard import guarded

__all__ = ["TiffStack"]


class TiffStack:
    """The first series of a TIFF file at full resolution, kept open.

    Args:
        path: the file.
        shape: stored shape, with axes of length one, as `AxisOrder` has it.

    Raises:
        FileError: no TIFF, or of another shape than it had.
    """

    def __init__(self, path: Path, shape: tuple[int, ...]):
        self.path, self.shape = path, shape
        with guarded(path):
            self._file = tifffile.TiffFile(path)
            self._series = self._file.series[0].levels[0]
            if self._series.size != prod(shape):
                raise FileError(path, f"holds {self._series.shape} now, and had {shape}")
            self._mapped: NDArray[Any] | None = None
            if self._series.dataoffset is not None:
                stored = np.dtype(self._series.dtype).newbyteorder(self._file.byteorder)
                self._mapped = np.memmap(path, stored, "r", offset=self._series.dataoffset, shape=shape)
        pages = len(self._series.pages)
        self._leading = next((axes for axes in range(len(shape) + 1) if prod(shape[:axes]) == pages), None)

    def close(self) -> None:
        """Let the file go."""
        self._mapped = None
        self._file.close()

    def __getitem__(self, index: tuple[slice, ...]) -> NDArray[Any]:
        """The window of plain slices, in stored axis order.

        Raises:
            FileError: a page that is missing or can't be decoded; the message names it.
        """
        if self._mapped is not None:
            return np.array(self._mapped[index])
        keyframe = self._series.keyframe
        leading = self._leading
        if leading is None or prod(self.shape[leading:]) != prod(keyframe.shape):
            with guarded(self.path):
                return self._series.asarray().reshape(self.shape)[index]
        numbers = np.arange(len(self._series.pages)).reshape(self.shape[:leading])[index[:leading]]
        inner = index[leading:]
        lengths = tuple(part.stop - part.start for part in inner)
        out = np.empty((numbers.size, *lengths), self._series.dtype)
        for slot, number in enumerate(numbers.ravel().tolist()):
            with guarded(self.path, f"page {number} can't be decoded"):
                out[slot] = self._page(number, inner)
        return out.reshape(numbers.shape + lengths)

    def _page(self, number: int, inner: tuple[slice, ...]) -> NDArray[Any]:
        page = self._series.pages[number]
        if page is None:
            raise FileError(self.path, f"page {number} is missing")
        size = page.parent.filehandle.size
        axes = [axis for axis, length in enumerate(page.shape) if length > 1]
        if page.jpegtables is not None or len(axes) != sum(length > 1 for length in self.shape[-len(inner) :]):
            return page.asarray().reshape(self.shape[self._leading or 0 :])[inner]
        window = _matched(page.shape, self.shape[self._leading or 0 :], inner)
        out = np.zeros([part.stop - part.start for part in window], self._series.dtype)
        ranges = [
            range(part.start // chunk, -(-part.stop // chunk)) for part, chunk in zip(window, page.chunks, strict=True)
        ]
        for place in np.ndindex(*[len(steps) for steps in ranges]):
            cell = tuple(steps[step] for steps, step in zip(ranges, place, strict=True))
            segment = int(np.ravel_multi_index(cell, page.chunked))
            offset, count = page.dataoffsets[segment], page.databytecounts[segment]
            if offset + count > size:
                raise FileError(self.path, f"is cut short: page {number} ends at byte {offset + count}")
            data = next(iter(page.parent.filehandle.read_segments([offset], [count], indices=[segment])))[0]
            decoded = page.decode(data, segment)[0]
            if decoded is None:  # a tile that was never written
                continue
            low = [step * chunk for step, chunk in zip(cell, page.chunks, strict=True)]
            high = [min(a + chunk, b) for a, chunk, b in zip(low, page.chunks, page.shape, strict=True)]
            # Tiles at the border are whole, the last strip is as long as what is left of the page.
            whole = decoded.size == prod(page.chunks)
            tile = decoded.reshape(page.chunks if whole else [b - a for a, b in zip(low, high, strict=True)])
            source, target = [], []
            for part, a, b in zip(window, low, high, strict=True):
                first, last = max(part.start, a), min(part.stop, b)
                source.append(slice(first - a, last - a))
                target.append(slice(first - part.start, last - part.start))
            out[tuple(target)] = tile[tuple(source)]
        return out.reshape([part.stop - part.start for part in inner])


def _matched(page: tuple[int, ...], stored: tuple[int, ...], window: tuple[slice, ...]) -> list[slice]:
    """A window of the stored axes as one of the page's, which has other axes of length one."""
    long = iter([part for part, length in zip(window, stored, strict=True) if length > 1])
    return [next(long) if length > 1 else slice(0, 1) for length in page]
