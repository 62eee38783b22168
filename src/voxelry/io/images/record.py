"""What an image file is to the rest of the program: a header now, pixels when asked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from voxelry.core.errors import FileError, SettingError
from voxelry.core.guard import guarded
from voxelry.core.space import Space
from voxelry.io.guard import check_memory
from voxelry.io.images.axes import AxisOrder

__all__ = ["Image", "ImageFile", "Loader"]

Loader = Callable[[tuple[slice, ...]], np.ndarray]
"""Spatial window (array order, start and stop inside the image, step 1) to `(C, *window)`."""


@dataclass(frozen=True, eq=False)
class ImageFile:
    """An image on disk of which only the header has been read.

    Args:
        path: the file or folder.
        space: grid of the whole image, array order, RAS+ mm.
        channels: number of channels; time points, colours and components all count as channels.
        dtype: type of the pixels as `read` gives them (float32 where a scale or offset is applied).
        format: name of the format, such as `NIfTI` or `OME-Zarr`.
        loader: reads a window; opens the file anew each time, so an `ImageFile` may go to another process.
        has_orientation: whether the file itself gives the directions of its axes in the patient.
        metadata: what else the header says (channel names, units, ...), format by format.
        order: which stored axis is which, where the pixels are one stored array; `metadata` names it then.
        spacing_fault: why the spacing of `space` can't be relied on (a unit that isn't known, a step that the file
            lacks); `open_image` raises it unless the user says the spacing.
        indices: the stored numbers, of an image whose colours are those of a palette.
        in_windows: whether a window can be read by itself; otherwise it costs what the whole image does, such as where
            all pixels are one compressed stream.
    """

    path: Path
    space: Space
    channels: int
    dtype: np.dtype
    format: str
    loader: Loader = field(repr=False)
    has_orientation: bool = False
    metadata: dict[str, Any] = field(default_factory=dict)
    order: AxisOrder | None = None
    spacing_fault: FileError | None = None
    indices: ImageFile | None = None
    in_windows: bool = True

    @property
    def shape(self) -> tuple[int, ...]:
        """`(C, *spatial)` of the whole image."""
        return (self.channels, *self.space.shape)

    def read(self, window: Sequence[slice] | None = None) -> np.ndarray:
        """Pixels of the whole image, or of a window of it only.

        Args:
            window: one slice per spatial axis in array order, with Python's rules for bounds; no steps.

        Returns:
            `(C, *window)`, contiguous, writable, native byte order, of type `dtype`.

        Raises:
            SettingError: a window of another rank or with a step.
            FileError: broken or missing pixels, or more of them than this machine has memory for.
        """
        slices = self._bounds(window)
        shape = (self.channels, *(part.stop - part.start for part in slices))
        with guarded(self.path):
            check_memory(self.path, prod(shape) * self.dtype.itemsize)
            if 0 in shape:
                return np.zeros(shape, self.dtype)
            array = np.ascontiguousarray(self.loader(slices), dtype=self.dtype)
            if array.shape != shape:
                raise ValueError(f"expected pixels of shape {shape}, got {array.shape}")
            return array if array.flags.writeable else array.copy()

    def _bounds(self, window: Sequence[slice] | None) -> tuple[slice, ...]:
        if window is None:
            return tuple(slice(0, size) for size in self.space.shape)
        if len(window) != self.space.ndim:
            raise SettingError(f"window: expected {self.space.ndim} slices (one per spatial axis), got {len(window)}")
        bounds = []
        for part, size in zip(window, self.space.shape, strict=True):
            start, stop, step = part.indices(size)
            if step != 1:
                raise SettingError(f"window: expected slices without a step, got {part}")
            bounds.append(slice(start, max(start, stop)))
        return tuple(bounds)


@dataclass(eq=False)
class Image:
    """An image in memory: `array (C, *spatial)`, where it lies, and the file it came from.

    `despeckled` says that speckle was removed before the file was written (`voxelry prepare`).
    """

    array: np.ndarray
    space: Space
    path: Path
    despeckled: bool = False
