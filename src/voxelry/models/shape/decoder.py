"""Features of slices to corrections of a signed distance in the frame: by tokens, or by lifting maps into space."""

from __future__ import annotations

import math
from collections.abc import Sequence
from math import gcd

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from voxelry.backbones.vit import EPS, TransformerBlock
from voxelry.core.errors import SettingError
from voxelry.models.shape.encoder import OCTAVES, Encoded, fourier, zeroed
from voxelry.models.unet.folded import FoldedUNet
from voxelry.nn import nd
from voxelry.nn.norm import GroupNorm
from voxelry.ops.fold import unfold_voxels
from voxelry.ops.prompt import Prompt, box_points, frame_points, project, sample_plane

__all__ = ["LiftDecoder", "TokenDecoder"]

LIFTED = 9  # numbers of a cell that come from the slice itself, besides features and image
PLACE = 7  # and of where it is in the cube (3) and in the field of view (3), and whether that is known
BEYOND = 1.5  # half sides from the field of view's middle, from where on it is all the same
BROADCAST = 8  # channels in which the context reaches every cell


class LiftDecoder(nn.Module):
    """A 3-D U-Net on what a slice says at the foot of each cell.

    Every cell of a cube is dropped onto every slice at a right angle and takes the features of that place along,
    beside how far and in which direction the plane is: where the slice lies is used, not learned. Slices are mixed
    with weights that fall with the distance. Points on a slice read the slice itself. A cell is also told where it is
    in the field of view.

    Args:
        grid: cells per axis of the cube.
        fold: cells per axis that the U-Net's finest level takes as one.
        in_channels: of the image.
        features: channels of the encoder's maps.
        context: channels of the context.
        width: channels of the U-Net's finest level.
        multipliers: channels of its levels as multiples of it.
        checkpointing: whether the backward pass computes the blocks again.
    """

    def __init__(
        self,
        *,
        grid: int,
        fold: int,
        in_channels: int,
        features: int,
        context: int,
        width: int,
        multipliers: Sequence[int],
        checkpointing: bool,
    ):
        super().__init__()
        self.grid = grid
        self.nearness = nn.Parameter(torch.tensor(math.log(16.0)))
        self.broadcast = nn.Linear(context, BROADCAST)
        self.volume = FoldedUNet(
            ndim=3,
            fold=fold,
            in_channels=features + in_channels + LIFTED + BROADCAST + PLACE + 1,
            out_channels=1,
            width=width,
            multipliers=tuple(multipliers),
            blocks_per_level=1,
            block="pre_norm",
            attention="none",
            middle_attention="none",
            groups=gcd(8, width),
            checkpointing="blocks" if checkpointing else "none",
        )
        zeroed(self.volume.head)

    def forward(self, prompt: Prompt, encoded: Encoded, prior: Tensor) -> Tensor:
        """Corrections of the prior.

        Args:
            prompt: the slices, in the coordinates of the cube.
            encoded: with `maps`.
            prior: `(B, 1, n, n, n)`, the shape to be corrected, on the cube's grid.

        Returns:
            `(B, 1, n, n, n)`.
        """
        assert encoded.maps is not None
        cells = frame_points(self.grid, prompt.plane)
        points = cells.flatten(0, 2)
        box, told = prompt.box()
        inside = box_points(box, points).clamp(-BEYOND, BEYOND)
        known = torch.cat(
            (
                self.lift(prompt, encoded.maps, points),
                self.broadcast(encoded.context)[..., None].expand(-1, -1, len(points)),
                points.mT.expand(len(box), -1, -1),
                inside * told[:, None, None],
                told.to(inside)[:, None, None].expand(-1, 1, len(points)),
                prior.flatten(2),
            ),
            dim=1,
        )
        answer: Tensor = self.volume(known.unflatten(-1, (self.grid,) * 3))
        return answer

    def lift(self, prompt: Prompt, maps: Tensor, points: Tensor) -> Tensor:
        """What the slices say of points, `(N, 3) -> (B, features + in_channels + 9, N)`."""
        size, count = prompt.image.shape[3:], prompt.image.shape[1]
        plane = prompt.plane.flatten(0, 1)
        index, away = project(points, plane)
        marks = torch.stack((prompt.click, prompt.mask * prompt.has_mask[..., None, None], prompt.validity), dim=2)
        # the validity's sample is also what tells places on the slice from places beyond its border
        seen = sample_plane(torch.cat((prompt.image, marks), dim=2).flatten(0, 1), index, size)
        read = sample_plane(maps, index, size)
        distance = away.square().sum(dim=-1).add(1e-12).sqrt()
        flag = prompt.has_mask.flatten().to(read)[:, None, None].expand(-1, 1, len(points))
        near = torch.exp(-distance / 0.05)
        each = torch.cat((read, seen, flag, away.mT, distance[:, None], near[:, None]), dim=1)
        each, distance = each.unflatten(0, (-1, count)), distance.unflatten(0, (-1, count))
        logits = (-self.nearness.exp() * distance).masked_fill(~prompt.slice_valid[..., None], -math.inf)
        return (each * logits.softmax(dim=1)[:, :, None]).sum(dim=1)


