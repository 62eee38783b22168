"""How alike two images look, without a network: edges, and the detail that a blurred image lacks.

Pixel errors such as PSNR are lowest for the mean of all plausible images, which is blurred; what looks right has a
higher error (Blau & Michaeli 2018, arXiv:1711.06077). So a restoration is judged by both. Images are
`(B, C, *spatial)`; every function gives one number per image, `(B,)` float64.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from voxelry.core.errors import SettingError
from voxelry.core.rank import per_axis
from voxelry.metrics.images import checked_pair, checked_range

__all__ = ["detail_ratio", "gmsd", "spectral_distance"]

_BANDS = 16
_LEAST = 1e-3  # of the data range: noise below this is no detail


def gmsd(image: Tensor, reference: Tensor, *, data_range: float) -> Tensor:
    """Gradient magnitude similarity deviation, 0 for images of the same edges, larger is worse.

    Xue et al. 2014 (arXiv:1308.3052), eq. 4 to 6, in any rank: images are halved by averages of two voxels along
    every axis of at least four, gradients are Prewitt's, and the similarity of their magnitudes is pooled by its
    standard deviation, since damage that is uneven is what one sees. Beyond the edge the image goes on as its edge.
    """
    image, reference = checked_pair(image, reference)
    constant = 170 / 255**2 * checked_range(data_range) ** 2  # the paper's, for 8-bit images
    first, second = _edges(_halved(image)), _edges(_halved(reference))
    similarity = (2 * first * second + constant) / (first**2 + second**2 + constant)
    return similarity.flatten(2).std(dim=2, correction=0).mean(dim=1)


def spectral_distance(
    image: Tensor, reference: Tensor, *, data_range: float, spacing: float | Sequence[float] = 1.0
) -> Tensor:
    """Root mean square difference of the power spectra in dB, 0 for images of the same texture.

    The log spectral distance (Gray & Markel 1976, eq. 5) over bands of equal width up to the highest frequency of
    the finest axis, in cycles per mm. Where things are does not count, only how much of each detail there is: the
    spectrum of an image that is right but blurred falls below the reference's, that of a noisy one rises above.

    Args:
        image, reference: `(B, C, *spatial)`.
        data_range: width of the values' possible range; what is below a thousandth of it is no detail.
        spacing: mm, one number or one per axis in array order.
    """
    image, reference = checked_pair(image, reference)
    first, second = (_spectrum(one, checked_range(data_range), spacing) for one in (image, reference))
    gap = 10 * torch.log10(first / second)
    return (gap**2).mean(dim=2).sqrt().mean(dim=1)


def detail_ratio(
    image: Tensor, reference: Tensor, *, data_range: float, spacing: float | Sequence[float] = 1.0
) -> Tensor:
    """Power of the finer half of all frequencies, as a ratio to the reference's: 1 is right.

    Below 1 the image is blurred, above it is noisy; arguments and bands are those of `spectral_distance`.
    """
    image, reference = checked_pair(image, reference)
    first, second = (_spectrum(one, checked_range(data_range), spacing) for one in (image, reference))
    fine = slice(_BANDS // 2, None)
    return (first[:, :, fine].mean(dim=2) / second[:, :, fine].mean(dim=2)).mean(dim=1)


def _halved(image: Tensor) -> Tensor:
    for axis in range(2, image.ndim):
        size = image.shape[axis]
        if size >= 4:
            pairs = image.narrow(axis, 0, size // 2 * 2).unflatten(axis, (size // 2, 2))
            image = pairs.mean(dim=axis + 1)
    return image


def _edges(image: Tensor) -> Tensor:
    """Magnitude of Prewitt's gradient: a central difference along one axis, the mean of three along the others."""
    axes = range(2, image.ndim)
    squares = torch.zeros_like(image)
    for along in axes:
        derivative = image
        for axis in axes:
            before, here, after = _neighbours(derivative, axis)
            derivative = after - before if axis == along else (before + here + after) / 3
        squares += derivative**2
    return squares.sqrt()


def _neighbours(image: Tensor, axis: int) -> tuple[Tensor, Tensor, Tensor]:
    """What lies before every voxel along an axis, the voxel, and what lies after; an edge repeats itself."""
    size = image.shape[axis]
    place = torch.arange(size, device=image.device)
    before, after = (image.index_select(axis, (place + step).clamp(0, size - 1)) for step in (-1, 1))
    return before, image, after


def _spectrum(image: Tensor, data_range: float, spacing: float | Sequence[float]) -> Tensor:
    """Mean power in each band of frequencies, `(B, C, bands)`; 1 is white noise of `_LEAST` of the range.

    A Hann window along every axis keeps the jump from one end to the other from passing for detail.
    """
    shape = image.shape[2:]
    steps = per_axis(spacing, len(shape), "spacing")
    if not all(step > 0 for step in steps):
        raise SettingError(f"spacing: expected positive millimetres, got {spacing}")
    image = image - image.flatten(2).mean(dim=2).reshape(image.shape[:2] + (1,) * len(shape))
    energy = torch.ones((), dtype=image.dtype)
    squares = torch.zeros((), dtype=image.dtype, device=image.device)
    for axis, (size, step) in enumerate(zip(shape, steps, strict=True)):
        line = [-1 if other == axis else 1 for other in range(len(shape))]
        window = torch.hann_window(size + 2, periodic=False, dtype=image.dtype)[1:-1]
        energy = energy * (window**2).sum()
        image = image * window.to(image.device).reshape(line)
        squares = squares + torch.fft.fftfreq(size, step, dtype=image.dtype).to(image.device).reshape(line) ** 2
    power = torch.fft.fftn(image, dim=tuple(range(2, image.ndim))).abs() ** 2
    band = (squares.sqrt() * 2 * min(steps) * _BANDS).long().flatten()
    within = band < _BANDS  # the corners of the spectrum are finer than any axis can hold
    sums = power.new_zeros(*power.shape[:2], _BANDS).index_add_(2, band[within], power.flatten(2)[:, :, within])
    counts = torch.bincount(band[within], minlength=_BANDS).clamp(min=1)
    return 1 + sums / counts / (energy.to(image.device) * (_LEAST * data_range) ** 2)
