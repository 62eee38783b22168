"""A U-Net on wavelet bands: half the resolution inside, nothing lost at the ends.

Phung et al. 2023 (arXiv:2211.16152) and Friedrich et al. 2024 (arXiv:2402.19043) let the network see Haar bands in
place of voxels; in 3-D that is an eighth of the memory and of the products. The transform is orthonormal, so noise
stays noise of the same variance in every band, and an error weighs the same as in the image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from voxelry.core.errors import SettingError
from voxelry.core.rank import check_ndim
from voxelry.core.settings import settle
from voxelry.models.unet.folded import FoldedUNet
from voxelry.models.unet.settings import HaarUNetSettings
from voxelry.ops.wavelet import check_axes, haar, inverse_haar

__all__ = ["HaarUNet"]


class HaarUNet(FoldedUNet):
    """A `UNet` between a Haar transform and its inverse, `(B, in_channels, *S) -> (B, out_channels, *S)`, any size.

    Of its settings `features`, `head` and `stride` are those of the bands.

    Raises:
        SettingError: as `UNet`, or axes and levels that can't be.
    """

    Settings = HaarUNetSettings

    def __init__(self, **settings: Any):
        own = settle(HaarUNetSettings, settings)
        if own.levels < 1:
            raise SettingError(f"levels: expected at least 1, got {own.levels}")
        chosen = check_axes(own.axes, check_ndim(own.ndim))
        self._build(own, tuple(2**own.levels if axis in chosen else 1 for axis in range(own.ndim)))
        self._settings = replace(own, axes=list(chosen))
        self.axes, self.levels = chosen, own.levels

    def fold_in(self, x: Tensor) -> Tensor:
        """Voxels to bands, `(B, C, *S) -> (B, C * prod(fold), *ceil(S / fold))`."""
        for _ in range(self.levels):
            x = haar(x, self.axes)
        return x

    def fold_out(self, x: Tensor, size: Sequence[int]) -> Tensor:
        """Bands to voxels, `(B, C * prod(fold), *ceil(size / fold)) -> (B, C, *size)`."""
        sizes = [size]
        for _ in range(1, self.levels):
            sizes.append([-(-length // 2) if axis in self.axes else length for axis, length in enumerate(sizes[-1])])
        for shape in reversed(sizes):
            x = inverse_haar(x, shape, self.axes)
        return x
