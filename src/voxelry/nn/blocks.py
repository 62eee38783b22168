"""Residual blocks of a U-Net, each with an optional time embedding and an optional skip input."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from voxelry.nn import nd
from voxelry.nn.conv import SeparableConv, WeightStandardisedConv
from voxelry.nn.lean.fused import conv_of, norm_silu, norm_silu_conv
from voxelry.nn.norm import GroupNorm

__all__ = ["BLOCKS", "PreNormBlock", "SeparableBlock", "WeightStandardisedBlock"]


def shortcut(in_channels: int, out_channels: int, ndim: int, kernel: int) -> nn.Module:
    """What carries the input to the sum at the end of a block: itself, or a convolution to the new width."""
    if in_channels == out_channels:
        return nn.Identity()
    return nd.conv(ndim)(in_channels, out_channels, kernel, padding=kernel // 2)


def carry(layer: Any, x: Tensor, skip: Tensor | None, recompute: bool) -> Tensor:
    """The input of a block, through its shortcut."""
    if isinstance(layer, nn.Identity):
        return x if skip is None else torch.cat((x, skip), dim=1)
    return conv_of(x, skip, layer.weight, layer.bias, padding=layer.padding, recompute=recompute)


class WeightStandardisedBlock(nn.Module):
    """Two of (standardised 3-wide convolution, group norm, SiLU), added to the input.

    `(B, C_in, *S) -> (B, C_out, *S)`. The embedding scales and shifts after the first normalisation
    (Dhariwal & Nichol 2021, eq. 2). Weight standardisation with group normalisation: Qiao et al. 2019.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        ndim: int,
        embedding: int,
        groups: int = 8,
        eps: float = 1e-5,
        dropout: float = 0.0,
        shortcut_kernel: int = 1,
    ):
        super().__init__()
        self.conv1 = WeightStandardisedConv(in_channels, out_channels, ndim=ndim)
        self.norm1 = GroupNorm(groups, out_channels, eps=eps)
        self.time = nn.Linear(embedding, 2 * out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = WeightStandardisedConv(out_channels, out_channels, ndim=ndim)
        self.norm2 = GroupNorm(groups, out_channels, eps=eps)
        self.shortcut = shortcut(in_channels, out_channels, ndim, shortcut_kernel)

    def forward(
        self, x: Tensor, embedding: Tensor | None = None, skip: Tensor | None = None, *, recompute: bool = False
    ) -> Tensor:
        """Transform `x`, or `x` and `skip` side by side; `embedding` is `(B, E)`, before its activation."""
        conv1, conv2 = self.conv1, self.conv2
        scale = shift = None
        if embedding is not None:
            scale, shift = self.time(F.silu(embedding)).chunk(2, dim=1)
        h = conv_of(
            x, skip, conv1.weight, conv1.bias, padding=conv1.padding, standard=conv1.standard, recompute=recompute
        )
        if self.training and self.dropout.p:
            h = conv2(self.dropout(norm_silu(h, self.norm1, scale, shift, recompute=recompute)))
        else:
            h = norm_silu_conv(
                h,
                self.norm1,
                conv2.weight,
                conv2.bias,
                scale,
                shift,
                padding=conv2.padding,
                standard=conv2.standard,
                recompute=recompute,
            )
        around = carry(self.shortcut, x, skip, recompute)
        return norm_silu(h, self.norm2, residual=around, recompute=recompute)


class PreNormBlock(nn.Module):
    """Two of (group norm, SiLU, 3-wide convolution), added to the input, `(B, C_in, *S) -> (B, C_out, *S)`.

    The residual block of Ho et al. 2020 (arXiv:2006.11239, appendix B): the embedding is added after
    the first convolution, dropout comes before the second.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        ndim: int,
        embedding: int,
        groups: int = 32,
        eps: float = 1e-6,
        dropout: float = 0.0,
        shortcut_kernel: int = 1,
    ):
        super().__init__()
        self.norm1 = GroupNorm(groups, in_channels, eps=eps)
        self.conv1 = self._conv(in_channels, out_channels, ndim)
        self.time = nn.Linear(embedding, out_channels)
        self.norm2 = GroupNorm(groups, out_channels, eps=eps)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = self._conv(out_channels, out_channels, ndim)
        self.shortcut = shortcut(in_channels, out_channels, ndim, shortcut_kernel)

    def forward(
        self, x: Tensor, embedding: Tensor | None = None, skip: Tensor | None = None, *, recompute: bool = False
    ) -> Tensor:
        """Transform `x`, or `x` and `skip` side by side; `embedding` is `(B, E)`, before its activation."""
        x = x if skip is None else torch.cat((x, skip), dim=1)
        h = self._half(x, self.norm1, self.conv1, recompute)
        if embedding is not None:
            h = h + nd.per_channel(self.time(F.silu(embedding)), h).to(h.dtype)
        if self.training and self.dropout.p:
            h = self.conv2(self.dropout(norm_silu(h, self.norm2, recompute=recompute)))
        else:
            h = self._half(h, self.norm2, self.conv2, recompute)
        return self.shortcut(x) + h

    def _conv(self, in_channels: int, out_channels: int, ndim: int) -> nn.Module:
        return nd.conv(ndim)(in_channels, out_channels, 3, padding=1)

    def _half(self, x: Tensor, norm: nn.GroupNorm, conv: Any, recompute: bool) -> Tensor:
        return norm_silu_conv(x, norm, conv.weight, conv.bias, padding=conv.padding, recompute=recompute)


class SeparableBlock(PreNormBlock):
    """A `PreNormBlock` of separable convolutions: fewer weights and products, for wide networks and large volumes."""

    def _conv(self, in_channels: int, out_channels: int, ndim: int) -> nn.Module:
        return SeparableConv(in_channels, out_channels, ndim=ndim)

    def _half(self, x: Tensor, norm: nn.GroupNorm, conv: Any, recompute: bool) -> Tensor:
        if recompute and torch.is_grad_enabled():  # or each of its convolutions would keep its input
            return checkpoint(lambda h: conv(norm_silu(h, norm)), x, use_reentrant=False)
        return conv(norm_silu(x, norm))


BLOCKS: dict[str, type[nn.Module]] = {
    "weight_standardised": WeightStandardisedBlock,
    "pre_norm": PreNormBlock,
    "separable": SeparableBlock,
}
