"""Plain vision transformer as a backbone (Li et al. 2022, arXiv:2203.16527), in any rank.

detectron2's `ViT`: pre-norm blocks (Dosovitskiy et al. 2021, arXiv:2010.11929) on a grid of patches, some of
them attending in windows only, absolute and relative positions, no class token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import log2
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from voxelry.backbones.base import Backbone
from voxelry.core.choice import check_choice
from voxelry.core.errors import SettingError
from voxelry.core.rank import check_ndim, per_axis
from voxelry.core.settings import settle
from voxelry.nn import nd
from voxelry.nn.drop_path import DropPath
from voxelry.nn.norm import ChannelNorm
from voxelry.nn.position import AbsolutePositions, RelativePositions, attend
from voxelry.nn.windows import merge_windows, split_windows

__all__ = ["Attention", "TransformerBlock", "ViT", "level_name", "whole_windows"]

EPS = 1e-6


class Attention(nn.Module):
    """Multi-head attention among the tokens of a grid, `(B, *S, C) -> (B, *S, C)`.

    Args:
        dim: channels.
        heads: attention heads.
        grid: tokens per axis for tables of relative positions; None for no relative positions.
        bias: whether queries, keys and values have a bias.

    Raises:
        SettingError: the heads do not divide the channels.
    """

    def __init__(self, dim: int, heads: int, *, grid: Sequence[int] | None = None, bias: bool = True):
        super().__init__()
        if dim % heads:
            raise SettingError(f"heads: {heads} heads can't share {dim} channels evenly")
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=bias)
        self.out = nn.Linear(dim, dim)
        self.positions = None if grid is None else RelativePositions(dim // heads, grid)

    def forward(self, x: Tensor) -> Tensor:
        """Attend."""
        size = x.shape[1:-1]
        q, k, v = self.qkv(x.flatten(1, -2)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        terms = () if self.positions is None else self.positions(q, size)
        return self.out(attend(q, k, v, terms).transpose(1, 2).flatten(2)).unflatten(1, size)


class ResidualConv(nn.Module):
    """Bottleneck of 1, 3 and 1 wide convolutions added to the tokens, `(B, *S, C) -> (B, *S, C)`.

    Li et al. 2022, section 3: after attention in windows it carries information across them. The last
    normalisation starts at zero, so that the block starts as the identity.
    """

    def __init__(self, dim: int, *, ndim: int):
        super().__init__()
        inner, conv = dim // 2, nd.conv(ndim)
        self.conv1, self.norm1 = conv(dim, inner, 1, bias=False), ChannelNorm(inner, eps=EPS)
        self.conv2, self.norm2 = conv(inner, inner, 3, padding=1, bias=False), ChannelNorm(inner, eps=EPS)
        self.conv3, self.norm3 = conv(inner, dim, 1, bias=False), ChannelNorm(dim, eps=EPS)
        for layer in (self.conv1, self.conv2, self.conv3):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.norm3.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve and add."""
        y = F.gelu(self.norm1(self.conv1(x.movedim(-1, 1))))
        y = F.gelu(self.norm2(self.conv2(y)))
        return x + self.norm3(self.conv3(y)).movedim(1, -1)


