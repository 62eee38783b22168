"""Any backbone as a dense network: a light decoder from its levels up to the image's own resolution."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from voxelry.backbones.base import Backbone
from voxelry.backbones.build import build_backbone
from voxelry.core.errors import SettingError
from voxelry.nn import nd
from voxelry.nn.norm import make_norm

__all__ = ["BackboneHeatmaps", "enlarge"]


class BackboneHeatmaps(nn.Module):
    """A backbone and a top-down decoder, `(B, in_channels, *S) -> (B, out_channels, *S)`, any size.

    Each level, finer to coarser, is mixed to `width` channels; from the coarsest on, what is known is enlarged
    (linear) to the next finer level, added and convolved. The last such level is the image itself.

    Args:
        backbone: a `Backbone`, or its description for `build_backbone`.
        out_channels: maps to draw, such as one per landmark.
        width: channels of the decoder.
        ndim, in_channels: of the image; what a description may leave open.

    Raises:
        SettingError: `ndim` or `in_channels` are not the backbone's.
    """

    def __init__(
        self,
        backbone: Backbone | Mapping[str, Any],
        *,
        out_channels: int = 1,
        width: int = 32,
        ndim: int | None = None,
        in_channels: int | None = None,
    ):
        super().__init__()
        if isinstance(backbone, Mapping):
            backbone = build_backbone(backbone, ndim=ndim, in_channels=in_channels)
        for name, wanted in (("ndim", ndim), ("in_channels", in_channels)):
            if wanted not in (None, getattr(backbone, name)):
                raise SettingError(f"{name}: the backbone has {getattr(backbone, name)}, got {wanted}")
        self.backbone = backbone
        self.ndim, self.in_channels = backbone.ndim, backbone.in_channels
        self.out_channels, self.width = out_channels, width
        self.lateral = nn.ModuleList(nd.conv(self.ndim)(c, width, 1) for c in backbone.out_channels.values())
        self.refine = nn.ModuleList(self._layer(width) for _ in backbone.out_channels)
        self.detail = self._layer(self.in_channels)
        self.head = nd.conv(self.ndim)(width, out_channels, 1)

    def _layer(self, in_channels: int) -> nn.Sequential:
        conv = nd.conv(self.ndim)(in_channels, self.width, 3, padding=1)
        return nn.Sequential(conv, make_norm("group", self.width, ndim=self.ndim, groups=8), nn.SiLU())

    def settings(self) -> dict[str, Any]:
        """Plain values from which `BackboneHeatmaps(**settings)` builds this network again."""
        return {
            "backbone": self.backbone.describe(),
            "out_channels": self.out_channels,
            "width": self.width,
            "ndim": self.ndim,
            "in_channels": self.in_channels,
        }

    def forward(self, x: Tensor) -> Tensor:
        """Run the network.

        Args:
            x: `(B, in_channels, *S)`.

        Returns:
            `(B, out_channels, *S)`.
        """
        return self.head(self.features(x))

    def features(self, x: Tensor) -> Tensor:
        """Decoder features, the input of `head`: `(B, width, *S)`."""
        levels = self.backbone(x)
        steps = list(self.backbone.strides.values())
        known: Tensor | None = None
        for index, (name, level) in reversed(list(enumerate(levels.items()))):
            y = self.lateral[index](level)
            if known is not None:
                ratio = [a // b for a, b in zip(steps[index + 1], self.backbone.strides[name], strict=True)]
                y = y + enlarge(known, ratio, y.shape[2:])
            known = self.refine[index](y)
        detail = self.detail(x)
        return detail if known is None else detail + enlarge(known, steps[0], x.shape[2:])


def enlarge(x: Tensor, ratio: Sequence[int], size: Sequence[int]) -> Tensor:
    """Linear interpolation by exactly `ratio`, then cut to `size`: nothing drifts where sizes are no multiples."""
    if max(ratio) > 1:
        factors = tuple(float(step) for step in ratio)
        x = F.interpolate(x, scale_factor=factors, mode=nd.interpolation_mode(len(ratio)), align_corners=False)
    missing = [max(0, length - have) for length, have in zip(size, x.shape[2:], strict=True)]
    if any(missing):
        x = F.pad(x, [side for gap in reversed(missing) for side in (0, gap)], mode="replicate")
    for axis, length in enumerate(size, start=2):
        x = x if x.shape[axis] == length else x.narrow(axis, 0, length)
    return x
