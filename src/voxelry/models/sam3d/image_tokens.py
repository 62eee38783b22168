"""Tokens of slices by a frozen encoder of images, DINOv2, kept on disk."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from voxelry.core.errors import SettingError
from voxelry.models.sam3d.image_encoder import read_encoder
from voxelry.nn import nd
from voxelry.ops.prompt import Prompt

__all__ = ["ImageTokens"]

PATCH = 14  # pixels
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of the images that it was trained on


class ImageTokens(nn.Module):
    """Slices and their masks as tokens of a published encoder, brought to the flows' width, `-> (B, M, channels)`.

    The encoder is neither trained nor stored with a bundle: its folder or file is asked for again.

    Args:
        place: of the encoder, see `image_encoder.read_encoder`.
        width: channels of its tokens.
        channels: of the flows' tokens.
        image_size: pixels per axis that it sees, a multiple of 14.

    Raises:
        SettingError: an encoder of another width, or a size that isn't a multiple of its patches.
        FileError, CheckpointError: as `image_encoder.read_encoder`.
    """

    def __init__(self, place: str | Path, *, width: int, channels: int, image_size: int):
        super().__init__()
        if image_size % PATCH:
            raise SettingError(f"image_encoder_size: expected a multiple of {PATCH}, got {image_size}")
        self.image_size = image_size
        encoder = read_encoder(Path(place))
        if encoder.config.hidden_size != width:
            raise SettingError(
                f"image_encoder_width: {place} has tokens of {encoder.config.hidden_size} channels, expected {width}"
            )
        self._encoder = [encoder]  # in a list it is no part of the module: neither trained nor stored
        self.project = nn.Linear(width, channels)
        self.norm = nn.LayerNorm(channels)
        self.groups = nn.Parameter(0.02 * torch.randn(2, channels))

    def forward(self, prompt: Prompt) -> Tensor:
        """Embed the valid slices; of others the tokens are zeros."""
        seen = self._tokens(prompt.image[:, :, :1])
        masks = self._tokens((prompt.mask * prompt.has_mask[..., None, None])[:, :, None])
        tokens = torch.cat([self.project(each) + self.groups[place] for place, each in enumerate((seen, masks))], dim=2)
        return (self.norm(tokens) * prompt.slice_valid[..., None, None]).flatten(1, 2)

    @torch.no_grad()
    def _tokens(self, image: Tensor) -> Tensor:
        """`(B, S, 1, H, W) -> (B, S, tokens, width)`."""
        grey = F.interpolate(
            image.flatten(0, 1).float(), size=(self.image_size,) * 2, mode=nd.interpolation_mode(2), antialias=True
        )
        mean, std = (grey.new_tensor(each).view(3, 1, 1) for each in (MEAN, STD))
        encoder = self._encoder[0].to(grey.device)
        found: Tensor = encoder((grey.expand(-1, 3, -1, -1) - mean) / std).last_hidden_state
        return found.unflatten(0, image.shape[:2])
