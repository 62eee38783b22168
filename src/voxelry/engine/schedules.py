"""How the learning rate moves during a run."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

from voxelry.core.errors import SettingError

__all__ = ["Constant", "Cosine", "LearningRate", "Plateau"]


class LearningRate(ABC):
    """A factor on the optimizer's own learning rate."""

    @abstractmethod
    def factor(self, progress: float) -> float:
        """The factor at `progress`, the fraction of the run's steps or minutes that is spent, in [0, 1]."""

    def observe(self, metric: float, higher_is_better: bool) -> None:
        """See a validation result; most schedules don't care."""
        return

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must keep."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`'s answer."""
        return


class Constant(LearningRate):
    """Always 1 after a linear warm-up over the first `warmup` of the run."""

    def __init__(self, warmup: float = 0.0):
        self.warmup = _fraction(warmup)

    def factor(self, progress: float) -> float:
        """1, or less during the warm-up."""
        return _ramp(progress, self.warmup)


class Cosine(LearningRate):
    """Half a cosine from 1 to `final` after a linear warm-up (Loshchilov & Hutter 2017, arXiv:1608.03983).

    Args:
        warmup: fraction of the run that climbs from 0 to 1.
        final: factor at the end.
    """

    def __init__(self, warmup: float = 0.05, final: float = 0.01):
        self.warmup, self.final = _fraction(warmup), final

    def factor(self, progress: float) -> float:
        """The factor at `progress`."""
        if progress < self.warmup:
            return _ramp(progress, self.warmup)
        falling = min(1.0, (progress - self.warmup) / (1 - self.warmup))
        return self.final + (1 - self.final) * (1 + math.cos(math.pi * falling)) / 2


class Plateau(LearningRate):
    """Multiply by `reduce` whenever validation has not improved for `patience` validations.

    Args:
        reduce: the factor, below 1.
        patience: validations without an improvement that are let pass.
        minimum: the factor is never below this.
        threshold: what counts as an improvement, as a fraction of the best value so far.
    """

    def __init__(self, reduce: float = 0.5, patience: int = 10, minimum: float = 1e-3, threshold: float = 0.0):
        self.reduce, self.minimum = _fraction(reduce, "reduce"), _fraction(minimum, "minimum")
        self.patience = patience
        self.threshold = _fraction(threshold, "threshold")
        self.current, self.best, self.waited = 1.0, math.inf, 0

    def factor(self, progress: float) -> float:
        """The present factor; `progress` plays no part."""
        return self.current

    def observe(self, metric: float, higher_is_better: bool) -> None:
        """Count a validation; one whose metric is no number is no improvement."""
        metric = -metric if higher_is_better else metric
        better = math.isinf(self.best) or metric < self.best - self.threshold * abs(self.best)
        if better and not math.isnan(metric):
            self.best, self.waited = metric, 0
            return
        self.waited += 1
        if self.waited > self.patience:
            self.current, self.waited = max(self.minimum, self.current * self.reduce), 0

    def state_dict(self) -> dict[str, Any]:
        """The counters."""
        return {"current": self.current, "best": self.best, "waited": self.waited}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the counters."""
        self.current, self.best, self.waited = state["current"], state["best"], state["waited"]


def _ramp(progress: float, warmup: float) -> float:
    # never exactly 0: an optimizer step that does nothing is a step wasted
    return 1.0 if progress >= warmup else max(progress / warmup, 1e-3)


def _fraction(value: float, name: str = "warmup") -> float:
    if not 0 <= value < 1:
        raise SettingError(f"{name}: expected a fraction in [0, 1), got {value}")
    return value
