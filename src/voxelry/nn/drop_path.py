"""Stochastic depth."""

from __future__ import annotations

from torch import Tensor, nn

from voxelry.core.errors import SettingError

__all__ = ["DropPath"]


class DropPath(nn.Module):
    """A residual branch that is left out for some samples in training (Huang et al. 2016, arXiv:1603.09382).

    Kept branches are scaled by `1 / (1 - rate)`, so that the expected value stays.

    Args:
        rate: probability that a sample's branch is left out, in [0, 1).

    Raises:
        SettingError: a rate outside of that.
    """

    def __init__(self, rate: float = 0.0):
        super().__init__()
        if not 0 <= rate < 1:
            raise SettingError(f"drop_path: expected a probability from 0 to below 1, got {rate}")
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """Drop whole samples, `(B, ...)`, in training only."""
        if not self.rate or not self.training:
            return x
        keep = x.new_empty(len(x), *(1,) * (x.ndim - 1)).bernoulli_(1 - self.rate)
        return x * keep / (1 - self.rate)
