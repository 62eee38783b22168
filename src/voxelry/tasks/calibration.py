"""A factor that makes a spread keep its promise on held-out cases."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["SpreadFactor"]


class SpreadFactor(nn.Module):
    """A factor that is saved with a task's weights.

    Attributes:
        factor: 1 before `fit`.
        cases: how many it comes from, 0 before `fit`.
    """

    factor: Tensor
    cases: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("factor", torch.ones(()))
        self.register_buffer("cases", torch.zeros((), dtype=torch.int64))
