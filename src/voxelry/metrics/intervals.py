"""Whether a spread keeps its promise: how often the truth lies in the interval that it spans.

An interval of `level` 0.9 should hold nine of ten true values. With `samples` the mean and the spread are those of so
few draws (their standard deviation, over n - 1), and the interval is that for one more draw of the same kind,
Student's (Geisser 1993, section 2.1.2); without, mean and spread are taken as known and the interval is the normal
one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from voxelry.core.errors import SettingError

__all__ = ["LEVELS", "calibration_factor", "half_width", "interval_coverage", "standardised_errors"]

LEVELS = (0.5, 0.68, 0.8, 0.9, 0.95)


def standardised_errors(mean: Tensor, spread: Tensor, truth: Tensor, *, mask: Tensor | None = None) -> Tensor:
    """Distance of the truth from the mean in spreads, `(voxels,)` float64; infinite where a wrong mean is sure.

    Args:
        mean, spread, truth: of one shape, in the same units.
        mask: bool, of a shape that can be expanded to theirs; only its voxels are given.

    Raises:
        SettingError: shapes that differ, or a negative spread.
    """
    if not mean.shape == spread.shape == truth.shape:
        shapes = ", ".join(str(tuple(part.shape)) for part in (mean, spread, truth))
        raise SettingError(f"mean, spread, truth: expected one shape, got {shapes}")
    if bool((spread < 0).any()):
        raise SettingError("spread: expected numbers from 0 on")
    error = (truth.double() - mean.double()).abs()
    # 0 / 0: a sure mean that is right
    ratios = torch.where(error == 0, error, error / spread.double())
    return ratios.flatten() if mask is None else ratios[mask.bool().expand_as(ratios)]


def half_width(level: float, *, samples: int | None = None) -> float:
    """Half the width of the interval of that level, in spreads.

    Raises:
        SettingError: a level outside (0, 1), or a single sample, which has no spread.
    """
    from scipy.special import ndtri, stdtrit  # quantiles of the normal and of Student's distribution

    if not 0 < level < 1:
        raise SettingError(f"level: expected a share between 0 and 1, got {level}")
    upper = (1 + level) / 2
    if samples is None:
        return float(ndtri(upper))
    if samples < 2:
        raise SettingError(f"samples: expected at least 2, which a spread needs, got {samples}")
    return float(stdtrit(samples - 1, upper)) * math.sqrt(1 + 1 / samples)


def interval_coverage(errors: Tensor, *, level: float = 0.9, samples: int | None = None, factor: float = 1.0) -> float:
    """Share of the truth inside the interval, in [0, 1]; NaN without any voxel.

    Args:
        errors: as `standardised_errors` gives them.
        level: what is promised.
        samples: how many draws mean and spread are made of.
        factor: of `calibration_factor`, by which every spread is multiplied.
    """
    return float((errors <= factor * half_width(level, samples=samples)).double().mean())


def calibration_factor(errors: Tensor | Iterable[Tensor], *, level: float = 0.9, samples: int | None = None) -> float:
    """By how much spreads have to be multiplied for the interval of `level` to hold that share of the truth.

    Fitted on one set of cases and used on others (Laves et al. 2020, arXiv:2006.13092, scale one number; theirs fits
    the likelihood, this one the interval that is reported, as in split conformal prediction, Lei et al. 2018).

    Args:
        errors: as `standardised_errors` gives them, of one case or of several, which are pooled.
        level: what is promised.
        samples: how many draws mean and spread are made of.

    Raises:
        SettingError: no voxel, or so many sure and wrong ones that no factor is large enough.
    """
    pooled = errors if isinstance(errors, Tensor) else torch.cat(list(errors))
    if not len(pooled):
        raise SettingError("errors: expected at least one voxel to calibrate with")
    rank = min(len(pooled), math.ceil(level * len(pooled)))
    reached = float(pooled.kthvalue(rank).values)
    if not math.isfinite(reached):
        raise SettingError(f"errors: more than {1 - level:.0%} of the voxels are wrong without any spread")
    return reached / half_width(level, samples=samples)
