"""Attention over all voxels of a feature map, full or linear in their number, and within windows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from voxelry.core.errors import SettingError
from voxelry.core.rank import per_axis
from voxelry.nn import nd
from voxelry.nn.lean.linear_attention import Weights, linear_attention
from voxelry.nn.lean.rows import in_rows
from voxelry.nn.norm import GroupNorm
from voxelry.nn.windows import merge_windows, split_windows

__all__ = ["ATTENTION", "FullAttention", "LinearAttention", "NoAttention", "WindowAttention"]


def head_count(channels: int, heads: int, head_dim: int | None) -> tuple[int, int]:
    """Heads and channels of each; `head_dim=None` shares `channels` out among the heads.

    Raises:
        SettingError: the heads do not divide the channels.
    """
    if head_dim is None and channels % heads:
        raise SettingError(f"heads: {heads} heads can't share {channels} channels evenly; set head_dim")
    return heads, head_dim or channels // heads


def by_head(qkv: Tensor, heads: int) -> Sequence[Tensor]:
    """Queries, keys and values of each head, `(B, 3 * heads * d, *S) -> 3 × (B, heads, voxels, d)`, views if possible.

    They are taken apart along the last axis, so that their gradients come together channels-last as well. A voxel's
    values lie side by side: PyTorch's lean kernels for processors take no others, and it would keep a number for every
    pair of voxels instead.
    """
    rows = qkv.movedim(1, -1).flatten(1, -2)
    rows = rows if rows.stride(-1) == 1 else rows.contiguous()
    return [part.transpose(1, 2) for part in rows.unflatten(-1, (3, heads, -1)).unbind(2)]


class NoAttention(nn.Identity):
    """Nothing, with the calling convention of attention."""

    def forward(self, x: Tensor, *, recompute: bool = False) -> Tensor:
        """Return `x`."""
        return x


class _Attention(nn.Module):
    """Attention of `heads` between a group normalisation and a projection back, both 1×1."""

    def __init__(
        self,
        channels: int,
        *,
        ndim: int,
        heads: int = 4,
        head_dim: int | None = 32,
        bias: bool = False,
        groups: int = 1,
        eps: float = 1e-5,
    ):
        super().__init__()
        self.heads, self.head_dim = head_count(channels, heads, head_dim)
        inner = self.heads * self.head_dim
        self.norm = GroupNorm(groups, channels, eps=eps)
        self.qkv = nd.conv(ndim)(channels, 3 * inner, 1, bias=bias)
        self.out = nd.conv(ndim)(inner, channels, 1)

    def forward(self, x: Tensor, *, recompute: bool = False) -> Tensor:
        """Attend and add; with `recompute` only `x` is kept for the backward pass."""
        if recompute and torch.is_grad_enabled():
            return checkpoint(self._plain, x, use_reentrant=False)
        return self._plain(x)

    def _plain(self, x: Tensor) -> Tensor:
        raise NotImplementedError


class FullAttention(_Attention):
    """Every voxel attends to every other, added to the input, `(B, C, *S) -> (B, C, *S)`.

    Group normalisation, then scaled dot-product attention (Vaswani et al. 2017, eq. 1) with 1×1
    projections. Cost grows with the square of the number of voxels: for the coarsest levels.
    """

    def _plain(self, x: Tensor) -> Tensor:
        q, k, v = by_head(self.qkv(self.norm(x)), self.heads)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return x + self.out(mixed.movedim(-1, 1).unflatten(2, x.shape[2:]))


class WindowAttention(FullAttention):
    """Every voxel attends to those of its window, added to the input, `(B, C, *S) -> (B, C, *S)`.

    `FullAttention` within blocks of at most `window` voxels per axis (Liu et al. 2021, arXiv:2103.14030, without
    the shift: the convolutions around it carry across the borders). The blocks are as equal as they can be; where
    the map fits into one it is full attention. Cost grows linearly with the voxels.

    Args:
        window: voxels of a window, one number or one per axis.
        channels, settings: see `FullAttention`.

    Raises:
        SettingError: a window below one voxel.
    """

    def __init__(self, channels: int, *, ndim: int, window: int | Sequence[int] = 8, **settings: Any):
        super().__init__(channels, ndim=ndim, **settings)
        self.window = per_axis(window, ndim, "window")
        if min(self.window) < 1:
            raise SettingError(f"window: expected at least 1 voxel, got {window}")

    def _plain(self, x: Tensor) -> Tensor:
        size = x.shape[2:]
        counts = [-(-length // most) for length, most in zip(size, self.window, strict=True)]
        window = [-(-length // count) for length, count in zip(size, counts, strict=True)]
        tokens = split_windows(self.qkv(self.norm(x)).movedim(1, -1), window).flatten(1, -2).contiguous()
        q, k, v = tokens.unflatten(-1, (3, self.heads, self.head_dim)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=self._inside(x, window))
        mixed = mixed.transpose(1, 2).flatten(2).unflatten(1, window)
        return x + self.out(merge_windows(mixed, size).movedim(-1, 1))

    @staticmethod
    def _inside(x: Tensor, window: Sequence[int]) -> Tensor | None:
        """Which tokens of each window lie on the map, `(B * windows, 1, 1, N)`; None when all do."""
        size = x.shape[2:]
        if not any(length % side for length, side in zip(size, window, strict=True)):
            return None
        inside = split_windows(torch.ones(1, *size, 1, dtype=torch.bool, device=x.device), window)
        return inside.flatten(1).repeat(len(x), 1)[:, None, None]


class LinearAttention(_Attention):
    """Attention whose cost is linear in the voxels, added to the input, `(B, C, *S) -> (B, C, *S)`.

    Queries are a softmax over their channels, keys a softmax over the voxels; keys and values are
    summed into one `head_dim × head_dim` table per head, which the queries read (Shen et al. 2021,
    arXiv:1812.01243, section 3.2). Normalised before and after.
    """

    def __init__(self, channels: int, *, ndim: int, groups: int = 1, eps: float = 1e-5, **settings: Any):
        super().__init__(channels, ndim=ndim, groups=groups, eps=eps, **settings)
        self.out_norm = GroupNorm(groups, channels, eps=eps)

    def forward(self, x: Tensor, *, recompute: bool = False) -> Tensor:
        """Attend and add; with `recompute` only `x` is kept for the backward pass."""
        if recompute and in_rows(x):
            weights = Weights(
                self.norm.weight,
                self.norm.bias,
                self.qkv.weight.flatten(1),
                self.qkv.bias,
                self.out.weight.flatten(1),
                self.out.bias,
                self.out_norm.weight,
                self.out_norm.bias,
            )
            return linear_attention(x, weights, heads=self.heads, groups=self.norm.num_groups, eps=self.norm.eps)
        return super().forward(x, recompute=recompute)

    def _plain(self, x: Tensor) -> Tensor:
        q, k, v = by_head(self.qkv(self.norm(x)), self.heads)
        table = k.softmax(dim=-2).transpose(-1, -2) @ v
        mixed = ((q.softmax(dim=-1) * self.head_dim**-0.5) @ table).transpose(1, 2).flatten(2)
        return x + self.out_norm(self.out(mixed.movedim(-1, 1).unflatten(2, x.shape[2:])))


ATTENTION: dict[str, type[nn.Module]] = {
    "linear": LinearAttention,
    "full": FullAttention,
    "window": WindowAttention,
}
