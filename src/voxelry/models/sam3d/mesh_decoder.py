"""From structured latents to what a surface is made of at cells four times as fine.

Xiang et al. 2024 (arXiv:2412.01506, appendix A.2): attention in windows on the occupied cells, then each is cut twice,
with sparse convolutions. `surface` makes meshes of the answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from voxelry.core.errors import SettingError
from voxelry.core.settings import Configured, settle
from voxelry.models.sam3d.surface import surface_channels
from voxelry.nn.position import sine_positions
from voxelry.nn.sparse import Grouping, SparseGroupNorm, SparseTensor, SubmanifoldConv, subdivided_convolve
from voxelry.nn.transformer import FeedForward, SelfAttention, plain_norm

__all__ = ["MeshDecoder", "MeshDecoderSettings"]

RANK = 3  # of shapes
CHILDREN = 2**RANK


@dataclass(frozen=True, kw_only=True)
class MeshDecoderSettings:
    """Structured latents to a surface.

    Attributes:
        grid: cells per axis of the latents; only told to whoever makes the mesh.
        latent_channels: numbers of a latent.
        channels: of a token.
        depth, heads: blocks and attention heads.
        mlp_ratio: channels between a block's linear layers as a multiple of `channels`.
        window: cells per axis within which attention is; every second block is shifted by half of it. None for
            attention among all cells of an item.
        normed: whether queries and keys are normalised.
        widths: channels after each time the cells are cut.
        groups: of the normalisations there.
        colours: whether points have colours, too.
        checkpointing: whether the backward pass computes the blocks again.
    """

    grid: int = 64
    latent_channels: int = 8
    channels: int = 768
    depth: int = 12
    heads: int = 12
    mlp_ratio: float = 4.0
    window: int | None = 8
    normed: bool = False
    widths: Sequence[int] = (192, 96)
    groups: int = 32
    colours: bool = False
    checkpointing: bool = False


class MeshDecoder(Configured, nn.Module):
    """Latents to numbers of surfaces, `SparseTensor (N, C) -> SparseTensor (N * 8^levels, 53 or 101)`.

    Without gradients one block's features exist at a time, and no convolution copies its input.

    Raises:
        SettingError: heads or groups that don't divide channels.
    """

    Settings: ClassVar[type[MeshDecoderSettings]] = MeshDecoderSettings

    def __init__(self, **settings: Any):
        super().__init__()
        own = settle(MeshDecoderSettings, settings)
        if own.window is not None and own.window < 1:
            raise SettingError(f"window: expected at least 1 cell, got {own.window}")
        self._settings, self.checkpointing = own, own.checkpointing
        widths = [own.channels, *own.widths]
        self.enter = nn.Linear(own.latent_channels, own.channels)
        self.blocks = nn.ModuleList(WindowBlock(own) for _ in range(own.depth))
        self.up = nn.ModuleList(Subdivision(*pair, own.groups) for pair in pairwise(widths))
        self.leave = nn.Linear(widths[-1], surface_channels(own.colours))
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)

    @property
    def surface_grid(self) -> int:
        """Cells per axis of the answer."""
        return int(self._settings.grid * 2 ** len(self.up))

    def forward(self, x: SparseTensor) -> SparseTensor:
        """Decode; children of a cell follow each other, the last axis fastest, at each level."""
        h = self.transform(x)
        for layer in self.up:
            h = layer(h)
        return h.with_features(self.leave(h.features))

    def transform(self, x: SparseTensor) -> SparseTensor:
        """Features after the transformer, `(N, channels)`, of the latents' own cells."""
        own = self._settings
        h = self.enter(x.features) + sine_positions(x.cells.coords[:, 1:], own.channels)
        for index, block in enumerate(self.blocks):
            shift = 0 if own.window is None else own.window // 2 * (index % 2)
            groups = x.cells.by_item if own.window is None else x.cells.windows(own.window, shift)
            again = self.checkpointing and torch.is_grad_enabled()
            h = checkpoint(block, h, groups, use_reentrant=False) if again else block(h, groups)
        return x.with_features(h)


class WindowBlock(nn.Module):
    """Attention within groups of cells, then linear layers, each normalised before and added, `(N, C)`."""

    def __init__(self, own: MeshDecoderSettings):
        super().__init__()
        self.attention = SelfAttention(own.channels, own.heads, normed=own.normed)
        self.mlp = FeedForward(own.channels, own.mlp_ratio)

    def forward(self, x: Tensor, groups: Grouping) -> Tensor:
        """Transform."""
        x = x + self.attention(plain_norm(x), groups)
        return x + self.mlp(plain_norm(x))


class Subdivision(nn.Module):
    """Every cell cut in half along each axis, with two convolutions, `(N, C) -> (8 N, C')`."""

    def __init__(self, channels: int, finer: int, groups: int):
        super().__init__()
        self.norm1 = SparseGroupNorm(groups, channels)
        self.conv1 = SubmanifoldConv(channels, finer, ndim=RANK)
        self.norm2 = SparseGroupNorm(groups, finer)
        self.conv2 = SubmanifoldConv(finer, finer, ndim=RANK, zero=True)
        self.skip = nn.Linear(channels, finer)

    def forward(self, x: SparseTensor) -> SparseTensor:
        """Cut and convolve."""
        lean = not torch.is_grad_enabled()
        h = self._first(x, lean)
        h = self.conv2(h).features.unflatten(0, (-1, CHILDREN))
        skip = self.skip(x.features)[:, None]
        whole = h.add_(skip) if lean else h + skip
        return SparseTensor(whole.flatten(0, 1), x.cells.finer)

    def _first(self, x: SparseTensor, lean: bool) -> SparseTensor:
        """Up to the second convolution; in a function of its own, so that what it made is let go."""
        h = self.norm1(x)
        h = subdivided_convolve(h.with_features(F.silu(h.features)), self.conv1)
        h = self.norm2(h)
        return h.with_features(F.silu(h.features, inplace=lean))
