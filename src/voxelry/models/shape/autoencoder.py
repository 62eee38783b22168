"""Signed distances of an organ in a few numbers: an autoencoder between the fine grid and a coarse one of latents.

A variational autoencoder (Kingma & Welling 2014, arXiv:1312.6114) of little noise, as latent diffusion has it
(Rombach et al. 2022, arXiv:2112.10752, section 3.1): its latents are smooth enough to be sampled, and standardised
for what samples them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from voxelry.core.errors import SettingError
from voxelry.models.shape.decoder import factors
from voxelry.models.shape.prior import truncate
from voxelry.nn import nd
from voxelry.nn.moments import RunningMoments, divergence, drawn
from voxelry.ops.fold import fold_voxels, unfold_voxels

__all__ = ["ShapeAutoencoder"]

RANK = 3  # of shapes
LOG_VARIANCE = (-20.0, 4.0)  # what an encoder may say of its own noise; beyond it the exponential is no help
FIRST_LOG_VARIANCE = -5.0  # at first latents are nearly exact: an encoder that is drowned in noise learns slowly
OUTSIDE = 1.0  # in truncations: most cells are far outside, which needn't be learned first


class ShapeAutoencoder(RunningMoments):
    """Truncated signed distances to latents and back, `(B, 1, n, n, n) <-> (B, C, m, m, m)`.

    On the way down blocks of cells become channels, on the way up channels become blocks of cells (Shi et al. 2016,
    arXiv:1609.05158, section 3.2), the prime factors of `n / m` one after the other, with residual units between.
    No convolution runs on the finest grid.

    Args:
        grid: cells per axis of the distances, n.
        latent_grid: cells per axis of the latents, m.
        channels: of a latent, C.
        width: channels of the finest level; twice as many on each coarser one, at most `widest`.
        widest: see `width`.
        truncation: distances are held within this, in edges of the frame.

    Raises:
        SettingError: latents that don't divide the grid, or numbers that aren't positive.
    """

    def __init__(
        self,
        *,
        grid: int,
        latent_grid: int = 8,
        channels: int = 4,
        width: int = 24,
        widest: int = 64,
        truncation: float = 0.2,
    ):
        super().__init__(channels)
        if latent_grid < 1 or grid % latent_grid or grid == latent_grid:
            raise SettingError(f"latent_grid: expected a proper divisor of the grid's {grid} cells, got {latent_grid}")
        for name, value in (("latent_channels", channels), ("width", width), ("truncation", truncation)):
            if not value > 0:
                raise SettingError(f"{name}: expected a positive number, got {value}")
        self.latent_shape, self.truncation = (channels, *(latent_grid,) * RANK), truncation
        steps = factors(grid // latent_grid)[::-1]  # the smallest first: the finest level is the costly one
        widths = [min(max(width, widest), width * 2**level) for level in range(len(steps))]
        conv = nd.conv(RANK)
        self.steps = [(step,) * RANK for step in steps]
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        for own, before, step in zip(widths, [1, *widths[:-1]], steps, strict=True):
            self.down.append(nn.Sequential(conv(before * step**RANK, own, 1), ResidualUnit(own)))
            finer = conv(own, before * step**RANK, 1)
            if not self.up:
                nn.init.constant_(finer.bias, OUTSIDE)
            self.up.insert(0, nn.Sequential(ResidualUnit(own), nn.SiLU(), finer))
        last = conv(widths[-1], 2 * channels, 3, padding=1)
        with torch.no_grad():
            last.bias[channels:] = FIRST_LOG_VARIANCE
        self.narrow = nn.Sequential(nn.SiLU(), last)
        self.widen = conv(channels, widths[-1], 3, padding=1)

    def encode(self, sdf: Tensor) -> tuple[Tensor, Tensor]:
        """The latents' distribution.

        Args:
            sdf: `(B, 1, n, n, n)` in edges of the frame.

        Returns:
            Its mean and the logarithm of its variance, `(B, C, m, m, m)` each, not standardised.
        """
        x = sdf.clamp(-self.truncation, self.truncation) / self.truncation
        for step, level in zip(self.steps, self.down, strict=True):
            x = level(fold_voxels(x, step))
        mean, log_variance = self.narrow(x).float().chunk(2, dim=1)
        return mean, log_variance.clamp(*LOG_VARIANCE)

    def decode(self, latents: Tensor) -> Tensor:
        """Distances of latents that aren't standardised, `(B, C, m, m, m) -> (B, 1, n, n, n)` in edges, truncated."""
        x = self.widen(latents)
        for step, level in zip(reversed(self.steps), self.up, strict=True):
            x = unfold_voxels(level(x), step)
        return truncate(x.float() * self.truncation, self.truncation)

    def forward(self, sdf: Tensor) -> tuple[Tensor, Tensor]:
        """Distances through a draw from their latents, or through the mean outside of training, and its divergence.

        Returns:
            Distances as `sdf`, and the latents' divergence.
        """
        mean, log_variance = self.encode(sdf)
        latents = drawn(mean, log_variance) if self.training else mean
        return self.decode(latents), divergence(mean, log_variance)


class ResidualUnit(nn.Module):
    """Two of (SiLU, 3-wide convolution), added to the input, `(B, C, *S)`.

    Nothing is normalised: distances are lengths, and a shape's size would be what a normalisation takes away.
    """

    def __init__(self, channels: int):
        super().__init__()
        conv = nd.conv(RANK)
        self.body = nn.Sequential(
            nn.SiLU(),
            conv(channels, channels, 3, padding=1),
            nn.SiLU(),
            conv(channels, channels, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Transform."""
        return x + self.body(x)
