"""Formulas of earlier projects, as they were written, for comparison with figures made by them.

Those that begin with `original_` don't measure what they are called on images in [0, 1] or [-1, 1]; each says so when
it is used. Their arrays are volumes of any rank, without batch and channels.
"""

from __future__ import annotations

import warnings

import numpy as np
from numpy.typing import NDArray

from voxelry.core.errors import SettingError

__all__ = ["fast_ddpm_scores", "original_dice", "original_psnr", "original_scores", "original_ssim"]

Values = NDArray[np.floating]


def original_psnr(prediction: Values, truth: Values) -> float:
    """`20 log10(255 / RMSE)` whatever the range of the values: 48.13 dB too much on [0, 1], 42.11 on [-1, 1]."""
    _check(prediction, truth)
    _warn("original_psnr takes 255 for the range: 48.13 dB too much in [0, 1], 42.11 dB in [-1, 1]", "images.psnr")
    error = np.sqrt(np.mean((np.asarray(prediction, dtype=np.float64) - truth) ** 2))
    return float(20 * np.log10(255.0 / error)) if error > 0 else float("inf")


def original_ssim(prediction: Values, truth: Values) -> float:
    """scikit-image's SSIM with its uniform window of 7 and 255 for the range: near 1 for any images in [0, 1].

    Raises:
        SettingError: an axis is shorter than the window.
    """
    from skimage.metrics import structural_similarity

    _check(prediction, truth)
    if min(truth.shape) < 7:
        raise SettingError(f"truth: expected at least 7 voxels along every axis, the window's size, got {truth.shape}")
    _warn("original_ssim takes 255 for the range: images in [0, 1] all look alike", "images.ssim")
    return float(structural_similarity(truth, prediction, data_range=255))


def original_dice(prediction: Values, truth: Values) -> float:
    """`2 sum(a b) / (sum(a) + sum(b))` of grey values: below or far above 1 even for a volume with itself."""
    _check(prediction, truth)
    _warn(
        "original_dice is of grey values: a volume with itself needn't have 1, it may be 160 or negative", "labels.dice"
    )
    a, b = np.asarray(prediction, dtype=np.float64), np.asarray(truth, dtype=np.float64)
    total = a.sum() + b.sum()
    return float(2 * (a * b).sum() / total) if total else float("nan")


def original_scores(pred_volume: Values, gt_volume: Values) -> tuple[float, float, float]:
    """`original_psnr`, `original_ssim` and `original_dice`, what the document calls `calculate_3d_metrics`."""
    return (
        original_psnr(pred_volume, gt_volume),
        original_ssim(pred_volume, gt_volume),
        original_dice(pred_volume, gt_volume),
    )


def fast_ddpm_scores(prediction: Values, truth: Values) -> dict[str, float]:
    """Fast-DDPM's own figures (Jiang et al. 2025, section IV): means over slices of images times 255.

    Args:
        prediction, truth: `(C, *spatial)` in [0, 1]; a volume is measured slice by slice along its first axis.

    Returns:
        `fast_ddpm_psnr`, infinite where one slice is exact, and `fast_ddpm_ssim` with a uniform window of 7 pixels;
        NaN where slices are smaller than that.
    """
    from skimage.metrics import structural_similarity

    _check(prediction, truth)
    pairs = [
        (255.0 * np.asarray(one, dtype=np.float64), 255.0 * np.asarray(other, dtype=np.float64))
        for one, other in zip(
            prediction.reshape(-1, *prediction.shape[-2:]), truth.reshape(-1, *truth.shape[-2:]), strict=True
        )
    ]
    errors = [np.sqrt(np.mean((one - other) ** 2)) for one, other in pairs]
    psnr = [20 * np.log10(255.0 / error) if error > 0 else np.inf for error in errors]
    wide = min(truth.shape[-2:]) >= 7
    ssim = [structural_similarity(other, one, data_range=255) if wide else np.nan for one, other in pairs]
    return {"fast_ddpm_psnr": float(np.mean(psnr)), "fast_ddpm_ssim": float(np.mean(ssim))}


def _check(prediction: Values, truth: Values) -> None:
    if prediction.shape != truth.shape:
        raise SettingError(f"prediction: expected shape {truth.shape} like the truth, got {prediction.shape}")


def _warn(fault: str, instead: str) -> None:
    warnings.warn(f"{fault}; see voxelry.metrics.{instead}", UserWarning, stacklevel=3)
