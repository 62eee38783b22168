"""An image file that is prepared for a network window by window, for volumes that don't fit into memory."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, prod

import numpy as np
import torch
from numpy.typing import NDArray

from voxelry.core.errors import DataError
from voxelry.core.orientation import orientation_steps
from voxelry.data.preprocess import Preprocess
from voxelry.data.preprocess.modality import own_values
from voxelry.data.preprocess.normalise import finite, scale, zscore_levels
from voxelry.io import ImageFile

__all__ = ["PreparedFile"]

_SAMPLED = 1 << 22  # voxels of a channel whose percentiles stand for those of all
_SLAB = 1 << 23  # voxels read at a time
_PIECE = 1 << 21  # voxels of it that are worked on at a time


class PreparedFile:
    """What `Preprocess` makes of a file, `(C, *window)` float32 at a time.

    Axes are permuted and reversed as `Preprocess` does it. Intensities are scaled by the statistics of the whole
    image, from one pass over it in slabs: smallest and largest value, mean and deviation are exact, percentiles are
    those of voxels at even distances.

    Args:
        file: the image.
        preprocess: without a change of grid, see `fits`.

    Attributes:
        space: the grid of the windows.

    Raises:
        DataError: the preprocessing changes the grid, doesn't clip or shares ranges, which isn't done in windows.
        FileError: the file can't be read.
    """

    def __init__(self, file: ImageFile, preprocess: Preprocess):
        if not self.fits(preprocess):
            why = "as the model resamples its images or scales them in a way of its own"
            raise DataError(f"{file.path}: can't be prepared in windows, {why}")
        self.file = file
        ndim = file.space.ndim
        code = preprocess.orientation
        axes, flips = (tuple(range(ndim)), (False,) * ndim) if code is None else orientation_steps(file.space, code)
        self.axes, self.flips = axes, flips
        self.space = preprocess.target(file.space)
        self.method = preprocess.normalise
        self._levels = torch.tensor(self._ranges(preprocess), dtype=torch.float64)

    @staticmethod
    def fits(preprocess: Preprocess) -> bool:
        """Whether preprocessing leaves every voxel what it is, but for its place among the axes and its scale."""
        settings = preprocess.settings()
        still = all(settings.get(name) is None for name in ("image_size", "spacing", "channels"))
        still &= settings.get("outside", "clip") == "clip" and settings.get("intensity", "own") != "shared"
        still &= not settings.get("despeckle") and not settings.get("trim")
        return still and settings.get("align", "nearest") == "nearest"

    def __call__(self, window: Sequence[slice]) -> NDArray[np.float32]:
        """The prepared pixels of a window of `space`, `(C, *window)`."""
        stored: list[slice] = [slice(0)] * len(self.axes)
        for part, axis, flip in zip(window, self.axes, self.flips, strict=True):
            size = self.file.space.shape[axis]
            stored[axis] = slice(size - part.stop, size - part.start) if flip else part
        pixels = own_values(self.file, stored).astype(np.float32)
        pixels = pixels.transpose(0, *(axis + 1 for axis in self.axes))
        reversed_axes = tuple(place + 1 for place, flip in enumerate(self.flips) if flip)
        image = torch.from_numpy(np.ascontiguousarray(np.flip(pixels, reversed_axes)))
        image = finite(image)
        return image.numpy() if self.method is None else scale(image, self._levels).numpy()

    def _ranges(self, preprocess: Preprocess) -> list[tuple[float, float]]:
        """What becomes 0 and 1 in each channel."""
        channels = self.file.channels
        if self.method is None:
            return []
        if self.method == "window":
            assert preprocess.window is not None  # checked by Preprocess
            return [(float(preprocess.window[0]), float(preprocess.window[1]))] * channels
        groups = channels if preprocess.per_channel else 1
        low, high = np.full(groups, np.inf), np.full(groups, -np.inf)
        total, squares, count = np.zeros(groups), np.zeros(groups), 0
        sampled: list[NDArray[np.float32]] = []
        shape = self.file.space.shape
        step = ceil((prod(shape) / _SAMPLED) ** (1 / len(shape)))
        depth = max(step, _SLAB // prod(shape[1:]) // step * step)
        piece = max(step, _PIECE // prod(shape[1:]) // step * step)
        for start in range(0, shape[0], depth):
            rest = tuple(slice(0, size) for size in shape[1:])
            slab = own_values(self.file, (slice(start, min(start + depth, shape[0])), *rest))
            for first in range(0, slab.shape[1], piece):
                pixels = slab[:, first : first + piece].astype(np.float32)
                values = finite(torch.from_numpy(pixels)).numpy().reshape(groups, -1)
                low, high = np.minimum(low, values.min(axis=1)), np.maximum(high, values.max(axis=1))
                total += values.sum(axis=1, dtype=np.float64)
                squares += np.square(values, dtype=np.float64).sum(axis=1)
                count += values.shape[1]
                grid = (slice(None), *(slice(None, None, step) for _ in shape))
                sampled.append(values.reshape(pixels.shape)[grid].reshape(groups, -1).copy())
        if self.method == "percentile":
            ends = np.percentile(np.concatenate(sampled, axis=1), preprocess.percentiles, axis=1)
        elif self.method == "zscore":
            mean = total / count
            deviation = np.sqrt(np.maximum(squares / count - mean**2, 0))
            found = zip(mean.tolist(), deviation.tolist(), strict=True)
            ends = np.array([zscore_levels(*one, preprocess.clip) for one in found]).T
        else:
            ends = np.stack([low, high])
        return [(float(a), float(b)) for a, b in ends.T] * (channels // groups)
