"""Invented fluorescence microscopy: packed nuclei whose outlines are known exactly.

Ellipsoids of varying size and direction fill part of a field, touching where they meet. Each has its own
brightness, texture and dark nucleolus; the microscope adds uneven light, fading with depth, a blur that is
longer along the optical axis (the first one), and the noise of counted photons.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from voxelry.core.errors import SettingError
from voxelry.core.rank import check_ndim
from voxelry.core.space import Space
from voxelry.data.sample import Sample
from voxelry.ops.masks import mask_boxes
from voxelry.phantoms.frame import grid_shape, grid_steps
from voxelry.phantoms.shapes import smooth_noise

__all__ = ["make_nuclei"]

_SHAPE = (40, 72, 72)
_SPACING = (2.8e-4, 1.27e-4, 1.27e-4)  # mm: a confocal stack
_TRIES = 400  # places that are tried for each nucleus


@dataclass(frozen=True)
class _Nucleus:
    """An ellipsoid in mm: `axes` has its own axes as columns, divided by its radii."""

    centre: NDArray[np.float64]
    axes: NDArray[np.float64]
    radius: float


def make_nuclei(
    seed: int,
    *,
    ndim: int = 3,
    shape: Sequence[int] | None = None,
    spacing: float | Sequence[float] | None = None,
    diameter: float | None = None,
    density: float | None = None,
    noise: float | None = None,
) -> Sample:
    """An invented stack of nuclei; the same seed and settings give the same arrays.

    Args:
        seed: of everything random.
        ndim: 2 or 3.
        shape: spatial shape; 40 x 72 x 72 (its last two at rank 2) if not given.
        spacing: mm per axis; about 0.28 x 0.127 x 0.127 µm if not given.
        diameter: of a typical nucleus in mm; 18 to 32 voxels of the last axis, by the seed, if not given.
        density: share of the field that nuclei fill, below 0.6; 0.12 to 0.4, by the seed, if not given.
        noise: standard deviation of the noise of the background; 0.01 to 0.08, by the seed, if not given.

    Returns:
        A sample with an image `(1, *shape)` in [0, 1], masks and boxes of the nuclei.

    Raises:
        SettingError: a rank, shape, spacing, diameter or density that can't be made.
    """
    check_ndim(ndim)
    size = grid_shape(shape, _SHAPE, ndim, 8)
    steps = grid_steps(spacing, _SPACING, ndim)
    generator = np.random.default_rng([int(seed), ndim, 1])
    typical = steps[-1] * generator.uniform(18, 32) if diameter is None else float(diameter)
    fill = generator.uniform(0.12, 0.4) if density is None else float(density)
    if not (typical > 0 and 0 < fill < 0.6):
        raise SettingError(f"expected a positive diameter and a density below 0.6, got {diameter} and {density}")
    space = Space.from_spacing(size, steps.tolist())
    nuclei = _packed(np.asarray(size) * steps, typical, fill, generator)
    ids, depth, between = _render(nuclei, size, steps, typical, generator)
    image = _microscope(_stain(ids, depth, between, steps, typical, generator), noise, generator)
    found, places = np.unique(ids, return_inverse=True)  # one that another covers is gone
    masks = torch.from_numpy(places.reshape(size).astype(np.int64) + int(found[0] != 0))
    return Sample(
        image=torch.from_numpy(image[None]),
        space=space,
        name=f"nuclei_{seed:03d}",
        boxes=mask_boxes(masks, int(masks.max())),
        masks=masks,
    )


def _packed(extent: NDArray[np.float64], typical: float, fill: float, generator: np.random.Generator) -> list[_Nucleus]:
    """Nuclei that overlap a little at most, until their volume is the share of the field that is wanted."""
    ndim = len(extent)
    nuclei: list[_Nucleus] = []
    centres, radii = np.empty((0, ndim)), np.empty(0)
    margin = typical / 2  # some are cut by the edge of the field
    remaining = fill * np.prod(extent + margin)
    spread = generator.uniform(0.05, 0.3)  # of the sizes
    tall = generator.uniform(1.0, 1.5)  # along the optical axis, where the microscope sees longer
    while remaining > 0:
        radius = typical / 2 * np.exp(generator.normal(0, spread))
        stretch = np.exp(generator.normal(0, 0.15, ndim))
        stretch[0] *= tall
        stretch /= np.prod(stretch) ** (1 / ndim)
        places = generator.uniform(-margin, extent + margin, (_TRIES, ndim))
        if len(centres):
            distance = np.linalg.norm(places[:, None] - centres, axis=-1) / (radius + radii)
            # 1 is two spheres that touch
            free = np.flatnonzero(distance.min(axis=1) > 0.9)
            if not len(free):
                break
            chosen = free[np.argmin(distance.min(axis=1)[free])] if generator.random() < 0.5 else free[0]
        else:
            chosen = 0
        # turned at random, yet not so far that the tall axis would lie down
        rotation = np.linalg.qr(np.eye(ndim) + 0.4 * generator.standard_normal((ndim, ndim)))[0]
        nuclei.append(_Nucleus(places[chosen], rotation / (radius * stretch), radius))
        centres, radii = np.vstack([centres, places[chosen]]), np.append(radii, radius)
        remaining -= (np.pi ** (ndim / 2) / (1.0 if ndim % 2 == 0 else 0.75 * np.sqrt(np.pi))) * radius**ndim
    return nuclei


def _render(
    nuclei: Sequence[_Nucleus],
    size: tuple[int, ...],
    steps: NDArray[np.float64],
    typical: float,
    generator: np.random.Generator,
) -> tuple[NDArray[np.int32], NDArray[np.float32], NDArray[np.float32]]:
    """The nearest nucleus of each voxel (0 outside), its level (0 centre, 1 surface) and that of the next one."""
    bumps = 1 + 0.08 * smooth_noise(size, steps, typical / 2, generator)  # no nucleus is quite an ellipsoid
    ids = np.zeros(size, dtype=np.int32)
    nearest, second = np.full((2, *size), 2, dtype=np.float32)  # far outside
    for number, nucleus in enumerate(nuclei, start=1):
        reach = 1.7 * nucleus.radius
        low = np.clip(np.floor((nucleus.centre - reach) / steps), 0, size).astype(int)
        high = np.clip(np.ceil((nucleus.centre + reach) / steps) + 1, low, size).astype(int)
        window = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
        grid = np.stack(np.meshgrid(*(np.arange(a, b) for a, b in zip(low, high, strict=True)), indexing="ij"), -1)
        if not grid.size:
            continue
        level = np.linalg.norm((grid * steps - nucleus.centre) @ nucleus.axes, axis=-1).astype(np.float32)
        level *= bumps[window]
        first, next_one = nearest[window], second[window]
        closer = level < first
        second[window] = np.where(closer, first, np.minimum(next_one, level))
        nearest[window] = np.where(closer, level, first)
        ids[window] = np.where(closer, number, ids[window])
    ids[nearest >= 1] = 0
    return ids, nearest, second


def _stain(
    ids: NDArray[np.int32],
    level: NDArray[np.float32],
    next_level: NDArray[np.float32],
    steps: NDArray[np.float64],
    typical: float,
    generator: np.random.Generator,
) -> NDArray[np.float32]:
    """Light that each voxel gives off, before the microscope."""
    size = ids.shape
    brightness = np.concatenate([[0], np.exp(generator.normal(-0.5, generator.uniform(0.1, 0.5), ids.max()))])
    texture = smooth_noise(size, steps, typical / 6, generator)
    rough, hole = generator.uniform(0.05, 0.3), generator.uniform(0, 0.7)
    cover = np.clip((1 - level) / 0.12, 0, 1)
    gap = np.clip((next_level - level) / 0.15, 0, 1)  # a dark line where two meet
    light = brightness[ids] * cover * (0.6 + 0.4 * gap) * np.clip(1 + rough * texture, 0.2, 2)
    light *= 1 - hole * np.clip((0.38 - level) / 0.15, 0, 1)
    haze = smooth_noise(size, steps, 3 * typical, generator)
    return (light + generator.uniform(0.01, 0.3) * np.exp(0.5 * haze)).astype(np.float32)


def _microscope(light: NDArray[np.float32], noise: float | None, generator: np.random.Generator) -> NDArray[np.float32]:
    """Uneven light, fading along the first axis, blur and noise, `[0, 1]`."""
    from scipy.ndimage import gaussian_filter

    size = light.shape
    fading = np.exp(-generator.uniform(0, 0.8) * np.arange(size[0]) / size[0]).reshape(-1, *[1] * (light.ndim - 1))
    uneven = np.exp(0.25 * smooth_noise(size, np.ones(light.ndim), max(size) / 2, generator))
    sigma = [generator.uniform(0.6, 2.0), *[generator.uniform(0.5, 1.2)] * (light.ndim - 1)]
    seen = gaussian_filter(light * fading * uneven, sigma)
    background = generator.uniform(0.01, 0.08) if noise is None else noise
    photons = np.exp(generator.uniform(np.log(6), np.log(300)))
    seen = generator.poisson(np.maximum(seen, 0) * photons) / photons + generator.normal(0, background, size)
    top = np.quantile(seen, generator.uniform(0.97, 0.999))  # the brightest may be clipped
    return np.clip(seen / max(float(top), 1e-6), 0, 1).astype(np.float32)
