"""Where matter is in a cube, in a few numbers: the autoencoder of occupancies before any detail is known.

A variational autoencoder of convolutions (Xiang et al. 2024, arXiv:2412.01506, appendix A.1): occupancy of 64³ cells
to latents of 16³ and back, the first of the two stages of SAM 3D Objects (2025, arXiv:2511.16624).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from voxelry.core.errors import SettingError
from voxelry.core.rank import check_ndim
from voxelry.core.settings import Configured, settle
from voxelry.nn import nd
from voxelry.nn.moments import RunningMoments, divergence, drawn
from voxelry.nn.norm import ChannelNorm, GroupNorm
from voxelry.ops.fold import unfold_voxels

__all__ = ["StructureCoder", "StructureDecoder", "StructureEncoder", "StructureSettings"]

EPS = 1e-5
GROUPS = 32
LOG_VARIANCE = (-20.0, 4.0)  # what an encoder may say of its own noise


@dataclass(frozen=True, kw_only=True)
class StructureSettings:
    """Occupancy to latents and back; encoder and decoder take the same.

    Attributes:
        ndim: 2 or 3.
        channels: of the occupancy.
        latent_channels: numbers of a latent.
        widths: channels of each level, the finest first; every level but the coarsest halves the grid.
        blocks: residual blocks of a level.
        middle_blocks: of the coarsest grid, besides.
        norm: "layer" or "group", before the last convolution; residual blocks have "layer".
    """

    ndim: int = 3
    channels: int = 1
    latent_channels: int = 8
    widths: Sequence[int] = (32, 128, 512)
    blocks: int = 2
    middle_blocks: int = 2
    norm: str = "layer"


class StructureEncoder(Configured, nn.Module):
    """Occupancy to the distribution of its latents, `(B, C, *S) -> (B, L, *(S / 2^(levels - 1)))`, twice.

    Raises:
        SettingError: an unknown normalisation or rank.
    """

    Settings: ClassVar[type[StructureSettings]] = StructureSettings

    def __init__(self, **settings: Any):
        super().__init__()
        own = settle(StructureSettings, settings)
        self._settings = own
        conv, widths = nd.conv(check_ndim(own.ndim)), list(own.widths)
        self.stem = conv(own.channels, widths[0], 3, padding=1)
        self.levels = nn.ModuleList()
        for width, coarser in zip(widths, [*widths[1:], None], strict=True):
            self.levels.extend(ResidualBlock(width, ndim=own.ndim) for _ in range(own.blocks))
            if coarser is not None:
                self.levels.append(Halving(width, coarser, ndim=own.ndim))
        self.middle = nn.ModuleList(ResidualBlock(widths[-1], ndim=own.ndim) for _ in range(own.middle_blocks))
        self.leave = make_head(own.norm, widths[-1], 2 * own.latent_channels, ndim=own.ndim)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and logarithm of the variance of the latents."""
        x = self.stem(x)
        for layer in (*self.levels, *self.middle):
            x = layer(x)
        mean, log_variance = self.leave(x).chunk(2, dim=1)
        return mean, log_variance

    def sample(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """One draw of the latents."""
        mean, log_variance = self(x)
        return drawn(mean, log_variance, generator)


class StructureDecoder(Configured, nn.Module):
    """Latents to logits of occupancy, `(B, L, *S) -> (B, C, *(S * 2^(levels - 1)))`; above 0 a cell is occupied.

    Raises:
        SettingError: an unknown normalisation or rank.
    """

    Settings: ClassVar[type[StructureSettings]] = StructureSettings

    def __init__(self, **settings: Any):
        super().__init__()
        own = settle(StructureSettings, settings)
        self._settings = own
        conv, widths = nd.conv(check_ndim(own.ndim)), list(own.widths)[::-1]
        self.stem = conv(own.latent_channels, widths[0], 3, padding=1)
        self.middle = nn.ModuleList(ResidualBlock(widths[0], ndim=own.ndim) for _ in range(own.middle_blocks))
        self.levels = nn.ModuleList()
        for width, finer in zip(widths, [*widths[1:], None], strict=True):
            self.levels.extend(ResidualBlock(width, ndim=own.ndim) for _ in range(own.blocks))
            if finer is not None:
                self.levels.append(Doubling(width, finer, ndim=own.ndim))
        self.leave = make_head(own.norm, widths[-1], own.channels, ndim=own.ndim)

    def forward(self, latents: Tensor) -> Tensor:
        """Decode."""
        x = self.stem(latents)
        for layer in (*self.middle, *self.levels):
            x = layer(x)
        logits: Tensor = self.leave(x)
        return logits


class StructureCoder(RunningMoments):
    """Encoder and decoder of one kind, and the moments of their latents.

    Args:
        settings: of both.
    """

    def __init__(self, settings: StructureSettings):
        super().__init__(settings.latent_channels)
        self.encoder = StructureEncoder(**vars(settings))
        self.decoder = StructureDecoder(**vars(settings))

    def forward(self, occupied: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of an occupancy that came through a draw from its latents, or the mean outside of training.

        Returns:
            Logits, and the latents' divergence; see `nn.moments.divergence`.
        """
        mean, log_variance = self.encode(occupied)
        latents = drawn(mean, log_variance) if self.training else mean
        return self.decoder(latents), divergence(mean, log_variance)

    def encode(self, occupied: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and logarithm of the variance of the latents of an occupancy, bool or numbers."""
        mean, log_variance = self.encoder(occupied.to(self.latent_mean.dtype))
        return mean.float(), log_variance.float().clamp(*LOG_VARIANCE)

    def shape(self, latents: Tensor) -> Tensor:
        """Logits of standardised latents."""
        logits: Tensor = self.decoder(self.restored(latents)).float()
        return logits


class ResidualBlock(nn.Module):
    """Two of (normalisation of a voxel's channels, SiLU, 3-wide convolution), added to the input, `(B, C, *S)`.

    The second convolution starts at zero, so that the block starts as the identity.
    """

    def __init__(self, channels: int, *, ndim: int):
        super().__init__()
        conv = nd.conv(ndim)
        self.norm1 = ChannelNorm(channels, eps=EPS)
        self.conv1 = conv(channels, channels, 3, padding=1)
        self.norm2 = ChannelNorm(channels, eps=EPS)
        self.conv2 = conv(channels, channels, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Transform."""
        y = self.conv1(F.silu(self.norm1(x)))
        y = self.conv2(F.silu(self.norm2(y)))
        return x + y


class Halving(nn.Module):
    """A convolution that takes blocks of two voxels per axis as one, `(B, C, *S) -> (B, C', *(S / 2))`."""

    def __init__(self, channels: int, coarser: int, *, ndim: int):
        super().__init__()
        self.conv = nd.conv(ndim)(channels, coarser, 2, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """Halve the grid."""
        halved: Tensor = self.conv(x)
        return halved


class Doubling(nn.Module):
    """A convolution that makes the voxels of a block from its channels, `(B, C, *S) -> (B, C', *(2 S))`."""

    def __init__(self, channels: int, finer: int, *, ndim: int):
        super().__init__()
        self.ndim = ndim
        self.conv = nd.conv(ndim)(channels, finer * 2**ndim, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Double the grid."""
        return unfold_voxels(self.conv(x), (2,) * self.ndim)


def make_head(norm: str, channels: int, out_channels: int, *, ndim: int) -> nn.Sequential:
    """Normalisation, SiLU, convolution.

    Raises:
        SettingError: an unknown normalisation.
    """
    if norm not in ("layer", "group"):
        raise SettingError(f"norm: expected layer or group, got {norm!r}")
    first = ChannelNorm(channels, eps=EPS) if norm == "layer" else GroupNorm(GROUPS, channels, eps=EPS)
    return nn.Sequential(first, nn.SiLU(), nd.conv(ndim)(channels, out_channels, 3, padding=1))
