"""The U-Net of diffusion pretraining as a backbone: what its decoder knows at each resolution."""

from __future__ import annotations

from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from voxelry.backbones.base import Backbone, product
from voxelry.core.errors import SettingError
from voxelry.core.settings import plain
from voxelry.models.unet.folded import FoldedUNet, fold_voxels

__all__ = ["UNetBackbone"]

_OWN = ("in_channels", "out_channels", "condition_channels", "self_condition", "pad")


class UNetBackbone(Backbone):
    """Levels "u0" (finest), "u1", ... of a `UNet` or `FoldedUNet` without its last layers, whose weights it takes.

    Baranchuk et al. 2022 (arXiv:2112.03126): the decoder of a denoising network holds what segmentation needs.

    Args:
        ndim: 2 or 3.
        in_channels: channels of the image.
        finest: number of the first level that is given out; the decoder ends there.
        fold: see `FoldedUNet`; 1 for a plain `UNet`.
        settings: of `UNet`; those of its input and output are not used.

    Raises:
        SettingError: as `UNet`, or there is no such level.
    """

    name: ClassVar[str] = "unet"

    def __init__(self, *, ndim: int, in_channels: int = 1, finest: int = 0, fold: Any = 1, **settings: Any):
        super().__init__()
        kept = {key: value for key, value in settings.items() if key not in _OWN}
        self.ndim, self.in_channels, self.finest = ndim, in_channels, finest
        self._settings = plain({"ndim": ndim, "in_channels": in_channels, "finest": finest, "fold": fold, **kept})
        self.network = FoldedUNet(ndim=ndim, in_channels=in_channels, out_channels=in_channels, fold=fold, **kept)
        widths = [int(self.network.settings()["width"]) * factor for factor in self.network.settings()["multipliers"]]
        if not 0 <= finest < len(widths):
            raise SettingError(f"finest: expected a level from 0 to {len(widths) - 1}, got {finest}")
        strides = [tuple(self.network.fold)]
        for step in self.network.strides:
            strides.append(product(strides[-1], step))
        names = [f"u{level}" for level in range(finest, len(widths))]
        self.out_channels = dict(zip(names, widths[finest:], strict=True))
        self.strides = dict(zip(names, strides[finest:], strict=True))
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
