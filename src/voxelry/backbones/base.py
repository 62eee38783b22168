"""What every backbone is: an image in, feature maps of several resolutions out.

The detector, and any other network on top, knows backbones by this interface only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from voxelry.core.errors import SettingError
from voxelry.core.settings import Configured
from voxelry.nn import nd

__all__ = ["Backbone", "every_second", "product"]


class Backbone(Configured, nn.Module):
    """Levels of features of an image, `(B, in_channels, *S) -> {level: (B, C, *ceil(S / stride))}`.

    Attributes:
        name: what `build_backbone` calls it.
        ndim: 2 or 3.
        in_channels: channels of the image.
        out_channels: level → channels; levels run from fine to coarse.
        strides: level → input voxels per voxel of the level, per axis in array order.
    """

    name: ClassVar[str] = ""
    ndim: int
    in_channels: int
    out_channels: dict[str, int]
    strides: dict[str, tuple[int, ...]]

    def describe(self) -> dict[str, Any]:
        """`settings()` and the name, from which `build_backbone` builds it again."""
        return {"name": self.name, **self.settings()}

    def check(self, x: Tensor) -> Tensor:
        """Return `x` if it is an image this backbone can take.

        Raises:
            SettingError: another rank or number of channels.
        """
        if x.ndim != self.ndim + 2 or x.shape[1] != self.in_channels:
            axes = ", ".join(("B", str(self.in_channels), *("D", "H", "W")[3 - self.ndim :]))
            raise SettingError(f"x: expected shape ({axes}), got {tuple(x.shape)}")
        return x


def product(strides: Sequence[int], others: Sequence[int]) -> tuple[int, ...]:
    """Strides of two steps in a row."""
    return tuple(a * b for a, b in zip(strides, others, strict=True))


def every_second(x: Tensor) -> Tensor:
    """Every second voxel along each axis, `(B, C, *S) -> (B, C, *ceil(S / 2))`: a maximum over windows of one."""
    return nd.arranged(x[(slice(None), slice(None), *[slice(None, None, 2)] * (x.ndim - 2))])
