"""How close one image is to another: SSIM, PSNR, MSE and MAE, any rank.

Images are `(B, C, *spatial)`; every function gives one number per image, `(B,)` float64, the mean over its
channels. `data_range` is the width of the values' possible range (1 for [0, 1]): it is never guessed from the
data, since a guess makes images incomparable. With a mask, `(B, *spatial)` bool, only its voxels count; an image
whose mask is empty gets NaN.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from voxelry.core.errors import SettingError

__all__ = ["mae", "mse", "psnr", "ssim", "ssim_map"]


def mse(image: Tensor, reference: Tensor, *, mask: Tensor | None = None) -> Tensor:
    """Mean squared error, `(B,)`."""
    image, reference = _checked(image, reference)
    return _mean((image - reference) ** 2, mask)


def mae(image: Tensor, reference: Tensor, *, mask: Tensor | None = None) -> Tensor:
    """Mean absolute error, `(B,)`."""
    image, reference = _checked(image, reference)
    return _mean((image - reference).abs(), mask)


def psnr(image: Tensor, reference: Tensor, *, data_range: float, mask: Tensor | None = None) -> Tensor:
    """Peak signal to noise ratio in dB, `10 log10(data_range^2 / MSE)`, `(B,)`; infinite for equal images."""
    return 10 * torch.log10(_positive(data_range) ** 2 / mse(image, reference, mask=mask))


def ssim(
    image: Tensor, reference: Tensor, *, data_range: float, mask: Tensor | None = None, sigma: float = 1.5
) -> Tensor:
    """Structural similarity, `(B,)` in [-1, 1] (Wang et al. 2004, eq. 13): the mean of `ssim_map`.

    Without a mask the mean leaves out a border of the window's radius, `3.5 * sigma` voxels, along every axis that
    is long enough, as the authors do; shorter axes count whole.
    """
    similarity = ssim_map(image, reference, data_range=data_range, sigma=sigma)
    if mask is None:
        radius = _radius(sigma)
        for axis, size in enumerate(similarity.shape[2:], start=2):
            if size > 2 * radius:
                similarity = similarity.narrow(axis, radius, size - 2 * radius)
    return _mean(similarity, mask)


def ssim_map(image: Tensor, reference: Tensor, *, data_range: float, sigma: float = 1.5) -> Tensor:
    """Structural similarity around every voxel, `(B, C, *spatial)` float64.

    Gaussian window with `sigma` voxels, cut at 3.5 sigma; population covariance; K1 = 0.01, K2 = 0.03 (Wang et al.
    2004, section III.B); beyond the edge the image is mirrored. In float64: variances are differences of means.
    """
    image, reference = _checked(image, reference)
    c1, c2 = (0.01 * _positive(data_range)) ** 2, (0.03 * data_range) ** 2
    mean_a, mean_b = _smooth(image, sigma), _smooth(reference, sigma)
    variance_a = _smooth(image**2, sigma) - mean_a**2
    variance_b = _smooth(reference**2, sigma) - mean_b**2
    covariance = _smooth(image * reference, sigma) - mean_a * mean_b
    likeness = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    return likeness / ((mean_a**2 + mean_b**2 + c1) * (variance_a + variance_b + c2))


def _smooth(image: Tensor, sigma: float) -> Tensor:
    """Gaussian filter along each spatial axis in turn, mirrored at the edges (the edge voxel twice)."""
    radius = _radius(sigma)
    place = torch.arange(-radius, radius + 1, dtype=image.dtype, device=image.device)
    kernel = torch.exp(-0.5 * (place / sigma) ** 2)
    kernel = (kernel / kernel.sum())[None, None]
    for axis in range(2, image.ndim):
        size = image.shape[axis]
        # a triangle wave over the indices mirrors as often as a short axis needs
        index = torch.arange(-radius, size + radius, device=image.device) % (2 * size)
        index = torch.where(index < size, index, 2 * size - 1 - index)
        lines = image.index_select(axis, index).movedim(axis, -1)
        filtered = F.conv1d(lines.reshape(-1, 1, lines.shape[-1]), kernel)
        image = filtered.reshape(*lines.shape[:-1], size).movedim(-1, axis)
    return image


def _radius(sigma: float) -> int:
    return int(3.5 * sigma + 0.5)


def _mean(values: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None:
        return values.flatten(1).mean(dim=1)
    if mask.shape != values.shape[:1] + values.shape[2:]:
        raise SettingError(f"mask: expected shape {(values.shape[0], *values.shape[2:])}, got {tuple(mask.shape)}")
    inside = mask[:, None].to(device=values.device, dtype=torch.bool).expand_as(values)
    return torch.where(inside, values, 0.0).flatten(1).sum(dim=1) / inside.flatten(1).sum(dim=1)


def _checked(image: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    if image.shape != reference.shape or image.ndim < 3:
        raise SettingError(
            f"image: expected two of one shape (B, C, *spatial), got {tuple(image.shape)} and {tuple(reference.shape)}"
        )
    return image.double(), reference.double()


def _positive(data_range: float) -> float:
    if not data_range > 0:
        raise SettingError(f"data_range: expected a positive number, got {data_range}")
    return data_range
