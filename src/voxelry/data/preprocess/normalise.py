"""Intensities to [0, 1], and back.

What becomes 0 and 1 are the levels of a channel: `value = (physical - low) / (high - low)`.
Numbers that aren't finite are replaced first, per channel: NaN and -inf by the smallest finite value,
+inf by the largest; a channel without any finite value becomes zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from voxelry.core.choice import check_choice
from voxelry.core.errors import DataError, SettingError

__all__ = [
    "METHODS",
    "check_normalise",
    "check_values",
    "find_levels",
    "finite",
    "is_scaled",
    "normalise",
    "physical",
    "scale",
    "zscore_levels",
]

METHODS = ("minmax", "percentile", "window", "zscore")


def finite(image: Tensor) -> Tensor:
    """`image` (C, *spatial) with NaN and infinities replaced as this file says; itself if there are none."""
    if bool(torch.isfinite(image).all()):
        return image
    image = image.clone()
    for channel in image:
        valid = torch.isfinite(channel)
        values = channel[valid]
        low = float(values.min()) if len(values) else 0.0
        high = float(values.max()) if len(values) else 0.0
        channel[~valid & (channel != torch.inf)] = low
        channel[channel == torch.inf] = high
    return image


def normalise(image: Tensor, method: str | None = "minmax", **settings: Any) -> Tensor:
    """Scale `image` (C, *spatial) to [0, 1], float32, NaN and infinities as above.

    Args:
        image: any real values.
        method, settings: of `find_levels`; with None nothing is scaled or clipped.

    Returns:
        float32 of the same shape. A channel without contrast becomes zeros (with `window` it is scaled
        like any other).

    Raises:
        SettingError: an unknown method or settings that don't fit it.
    """
    image = finite(image.to(torch.float32))
    levels = find_levels(image, method, **settings)
    return image if method is None else scale(image, levels)


def find_levels(
    image: Tensor,
    method: str | None = "minmax",
    *,
    window: Sequence[float] | None = None,
    percentiles: Sequence[float] = (0.5, 99.5),
    clip: float = 3.0,
    per_channel: bool = True,
) -> Tensor:
    """The values that become 0 and 1, `(C, 2)` float64, low then high; they are equal without contrast.

    Args:
        image: `(C, *spatial)`, finite.
        method: what becomes 0 and 1; values beyond are clipped.
            `minmax`: the smallest and the largest value.
            `percentile`: the two `percentiles`.
            `window`: the two ends of `window`, in the image's own units (Hounsfield for CT).
            `zscore`: mean minus and plus `clip` standard deviations, so that the mean becomes 0.5.
            None: 0 and 1 themselves.
        window: low and high end, for `window`.
        percentiles: low and high, in [0, 100].
        clip: half of the z-score range, in standard deviations.
        per_channel: whether each channel has its own statistics, or all share one.

    Raises:
        SettingError: an unknown method or settings that don't fit it.
    """
    check_normalise(method, window=window, percentiles=percentiles, clip=clip)
    if method is None:
        ranges = [(0.0, 1.0)]
    elif per_channel:
        ranges = [_range(part, method, window, percentiles, clip) for part in image]
    else:
        ranges = [_range(image, method, window, percentiles, clip)]
    return torch.tensor(ranges, dtype=torch.float64).expand(len(image), 2)


def zscore_levels(mean: float, deviation: float, clip: float) -> tuple[float, float]:
    """The levels of `zscore` by a channel's statistics; equal where its only contrast is float32's rounding error."""
    reach = clip * deviation if deviation > 1e-7 * abs(mean) else 0.0
    return mean - reach, mean + reach


def is_scaled(image: Tensor) -> bool:
    """Whether all values are in [0, 1]."""
    return bool(image.min() >= 0) and bool(image.max() <= 1)


def scale(image: Tensor, levels: Tensor, *, clip: bool = True) -> Tensor:
    """`image` (C, *spatial) with each channel's levels (C, 2) at 0 and 1, float32; zeros where they are equal.

    Args:
        clip: cut off what lies beyond; otherwise it becomes less than 0 and more than 1, and nothing is lost.
    """
    scaled = [_stretch(part, low, high) for part, (low, high) in zip(image, levels.tolist(), strict=True)]
    result = torch.stack(scaled)
    return result.clamp_(0, 1) if clip else result


def physical(values: Tensor, levels: Tensor) -> Tensor:
    """The inverse of `scale`: values with 0 and 1 at their levels again.

    Args:
        values: `(..., C, *spatial)`.
        levels: `(..., C, 2)`, with the same leading axes.
    """
    low, high = (
        level.reshape(*level.shape, *[1] * (values.ndim - level.ndim)) for level in levels.to(values).unbind(-1)
    )
    return low + values * (high - low)


def check_normalise(
    method: str | None, *, window: Sequence[float] | None, percentiles: Sequence[float], clip: float
) -> None:
    """Refuse settings that `normalise` can't take.

    Raises:
        SettingError: always one line naming the setting.
    """
    check_choice("normalise", method, (*METHODS, None))
    if method == "window" and window is None:
        raise SettingError("window: expected two numbers (low, high), as normalise is 'window'")
    if window is not None and (len(window) != 2 or not window[0] < window[1]):
        raise SettingError(f"window: expected two numbers, low below high, got {window}")
    if len(percentiles) != 2 or not 0 <= percentiles[0] < percentiles[1] <= 100:
        raise SettingError(f"percentiles: expected two numbers in [0, 100], low below high, got {percentiles}")
    if not clip > 0:
        raise SettingError(f"clip: expected a positive number of standard deviations, got {clip}")


def check_values(image: Tensor, source: object) -> None:
    """Refuse an image that nothing can be learned from: it isn't finite, or constant in every channel.

    Raises:
        DataError: names `source`.
    """
    strange = int((~torch.isfinite(image)).sum())
    if strange:
        raise DataError(f"{source}: {strange} of {image.numel()} voxels are NaN or infinite")
    flat = image.flatten(1)
    if bool((flat.amin(dim=1) == flat.amax(dim=1)).all()):
        raise DataError(f"{source}: constant, every voxel is {flat[0, 0]:g}")


def _range(
    part: Tensor, method: str, window: Sequence[float] | None, percentiles: Sequence[float], clip: float
) -> tuple[float, float]:
    if method == "window" and window is not None:
        return float(window[0]), float(window[1])
    if method == "percentile":
        low, high = np.percentile(part.numpy(force=True), percentiles)
        return float(low), float(high)
    if method == "zscore":
        deviation, mean = torch.std_mean(part.to(torch.float64), correction=0)
        return zscore_levels(float(mean), float(deviation), clip)
    return float(part.min()), float(part.max())


def _stretch(part: Tensor, low: float, high: float) -> Tensor:
    if not high > low:
        return torch.zeros_like(part)
    span = high - low
    if span > torch.finfo(torch.float32).max:  # the difference itself would overflow
        part, low, span = part / 2, low / 2, span / 2
    if span < torch.finfo(torch.float32).tiny:  # and so would its reciprocal
        part, low = part.to(torch.float64), float(low)
    return ((part - low) / span).to(torch.float32)
