"""Normalisation of weights and of feature maps."""

from __future__ import annotations

from math import gcd

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from voxelry.core.choice import unknown_choice
from voxelry.nn import nd

__all__ = ["NORMS", "ChannelNorm", "FrozenBatchNorm", "GroupNorm", "make_norm", "standardise"]

NORMS = ("batch", "frozen_batch", "group", "layer")


def standardise(weight: Tensor, eps: float) -> Tensor:
    """Zero mean and unit variance of every output channel's kernel (Qiao et al. 2019, arXiv:1903.10520, eq. 10)."""
    # of a kernel as of a sample, in the order of memory: much faster than its parts
    if not nd.pays(weight):
        return F.layer_norm(weight, weight.shape[1:], eps=eps)
    last = weight.movedim(1, -1)
    return F.layer_norm(last, last.shape[1:], eps=eps).movedim(-1, 1)


class GroupNorm(nn.GroupNorm):
    """Group normalisation in the type of its input, `(B, C, *S)`, also under autocast.

    Statistics are accumulated in single precision at least. On a GPU autocast would have PyTorch's answer float32,
    and so twice the size of every map from there on.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalise."""
        weight, bias = (None if value is None else value.to(input.dtype) for value in (self.weight, self.bias))
        with nd.without_autocast(input):
            return F.group_norm(input, self.num_groups, weight, bias, self.eps)


class FrozenBatchNorm(nn.Module):
    """Batch normalisation by statistics and a scale that training leaves alone, `(B, C, *S)`.

    For fine-tuning with batches too small for statistics of their own.
    """

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, *, eps: float = 1e-5):
        super().__init__()
        self.eps = eps
        self.register_buffer("weight", torch.ones(channels))
        self.register_buffer("bias", torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Scale and shift every channel."""
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        shift = self.bias - self.running_mean * scale
        return x * nd.per_channel(scale, x).to(x.dtype) + nd.per_channel(shift, x).to(x.dtype)


class ChannelNorm(nn.Module):
    """Layer normalisation of the channels of each voxel, `(B, C, *S)` (Ba et al. 2016, arXiv:1607.06450)."""

    def __init__(self, channels: int, *, eps: float = 1e-6):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise; the channels end up side by side in memory."""
        weight, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)
        with nd.without_autocast(x):  # which would answer float32 on a GPU
            return F.layer_norm(x.movedim(1, -1), weight.shape, weight, bias, self.eps).movedim(-1, 1)


def make_norm(norm: str, channels: int, *, ndim: int, eps: float = 1e-5, groups: int = 32) -> nn.Module:
    """A normalisation by name.

    Args:
        norm: "batch", "frozen_batch", "group" or "layer" (over channels).
        channels: channels of the map.
        ndim: its rank.
        eps: constant added to the variance.
        groups: of "group", at most; fewer where they would not divide the channels into two or more each.

    Raises:
        SettingError: an unknown name.
    """
    if norm == "batch":
        return nd.batch_norm(ndim)(channels, eps=eps)
    if norm == "frozen_batch":
        return FrozenBatchNorm(channels, eps=eps)
    if norm == "group":
        return GroupNorm(gcd(groups, max(channels // 2, 1)), channels, eps=eps)  # one value alone has no variance
    if norm == "layer":
        return ChannelNorm(channels, eps=eps)
    raise unknown_choice("norm", norm, NORMS)
