"""How sure samples are: one factor that makes their spread keep its promise on the validation cases."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from voxelry.metrics.intervals import LEVELS, calibration_factor, interval_coverage, standardised_errors
from voxelry.tasks.calibration import SpreadFactor
from voxelry.tasks.translate.predict import TranslatePrediction

__all__ = ["LEVEL", "SpreadCalibration"]

LEVEL = 0.9
_VOXELS = 1 << 18  # of a case that are looked at
_LEAST = 1e-3  # of the range: voxels that all samples agree on, such as those at a clamp, are no surer than that


class SpreadCalibration(SpreadFactor):
    """A factor, kept as a buffer, and the promise that it keeps.

    Multiplied by it, the spread of samples is the standard deviation of a normal distribution whose 90 % interval
    around the translation holds the truth in 90 % of the validation voxels.
    """

    def forward(self, spread: Tensor) -> Tensor:
        """The spread of samples, made to keep its promise."""
        return spread.clamp(min=_LEAST) * self.factor.to(spread)

    def fit(self, predictions: Sequence[TranslatePrediction]) -> None:
        """Set the factor from held-out cases, of which those with a spread and a truth count; none leave it."""
        errors = [
            _thinned(standardised_errors(case.translated, case.spread, case.target))
            for case in predictions
            if case.spread is not None and case.target is not None
        ]
        if errors:
            self.factor *= calibration_factor(errors, level=LEVEL)
            self.cases.fill_(len(errors))

    @staticmethod
    def coverage(prediction: TranslatePrediction) -> dict[str, float]:
        """Share of a case's truth inside its intervals, as `coverage_50` to `coverage_95`; nothing without a spread."""
        if prediction.spread is None or prediction.target is None:
            return {}
        errors = standardised_errors(prediction.translated, prediction.spread, prediction.target)
        return {f"coverage_{level * 100:.0f}": interval_coverage(errors, level=level) for level in LEVELS}


def _thinned(errors: Tensor) -> Tensor:
    return errors[:: max(1, len(errors) // _VOXELS)]
