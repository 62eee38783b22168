"""Second stage: the velocity of a surface's latents at the occupied cells of the coarse structure.

Structured latents (Xiang et al. 2024, arXiv:2412.01506, section 3.2): sparse residual blocks take cells of the fine
grid together, a transformer mixes what is left with the condition, and residual blocks with skips lead back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from voxelry.core.errors import SettingError
from voxelry.core.settings import Configured, settle
from voxelry.models.sam3d.flow_settings import FlowSettings
from voxelry.nn.position import sine_positions
from voxelry.nn.sparse import Cells, SparseTensor, SubmanifoldConv
from voxelry.nn.time import TimeEmbedding
from voxelry.nn.transformer import CrossAttention, FeedForward, Modulation, SelfAttention, modulated, plain_norm

__all__ = ["LatentFlow", "LatentFlowSettings", "pooled"]

RANK = 3  # of shapes
TIME_CHANNELS = 256
LAYER_EPS, OUT_EPS = 1e-6, 1e-5


@dataclass(frozen=True, kw_only=True)
class LatentFlowSettings(FlowSettings):
    """The second stage's network.

    Attributes:
        widths: channels of the levels above the transformer's, the finest first; each but the transformer's own halves
            the grid once. None for a transformer on every cell.
        blocks: residual blocks of a level, on the way down and on the way up.
        skips: whether the way up sees the way down.
    """

    widths: Sequence[int] | None = (128,)
    blocks: int = 2
    skips: bool = True


class LatentFlow(Configured, nn.Module):
    """Structured latents at a time to their velocities, `SparseTensor (N, C) -> SparseTensor (N, C)`.

    Raises:
        SettingError: heads that don't divide the channels, or levels without blocks.
    """

    Settings: ClassVar[type[LatentFlowSettings]] = LatentFlowSettings

    def __init__(self, **settings: Any):
        super().__init__()
        own = settle(LatentFlowSettings, settings)
        if own.blocks < 1:
            raise SettingError(f"blocks: expected at least 1 of a level, got {own.blocks}")
        self._settings, self.checkpointing = own, own.checkpointing
        widths = [*(own.widths or ()), own.channels]
        self.time = TimeEmbedding(TIME_CHANNELS, own.channels, activation="silu", order="cosines_first")
        self.step = (
            TimeEmbedding(TIME_CHANNELS, own.channels, activation="silu", order="cosines_first")
            if own.shortcut
            else None
        )
        self.enter, self.leave = nn.Linear(own.latent_channels, widths[0]), nn.Linear(widths[0], own.latent_channels)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        for width, coarser in pairwise(widths):
            self.down.extend(SparseResidual(width, width, own.channels) for _ in range(own.blocks - 1))
            self.down.append(SparseResidual(width, coarser, own.channels, move="coarser"))
        double = 2 if own.skips else 1
        for width, coarser in reversed(list(pairwise(widths))):
            self.up.append(SparseResidual(double * coarser, width, own.channels, move="finer"))
            self.up.extend(SparseResidual(double * width, width, own.channels) for _ in range(own.blocks - 1))
        self.blocks = nn.ModuleList(SparseBlock(own) for _ in range(own.depth))
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)

    def forward(
        self,
        x: SparseTensor,
        ticks: Tensor,
        condition: Tensor,
        step: Tensor | None = None,
        added: Tensor | None = None,
    ) -> SparseTensor:
        """Velocities towards the data.

        Args:
            x: latents at the cells of `B` items.
            ticks: `(B,)`, 0 at noise and 1000 at data.
            condition: `(B, M, K)` tokens.
            step: `(B,)` length of the step, in the same unit, of a model with shortcuts.
            added: `(N, widths[0])`, to the features of the finest level; None for nothing.
        """
        embedding = self.time(ticks)
        if self.step is not None and step is not None:
            embedding = embedding + self.step(step)
        h, finest, skips = x.with_features(self.enter(x.features)), x.cells, []
        if added is not None:
            h = h.with_features(h.features + added)
        grids = [finest]
        for block in cast("list[SparseResidual]", self.down):
            h = block(h, embedding)
            skips.append(h.features)
            if h.cells is not grids[-1]:
                grids.append(h.cells)
        h = h.with_features(h.features + sine_positions(h.cells.coords[:, 1:], self._settings.channels))
        for layer in self.blocks:
            args = (h.features, h.cells, embedding, condition)
            again = self.checkpointing and torch.is_grad_enabled()
            h = h.with_features(checkpoint(layer, *args, use_reentrant=False) if again else layer(*args))
        for block in cast("list[SparseResidual]", self.up):
            if self._settings.skips:
                h = h.with_features(torch.cat((h.features, skips.pop()), dim=1))
            if block.move:
                grids.pop()
            h = block(h, embedding, grids[-1])
        return h.with_features(self.leave(plain_norm(h.features, OUT_EPS)))


class SparseResidual(nn.Module):
    """Two of (normalisation, SiLU, sparse convolution) added to the input; time scales and shifts between.

    Args:
        in_channels, out_channels: features.
        embedding: channels of the embedding of time.
        move: "coarser" takes cells together first, "finer" takes the block's own grid, "" stays.
    """

    def __init__(self, in_channels: int, out_channels: int, embedding: int, *, move: str = ""):
        super().__init__()
        self.move = move
        self.norm1 = nn.LayerNorm(in_channels, eps=LAYER_EPS)
        self.conv1 = SubmanifoldConv(in_channels, out_channels, ndim=RANK)
        self.conv2 = SubmanifoldConv(out_channels, out_channels, ndim=RANK, zero=True)
        self.embedding = nn.Linear(embedding, 2 * out_channels)
        self.skip = nn.Identity() if in_channels == out_channels else nn.Linear(in_channels, out_channels)

    def forward(self, x: SparseTensor, embedding: Tensor, finer: Cells | None = None) -> SparseTensor:
        """Transform.

        Args:
            x: features.
            embedding: `(B, E)` of time, before its activation.
            finer: of "finer", the grid that `x` came from.
        """
        if self.move == "coarser":
            x = pooled(x)
        elif self.move == "finer":
            assert finer is not None
            x = SparseTensor(x.features[finer.coarser()[1]], finer)
        item = x.cells.coords[:, 0]
        scale, shift = self.embedding(F.silu(embedding))[item].chunk(2, dim=1)
        h = self.conv1(x.with_features(F.silu(self.norm1(x.features))))
        h = self.conv2(h.with_features(F.silu(modulated(h.features, shift, scale))))
        return x.with_features(h.features + self.skip(x.features))


class SparseBlock(nn.Module):
    """Attention among an item's cells, attention to its condition, linear layers; time scales, shifts and gates."""

    def __init__(self, own: LatentFlowSettings):
        super().__init__()
        self.attention = SelfAttention(own.channels, own.heads, normed=own.normed)
        self.cross_norm = nn.LayerNorm(own.channels, eps=LAYER_EPS)
        self.cross = CrossAttention(own.channels, own.condition_channels, own.heads, normed=own.normed_cross)
        self.mlp = FeedForward(own.channels, own.mlp_ratio)
        self.modulation = Modulation(own.channels)

    def forward(self, x: Tensor, cells: Cells, embedding: Tensor, condition: Tensor) -> Tensor:
        """Transform features `(N, C)`."""
        item = cells.coords[:, 0]
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = (each[item] for each in self.modulation(embedding))
        x = x + gate * self.attention(modulated(x, shift, scale), cells.by_item)
        x = x + self.cross.cells(self.cross_norm(x), condition, cells.by_item, item)
        return x + mlp_gate * self.mlp(modulated(x, mlp_shift, mlp_scale))


def pooled(x: SparseTensor, factor: int = 2) -> SparseTensor:
    """Cells of `factor` cells per axis taken as one: the sum of their features over one more than their number.

    Published weights were trained with this divisor, which shrinks the mean a little.
    """
    coarser, parent = x.cells.coarser(factor)
    sums = x.features.new_zeros(len(coarser), x.features.shape[1]).index_add(0, parent, x.features)
    counts = torch.bincount(parent, minlength=len(coarser))
    return SparseTensor(sums / (counts + 1)[:, None], coarser)
