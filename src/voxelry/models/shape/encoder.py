"""Slices to features: as tokens of patches, or as maps of pixels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from voxelry.backbones.vit import TransformerBlock
from voxelry.models.unet.backbone import UNetBackbone
from voxelry.nn import nd
from voxelry.nn.norm import GroupNorm
from voxelry.ops.fold import unfold_voxels
from voxelry.ops.prompt import Prompt

__all__ = ["Encoded", "PatchEncoder", "PlaneEncoder", "fourier", "mean_over"]

EXTRA = 7  # channels of `Prompt.channels` besides the image's
OCTAVES = 6
GAIN = 4.0  # logits are large and their layers start at zero: without it a short training is over before they grow
PLANE = 12  # numbers of `plane_geometry`


@dataclass
class Encoded:
    """What an encoder knows of a prompt.

    Attributes:
        context: `(B, E)`, all slices in one vector.
        mask_logits: `(B, S, H, W)`.
        tokens: `(B, N, dim)`, of the patches and planes of all slices; None from `PlaneEncoder`.
        token_valid: `(B, N)` bool; None with `tokens`.
        maps: `(B * S, F, h, w)`, features of pixels; None from `PatchEncoder`.
    """

    context: Tensor
    mask_logits: Tensor
    tokens: Tensor | None = None
    token_valid: Tensor | None = None
    maps: Tensor | None = None


class PatchEncoder(nn.Module):
    """A transformer on the patches of each slice, and a token for its plane.

    Slices don't see each other here; whatever reads the tokens joins them, so their number and order are free.

    Args:
        in_channels: of the image.
        patch: pixels of a patch per axis.
        dim, depth, heads: channels, blocks and attention heads.
        context: channels of the context.
        checkpointing: whether the backward pass computes the blocks again.
    """

    def __init__(
        self, *, in_channels: int, patch: int, dim: int, depth: int, heads: int, context: int, checkpointing: bool
    ):
        super().__init__()
        self.patch, self.checkpointing = patch, checkpointing
        self.patches = nd.conv(2)(in_channels + EXTRA, dim, patch, stride=patch)
        self.place = nn.Linear(6 * OCTAVES + 3, dim)
        self.plane = nn.Linear(PLANE, dim)
        self.blocks = nn.ModuleList(TransformerBlock(dim, heads, ndim=2) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)
        self.context = nn.Linear(dim, context)
        self.mask_head = nn.Linear(dim, patch * patch)
        zeroed(self.mask_head)

    def forward(self, prompt: Prompt) -> Encoded:
        """Encode."""
        size, count = prompt.image.shape[3:], prompt.image.shape[1]
        missing = [-length % self.patch for length in size]
        around = [side for gap in reversed(missing) for side in (0, gap)]
        grid = self.patches(F.pad(prompt.channels().flatten(0, 1), around))
        places = nd.average_pool(F.pad(prompt.pointmap.flatten(0, 1), around, mode="replicate"), (self.patch,) * 2)
        tokens = (grid + self.place(fourier(places.movedim(1, -1))).movedim(-1, 1)).flatten(2).mT
        plane = self.plane(plane_geometry(prompt.plane, size)).flatten(0, 1)[:, None]
        x = torch.cat((plane.to(tokens), tokens), dim=1)
        for block in self.blocks:
            again = self.checkpointing and torch.is_grad_enabled()
            x = checkpoint(block, x, use_reentrant=False) if again else block(x)
        x = self.norm(x)
        logits = self.mask_head(x[:, 1:]).mT.unflatten(2, grid.shape[2:])
        logits = GAIN * unfold_voxels(logits, (self.patch, self.patch))[:, 0, : size[0], : size[1]]
        x = x.unflatten(0, (-1, count))
        valid = prompt.slice_valid[:, :, None].expand(x.shape[:3])
        return Encoded(
            context=mean_over(self.context(x[:, :, 0]), prompt.slice_valid),
            mask_logits=logits.unflatten(0, (-1, count)),
            tokens=x.flatten(1, 2),
            token_valid=valid.flatten(1, 2),
        )


class PlaneEncoder(nn.Module):
    """A U-Net on each slice, whose features keep the slice's pixels.

    The context gathers the coarsest level where learned weights say, together with the place they point at.

    Args:
        in_channels: of the image.
        width: channels of the finest level.
        multipliers: channels of each level as multiples of it.
        fold: pixels per axis that the finest level takes as one.
        features: channels of the maps that it answers.
        context: channels of the context.
        checkpointing: whether the backward pass computes the blocks again.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        width: int,
        multipliers: Sequence[int],
        fold: int,
        features: int,
        context: int,
        checkpointing: bool,
    ):
        super().__init__()
        self.fold, self.features = fold, features
        self.backbone = UNetBackbone(
            ndim=2,
            in_channels=in_channels + EXTRA,
            fold=fold,
            width=width,
            multipliers=tuple(multipliers),
            blocks_per_level=1,
            block="pre_norm",
            attention="none",
            middle_attention="none",
            groups=math.gcd(8, width),
            checkpointing="blocks" if checkpointing else "none",
        )
        fine, *_, coarse = (self.backbone.out_channels[name] for name in self.backbone.strides)
        # what a network of pre-norm blocks carries has no scale of its own
        self.norms = nn.ModuleList(nn.Sequential(GroupNorm(math.gcd(8, own), own), nn.SiLU()) for own in (fine, coarse))
        self.weigh = nd.conv(2)(coarse, 1, 1)
        self.context = nn.Sequential(
            nn.Linear(2 * coarse + 3 + PLANE, context), nn.SiLU(), nn.Linear(context, context), nn.SiLU()
        )
        self.maps = nd.conv(2)(fine, features, 1)
        self.mask_head = nd.conv(2)(fine, fold * fold, 1)
        zeroed(self.mask_head)

    def forward(self, prompt: Prompt) -> Encoded:
        """Encode."""
        size, count = prompt.image.shape[3:], prompt.image.shape[1]
        levels = list(self.backbone(prompt.channels().flatten(0, 1)).values())
        fine, coarse = (norm(level) for norm, level in zip(self.norms, (levels[0], levels[-1]), strict=True))
        logits = GAIN * unfold_voxels(self.mask_head(fine), (self.fold, self.fold))[:, 0, : size[0], : size[1]]
        places = F.interpolate(prompt.pointmap.flatten(0, 1), size=coarse.shape[2:], mode="area")
        weights = self.weigh(coarse).flatten(2).softmax(dim=-1)
        pointed = (torch.cat((coarse, places), dim=1).flatten(2) * weights).sum(dim=-1)
        known = torch.cat(
            (pointed, coarse.amax(dim=(2, 3)), plane_geometry(prompt.plane, size).flatten(0, 1)), dim=-1
        ).unflatten(0, (-1, count))
        return Encoded(
            context=mean_over(self.context(known), prompt.slice_valid),
            mask_logits=logits.unflatten(0, (-1, count)),
            maps=self.maps(fine),
        )


