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

from torch import Tensor

from voxelry.core.errors import SettingError
from voxelry.core.rank import check_ndim, per_axis
from voxelry.core.settings import own_fields, settle
from voxelry.models.unet import UNet
from voxelry.models.unet.settings import FoldedUNetSettings, UNetSettings
from voxelry.ops.fold import fold_voxels, unfold_voxels

__all__ = ["FoldedUNet"]


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
