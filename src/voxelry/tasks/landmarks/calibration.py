"""How far from the truth a point may be: heatmap spreads turned into radii that keep their promise.

The spread of a heatmap orders points by difficulty, but its scale is that of the training targets.
Split conformal prediction with the score `error / spread` (Lei et al. 2018, JASA 113(523), section 5.2) makes
a radius `factor * spread` that holds the truth with at least the promised probability, provided
that new cases are like the validation set's.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import gammaincinv
from torch import Tensor, nn

from voxelry.core.errors import DataError

__all__ = ["LEVELS", "Calibration", "conformal_quantile"]

LEVELS = (0.5, 0.8, 0.95)


def conformal_quantile(scores: NDArray[np.floating], level: float) -> float:
    """The `ceil((n + 1) * level)`-th smallest of `n` scores; inf when `n` is too small to promise that."""
    count = len(scores)
    rank = math.ceil((count + 1) * level - 1e-9)
    return float(np.sort(scores)[rank - 1]) if rank <= count else math.inf


class Calibration(nn.Module):
    """Factors from a heatmap's spread to radii, one per landmark and level, kept as a buffer.

    Before `fit` they are those of a Gaussian blob: a normal distribution of total standard deviation
    `spread` in `ndim` dimensions.

    Attributes:
        factors: `(N, levels)` float32.
        cases: number of cases the factors come from, 0 before `fit`.
    """

    factors: Tensor
    cases: Tensor

    def __init__(self, num_landmarks: int, ndim: int):
        super().__init__()
        # quantiles of the chi distribution, over the root mean square of `ndim` normal numbers
        radii = np.sqrt(2 * gammaincinv(ndim / 2, LEVELS) / ndim)
        gaussian = torch.from_numpy(radii).to(torch.float32)
        self.register_buffer("factors", gaussian.expand(num_landmarks, -1).clone())
        self.register_buffer("cases", torch.zeros((), dtype=torch.int64))

    def radii(self, spread_mm: Tensor) -> Tensor:
        """Radii in mm, `(..., N) -> (..., N, levels)`."""
        return spread_mm[..., None] * self.factors.to(spread_mm)

    def fit(self, spread_mm: NDArray[np.floating], error_mm: NDArray[np.floating]) -> None:
        """Set the factors from held-out cases.

        A landmark with enough cases for a level gets its own factor; with fewer, the factor of all
        landmarks together, at least their largest score.

        Args:
            spread_mm, error_mm: `(cases, N)`; NaN where a point is absent or was not found.

        Raises:
            DataError: no point at all is both predicted and known.
        """
        errors, spreads = (np.asarray(values, dtype=np.float64) for values in (error_mm, spread_mm))
        least = max(1e-6 * float(np.nanmax(errors, initial=0.0)), np.finfo(np.float64).tiny)  # no score is endless
        scores = errors / np.maximum(spreads, least)
        pooled = scores[np.isfinite(scores)]
        if not len(pooled):
            raise DataError("calibration: expected at least one point that is both predicted and annotated")
        factors = np.empty((scores.shape[1], len(LEVELS)), dtype=np.float32)
        for landmark, column in enumerate(scores.T):
            own = column[np.isfinite(column)]
            for position, level in enumerate(LEVELS):
                factor = conformal_quantile(own, level)
                if not math.isfinite(factor):
                    factor = conformal_quantile(pooled, level)
                factors[landmark, position] = factor if math.isfinite(factor) else pooled.max()
        # A higher level may not promise less where one factor is a landmark's own and the next is pooled.
        self.factors.copy_(torch.from_numpy(np.maximum.accumulate(factors, axis=1)))
        self.cases.fill_(len(scores))
