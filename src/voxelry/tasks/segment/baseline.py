"""What can be had without learning: Otsu's threshold and a watershed of the distance to the background."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from voxelry.metrics.instances import instance_row, summarise

__all__ = ["Watershed"]

_SMOOTHING = (0.5, 1.0, 2.0)
_DISTANCE = (2.0, 4.0, 6.0, 9.0)


@dataclass(frozen=True)
class Watershed:
    """Bright objects, told apart where they are narrow. Lengths are in voxels of the finest axis.

    Otsu 1979 (doi:10.1109/TSMC.1979.4310076) on the smoothed image; seeds are the maxima of the Euclidean
    distance to the background; the watershed of that distance (Meyer 1994) shares the foreground out.

    Args:
        smoothing: standard deviation of the Gaussian before the threshold.
        distance: seeds are at least so far apart.
    """

    smoothing: float
    distance: float

    def __call__(self, image: NDArray[np.floating], spacing: Sequence[float]) -> NDArray[np.int32]:
        """Ids of the objects of an image `(*spatial)`, 0 for the background.

        Args:
            spacing: of the voxels, any unit.
        """
        from scipy import ndimage
        from skimage.filters import threshold_otsu
        from skimage.segmentation import watershed

        steps = np.asarray(spacing, dtype=np.float64) / min(spacing)
        smooth = ndimage.gaussian_filter(np.asarray(image, dtype=np.float32), self.smoothing / steps)
        if smooth.min() == smooth.max():
            return np.zeros(smooth.shape, dtype=np.int32)
        inside = smooth > threshold_otsu(smooth)
        depth = ndimage.distance_transform_edt(inside, sampling=steps)
        depth = ndimage.gaussian_filter(depth, 1.0 / steps)
        reach = tuple(2 * max(1, round(self.distance / step)) + 1 for step in steps)
        seeds, _ = ndimage.label((depth == ndimage.maximum_filter(depth, size=reach)) & inside)
        found: NDArray[np.int32] = watershed(-depth, seeds, mask=inside).astype(np.int32)
        return found

    @classmethod
    def tuned(cls, cases: Sequence[tuple[NDArray[np.floating], Sequence[float], NDArray[np.integer]]]) -> Self:
        """The settings with the best AP at IoU 0.5 on some cases, each an image, its spacing and its ids."""
        best, score = cls(_SMOOTHING[0], _DISTANCE[0]), -1.0
        for smoothing in _SMOOTHING:
            for distance in _DISTANCE:
                tried = cls(smoothing, distance)
                reached = summarise([instance_row(tried(image, step), truth) for image, step, truth in cases])["ap_50"]
                if reached > score:
                    best, score = tried, reached
        return best
