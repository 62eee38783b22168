"""Computed tomography with fewer photons, made from a scan with more.

The scan is Hounsfield units; its linear attenuation is `mu = WATER * (1 + HU / 1000)` per mm. A ray that crosses
`p = integral of mu` leaves `N = photons * exp(-p)` photons to its detector element. A scan with a fraction `dose`
of the tube current counts each of them with that chance, so its counts are binomial: the variance it adds to `p`
is `(1 / dose - 1) / N`, exactly what the scan at hand lacks (Yu et al. 2012, J Comput Assist Tomogr 36(4),
477-487), and none at full dose. Electronic noise of `electronic` photons comes on top and matters where few arrive.

Instead of projecting and reconstructing, the noise is made in the image. Filtered backprojection of `views`
projections with the Ram-Lak kernel turns a variance `s^2` of every ray through a voxel into
`pi^2 s^2 / (12 views spacing^2)`, as the squares of the kernel sum to `1 / (12 spacing^4)`, and noise that is
independent from ray to ray into a power that grows with |k| in the plane (Riederer et al. 1978, Phys Med Biol 23,
446-454). A voxel's `N` is the harmonic mean over rays through it in `DIRECTIONS` directions. Streaks behind metal,
scatter and beam hardening are not modelled.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

__all__ = ["DIRECTIONS", "WATER", "low_dose_noise", "photons_left"]

WATER = 0.0193
"""Attenuation of water per mm at 70 keV, the mean energy of a usual 120 kVp spectrum."""

DIRECTIONS = 12


def low_dose_noise(
    hounsfield: Tensor,
    spacing: Sequence[float],
    generator: np.random.Generator,
    *,
    dose: float,
    photons: float = 2e5,
    electronic: float = 10.0,
    views: int = 1000,
    surround: float = 0.0,
) -> Tensor:
    """What to add to slices for them to look as if taken with a fraction of the dose, `(N, H, W)` in HU.

    Args:
        hounsfield: `(N, H, W)`, slices perpendicular to the scanner's axis.
        spacing: mm between rows and between columns.
        dose: fraction of the tube current (mAs), in (0, 1].
        photons: that reach a detector element in a view through air, at the dose of `hounsfield`.
        electronic: standard deviation of the read-out, in photons.
        views: projections over half a turn.
        surround: mm of water that every ray crosses outside of the slices, for windows cut from a body.
    """
    count = photons_left(hounsfield, spacing, photons=photons, surround=surround).numpy()
    full = np.maximum(np.rint(count), 1)
    low = generator.binomial(full.astype(np.int64), dose).astype(np.float64)
    # The scan at hand has electronic noise already, seen through a dose of 1.
    low += electronic * math.sqrt(1 - dose**2) * generator.standard_normal(low.shape)
    noise = -np.log(np.maximum(low, 1) / np.maximum(full * dose, 1))
    step = math.sqrt(math.prod(spacing))
    gain = math.pi / (step * math.sqrt(12 * views)) * 1000 / WATER
    return _coloured(torch.from_numpy(noise), spacing).mul_(gain).to(hounsfield)


def photons_left(hounsfield: Tensor, spacing: Sequence[float], *, photons: float, surround: float = 0.0) -> Tensor:
    """Harmonic mean number of photons of the rays through each voxel, `(N, H, W)` float64; arguments as above."""
    attenuation = WATER * (1 + hounsfield.to(torch.float64) / 1000).clamp(min=0)
    flat = attenuation.flatten(1).T.contiguous()  # voxels of a plane first: whole rows are added and taken
    width = 2 * max(spacing)  # wide enough that voxels fall evenly into the detector elements of any direction
    height, length = (
        (torch.arange(count, dtype=torch.float64) - (count - 1) / 2) * step
        for count, step in zip(hounsfield.shape[1:], spacing, strict=True)
    )
    losses = torch.zeros_like(flat)
    for direction in range(DIRECTIONS):
        angle = math.pi * direction / DIRECTIONS
        place = (math.cos(angle) * length + math.sin(angle) * height[:, None]).flatten() / width
        place = place - place.min()
        low = place.long()
        part = (place - low)[:, None]
        detector = flat.new_zeros(int(low.max()) + 2, flat.shape[1])
        detector.index_add_(0, low, flat * (1 - part)).index_add_(0, low + 1, flat * part)
        paths = detector * (math.prod(spacing) / width) + WATER * surround
        losses += torch.lerp(paths[low], paths[low + 1], part).exp_()
    return (photons * DIRECTIONS / losses).T.reshape(hounsfield.shape)


def _coloured(white: Tensor, spacing: Sequence[float]) -> Tensor:
    """Independent noise `(N, H, W)` with a power that grows with |k| in the plane, and the same variance."""
    rows, columns = white.shape[1:]
    k = torch.hypot(
        torch.fft.fftfreq(rows, spacing[0], dtype=torch.float64)[:, None],
        torch.fft.fftfreq(columns, spacing[1], dtype=torch.float64),
    )
    power = torch.where(k <= 0.5 / max(spacing), k, 0.0)  # an even resolution in all directions
    mean = power.mean()
    amplitude = torch.sqrt(power / mean) if mean > 0 else torch.ones_like(power)
    return torch.fft.ifft2(torch.fft.fft2(white) * amplitude).real
