"""Pointmaps for the second stage, which the original doesn't show them: an addition that starts at nothing."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from voxelry.models.sam3d.condition import PointEmbedder
from voxelry.models.shape.encoder import zeroed
from voxelry.nn.position import sine_positions
from voxelry.nn.sparse import Cells
from voxelry.nn.transformer import CrossAttention
from voxelry.ops.prompt import Prompt

__all__ = ["PointCondition"]

RANK = 3  # of shapes
HEADS = 4


class PointCondition(nn.Module):
    """What the slices' pointmaps say to each cell, `-> (N, channels)`; zeros until it was trained.

    A point outside of the organ's mask, the given or the predicted one, is unknown, as in the original's inputs.

    Args:
        channels: of the second stage's cells.
        image_size: pixels per axis of a pointmap.
        width: channels of a token.
    """

    def __init__(self, channels: int, *, image_size: int, width: int = 64):
        super().__init__()
        self.width = width
        self.embed = PointEmbedder(image_size=image_size, patch_size=image_size // 8, channels=width)
        self.attend = CrossAttention(width, width, HEADS)
        self.leave = zeroed_linear(width, channels)

    def forward(self, prompt: Prompt, mask_logits: Tensor) -> Tensor:
        """Tokens of the pointmaps, `(B, M, width)`.

        Args:
            prompt: `B` prompts of `S` slices.
            mask_logits: `(B, S, H, W)`, predicted masks.
        """
        inside = torch.where(prompt.has_mask[..., None, None], prompt.mask > 0.5, mask_logits.detach() > 0)
        inside = inside & prompt.slice_valid[..., None, None] & (prompt.validity > 0)
        points = torch.where(inside[:, :, None], prompt.pointmap, torch.nan).flatten(0, 1)
        tokens: Tensor = self.embed(points)
        return tokens.unflatten(0, inside.shape[:2]).flatten(1, 2)

    def cells(self, tokens: Tensor, cells: Cells) -> Tensor:
        """What is added to the features of cells, `(N, channels)`."""
        places = sine_positions(cells.coords[:, 1:], self.width)
        answer: Tensor = self.leave(self.attend.cells(places, tokens, cells.by_item, cells.coords[:, 0]))
        return answer


def zeroed_linear(in_channels: int, out_channels: int) -> nn.Linear:
    """A linear layer that answers zeros."""
    layer = nn.Linear(in_channels, out_channels)
    zeroed(layer)
    return layer
