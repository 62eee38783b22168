"""Normalisation of weights."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["standardise"]


def standardise(weight: Tensor, eps: float) -> Tensor:
    """Zero mean and unit variance of every output channel's kernel (Qiao et al. 2019, arXiv:1903.10520, eq. 10)."""
    variance, mean = torch.var_mean(weight, dim=tuple(range(1, weight.ndim)), correction=0, keepdim=True)
    return (weight - mean) * (variance + eps).rsqrt()
