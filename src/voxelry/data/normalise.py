"""Intensities to [0, 1].

Numbers that aren't finite are replaced first, per channel: NaN and -inf by the smallest finite value,
+inf by the largest; a channel without any finite value becomes zero.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from voxelry.core.errors import SettingError

__all__ = ["METHODS", "check_normalise", "finite", "normalise"]

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


def normalise(
    image: Tensor,
    method: str | None = "minmax",
    *,
    window: Sequence[float] | None = None,
    percentiles: Sequence[float] = (0.5, 99.5),
    clip: float = 3.0,
    per_channel: bool = True,
) -> Tensor:
    """Scale `image` (C, *spatial) to [0, 1], float32.

    Args:
        image: any real values; see above for NaN and infinities.
        method: what becomes 0 and 1; values beyond are clipped.
            `minmax`: the smallest and the largest value.
            `percentile`: the two `percentiles`.
            `window`: the two ends of `window`, in the image's own units (Hounsfield for CT).
            `zscore`: mean minus and plus `clip` standard deviations, so that the mean becomes 0.5.
            None: nothing is scaled or clipped.
        window: low and high end, for `window`.
        percentiles: low and high, in [0, 100].
        clip: half of the z-score range, in standard deviations.
        per_channel: whether each channel has its own statistics, or all share one.

    Returns:
        float32 of the same shape. A channel without contrast becomes zeros (with `window` it is scaled
        like any other).

    Raises:
        SettingError: an unknown method or settings that don't fit it.
    """
    check_normalise(method, window=window, percentiles=percentiles, clip=clip)
    image = finite(image.to(torch.float32))
    if method is None:
        return image
    parts = image if per_channel else image[None]
    scaled = []
    for part in parts:
        low, high = _range(part, method, window, percentiles, clip)
        scaled.append(_stretch(part, low, high))
    return torch.stack(scaled).reshape(image.shape)


def check_normalise(
    method: str | None, *, window: Sequence[float] | None, percentiles: Sequence[float], clip: float
) -> None:
    """Refuse settings that `normalise` can't take.

    Raises:
        SettingError: always one line naming the setting.
    """
    if method is not None and method not in METHODS:
        raise SettingError(f"normalise: expected one of {', '.join(METHODS)} or None, got {method!r}")
    if method == "window" and window is None:
        raise SettingError("window: expected two numbers (low, high), as normalise is 'window'")
    if window is not None and (len(window) != 2 or not window[0] < window[1]):
        raise SettingError(f"window: expected two numbers, low below high, got {window}")
    if len(percentiles) != 2 or not 0 <= percentiles[0] < percentiles[1] <= 100:
        raise SettingError(f"percentiles: expected two numbers in [0, 100], low below high, got {percentiles}")
    if not clip > 0:
        raise SettingError(f"clip: expected a positive number of standard deviations, got {clip}")


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
        # Below rounding error of float32 there is no contrast, only noise.
        reach = float(deviation) * clip if float(deviation) > 1e-7 * abs(float(mean)) else 0.0
        return float(mean) - reach, float(mean) + reach
    return float(part.min()), float(part.max())


def _stretch(part: Tensor, low: float, high: float) -> Tensor:
    if not high > low:
        return torch.zeros_like(part)
    span = high - low
    if span > torch.finfo(torch.float32).max:  # the difference itself would overflow
        part, low, span = part / 2, low / 2, span / 2
    if span < torch.finfo(torch.float32).tiny:  # and so would its reciprocal
        part, low = part.to(torch.float64), float(low)
    return ((part - low) / span).clamp(0, 1).to(torch.float32)
