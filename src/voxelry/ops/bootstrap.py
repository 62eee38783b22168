"""How sure a figure over few cases is."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["bootstrap_interval"]


def bootstrap_interval(
    cases: NDArray[np.float64],
    statistic: Callable[..., Any] = np.nanmean,
    *,
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile bootstrap interval of a statistic over cases (Efron and Tibshirani 1993, chapter 13).

    Whole cases are drawn, because the points of one case share their fate.

    Args:
        cases: `(cases,)` or `(cases, N)`.
        statistic: takes the keyword `axis` (an int or a tuple), as numpy's reductions do.
        seed: makes the interval the same at each call.

    Returns:
        The low and the high end; NaN for no cases.
    """
    cases = np.asarray(cases, dtype=np.float64)
    kept = cases[~np.isnan(cases.reshape(len(cases), -1)).all(axis=1)] if len(cases) else cases
    if not len(kept):
        return math.nan, math.nan
    drawn = np.random.default_rng(seed).integers(len(kept), size=(resamples, len(kept)))
    values = statistic(kept[drawn], axis=tuple(range(1, kept.ndim + 1)))
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