class TransformerBlock(nn.Module):
    """Attention, then two linear layers with GELU, each normalised before and added, `(B, *S, C) -> (B, *S, C)`.

    Args:
        dim: channels.
        heads: attention heads.
        ndim: rank of the grid.
        mlp_ratio: channels between the linear layers as a multiple of `dim`.
        drop_path: probability of leaving a branch out.
        window: tokens of a window per axis; None attends to all. Filled-up tokens of the last windows are zeros
            behind the normalisation, and are attended to.
        grid: of relative positions; None for none.
        bias: of queries, keys and values.
        residual: whether `ResidualConv` follows.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        ndim: int,
        mlp_ratio: float = 4.0,
        drop_path: float = 0.0,
        window: Sequence[int] | None = None,
        grid: Sequence[int] | None = None,
        bias: bool = True,
        residual: bool = False,
    ):
        super().__init__()
        self.window = None if window is None else tuple(window)
        self.norm1 = nn.LayerNorm(dim, eps=EPS)
        self.attention = Attention(dim, heads, grid=grid, bias=bias)
        self.drop_path = DropPath(drop_path)
        self.norm2 = nn.LayerNorm(dim, eps=EPS)
        self.mlp = nn.Sequential(nn.Linear(dim, int(dim * mlp_ratio)), nn.GELU(), nn.Linear(int(dim * mlp_ratio), dim))
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        self.residual = ResidualConv(dim, ndim=ndim) if residual else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Transform a grid of tokens."""
        y = self.norm1(x)
        if self.window is None:
            y = self.attention(y)
        else:
            y = merge_windows(self.attention(split_windows(y, self.window)), x.shape[1:-1])
        x = x + self.drop_path(y)
        return self.residual(x + self.drop_path(self.mlp(self.norm2(x))))


@dataclass(frozen=True, kw_only=True)
class ViTSettings:
    """A plain vision transformer.

    Attributes:
        ndim: 2 or 3.
        in_channels: channels of the image.
        image_size: voxels per axis for which tables of relative positions are made; other sizes resize them.
        patch_size: voxels of a patch, one number or one per axis.
        dim: channels of a token.
        depth: blocks.
        heads: attention heads.
        mlp_ratio: channels inside the blocks' linear layers as a multiple of `dim`.
        qkv_bias: whether queries, keys and values have a bias.
        drop_path: probability of leaving a branch out in the last block, growing linearly from 0 in the first.
        window_size: tokens of a window, one number or one per axis; 0 for no windows.
        window_blocks: indices of blocks that attend in windows, or "all"; the others attend to all tokens.
        residual_blocks: indices of blocks that a `ResidualConv` follows, or a number of them: the last blocks of so
            many equal parts (section 3, "convolutional propagation").
        relative_positions: whether attention knows them.
        absolute_positions: whether tokens know theirs.
        pretrain_size: voxels per axis for which absolute positions are made; None for `image_size`.
        checkpointing: whether the backward pass computes the blocks again instead of keeping what is in them.
        partial: what becomes of a patch that hangs over the end of an axis: "keep" fills it up with the border's
            values; "drop" leaves it out where it isn't the only one, as detectron2 does, and the level is smaller than
            `ceil(S / stride)`.
    """

    ndim: int
    in_channels: int = 1
    image_size: int | Sequence[int] = 256
    patch_size: int | Sequence[int] = 16
    dim: int = 768
    depth: int = 12
    heads: int = 12
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    drop_path: float = 0.0
    window_size: int | Sequence[int] = 14
    window_blocks: Sequence[int] | str = ()
    residual_blocks: Sequence[int] | int = ()
    relative_positions: bool = True
    absolute_positions: bool = True
    pretrain_size: int | Sequence[int] | None = None
    checkpointing: bool = False
    partial: str = "keep"


