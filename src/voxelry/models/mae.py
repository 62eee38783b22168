"""A masked autoencoder around Hiera: what is hidden is told from what is seen.

He et al. 2022 (arXiv:2111.06377) with the sparse encoder, the fusion of scales and the pixel targets of Ryali et al.
2023 (arXiv:2306.00989, section 4), in any rank: a token stands for a box of voxels, and all of them are predicted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from voxelry.backbones.hiera import Hiera, pad_to, resized
from voxelry.backbones.hiera_units import HieraBlock, from_units
from voxelry.core.errors import SettingError
from voxelry.nn import nd

__all__ = ["MaskedAutoencoder", "PatchTargets", "patchify", "unpatchify"]


class MaskedAutoencoder(nn.Module):
    """Hiera over the visible mask units, and a small transformer that predicts the hidden ones.

    Args:
        ndim: number of spatial axes.
        in_channels: of the image.
        out_channels: as many, or None; here so that a run can build any network alike.
        encoder: settings of the `Hiera`, or what its `describe()` gives; `ndim` and `in_channels` are this network's.
        decoder_dim, decoder_depth, decoder_heads: channels, blocks and heads of the decoder.

    Raises:
        SettingError: another encoder, or one whose mask units are no boxes.
    """

    def __init__(
        self,
        *,
        ndim: int,
        encoder: Mapping[str, Any],
        in_channels: int = 1,
        out_channels: int | None = None,
        decoder_dim: int = 512,
        decoder_depth: int = 8,
        decoder_heads: int = 16,
    ):
        super().__init__()
        if out_channels not in (None, in_channels):
            raise SettingError(f"out_channels: expected the image's {in_channels}, got {out_channels}")
        given = dict(encoder)
        if given.pop("name", "hiera") != "hiera":
            raise SettingError(f"encoder: expected hiera, got {encoder['name']!r}")
        given |= {"ndim": ndim, "in_channels": in_channels, "num_classes": None}
        self.encoder = Hiera(**given)
        if self.encoder.tile != self.encoder.mask_unit_size:
            raise SettingError("encoder.unit_order: mask units must be boxes of the image; set boxes")
        self.ndim, self.in_channels = ndim, in_channels
        self._settings = {
            "ndim": ndim,
            "in_channels": in_channels,
            "encoder": self.encoder.describe(),
            "decoder_dim": decoder_dim,
            "decoder_depth": decoder_depth,
            "decoder_heads": decoder_heads,
        }

        strides = list(self.encoder.strides.values())
        self.patch_size = strides[-1]
        units = [
            tuple(extent // step for extent, step in zip(self.encoder.unit_extent, stride, strict=True))
            for stride in strides
        ]
        widths, dim = list(self.encoder.out_channels.values()), self.encoder.dims[-1]
        self.multi_scale_fusion_heads = nn.ModuleList()
        for width, unit in zip(widths[:-1], units[:-1], strict=True):
            kernel = tuple(own // last for own, last in zip(unit, units[-1], strict=True))
            self.multi_scale_fusion_heads.append(nd.conv(ndim)(width, dim, kernel, kernel))
        self.encoder_norm = nn.LayerNorm(dim, eps=1e-6)

        self.decoder_embed = nn.Linear(dim, decoder_dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, decoder_dim))
        self.grid = self.tokens(self.encoder.input_size)
        self.decoder_pos_embed = nn.Parameter(torch.zeros(1, math.prod(self.grid), decoder_dim))
        self.decoder_blocks = nn.ModuleList(
            HieraBlock(decoder_dim, decoder_dim, decoder_heads) for _ in range(decoder_depth)
        )
        self.decoder_norm = nn.LayerNorm(decoder_dim, eps=1e-6)
        self.decoder_pred = nn.Linear(decoder_dim, in_channels * math.prod(self.patch_size))
        self._initialise()

    def settings(self) -> dict[str, Any]:
        """Plain keywords from which the constructor makes the same network again."""
        return dict(self._settings)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Predict every patch from the visible units, `(B, C, *S) -> (B, *tokens(S), C * patch voxels)`.

        Args:
            x: images; those of another size than a multiple of the mask unit are padded by their border.
            mask: `(B, units)` bool, True for the units that are seen, the same number of them in every sample.
        """
        return self.decode(self.encode(x, mask), mask.bool(), self.encoder.units(x.shape[2:]))

    def encode(self, x: Tensor, mask: Tensor) -> Tensor:
        """The visible units with all scales fused, `(B, visible, *unit, C)`, unit being that of the last stage."""
        maps = self.encoder.intermediates(x, mask)
        fused = maps[-1]
        for head, scale in zip(self.multi_scale_fusion_heads, maps, strict=False):
            joined = head(scale.flatten(0, 1).movedim(-1, 1)).movedim(1, -1)
            fused = fused + joined.unflatten(0, scale.shape[:2])
        return self.encoder_norm(fused)

    def decode(self, latent: Tensor, mask: Tensor, units: Sequence[int]) -> Tensor:
        """Predictions from `encode`'s answer, mask tokens in the place of what is hidden.

        Args:
            latent: `(B, visible, *unit, C)`.
            mask: `(B, units)` bool.
            units: mask units per axis.
        """
        seen = self.decoder_embed(latent)
        full = self.mask_token.to(seen.dtype).expand(mask.numel(), *seen.shape[2:-1], -1).clone()
        full[mask.flatten()] = seen.flatten(0, 1)
        grid = from_units(full.unflatten(0, mask.shape), units)
        tokens = (grid + resized(self.decoder_pos_embed, self.grid, grid.shape[1:-1])).flatten(1, -2)
        for block in self.decoder_blocks:
            tokens = block(tokens)
        return self.decoder_pred(self.decoder_norm(tokens)).unflatten(1, grid.shape[1:-1])

    def draw_mask(
        self, count: int, shape: Sequence[int], ratio: float, generator: torch.Generator | None = None
    ) -> Tensor:
        """Which mask units are seen, `(count, units)` bool on the CPU: as many in each, at least one, never all.

        Args:
            count: of samples.
            shape: spatial shape of the images.
            ratio: share of the units that is hidden.
            generator: on the CPU; torch's own when None.

        Raises:
            SettingError: an image of a single mask unit.
        """
        units = math.prod(self.encoder.units(shape))
        if units < 2:
            raise SettingError(
                f"mask_unit_size: an image of {tuple(shape)} is a single unit of {self.encoder.unit_extent} voxels; "
                "nothing would be left to see"
            )
        seen = min(max(int(units * (1 - ratio)), 1), units - 1)
        order = torch.rand(count, units, generator=generator).argsort(dim=1)
        return torch.zeros(count, units, dtype=torch.bool).scatter_(1, order[:, :seen], True)

    def hidden(self, mask: Tensor, shape: Sequence[int]) -> Tensor:
        """Which voxels a mask hides, `(B, units) -> (B, *shape)` bool."""
        hidden = self.hidden_patches(mask, self.tokens(shape))
        for axis, (step, size) in enumerate(zip(self.patch_size, shape, strict=True), start=1):
            hidden = hidden.repeat_interleave(step, dim=axis).narrow(axis, 0, size)
        return hidden

    def hidden_patches(self, mask: Tensor, grid: Sequence[int]) -> Tensor:
        """Which predicted patches a mask hides, `(B, units) -> (B, *grid)` bool."""
        units = [
            count * size // extent
            for count, size, extent in zip(grid, self.patch_size, self.encoder.unit_extent, strict=True)
        ]
        hidden = ~mask.bool().reshape(len(mask), *units)
        for axis, count in enumerate(grid, start=1):
            hidden = hidden.repeat_interleave(count // hidden.shape[axis], dim=axis)
        return hidden

    def tokens(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Patches per axis that are predicted for an image of that spatial shape."""
        grid = self.encoder.token_grid(shape)
        return tuple(
            count * step // size
            for count, step, size in zip(grid, self.encoder.patch_stride, self.patch_size, strict=True)
        )

    def targets(self, x: Tensor, *, normalise: bool = True) -> PatchTargets:
        """What the network should answer for images `(B, C, *S)`.

        Args:
            x: images.
            normalise: give each patch zero mean and unit variance (He et al. 2022, section 4.1).
        """
        whole = [count * size for count, size in zip(self.tokens(x.shape[2:]), self.patch_size, strict=True)]
        inside = pad_inside(x, whole)
        values, weights = patchify(pad_to(x, whole), self.patch_size), patchify(inside, self.patch_size)
        mean, deviation = values.new_zeros(()), values.new_ones(())
        if normalise:
            count = weights.sum(dim=-1, keepdim=True)
            mean = (values * weights).sum(dim=-1, keepdim=True) / count.clamp(min=1)
            variance = ((values - mean).square() * weights).sum(dim=-1, keepdim=True) / (count - 1).clamp(min=1)
            deviation = (variance + 1e-6).sqrt()
        return PatchTargets((values - mean) / deviation, weights, mean, deviation)

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.LayerNorm):
                nn.init.zeros_(module.bias)
        nn.init.xavier_uniform_(self.encoder.patch_embed.proj.weight.flatten(1))  # as the linear layer that it is
        nn.init.trunc_normal_(self.mask_token, std=0.02)
        nn.init.trunc_normal_(self.decoder_pos_embed, std=0.02)


@dataclass(frozen=True)
class PatchTargets:
    """Voxels as the network answers them.

    Attributes:
        values: `(B, *T, C * patch voxels)`, channels first within a patch.
        weights: the same shape, 1 where the voxel is inside the image, 0 where it is padding.
        mean, deviation: what was taken out of `values`, broadcastable to it.
    """

    values: Tensor
    weights: Tensor
    mean: Tensor
    deviation: Tensor

    def restore(self, prediction: Tensor) -> Tensor:
        """Predicted patches in the image's own values."""
        return prediction * self.deviation + self.mean


def patchify(x: Tensor, size: Sequence[int]) -> Tensor:
    """Cut images into boxes, `(B, C, *S) -> (B, *(S / size), C * prod(size))`."""
    ndim = len(size)
    split = [part for length, step in zip(x.shape[2:], size, strict=True) for part in (length // step, step)]
    boxes = x.reshape(*x.shape[:2], *split)
    grid, inner = range(2, 2 + 2 * ndim, 2), range(3, 3 + 2 * ndim, 2)
    return boxes.permute(0, *grid, 1, *inner).flatten(1 + ndim)


def unpatchify(patches: Tensor, channels: int, size: Sequence[int]) -> Tensor:
    """Put boxes together again, `(B, *T, C * prod(size)) -> (B, C, *(T * size))`."""
    ndim = len(size)
    boxes = patches.unflatten(-1, (channels, *size))
    order = [place for axis in range(ndim) for place in (1 + axis, 2 + ndim + axis)]
    shape = [count * step for count, step in zip(patches.shape[1:-1], size, strict=True)]
    return boxes.permute(0, 1 + ndim, *order).reshape(len(patches), channels, *shape)


def pad_inside(x: Tensor, shape: Sequence[int]) -> Tensor:
    """1 where a padded image is the image, 0 where it is padding, `(B, C, *S) -> (B, C, *shape)`."""
    inside = x.new_zeros(*x.shape[:2], *shape)
    inside[(slice(None), slice(None), *(slice(size) for size in x.shape[2:]))] = 1
    return inside
