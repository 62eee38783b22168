"""How scanners lose detail and add noise, on voxels: truncated k-space, thick slices, blur, Rician noise.

Images are `(C, *spatial)` float32, axes are spatial ones in array order, lengths are voxels. Nothing is clipped
to a range, and nothing is random but what takes a generator.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from voxelry.core.choice import check_choice
from voxelry.core.errors import SettingError

__all__ = ["PROFILES", "add_gaussian", "add_rician", "gaussian_blur", "slice_matrix", "thick_slices", "truncate_kspace"]

PROFILES = ("box", "gaussian")

_FWHM = 2 * math.sqrt(2 * math.log(2))  # full width at half maximum of a Gaussian, in standard deviations


def truncate_kspace(image: Tensor, axis: int, keep: float) -> Tensor:
    """Only the frequencies with |k| <= keep * n / 2 of an axis of n voxels: zero-filled, magnitude.

    This is what fewer phase-encoding steps give: ringing beside edges, and 1 / keep times coarser detail on the
    same grid. `keep` is in (0, 1]; 1 keeps all. Being a magnitude, the result has no negative values.
    """
    count = image.shape[axis + 1]
    frequencies = torch.fft.fftfreq(count, 1 / count, dtype=torch.float64, device=image.device)
    kept = 2 * frequencies.abs() <= keep * count + 1e-6  # whole numbers on the left
    spectrum = torch.fft.fft(image, dim=axis + 1) * kept.reshape(-1, *[1] * (image.ndim - axis - 2))
    return torch.fft.ifft(spectrum, dim=axis + 1).abs().to(image.dtype)


def add_rician(image: Tensor, sigma: float, generator: np.random.Generator) -> Tensor:
    """The magnitude of a complex image with noise of standard deviation `sigma` in its real and imaginary parts.

    Gudbjartsson & Patz 1995, Magnetic Resonance in Medicine 34(6), 910-914.
    """
    real, imaginary = (_normal(image, sigma, generator) for _ in range(2))
    return torch.hypot(image + real, imaginary)


def add_gaussian(image: Tensor, sigma: float, generator: np.random.Generator) -> Tensor:
    """Independent Gaussian noise of standard deviation `sigma`."""
    return image + _normal(image, sigma, generator)


def gaussian_blur(image: Tensor, fwhm: Sequence[float]) -> Tensor:
    """A Gaussian of `fwhm` (full width at half maximum) voxels along each axis; the border is repeated."""
    from scipy.ndimage import gaussian_filter1d

    blurred = image.numpy()
    for axis, width in enumerate(fwhm, start=1):
        if width > 0:
            blurred = gaussian_filter1d(blurred, width / _FWHM, axis=axis, mode="nearest")
    return torch.as_tensor(blurred)


def thick_slices(
    image: Tensor, axis: int, thickness: float, *, step: float | None = None, profile: str = "box"
) -> Tensor:
    """What slices of `thickness` voxels, `step` apart, show of an image, linearly interpolated back to its grid.

    Args:
        thickness: of the slice profile; full width at half maximum for `gaussian`.
        step: between the slices' centres, by default the thickness: no gap and no overlap.
        profile: one of `PROFILES`.

    Raises:
        SettingError: a thickness or step below one voxel, or another profile.
    """
    step = thickness if step is None else step
    if thickness < 1 or step < 1:
        raise SettingError(f"thickness: expected at least one voxel, got {thickness:.4g} at a step of {step:.4g}")
    count = image.shape[axis + 1]
    sliced = slice_matrix(count, thickness, step, profile)
    back = _interpolation(count, len(sliced), step)
    matrix = torch.from_numpy(back @ sliced).to(image)
    return torch.tensordot(image, matrix, dims=([axis + 1], [1])).movedim(-1, axis + 1)


def slice_matrix(count: int, thickness: float, step: float, profile: str = "box") -> np.ndarray:
    """Weights of `count` thin slices in each thick one, `(thick, count)`; rows sum to 1.

    The thick slices are centred in the stack, as many as fit it to the nearest whole number and at least one.
    A thin slice counts by the part of the profile that lies in it.
    """
    check_choice("profile", profile, PROFILES)
    centres = _centres(count, max(1, round(count / step)), step)
    edges = np.arange(count + 1) - 0.5 - centres[:, None]
    if profile == "box":
        share = np.clip(edges / thickness + 0.5, 0, 1)
    else:
        share = torch.special.ndtr(torch.from_numpy(edges * (_FWHM / thickness))).numpy()
    weights = np.diff(share, axis=1)
    return weights / weights.sum(axis=1, keepdims=True)


def _interpolation(count: int, thick: int, step: float) -> np.ndarray:
    """Linear weights of the thick slices in each of `count` thin ones, `(count, thick)`; the ends are repeated."""
    place = np.clip((np.arange(count) - _centres(count, thick, step)[0]) / step, 0, thick - 1)
    return np.maximum(0, 1 - np.abs(place[:, None] - np.arange(thick)))


def _centres(count: int, thick: int, step: float) -> np.ndarray:
    return (count - 1) / 2 + (np.arange(thick) - (thick - 1) / 2) * step


def _normal(image: Tensor, sigma: float, generator: np.random.Generator) -> Tensor:
    noise = generator.standard_normal(tuple(image.shape), dtype=np.float32)
    return torch.from_numpy(noise).to(image).mul_(sigma)
