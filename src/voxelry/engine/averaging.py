"""Averaged weights that are of use from the first steps on."""

from __future__ import annotations

import torch
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor

__all__ = ["MovingAverage", "decay_after"]


class MovingAverage(WeightAveraging):
    """The exponential moving average of the weights after each optimizer step, which validations and bundles take.

    Args:
        decay: of the average once many steps are done, see `decay_after`.
    """

    def __init__(self, decay: float):
        super().__init__(use_buffers=True, multi_avg_fn=self._average)
        self._decay = decay
        self._steps = 0

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        """After every optimizer step, whose number is noted."""
        self._steps = self._steps if step_idx is None else step_idx
        return step_idx is not None

    def _average(self, averaged: list[Tensor], current: list[Tensor], count: Tensor) -> None:
        # `count` is on the device, where asking for it would wait for all that is to be computed before
        if averaged[0].is_floating_point():
            torch._foreach_lerp_(averaged, current, 1 - decay_after(self._steps, self._decay))
        else:
            torch._foreach_copy_(averaged, current)


def decay_after(steps: int, decay: float) -> float:
    """The decay of the average after so many steps, `(1 + steps) / (10 + steps)` until that exceeds `decay`.

    The first, wild weights are so forgotten after a tenth of the steps at any time, where a constant decay would take
    `1 / (1 - decay)` steps; the rule of TensorFlow's `ExponentialMovingAverage(num_updates=...)`.
    """
    return min(decay, (1 + steps) / (10 + steps))
