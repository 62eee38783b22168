"""Structured latents of shapes: an encoder of distances near the surface, and the mesh decoder.

The original's latents are made from renders of an object's looks (Xiang et al. 2024, arXiv:2412.01506, section 3.1). An
organ has no look, but true distances: each cell near the surface is told those of its own finer cells, and convolutions
among the cells mix them. Latents of a published decoder and these are not the same; its decoder goes on with these once
it was trained on them.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from voxelry.core.errors import SettingError
from voxelry.models.sam3d.mesh_decoder import MeshDecoder, MeshDecoderSettings
from voxelry.models.sam3d.structure import Structure
from voxelry.models.sam3d.surface import DecodedSurface, decode_surface
from voxelry.nn.moments import RunningMoments
from voxelry.nn.sparse import SparseTensor, SubmanifoldConv
from voxelry.ops.fold import fold_voxels

__all__ = ["LatentEncoder", "SurfaceCoder", "frame_mesh"]

RANK = 3  # of shapes
LOG_VARIANCE = (-20.0, 4.0)  # what an encoder may say of its own noise
FIRST_LOG_VARIANCE = -5.0  # at first latents are nearly exact: a decoder that is drowned in noise learns slowly


class LatentEncoder(nn.Module):
    """Distances within each cell to the distribution of its latents, `(N, k³) -> (N, C)`, twice.

    Args:
        inputs: distances of a cell, in its own edges.
        channels: of a latent, C.
        width: features in between.
        depth: residual units.
    """

    def __init__(self, inputs: int, channels: int, *, width: int = 64, depth: int = 2):
        super().__init__()
        self.enter = nn.Linear(inputs, width)
        self.units = nn.ModuleList(SparseUnit(width) for _ in range(depth))
        self.leave = nn.Linear(width, 2 * channels)
        with torch.no_grad():
            self.leave.bias[channels:] = FIRST_LOG_VARIANCE

    def forward(self, x: SparseTensor) -> tuple[Tensor, Tensor]:
        """Mean and logarithm of the variance."""
        h = self.enter(x.features)
        for unit in self.units:
            h = unit(x.with_features(h))
        mean, log_variance = self.leave(F.silu(h)).float().chunk(2, dim=1)
        return mean, log_variance.clamp(*LOG_VARIANCE)


class SparseUnit(nn.Module):
    """Two of (SiLU, sparse convolution), added to the input; nothing is normalised, as distances are lengths."""

    def __init__(self, width: int):
        super().__init__()
        self.first = SubmanifoldConv(width, width, ndim=RANK)
        self.second = SubmanifoldConv(width, width, ndim=RANK, zero=True)

    def forward(self, x: SparseTensor) -> Tensor:
        """Transform, `(N, C)`."""
        h = self.first(x.with_features(F.silu(x.features)))
        return x.features + self.second(h.with_features(F.silu(h.features))).features


class SurfaceCoder(RunningMoments):
    """Encoder and decoder of structured latents, and their moments.

    Args:
        settings: of the decoder.
        width: of the encoder.
        fold: cells of the distances' grid per cell of the structure, along an axis.
    """

    def __init__(self, settings: MeshDecoderSettings, *, width: int, fold: int):
        super().__init__(settings.latent_channels)
        self.grid, self.fold = settings.grid, fold
        self.encoder = LatentEncoder(fold**RANK, settings.latent_channels, width=width)
        self.decoder = MeshDecoder(**vars(settings))

    def encode(self, distances: Tensor, structure: Structure) -> tuple[Tensor, Tensor]:
        """Mean and logarithm of the variance of the latents at a structure's cells.

        Args:
            distances: `(B, 1, n, n, n)`, signed, in edges of the frame.
            structure: of these shapes.

        Raises:
            SettingError: another grid than the structure's times the fold.
        """
        if distances.shape[-1] != self.grid * self.fold:
            raise SettingError(f"grid: expected distances on {self.grid * self.fold} cells, got {distances.shape[-1]}")
        folded = fold_voxels(distances * self.grid, (self.fold,) * RANK).movedim(1, -1)
        own = folded[structure.cells.coords.unbind(1)].clamp(-2, 2)
        found: tuple[Tensor, Tensor] = self.encoder(SparseTensor(own, structure.cells))
        return found

    def decode(self, latents: Tensor, structure: Structure) -> list[DecodedSurface]:
        """The surface of each item.

        Args:
            latents: `(N, C)`, not standardised.
            structure: where they are.
        """
        fine: SparseTensor = self.decoder(SparseTensor(latents, structure.cells))
        item, grid = fine.cells.coords[:, 0], self.decoder.surface_grid
        nowhere = torch.zeros(1, 1, 1, dtype=torch.bool, device=item.device)
        return [
            decode_surface(
                fine.cells.coords[item == number, 1:],
                fine.features[item == number].float(),
                grid,
                training=torch.is_grad_enabled(),
                inside=nowhere if structure.inside is None else structure.inside[number],
            )
            for number in range(structure.cells.items)
        ]


def frame_mesh(surface: DecodedSurface, structure: Structure, item: int) -> tuple[Tensor, Tensor]:
    """Vertices in frame coordinates x, y, z, `(V, 3)`, and faces `(T, 3)`, counter-clockwise seen from outside.

    Args:
        surface: of that item, axes z, y, x.
        structure: that it was decoded from.
        item: of the batch.
    """
    cells = (surface.vertices + 0.5) * structure.grid - 0.5  # cells have their middles at whole numbers
    places = (structure.scale[item] * cells + structure.shift[item] + 0.5) / structure.grid - 0.5
    return places.flip(-1), surface.faces.flip(-1)