class ViT(Backbone):
    """Transformer on patches, one level with the stride of a patch.

    Raises:
        SettingError: numbers that do not fit together.
    """

    Settings = ViTSettings

    name: ClassVar[str] = "vit"

    def __init__(self, **settings: Any):
        super().__init__()
        own = self._settings = settle(ViTSettings, settings)
        self.ndim, self.in_channels, self.checkpointing = check_ndim(own.ndim), own.in_channels, own.checkpointing
        self.patch_size, self.partial = per_axis(own.patch_size, own.ndim, "patch_size"), own.partial
        check_choice("partial", own.partial, ("keep", "drop"))
        grid = self.grid(per_axis(own.image_size, own.ndim, "image_size"))
        pretrained = (
            grid if own.pretrain_size is None else self.grid(per_axis(own.pretrain_size, own.ndim, "pretrain_size"))
        )
        window = per_axis(own.window_size, own.ndim, "window_size")
        everywhere = own.window_blocks == "all" and not max(window)
        windowed = [] if everywhere else chosen_blocks(own.window_blocks, own.depth, "window_blocks")
        followed = chosen_blocks(own.residual_blocks, own.depth, "residual_blocks")
        if windowed and min(window) < 1:
            raise SettingError(f"window_size: expected at least 1 token, got {window}")
        self.patches = nd.conv(own.ndim)(own.in_channels, own.dim, self.patch_size, stride=self.patch_size)
        self.positions = AbsolutePositions(own.dim, pretrained) if own.absolute_positions else None
        self.blocks = nn.ModuleList()
        for index, rate in enumerate(torch.linspace(0, own.drop_path, own.depth, device="cpu").tolist()):
            part = window if index in windowed else None
            self.blocks.append(
                TransformerBlock(
                    own.dim,
                    own.heads,
                    ndim=own.ndim,
                    mlp_ratio=own.mlp_ratio,
                    drop_path=rate,
                    window=part,
                    grid=(part or grid) if own.relative_positions else None,
                    bias=own.qkv_bias,
                    residual=index in followed,
                )
            )
        level = level_name(self.patch_size)
        self.out_channels, self.strides = {level: own.dim}, {level: self.patch_size}

    def grid(self, size: Sequence[int]) -> tuple[int, ...]:
        """Patches per axis that cover an image of that size."""
        return tuple(-(-length // side) for length, side in zip(size, self.patch_size, strict=True))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Run the network, `(B, in_channels, *S) -> {level: (B, dim, *ceil(S / patch))}`."""
        return {next(iter(self.strides)): self.features(x)}

    def features(self, x: Tensor) -> Tensor:
        """The one level, `(B, dim, *ceil(S / patch))`; see `partial`."""
        x = self.check(x)
        if self.partial == "drop":
            x = whole_windows(x, self.patch_size)
        missing = [-size % side for size, side in zip(x.shape[2:], self.patch_size, strict=True)]
        if any(missing):
            x = F.pad(x, [side for gap in reversed(missing) for side in (0, gap)], mode="replicate")
        tokens = self.patches(x).movedim(1, -1)
        if self.positions is not None:
            tokens = tokens + self.positions(tokens.shape[1:-1])
        for block in self.blocks:
            if self.checkpointing and torch.is_grad_enabled():
                tokens = checkpoint(block, tokens, use_reentrant=False)
            else:
                tokens = block(tokens)
        return tokens.movedim(-1, 1)


def chosen_blocks(chosen: Sequence[int] | int | str, depth: int, name: str) -> list[int]:
    """Indices of blocks: those given, "all" of them, or so many, each the last of an equal part.

    Raises:
        SettingError: another word, more than there are, or indices of none; names the setting.
    """
    if isinstance(chosen, str):
        if chosen != "all":
            raise SettingError(f"{name}: expected indices or all, got {chosen!r}")
        return list(range(depth))
    if isinstance(chosen, int):
        if not 0 <= chosen <= depth:
            raise SettingError(f"{name}: expected up to {depth} blocks, got {chosen}")
        return [(part + 1) * depth // chosen - 1 for part in range(chosen)]
    if any(not isinstance(index, int) or not 0 <= index < depth for index in chosen):
        raise SettingError(f"{name}: expected indices from 0 to {depth - 1}, got {list(chosen)}")
    return list(chosen)


def whole_windows(x: Tensor, window: Sequence[int]) -> Tensor:
    """`(B, C, *S)` without what hangs over the last whole window of each axis that has a whole one."""
    for axis, side in enumerate(window, start=2):
        if x.shape[axis] > side:
            x = x.narrow(axis, 0, x.shape[axis] // side * side)
    return x


def level_name(stride: Sequence[int]) -> str:
    """The name of a level by its largest stride: "p4" for 16."""
    return f"p{int(log2(max(stride)))}"
