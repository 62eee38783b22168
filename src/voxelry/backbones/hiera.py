"""Hiera: a hierarchical transformer of plain blocks, in any rank (Ryali et al. 2023, arXiv:2306.00989)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from voxelry.backbones.base import Backbone
from voxelry.backbones.hiera_units import HieraBlock, from_units, reroll, unroll
from voxelry.core.choice import check_choice
from voxelry.core.errors import DataError, SettingError
from voxelry.core.rank import per_axis
from voxelry.core.settings import settle
from voxelry.nn import nd

__all__ = ["Hiera"]

Shape = tuple[int, ...]
Size = int | Sequence[int]

MASK_UNIT_ATTENTION = (True, True)


class PatchEmbedding(nn.Module):
    """An overlapping convolution that makes tokens, `(B, C, *S) -> (B, *T, embed_dim)`."""

    def __init__(self, channels: int, dim: int, *, kernel: Shape, stride: Shape, padding: Shape):
        super().__init__()
        self.proj = nd.conv(len(kernel))(channels, dim, kernel, stride, padding)

    def forward(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        """Embed; where `keep` `(B, *units)` is False the image is zeroed first, or the kernels would look across."""
        if keep is not None:
            x = x * F.interpolate(keep[:, None].to(x.dtype), size=x.shape[2:])
        return self.proj(x).movedim(1, -1)


@dataclass(frozen=True, kw_only=True)
class HieraSettings:
    """A hierarchical transformer.

    Attributes:
        ndim: number of spatial axes.
        in_channels: of the image.
        input_size: voxels per axis that the table of positions is laid out for.
        embed_dim: channels of the first stage; `dim_mul` times as many with each further stage.
        heads: of the first stage; `head_mul` times as many with each further stage.
        stages: blocks per stage.
        q_pool: how many times the grid is pooled, each time as a stage begins.
        q_stride: of each pooling, per axis.
        mask_unit_size: tokens of a mask unit per axis.
        mask_unit_attention: which stages attend within mask units only; the first block of a stage, which pools,
            still attends as the stage before it. Stages beyond the last value are global.
        dim_mul, head_mul: growth from stage to stage.
        patch_kernel, patch_stride, patch_padding: of the convolution that makes tokens, per axis.
        mlp_ratio: hidden channels per channel.
        drop_path: probability that a branch is skipped in training, growing linearly from 0 at the first block.
        sep_pos_embed: positions as the sum of two tables, one for the first axis, one for the others.
        num_classes: of the classifier; None for none, and then no last normalisation either.
        head_dropout: before the classifier.
        head_init_scale: what its initial weights are multiplied by.
        head_activation: `softmax` answers probabilities in eval mode, as the original does; None for logits always.
        unit_order: `boxes`: mask units are boxes of the image. `strided`: as the original lays them out, which
            differs where `mask_unit_size` isn't `q_stride ** (len(stages) - 1)`; there its units interleave.
    """

    ndim: int
    in_channels: int = 1
    input_size: Size = 64
    embed_dim: int = 96
    heads: int = 1
    stages: Sequence[int] = (2, 3, 16, 3)
    q_pool: int = 3
    q_stride: Size = 2
    mask_unit_size: Size = 8
    mask_unit_attention: Sequence[bool] = MASK_UNIT_ATTENTION
    dim_mul: float = 2.0
    head_mul: float = 2.0
    patch_kernel: Size = 7
    patch_stride: Size = 4
    patch_padding: Size = 3
    mlp_ratio: float = 4.0
    drop_path: float = 0.0
    sep_pos_embed: bool = False
    num_classes: int | None = None
    head_dropout: float = 0.0
    head_init_scale: float = 0.001
    head_activation: str | None = None
    unit_order: str = "boxes"


class Hiera(Backbone):
    """Transformer whose stages halve the grid by pooling queries; attention stays in mask units where it is fine.

    As a backbone: `(B, C, *S)` to the last feature map of each resolution, named by stride (`p2` is stride 4),
    channels first, without normalisation. An image of any size is padded by its own border to whole mask units and
    the maps are cut back to `ceil(S / stride)`; positions are interpolated when the grid isn't that of `input_size`.

    Raises:
        SettingError: strides, units and stages that don't go together.
    """

    Settings = HieraSettings

    name = "hiera"

    def __init__(self, **settings: Any):
        super().__init__()
        own = self._settings = settle(HieraSettings, settings)
        self.ndim, self.in_channels = own.ndim, own.in_channels
        self.input_size: Shape = per_axis(own.input_size, own.ndim, "input_size")
        self.q_stride: Shape = per_axis(own.q_stride, own.ndim, "q_stride")
        self.mask_unit_size: Shape = per_axis(own.mask_unit_size, own.ndim, "mask_unit_size")
        self.patch_stride: Shape = per_axis(own.patch_stride, own.ndim, "patch_stride")
        kernel: Shape = per_axis(own.patch_kernel, own.ndim, "patch_kernel")
        padding: Shape = per_axis(own.patch_padding, own.ndim, "patch_padding")
        self.stages, self.q_pool = tuple(own.stages), own.q_pool
        self._check(kernel, padding, own.unit_order)
        self.schedule = self._schedule(own.unit_order)
        # tokens per axis come in whole tiles: all that is pooled, and the mask units where they are boxes
        self.tile: Shape = tuple(math.prod(sizes) for sizes in zip(*self.schedule, strict=True))
        self.grid = self.token_grid(self.input_size)
        self.sep_pos_embed = own.sep_pos_embed
        self.patch_embed = PatchEmbedding(
            own.in_channels, own.embed_dim, kernel=kernel, stride=self.patch_stride, padding=padding
        )
        if own.sep_pos_embed:
            self.pos_embed_temporal = nn.Parameter(torch.zeros(1, self.grid[0], own.embed_dim))
            self.pos_embed_spatial = nn.Parameter(torch.zeros(1, math.prod(self.grid[1:]), own.embed_dim))
        else:
            self.pos_embed = nn.Parameter(torch.zeros(1, math.prod(self.grid), own.embed_dim))
        self.blocks, self.dims = self._make_blocks(own)
        first_level = round(math.log2(max(self.patch_stride)))
        names = [f"p{first_level + level}" for level in range(own.q_pool + 1)]
        dim = self.dims[-1]
        self.out_channels = dict(zip(names, [*self.dims[: own.q_pool], dim], strict=True))
        self.strides = {name: self._stride(level) for level, name in enumerate(names)}
        self.norm = self.head = None
        if own.num_classes is not None:
            self.norm = nn.LayerNorm(dim, eps=1e-6)
            self.head = Classifier(dim, own.num_classes, own.head_dropout, own.head_activation)
        self._initialise(own.head_init_scale)

    def _make_blocks(self, own: HieraSettings) -> tuple[nn.ModuleList, list[int]]:
        """All blocks, and the channels of each stage."""
        blocks, dims = nn.ModuleList(), []
        flags = [*own.mask_unit_attention, *[False] * len(self.stages)]
        last = max(sum(self.stages) - 1, 1)
        dim, heads = own.embed_dim, own.heads
        window, pooling = math.prod(self.mask_unit_size), math.prod(self.q_stride)
        for stage, depth in enumerate(self.stages):
            for index in range(depth):
                first = stage > 0 and index == 0
                dim_out = int(dim * own.dim_mul) if first else dim
                heads = int(heads * own.head_mul) if first else heads
                pools = first and stage <= own.q_pool
                window = window // pooling if pools else window
                # the block that pools still reads the finer grid, so it attends as the stage before it
                local = flags[stage - 1] if first else flags[stage]
                blocks.append(
                    HieraBlock(
                        dim,
                        dim_out,
                        heads,
                        stride=pooling if pools else 1,
                        window=window if local else None,
                        mlp_ratio=own.mlp_ratio,
                        drop_path=own.drop_path * len(blocks) / last,
                    )
                )
                dim = dim_out
            dims.append(dim)
        return blocks, dims

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Feature maps of each resolution, fine to coarse, `(B, C_level, *ceil(S / stride))`."""
        maps = self._stage_maps(self.tokens(x), self.token_grid(x.shape[2:]))
        # after the last pooling the grid stays, and only the last stage's map is of use
        kept = [*maps[: self.q_pool], maps[-1]]
        levels = {}
        for (name, stride), features in zip(self.strides.items(), kept, strict=True):
            shape = [-(-size // step) for size, step in zip(x.shape[2:], stride, strict=True)]
            levels[name] = features[(slice(None), *(slice(size) for size in shape))].movedim(-1, 1).contiguous()
        return levels

    def intermediates(self, x: Tensor, mask: Tensor | None = None) -> list[Tensor]:
        """The tokens at the end of every stage, channels last, whatever was padded included.

        Args:
            x: `(B, C, *S)`.
            mask: `(B, units)` bool, True for the mask units to keep, the same number of them in every sample; the
                others are hidden from the network and dropped.

        Returns:
            Per stage `(B, *T, C)`; with a mask `(B, kept units, *unit, C)`.

        Raises:
            DataError: a mask of another shape, or samples that keep different numbers of units.
        """
        return self._stage_maps(self.tokens(x, mask), None if mask is not None else self.token_grid(x.shape[2:]))

    def logits(self, x: Tensor) -> Tensor:
        """The classifier's answer, `(B, C, *S) -> (B, num_classes)`; see `head_activation`.

        Raises:
            SettingError: the network was built without a classifier.
        """
        if self.head is None or self.norm is None:
            raise SettingError("num_classes: this Hiera has no classifier; build it with num_classes=N")
        x = self.tokens(x)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x.mean(dim=1)))

    def tokens(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Embedded patches with their positions, in the order of `unroll`, `(B, N, embed_dim)`; arguments as above."""
        grid = self.token_grid(self.check(x).shape[2:])
        x = pad_to(x, [count * step for count, step in zip(grid, self.patch_stride, strict=True)])
        if mask is None:
            return unroll(self.patch_embed(x) + self.positions(grid), self.schedule)
        units = self.units(x.shape[2:])
        if mask.shape != (len(x), math.prod(units)):
            raise DataError(f"mask: expected shape {(len(x), math.prod(units))}, got {tuple(mask.shape)}")
        keep = mask.bool()
        counts = keep.sum(dim=1)
        if not bool((counts == counts[0]).all()):
            raise DataError(f"mask: every sample must keep as many units, got {sorted(set(counts.tolist()))}")
        tokens = unroll(self.patch_embed(x, keep.reshape(len(x), *units)) + self.positions(grid), self.schedule)
        tokens = tokens.reshape(len(x), -1, len(keep[0]), tokens.shape[-1])
        kept = keep.nonzero()[:, 1].reshape(len(x), 1, -1, 1)
        return tokens.gather(2, kept.expand(-1, tokens.shape[1], -1, tokens.shape[-1])).flatten(1, 2)

    def positions(self, grid: Sequence[int]) -> Tensor:
        """What is added to the tokens of a grid, `(1, *grid, embed_dim)`; interpolated where it isn't the table's."""
        if not self.sep_pos_embed:
            return resized(self.pos_embed, self.grid, grid)
        first = resized(self.pos_embed_temporal, self.grid[:1], grid[:1])
        others = resized(self.pos_embed_spatial, self.grid[1:], grid[1:])
        return others[:, None] + first.unflatten(1, (grid[0], *(1,) * (self.ndim - 1)))

    def token_grid(self, shape: Sequence[int]) -> Shape:
        """Tokens per axis of an image of that spatial shape, padded to whole tiles."""
        return tuple(
            -(-size // (step * tile)) * tile
            for size, step, tile in zip(shape, self.patch_stride, self.tile, strict=True)
        )

    def units(self, shape: Sequence[int]) -> Shape:
        """Mask units per axis of an image of that spatial shape, those that are partly padding included."""
        return tuple(count // unit for count, unit in zip(self.token_grid(shape), self.mask_unit_size, strict=True))

    @property
    def unit_extent(self) -> Shape:
        """Voxels of a mask unit per axis."""
        return tuple(unit * step for unit, step in zip(self.mask_unit_size, self.patch_stride, strict=True))

    def _stage_maps(self, x: Tensor, grid: Shape | None) -> list[Tensor]:
        """Run the blocks; the tokens after each stage rolled back to their grid, or to units where it is None."""
        maps: list[Tensor] = []
        ends = list(itertools.accumulate(self.stages))
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index + 1 in ends:
                left = self.schedule[min(len(maps), self.q_pool) :]
                units = reroll(x, left, self.ndim)
                rest = None if grid is None else [count // tile for count, tile in zip(grid, self.tile, strict=True)]
                maps.append(units if rest is None else from_units(units, rest))
        return maps

    def _stride(self, level: int) -> Shape:
        return tuple(step * pool**level for step, pool in zip(self.patch_stride, self.q_stride, strict=True))

    def _schedule(self, unit_order: str) -> list[Shape]:
        """Levels of `unroll`: one per pooling, and what else belongs together."""
        if unit_order == "strided":
            return [self.q_stride] * (len(self.stages) - 1)
        rest = tuple(unit // pool**self.q_pool for unit, pool in zip(self.mask_unit_size, self.q_stride, strict=True))
        return [self.q_stride] * self.q_pool + [rest]

    def _check(self, kernel: Shape, padding: Shape, unit_order: str) -> None:
        check_choice("unit_order", unit_order, ("boxes", "strided"))
        if not 0 <= self.q_pool < len(self.stages) or min(self.stages) < 1:
            raise SettingError(f"q_pool: expected 0 to {len(self.stages) - 1}, fewer than stages, got {self.q_pool}")
        if self.q_pool and math.prod(self.q_stride) < 2:
            raise SettingError(f"q_stride: pooling by {self.q_stride} changes nothing; set q_pool=0")
        for axis, (unit, step) in enumerate(zip(self.mask_unit_size, self.q_stride, strict=True)):
            if unit < 1 or unit % step**self.q_pool:
                raise SettingError(
                    f"mask_unit_size: expected a multiple of {step**self.q_pool} (q_stride ** q_pool) along axis "
                    f"{axis}, got {unit}"
                )
        for width, margin, step in zip(kernel, padding, self.patch_stride, strict=True):
            if not 0 < width - 2 * margin <= step:
                raise SettingError(
                    f"patch_padding: a kernel of {width} padded by {margin} with stride {step} doesn't make one token "
                    f"per stride; expected {max(width - step + 1, 0) // 2} to {(width - 1) // 2}"
                )

    def _initialise(self, head_scale: float) -> None:
        for name, parameter in self.named_parameters():
            if name.startswith("pos_embed"):
                nn.init.trunc_normal_(parameter, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.constant_(module.bias, 0.02)
            elif isinstance(module, nn.LayerNorm):
                nn.init.constant_(module.bias, 0.02)
        nn.init.trunc_normal_(self.patch_embed.proj.weight, std=0.02)
        if self.head is not None:
            with torch.no_grad():
                self.head.projection.weight.mul_(head_scale)
                self.head.projection.bias.mul_(head_scale)


class Classifier(nn.Module):
    """A linear layer on the mean token, `(B, C) -> (B, num_classes)`."""

    def __init__(self, dim: int, num_classes: int, dropout: float, activation: str | None):
        super().__init__()
        check_choice("head_activation", activation, (None, "softmax"))
        self.activation = activation
        self.dropout = nn.Dropout(dropout)
        self.projection = nn.Linear(dim, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits, or in eval mode their softmax where that was asked for."""
        x = self.projection(self.dropout(x))
        return x.softmax(dim=-1) if self.activation and not self.training else x


def pad_to(x: Tensor, shape: Sequence[int]) -> Tensor:
    """Repeat the far border of every axis, `(B, C, *S) -> (B, C, *shape)`.

    Not zeros: attention would see an edge that isn't there, and a volume that is constant along an axis stays so.
    """
    margins = [
        margin for size, wanted in zip(x.shape[:1:-1], reversed(shape), strict=True) for margin in (0, wanted - size)
    ]
    return F.pad(x, margins, mode="replicate") if any(margins) else x


def resized(table: Tensor, own: Sequence[int], grid: Sequence[int]) -> Tensor:
    """Learned positions `(1, N, C)` of the grid `own` for another one, `(1, *grid, C)`."""
    return nd.resize_smoothly(table.unflatten(1, tuple(own)).movedim(-1, 1), grid).movedim(1, -1)
