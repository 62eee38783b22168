"""Mask units: the order of tokens in which pooling and windowed attention are plain views.

Ryali et al. 2023 (arXiv:2306.00989, section 3). Tokens are unrolled once, so that the members of each pooling window
lie `1 / stride` of the sequence apart and the mask units are the fastest index; what follows needs no further
permutation: pooling is `view(B, stride, -1, C).max(1)`, and the windows of attention are `view(B, -1, windows, C)`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from voxelry.core.errors import SettingError
from voxelry.nn.drop_path import DropPath

__all__ = ["HieraBlock", "MaskUnitAttention", "from_units", "pool", "reroll", "unroll"]

Shape = tuple[int, ...]


def unroll(x: Tensor, schedule: Sequence[Shape]) -> Tensor:
    """Order tokens by what is pooled first, `(B, *T, C) -> (B, N, C)`.

    Args:
        x: tokens on their grid.
        schedule: per level the stride of every axis, the first to be pooled first. The members of a window of the
            first level come ahead, those of the second level after them, and so on; the grid that is left is last.
    """
    ndim = x.ndim - 2
    levels = len(schedule)
    split: list[int] = []
    for axis in range(ndim):
        strides = [stride[axis] for stride in reversed(schedule)]
        split += [x.shape[1 + axis] // math.prod(strides), *strides]
    # axis a is now (rest, level L, ..., level 1), each of them one dimension
    order = [1 + axis * (levels + 1) + levels - level for level in range(levels + 1) for axis in range(ndim)]
    x = x.reshape(x.shape[0], *split, x.shape[-1])
    return x.permute(0, *order, -1).flatten(1, -2)


def reroll(x: Tensor, schedule: Sequence[Shape], ndim: int) -> Tensor:
    """Tokens that were unrolled, one block per place of the remaining grid: `(B, N, C) -> (B, R, *unit, C)`.

    Args:
        x: tokens in the order of `unroll`, whole remaining places possibly left out of all levels alike.
        schedule: the levels not yet pooled.
        ndim: number of spatial axes.

    Returns:
        Blocks whose shape is the product of the schedule's strides, in the order of the remaining grid.
    """
    levels = len(schedule)
    flat = [size for stride in schedule for size in stride]
    x = x.reshape(x.shape[0], *flat, -1, x.shape[-1])
    # the coarsest level is the slowest index within a block
    order = [1 + level * ndim + axis for axis in range(ndim) for level in reversed(range(levels))]
    x = x.permute(0, x.ndim - 2, *order, -1)
    unit = [math.prod(stride[axis] for stride in schedule) for axis in range(ndim)]
    return x.reshape(*x.shape[:2], *unit, x.shape[-1])


def from_units(x: Tensor, grid: Sequence[int]) -> Tensor:
    """Blocks back on their grid, `(B, R, *unit, C) -> (B, *(grid * unit), C)`."""
    ndim = len(grid)
    unit = x.shape[2:-1]
    x = x.reshape(x.shape[0], *grid, *unit, x.shape[-1])
    order = [place for axis in range(ndim) for place in (1 + axis, 1 + ndim + axis)]
    shape = [count * size for count, size in zip(grid, unit, strict=True)]
    return x.permute(0, *order, -1).reshape(x.shape[0], *shape, x.shape[-1])


def pool(x: Tensor, stride: int) -> Tensor:
    """Maximum over the members of every window of the next level, `(B, N, C) -> (B, N / stride, C)`."""
    return x if stride == 1 else x.reshape(x.shape[0], stride, -1, x.shape[-1]).max(dim=1).values


class MaskUnitAttention(nn.Module):
    """Attention within mask units or among all tokens, with queries pooled, `(B, N, C) -> (B, N / stride, C_out)`.

    Args:
        dim, dim_out: channels before and after.
        heads: share `dim_out`.
        stride: tokens of one pooling window, 1 for none.
        window: tokens of a mask unit after pooling; None attends globally.

    Raises:
        SettingError: the heads do not divide the channels.
    """

    def __init__(self, dim: int, dim_out: int, heads: int, *, stride: int = 1, window: int | None = None):
        super().__init__()
        if dim_out % heads:
            raise SettingError(f"heads: {heads} heads can't share {dim_out} channels evenly")
        self.heads, self.stride, self.window = heads, stride, window
        self.qkv = nn.Linear(dim, 3 * dim_out)
        self.proj = nn.Linear(dim_out, dim_out)

    def forward(self, x: Tensor) -> Tensor:
        """Attend; tokens in the order of `unroll`."""
        batch, tokens, _ = x.shape
        windows = 1 if self.window is None else tokens // (self.stride * self.window)
        qkv = self.qkv(x).reshape(batch, -1, windows, 3, self.heads, self.proj.in_features // self.heads)
        # windows join the batch: four contiguous dimensions are what the fast kernels take
        q, k, v = qkv.permute(3, 0, 2, 4, 1, 5).flatten(1, 2).unbind(0)
        if self.stride > 1:
            q = q.unflatten(2, (self.stride, -1)).max(dim=2).values
        mixed = F.scaled_dot_product_attention(q, k, v)
        mixed = mixed.unflatten(0, (batch, windows)).permute(0, 3, 1, 2, 4)
        return self.proj(mixed.reshape(batch, -1, self.proj.in_features))


class HieraBlock(nn.Module):
    """Attention and a two-layer perceptron, normalised before each, `(B, N, C) -> (B, N / stride, C_out)`.

    Where the width changes, the shortcut is the pooled projection of the normalised input.

    Args:
        dim, dim_out, heads, stride, window: as for `MaskUnitAttention`.
        mlp_ratio: hidden channels per channel.
        drop_path: probability that a sample skips a branch in training.
    """

    def __init__(
        self,
        dim: int,
        dim_out: int,
        heads: int,
        *,
        stride: int = 1,
        window: int | None = None,
        mlp_ratio: float = 4.0,
        drop_path: float = 0.0,
    ):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = MaskUnitAttention(dim, dim_out, heads, stride=stride, window=window)
        self.norm2 = nn.LayerNorm(dim_out, eps=1e-6)
        hidden = int(dim_out * mlp_ratio)
        self.mlp = nn.Sequential()
        self.mlp.add_module("fc1", nn.Linear(dim_out, hidden))
        self.mlp.add_module("act", nn.GELU())
        self.mlp.add_module("fc2", nn.Linear(hidden, dim_out))
        self.drop_path = DropPath(drop_path)
        self.proj = nn.Linear(dim, dim_out) if dim != dim_out else None
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """Tokens in the order of `unroll`."""
        normed = self.norm1(x)
        if self.proj is not None:
            x = pool(self.proj(normed), self.stride)
        x = x + self.drop_path(self.attn(normed))
        return x + self.drop_path(self.mlp(self.norm2(x)))
