"""How good a translated image is: all its numbers in one call, and those of many cases in a few.

Both images are first brought to physical values and clipped to one declared range, so that cases, methods and
networks with different scales can be compared (Huijben et al. 2024, arXiv:2403.08447, section 2.4, does so for HU).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from voxelry.core.errors import SettingError
from voxelry.core.space import Space
from voxelry.metrics.continuity import gradient_error
from voxelry.metrics.images import mae, masked_mean, mse, nmse, psnr, ssim
from voxelry.metrics.perception import detail_ratio, gmsd, spectral_distance
from voxelry.ops.bootstrap import bootstrap_interval

__all__ = ["figure_names", "summarise", "translate_metrics"]

_AXES = "zyx"  # plane, row, column


def translate_metrics(
    prediction: Tensor,
    truth: Tensor,
    *,
    levels: Tensor | None = None,
    data_range: Sequence[float] | None = None,
    space: Space,
    mask: Tensor | None = None,
) -> dict[str, float]:
    """One case; every figure is of the whole volume, never a mean over slices.

    Args:
        prediction, truth: `(C, *spatial)`, values relative to `levels`.
        levels: `(C, 2)` physical values of 0 and 1 of each channel; by default 0 and 1 themselves.
        data_range: lowest and highest physical value that counts, such as -1024 and 3000 HU, for all channels; both
            images are clipped to it, and its width is the peak of PSNR and SSIM. By default the levels.
        space: the grid.
        mask: `(*spatial)` bool, where it matters; the figures `..._inside` are of its voxels (NaN if it is empty) and
            `mae_outside` of the others (NaN if there are none).

    Returns:
        Means over the channels:

        - `psnr` (dB, infinite for equal images), `ssim` (Gaussian window of sigma 1.5 voxels, population covariance),
          `nmse` (the lowest value of the range is 0);
        - `mae`, `rmse` and `bias` (mean of prediction minus truth), in physical units;
        - `gmsd`, `spectral_distance` (dB) and `detail_ratio`, see `metrics.perception`;
        - `gradient_error_z`, `_y`, `_x`, between planes, rows and columns, in physical units per mm;
        - with a mask `psnr_inside`, `ssim_inside`, `mae_inside`, `mae_outside`.

    Raises:
        SettingError: shapes that don't fit, a range that is none; names the argument.
    """
    if prediction.shape != truth.shape or tuple(truth.shape[1:]) != space.shape:
        raise SettingError(
            f"prediction: expected the truth's shape (C, *{space.shape}), got {tuple(prediction.shape)} and "
            f"{tuple(truth.shape)}"
        )
    ours, theirs, width = _in_range(prediction, truth, levels, data_range)
    unit: dict[str, Any] = {"data_range": 1.0}
    spectral = unit | {"spacing": space.spacing}
    scores = {
        "psnr": psnr(ours, theirs, **unit),
        "ssim": ssim(ours, theirs, **unit),
        "nmse": nmse(ours, theirs),
        "mae": width * mae(ours, theirs),
        "rmse": width * mse(ours, theirs).sqrt(),
        "bias": width * masked_mean(ours - theirs, None),
        "gmsd": gmsd(ours, theirs, **unit),
        "spectral_distance": spectral_distance(ours, theirs, **spectral),
        "detail_ratio": detail_ratio(ours, theirs, **spectral),
    }
    gradients = width[:, None] * gradient_error(ours, theirs, spacing=space.spacing)
    for axis, errors in zip(_AXES[-space.ndim :], gradients.T, strict=True):
        scores[f"gradient_error_{axis}"] = errors
    if mask is not None:
        scores |= _inside(ours, theirs, width, mask.bool().expand(len(truth), *mask.shape))
    return {name: float(value.mean()) for name, value in scores.items()}


def _inside(ours: Tensor, theirs: Tensor, width: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """What is measured of the voxels of a mask `(C, *spatial)`, and of the others."""
    return {
        "psnr_inside": psnr(ours, theirs, mask=mask, data_range=1.0),
        "ssim_inside": ssim(ours, theirs, mask=mask, data_range=1.0),
        "mae_inside": width * mae(ours, theirs, mask=mask),
        "mae_outside": width * mae(ours, theirs, mask=~mask),
    }


def figure_names(ndim: int) -> list[str]:
    """The names of `translate_metrics` without a mask."""
    plain = ("psnr", "ssim", "nmse", "mae", "rmse", "bias", "gmsd", "spectral_distance", "detail_ratio")
    return [*plain, *(f"gradient_error_{axis}" for axis in _AXES[-ndim:])]


def summarise(rows: Sequence[Mapping[str, float | str]]) -> dict[str, float]:
    """Cases in a few numbers: the mean of every figure, and the 95 % interval of those that methods are judged by.

    Each mean is over the cases where the figure is finite: undefined ones are NaN and exact ones have an infinite
    PSNR, which `exact` counts. Texts are left out.

    Returns:
        The rows' names with their means, `psnr_low`, `psnr_high`, `ssim_low`, `ssim_high` (bootstrap over cases),
        and `exact`, the number of cases equal to their truth.
    """
    names = dict.fromkeys(name for row in rows for name, value in row.items() if not isinstance(value, str))
    table = {name: np.array([float(row.get(name, math.nan)) for row in rows]) for name in names}
    finite = {name: values[np.isfinite(values)] for name, values in table.items()}
    result = {name: float(values.mean()) if len(values) else math.nan for name, values in finite.items()}
    for name in ("psnr", "ssim"):
        if name in finite:
            result[f"{name}_low"], result[f"{name}_high"] = bootstrap_interval(finite[name])
    if "psnr" in table:
        result["exact"] = float(np.isposinf(table["psnr"]).sum())
    return result


def _in_range(
    prediction: Tensor, truth: Tensor, levels: Tensor | None, data_range: Sequence[float] | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Both as `(C, 1, *spatial)` float64 in [0, 1] of the range, and its physical width `(C,)`."""
    channels = len(truth)
    plain = torch.tensor([[0.0, 1.0]], dtype=torch.float64).expand(channels, 2)
    known = plain if levels is None else levels.detach().double().cpu()
    if known.shape != (channels, 2):
        raise SettingError(f"levels: expected shape {(channels, 2)}, got {tuple(known.shape)}")
    chosen = known if data_range is None else torch.tensor([list(data_range)], dtype=torch.float64).expand(channels, -1)
    if chosen.shape != (channels, 2) or not bool((chosen[:, 1] > chosen[:, 0]).all()):
        raise SettingError(f"data_range: expected a low and a high value, got {(data_range or known.tolist())}")
    width = chosen[:, 1] - chosen[:, 0]
    factor, shift = (known[:, 1] - known[:, 0]) / width, (known[:, 0] - chosen[:, 0]) / width
    column = (channels,) + (1,) * (truth.ndim - 1)
    ours, theirs = (
        (image.double().cpu() * factor.reshape(column) + shift.reshape(column)).clamp(0, 1)[:, None]
        for image in (prediction, truth)
    )
    return ours, theirs, width