class CrossAttention(nn.Module):
    """Queries attend to the tokens of another sequence, `(B, N, dim), (B, M, dim) -> (B, N, dim)`."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        if dim % heads:
            raise SettingError(f"heads: {heads} heads can't share {dim} channels evenly")
        self.heads = heads
        self.q, self.kv, self.out = nn.Linear(dim, dim), nn.Linear(dim, 2 * dim), nn.Linear(dim, dim)
        for layer in (self.q, self.kv, self.out):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, tokens: Tensor, valid: Tensor) -> Tensor:
        """Attend to the tokens that are `valid`, `(B, M)` bool."""
        q = self.q(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k, v = self.kv(tokens).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=valid[:, None, None])
        return self.out(mixed.transpose(1, 2).flatten(2))


class CrossBlock(nn.Module):
    """Cross-attention to the prompt, then a transformer block among the latents, `(B, N, dim)`."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.norm, self.cross = nn.LayerNorm(dim, eps=EPS), CrossAttention(dim, heads)
        self.own = TransformerBlock(dim, heads, ndim=3)

    def forward(self, x: Tensor, tokens: Tensor, valid: Tensor) -> Tensor:
        """Transform the latents."""
        return self.own(x + self.cross(self.norm(x), tokens, valid))


class TokenDecoder(nn.Module):
    """Learned latents on a coarse grid that ask the prompt's tokens, then convolutions up to the fine grid.

    Every step up is a convolution that makes the voxels of a block from its channels (Shi et al. 2016,
    arXiv:1609.05158, section 3.2).

    Args:
        grid: cells per axis of the answer.
        tokens: latents per axis.
        dim, depth, heads: channels, blocks and attention heads.
        context: channels of the context.
        width: channels of the convolutions at the finest step; twice as many a step before, at most `dim`.
        checkpointing: whether the backward pass computes the blocks again.

    Raises:
        SettingError: latents that don't divide the grid.
    """

    def __init__(
        self,
        *,
        grid: int,
        tokens: int,
        dim: int,
        depth: int,
        heads: int,
        context: int,
        width: int,
        checkpointing: bool,
    ):
        super().__init__()
        if tokens < 1 or grid % tokens or grid == tokens:
            raise SettingError(f"tokens: expected a proper divisor of the grid's {grid} cells, got {tokens}")
        self.tokens, self.checkpointing = tokens, checkpointing
        self.latents = nn.Parameter(torch.empty(tokens**3, dim))
        nn.init.trunc_normal_(self.latents, std=0.02)
        self.place = nn.Linear(6 * OCTAVES + 3, dim)
        self.told = nn.Linear(context, dim)
        self.blocks = nn.ModuleList(CrossBlock(dim, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)
        self.steps = factors(grid // tokens)
        widths = [min(dim, width * 2**level) for level in reversed(range(len(self.steps)))]
        conv = nd.conv(3)
        self.narrow = conv(dim, widths[0], 1)
        self.ups = nn.ModuleList()
        for own, finer, step in zip(widths[:-1], widths[1:], self.steps[:-1], strict=True):
            norm = GroupNorm(gcd(8, own), own)
            self.ups.append(nn.Sequential(norm, nn.SiLU(), conv(own, finer * step**3, 3, padding=1)))
        self.finish = nn.Sequential(GroupNorm(gcd(8, widths[-1]), widths[-1]), nn.SiLU())
        self.head = conv(widths[-1], self.steps[-1] ** 3, 3, padding=1)
        zeroed(self.head)

    def forward(self, prompt: Prompt, encoded: Encoded, prior: Tensor) -> Tensor:
        """Corrections of the prior, `(B, 1, n, n, n)`; arguments as `LiftDecoder.forward`, `encoded` with `tokens`."""
        assert encoded.tokens is not None
        assert encoded.token_valid is not None
        places = frame_points(self.tokens, prompt.plane).flatten(0, 2)
        x = self.latents + self.place(fourier(places)) + self.told(encoded.context)[:, None]
        for block in self.blocks:
            args = (x, encoded.tokens, encoded.token_valid)
            again = self.checkpointing and torch.is_grad_enabled()
            x = checkpoint(block, *args, use_reentrant=False) if again else block(*args)
        x = self.narrow(self.norm(x).mT.unflatten(2, (self.tokens,) * 3))
        for up, step in zip(self.ups, self.steps[:-1], strict=True):
            x = unfold_voxels(up(x), (step,) * 3)
        return unfold_voxels(self.head(self.finish(x)), (self.steps[-1],) * 3)


def factors(number: int) -> list[int]:
    """Prime factors, the largest first: 12 → 3, 2, 2."""
    found, divisor = [], 2
    while number > 1:
        while number % divisor == 0:
            found.append(divisor)
            number //= divisor
        divisor += 1
    return found[::-1]
