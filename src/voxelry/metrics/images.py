"""How close one image is to another: SSIM, PSNR, MSE, NMSE and MAE, any rank.

Images are `(B, C, *spatial)`; every function gives one number per image, `(B,)` float64, the mean over its
channels. `data_range` is the width of the values' possible range (1 for [0, 1]): it is never guessed from the
data, since a guess makes images incomparable. With a mask, `(B, *spatial)` bool, only its voxels count; an image
whose mask is empty gets NaN.
"""

from __future__ import annotations

import torch
from torch import Tensor

from voxelry.core.errors import SettingError

__all__ = ["checked_pair", "checked_range", "mae", "masked_mean", "mse", "nmse", "psnr", "ssim", "ssim_map"]


def mse(image: Tensor, reference: Tensor, *, mask: Tensor | None = None) -> Tensor:
    """Mean squared error, `(B,)`."""
    image, reference = checked_pair(image, reference)
    return masked_mean((image - reference) ** 2, mask)


def nmse(image: Tensor, reference: Tensor, *, mask: Tensor | None = None) -> Tensor:
    """Squared error over the squared reference, `(B,)`: 0 for equal images, 1 for an image of zeros.

    Zbontar et al. 2018 (arXiv:1811.08839), section 5.2. It depends on which value is zero, so give both images with
    their lowest possible value at 0. Infinite where the reference is zero everywhere and the image is not.
    """
    image, reference = checked_pair(image, reference)
    error, scale = masked_mean((image - reference) ** 2, mask), masked_mean(reference**2, mask)
    return torch.where(error == 0, error, error / scale)


def mae(image: Tensor, reference: Tensor, *, mask: Tensor | None = None) -> Tensor:
    """Mean absolute error, `(B,)`."""
    image, reference = checked_pair(image, reference)
    return masked_mean((image - reference).abs(), mask)


def psnr(image: Tensor, reference: Tensor, *, data_range: float, mask: Tensor | None = None) -> Tensor:
    """Peak signal to noise ratio in dB, `10 log10(data_range^2 / MSE)`, `(B,)`; infinite for equal images."""
    return 10 * torch.log10(checked_range(data_range) ** 2 / mse(image, reference, mask=mask))


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
    return masked_mean(similarity, mask)


def ssim_map(image: Tensor, reference: Tensor, *, data_range: float, sigma: float = 1.5) -> Tensor:
    """Structural similarity around every voxel, `(B, C, *spatial)` float64.

    Gaussian window with `sigma` voxels, cut at 3.5 sigma; population covariance; K1 = 0.01, K2 = 0.03 (Wang et al.
    2004, section III.B); beyond the edge the image is mirrored. In float64: variances are differences of means.
    """
    image, reference = checked_pair(image, reference)
    c1, c2 = (0.01 * checked_range(data_range)) ** 2, (0.03 * data_range) ** 2
    mean_a, mean_b = _smooth(image, sigma), _smooth(reference, sigma)
    variance_a = _smooth(image**2, sigma) - mean_a**2
    variance_b = _smooth(reference**2, sigma) - mean_b**2
    covariance = _smooth(image * reference, sigma) - mean_a * mean_b
    likeness = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    return likeness / ((mean_a**2 + mean_b**2 + c1) * (variance_a + variance_b + c2))


def _smooth(image: Tensor, sigma: float) -> Tensor:
    """Gaussian filter along each spatial axis in turn, mirrored at the edges (the edge voxel twice)."""
    for axis in range(2, image.ndim):
        weights = _mirrored_gaussian(image.shape[axis], sigma).to(image)
        image = (image.movedim(axis, -1) @ weights).movedim(-1, axis)
    return image


def _mirrored_gaussian(size: int, sigma: float) -> Tensor:
    """Share of every voxel of a line (row) in every filtered one (column), `(size, size)` float64.

    As a matrix, which for the sizes of volumes is many times faster than a convolution in float64.
    """
    radius = _radius(sigma)
    steps = torch.arange(-radius, radius + 1)
    kernel = torch.exp(-0.5 * (steps.double() / sigma) ** 2)
    # a triangle wave over the indices mirrors as often as a short axis needs
    source = (torch.arange(size)[:, None] + steps) % (2 * size)
    source = torch.where(source < size, source, 2 * size - 1 - source)
    filtered = torch.arange(size)[:, None].expand_as(source)
    weights = torch.zeros(size, size, dtype=torch.float64)
    return weights.index_put_((source, filtered), (kernel / kernel.sum()).expand(size, -1), accumulate=True)


def _radius(sigma: float) -> int:
    return int(3.5 * sigma + 0.5)


def masked_mean(values: Tensor, mask: Tensor | None) -> Tensor:
    """Mean of `(B, C, *spatial)` over channels and voxels, `(B,)`; over the mask's voxels, NaN if it has none."""
    if mask is None:
        return values.flatten(1).mean(dim=1)
    if mask.shape != values.shape[:1] + values.shape[2:]:
        raise SettingError(f"mask: expected shape {(values.shape[0], *values.shape[2:])}, got {tuple(mask.shape)}")
    inside = mask[:, None].to(device=values.device, dtype=torch.bool).expand_as(values)
    return torch.where(inside, values, 0.0).flatten(1).sum(dim=1) / inside.flatten(1).sum(dim=1)


def checked_pair(image: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    """Both images in float64.

    Raises:
        SettingError: shapes that differ, or without batch, channels and a spatial axis.
    """
    if image.shape != reference.shape or image.ndim < 3:
        raise SettingError(
            f"image: expected two of one shape (B, C, *spatial), got {tuple(image.shape)} and {tuple(reference.shape)}"
        )
    return image.double(), reference.double()


def checked_range(data_range: float) -> float:
    """The range itself.

    Raises:
        SettingError: it is not positive.
    """
    if not data_range > 0:
        raise SettingError(f"data_range: expected a positive number, got {data_range}")
    return data_range