def plane_geometry(plane: Tensor, size: Sequence[int]) -> Tensor:
    """A plane in numbers that don't depend on how its pixels are stored, `(..., 3, 3) -> (..., 12)`.

    The products of its normal with itself (6), the point of it nearest to the frame's middle (3), the middle of the
    slice (3).
    """
    down, right, origin = plane.unbind(-1)
    normal = F.normalize(torch.linalg.cross(down, right), dim=-1)
    upper = torch.triu_indices(3, 3, device=plane.device)
    products = (normal[..., :, None] * normal[..., None, :])[..., upper[0], upper[1]]
    nearest = normal * (normal * origin).sum(dim=-1, keepdim=True)
    middle = origin + down * (size[0] - 1) / 2 + right * (size[1] - 1) / 2
    return torch.cat((products, nearest, middle), dim=-1)


def fourier(points: Tensor) -> Tensor:
    """Coordinates and their sines and cosines at `OCTAVES` octaves, `(..., 3) -> (..., 6 * OCTAVES + 3)`.

    Mildenhall et al. 2020 (arXiv:2003.08934, eq. 4); the longest wave is twice the frame's edge.
    """
    waves = 2.0 ** torch.arange(OCTAVES, device=points.device, dtype=points.dtype) * math.pi
    angles = (points[..., None] * waves).flatten(-2)
    return torch.cat((points, angles.sin(), angles.cos()), dim=-1)


def mean_over(vectors: Tensor, valid: Tensor) -> Tensor:
    """Mean of the valid slices, `(B, S, E) -> (B, E)`."""
    weights = valid[..., None].to(vectors)
    return (vectors * weights).sum(dim=1) / weights.sum(dim=1)


def zeroed(layer: nn.Module) -> None:
    """Start a last layer at zero, so that the network starts by answering nothing of its own."""
    for parameter in layer.parameters(recurse=False):
        nn.init.zeros_(parameter)
