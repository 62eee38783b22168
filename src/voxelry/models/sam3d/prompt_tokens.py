"""What leads the flows where no published encoder does: what our own prompt encoder knows, as tokens."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from voxelry.models.shape.encoder import OCTAVES, PLANE, Encoded, fourier, plane_geometry
from voxelry.models.shape.shape_net import ShapeNet
from voxelry.nn.position import sine_positions
from voxelry.ops.prompt import Prompt

__all__ = ["PromptTokens"]

RANK = 3  # of shapes
PATCHES = 8  # per axis of a slice, where the encoder answers maps


class PromptTokens(nn.Module):
    """A prompt as tokens of the flows' condition, `-> (B, M, channels)`.

    A token for each plane, for each patch of each slice with its place in the frame, and for each latent of the answer
    that the encoder gives by itself, at the latent's position. All are learned; slices that only fill the batch up are
    zeros.

    Args:
        network: whose encoder it is.
        latent_channels: of the answer's latents.
        channels: of a token.
    """

    def __init__(self, network: ShapeNet, latent_channels: int, channels: int):
        super().__init__()
        settings = network.settings()
        self.channels = channels
        encoder: Any = network.encoder
        self.of_maps = settings["decoder"] == "conv"
        features = encoder.features + network.in_channels + 3 if self.of_maps else settings["dim"]
        self.patches = nn.Linear(features, channels)
        self.places = nn.Linear(6 * OCTAVES + RANK, channels)
        self.plane = nn.Linear(PLANE + settings["context"], channels)
        self.answer = nn.Linear(latent_channels, channels)
        self.norm = nn.LayerNorm(channels)

    def forward(self, prompt: Prompt, encoded: Encoded, estimate: Tensor) -> Tensor:
        """Embed.

        Args:
            prompt: `B` prompts.
            encoded: what the encoder knows of them.
            estimate: `(B, C, g, g, g)`, standardised latents of the answer.
        """
        planes = plane_geometry(prompt.plane, prompt.image.shape[3:])
        context = encoded.context[:, None].expand(-1, planes.shape[1], -1)
        valid = prompt.slice_valid[..., None].to(planes)
        plane = self.plane(torch.cat((planes, context), dim=-1)) * valid
        grid = torch.stack(torch.meshgrid(*[torch.arange(size) for size in estimate.shape[2:]], indexing="ij"), dim=-1)
        answer = self.answer(estimate.flatten(2).mT) + sine_positions(
            grid.flatten(0, -2).to(estimate.device), self.channels
        )
        return self.norm(torch.cat((plane, self._patches(prompt, encoded), answer), dim=1))

    def _patches(self, prompt: Prompt, encoded: Encoded) -> Tensor:
        if not self.of_maps:
            assert encoded.tokens is not None
            assert encoded.token_valid is not None
            return self.patches(encoded.tokens) * encoded.token_valid[..., None]
        assert encoded.maps is not None
        marks = torch.stack((prompt.click, prompt.mask, prompt.validity), dim=2)
        each = torch.cat((prompt.image, marks), dim=2).flatten(0, 1)
        size = (PATCHES, PATCHES)
        seen, maps, places = (
            nn.functional.interpolate(one, size=size, mode="area").flatten(2).mT
            for one in (each, encoded.maps, prompt.pointmap.flatten(0, 1))
        )
        tokens = self.patches(torch.cat((maps, seen), dim=-1)) + self.places(fourier(places))
        tokens = tokens.unflatten(0, prompt.slice_valid.shape) * prompt.slice_valid[..., None, None]
        return tokens.flatten(1, 2)
