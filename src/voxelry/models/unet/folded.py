"""A U-Net that works on blocks of voxels: eight times cheaper in 3-D, at the same input and output size.

Most of a U-Net's time goes into the finest level. Here every block of `fold` voxels becomes one voxel with
as many more channels (pixel unshuffle, Shi et al. 2016, arXiv:1609.05158, section 3.2, in any rank), and
the answer is laid out to voxels again, so that heatmaps keep the full resolution. Where a CPU or a short
training is all there is, the steps saved are worth more than the finest level.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor

from voxelry.core.errors import SettingError
from voxelry.core.rank import check_ndim, per_axis
from voxelry.core.settings import own_fields, settle
from voxelry.models.unet import UNet
from voxelry.models.unet.settings import FoldedUNetSettings, UNetSettings

__all__ = ["FoldedUNet", "fold_voxels", "unfold_voxels"]


class FoldedUNet(UNet):
    """A `UNet` between folding and unfolding, `(B, in_channels, *S) -> (B, out_channels, *S)`, any size.

    Of its settings `features`, `head` and `stride` are those of the folded grid.

    Raises:
        SettingError: as `UNet`, or `fold` is not positive.
    """

    Settings: ClassVar[type[UNetSettings]] = FoldedUNetSettings

    def __init__(self, **settings: Any):
        own = settle(FoldedUNetSettings, settings)
        self._build(own, per_axis(own.fold, check_ndim(own.ndim), "fold"))
        self._settings = replace(own, fold=list(self.fold))

    def _build(self, own: UNetSettings, fold: tuple[int, ...]) -> None:
        """The network of the folded grid."""
        if min(fold) < 1:
            raise SettingError(f"fold: expected at least 1 voxel, got {fold}")
        voxels = prod(fold)
        channels = {
            "in_channels": own.in_channels * voxels,
            "out_channels": own.out_channels * voxels,
            "condition_channels": None if own.condition_channels is None else own.condition_channels * voxels,
        }
        UNet.__init__(self, **own_fields(own, UNetSettings) | channels)
        self.fold = fold

    def forward(self, x: Tensor, time: Tensor | None = None, condition: Tensor | None = None) -> Tensor:
        """Run the network; arguments as `UNet.forward`, sizes as seen from outside."""
        estimate = None if condition is None else self.fold_in(condition)
        return self.fold_out(super().forward(self.fold_in(x), time, estimate), x.shape[2:])

    def fold_in(self, x: Tensor) -> Tensor:
        """What the network works on, `(B, C, *S) -> (B, C * prod(fold), *ceil(S / fold))`."""
        return fold_voxels(x, self.fold)

    def fold_out(self, x: Tensor, size: Sequence[int]) -> Tensor:
        """The inverse of `fold_in`, `(B, C * prod(fold), *ceil(size / fold)) -> (B, C, *size)`."""
        answer = unfold_voxels(x, self.fold)
        for axis, length in enumerate(size, start=2):
            answer = answer.narrow(axis, 0, length)
        return answer


def fold_voxels(x: Tensor, fold: Sequence[int]) -> Tensor:
    """Blocks to channels, `(B, C, *S) -> (B, C * prod(fold), *ceil(S / fold))`; borders are repeated to fill up."""
    missing = [-size % step for size, step in zip(x.shape[2:], fold, strict=True)]
    if any(missing):
        x = F.pad(x, [side for gap in reversed(missing) for side in (0, gap)], mode="replicate")
    ndim, x = len(fold), x.movedim(1, -1)  # channels-last, in which the one copy there is then comes and goes
    for axis, step in enumerate(fold):
        x = x.unflatten(1 + 2 * axis, (-1, step))
    outer, inner = range(1, 1 + 2 * ndim, 2), range(2, 2 + 2 * ndim, 2)
    return x.permute(0, *outer, 1 + 2 * ndim, *inner).flatten(1 + ndim).movedim(-1, 1)


def unfold_voxels(x: Tensor, fold: Sequence[int]) -> Tensor:
    """Channels to blocks, the inverse of `fold_voxels`: `(B, C * prod(fold), *S) -> (B, C, *(S * fold))`."""
    ndim, size = len(fold), [length * step for length, step in zip(x.shape[2:], fold, strict=True)]
    x = x.movedim(1, -1).unflatten(-1, (-1, *fold))
    pairs = [axis for pair in zip(range(1, 1 + ndim), range(2 + ndim, 2 + 2 * ndim), strict=True) for axis in pair]
    return x.permute(0, *pairs, 1 + ndim).reshape(len(x), *size, -1).movedim(-1, 1)
