"""The U-Net of diffusion pretraining as a backbone: what its decoder knows at each resolution."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from voxelry.backbones.base import Backbone, product
from voxelry.core.errors import SettingError
from voxelry.core.settings import own_fields, settle
from voxelry.models.unet.folded import FoldedUNet
from voxelry.models.unet.settings import FoldedUNetSettings, UNetBackboneSettings
from voxelry.ops.fold import fold_voxels

__all__ = ["UNetBackbone"]

_UNUSED: dict[str, Any] = {"out_channels": 1, "condition_channels": None, "self_condition": False, "pad": True}


class UNetBackbone(Backbone):
    """Levels "u0" (finest), "u1", ... of a `UNet` or `FoldedUNet` without its last layers, whose weights it takes.

    Baranchuk et al. 2022 (arXiv:2112.03126): the decoder of a denoising network holds what segmentation needs.

    Raises:
        SettingError: as `UNet`, or there is no such level.
    """

    Settings = UNetBackboneSettings

    name: ClassVar[str] = "unet"

    def __init__(self, **settings: Any):
        super().__init__()
        own = self._settings = replace(settle(UNetBackboneSettings, settings), **_UNUSED)
        self.ndim, self.in_channels, self.finest = own.ndim, own.in_channels, own.finest
        self.network = FoldedUNet(**own_fields(own, FoldedUNetSettings) | {"out_channels": own.in_channels})
        widths = [own.width * factor for factor in own.multipliers]
        if not 0 <= own.finest < len(widths):
            raise SettingError(f"finest: expected a level from 0 to {len(widths) - 1}, got {own.finest}")
        strides = [tuple(self.network.fold)]
        for step in self.network.strides:
            strides.append(product(strides[-1], step))
        names = [f"u{level}" for level in range(own.finest, len(widths))]
        self.out_channels = dict(zip(names, widths[own.finest :], strict=True))
        self.strides = dict(zip(names, strides[own.finest :], strict=True))
        self.network.final, self.network.head = nn.Identity(), nn.Identity()
        self.network.up = self.network.up[: len(names)]

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Run encoder and decoder, told no time: `(B, in_channels, *S) -> {level: (B, C, *ceil(S / stride))}`."""
        self.check(x)
        size = x.shape[2:]
        coarsest = list(self.strides.values())[-1]
        missing = [-length % step for length, step in zip(size, coarsest, strict=True)]
        if any(missing):
            x = F.pad(x, [side for gap in reversed(missing) for side in (0, gap)], mode="replicate")
        found = self.network.decoder(fold_voxels(x, self.network.fold), len(self.strides))
        levels: dict[str, Tensor] = {}
        for (name, stride), level in zip(self.strides.items(), reversed(found), strict=True):
            for axis, (length, step) in enumerate(zip(size, stride, strict=True), start=2):
                level = level.narrow(axis, 0, -(-length // step))
            levels[name] = level
        return levels
