"""Simple feature pyramid on a plain vision transformer (Li et al. 2022, arXiv:2203.16527), in any rank."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import prod
from typing import Any, ClassVar

from torch import Tensor, nn

from voxelry.backbones.base import Backbone, every_second
from voxelry.backbones.vit import EPS, ViT, ViTSettings, level_name, whole_windows
from voxelry.core.choice import check_choice
from voxelry.core.errors import SettingError
from voxelry.core.rank import per_axis
from voxelry.core.settings import own_fields, settle
from voxelry.nn import nd
from voxelry.nn.norm import ChannelNorm

__all__ = ["PyramidLevel", "ViTDet"]


@dataclass(frozen=True, kw_only=True)
class ViTDetSettings(ViTSettings):
    """A plain vision transformer and the pyramid on it.

    Those of `ViTSettings`, of which `partial` also decides about windows of a maximum that hang over the end.

    Attributes:
        scale_factors: size of each level relative to the grid of patches, a power of two, each one number or one
            per axis. A level is named by its largest stride, "p2" for 4.
        out_channels: channels of every level.
        norm: whether layer normalisation follows the last two convolutions of a level, which have no bias then.
        extra: "maxpool" adds a level, every second voxel of the coarsest; None adds nothing.
    """

    scale_factors: Sequence[float | Sequence[float]] = (4.0, 2.0, 1.0, 0.5)
    out_channels: int = 256
    norm: bool = True
    extra: str | None = None


class ViTDet(Backbone):
    """A `ViT` and levels made from its last features alone (section 3, figure 2c).

    Raises:
        SettingError: numbers that do not fit together, or an unknown name.
    """

    Settings = ViTDetSettings

    name: ClassVar[str] = "vitdet"

    def __init__(self, **settings: Any):
        super().__init__()
        own = self._settings = settle(ViTDetSettings, settings)
        self.vit = ViT(**own_fields(own, ViTSettings))
        self.ndim, self.in_channels, self.extra = self.vit.ndim, own.in_channels, own.extra
        check_choice("extra", own.extra, ("maxpool", None))
        self.strides = {}
        self.pyramid = nn.ModuleDict()
        scales = [
            tuple(Fraction(one) for one in per_axis(scale, own.ndim, "scale_factors")) for scale in own.scale_factors
        ]
        for scale in sorted(scales, reverse=True):
            stride = self._stride(scale)
            level = level_name(stride)
            if level in self.strides:
                raise SettingError(f"scale_factors: two levels are called {level}, of strides "
                                   f"{self.strides[level]} and {stride}")  # fmt: skip
            self.strides[level] = stride
            self.pyramid[level] = PyramidLevel(own.dim, own.out_channels, scale, norm=own.norm, partial=own.partial)
        if own.extra is not None:
            coarsest = list(self.strides.values())[-1]
            self.strides[level_name([2 * step for step in coarsest])] = tuple(2 * step for step in coarsest)
        self.out_channels = dict.fromkeys(self.strides, own.out_channels)

    def _stride(self, scale: Sequence[Fraction]) -> tuple[int, ...]:
        strides = [side / one if one > 0 else Fraction(0) for side, one in zip(self.vit.patch_size, scale, strict=True)]
        for one, stride in zip(scale, strides, strict=True):
            if stride < 1 or stride.denominator != 1 or prod(one.as_integer_ratio()).bit_count() != 1:
                raise SettingError(
                    f"scale_factors: expected powers of two up to the patch size {self.vit.patch_size}, "
                    f"got {tuple(float(one) for one in scale)}"
                )
        return tuple(int(stride) for stride in strides)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Run the network.

        Args:
            x: `(B, in_channels, *S)`, any size.

        Returns:
            Level → `(B, out_channels, *ceil(S / stride))`, fine to coarse.
        """
        features = self.vit.features(x)
        found = {}
        for level, layers in self.pyramid.items():
            y = layers(features)
            for axis, (length, step) in enumerate(zip(x.shape[2:], self.strides[level], strict=True), start=2):
                y = y.narrow(axis, 0, min(y.shape[axis], -(-length // step)))
            found[level] = y
        if self.extra is not None:
            coarsest = next(reversed(found.values()))
            found[next(reversed(self.strides))] = every_second(coarsest)
        return found


class PyramidLevel(nn.Module):
    """One level of the pyramid, `(B, dim, *S) -> (B, out_channels, *(S * scale))`.

    Each doubling is a transposed convolution that halves the channels, with layer normalisation and GELU between
    two of them; halving is a maximum. A 1-wide and a 3-wide convolution follow.

    Args:
        dim: channels of the features.
        out_channels: channels of the level.
        scale: per axis, powers of two.
        norm: whether layer normalisation follows the last two convolutions.
        partial: see `ViT`.
    """

    def __init__(self, dim: int, out_channels: int, scale: Sequence[Fraction], *, norm: bool, partial: str):
        super().__init__()
        ndim = len(scale)
        layers: list[nn.Module] = []
        doublings = [max(int(one).bit_length() - 1, 0) for one in scale]
        for step in range(max(doublings)):
            if layers:
                layers += [ChannelNorm(dim, eps=EPS), nn.GELU()]
            window = tuple(2 if step < count else 1 for count in doublings)
            layers.append(nd.transposed_conv(ndim)(dim, dim // 2, window, stride=window))
            dim //= 2
        if min(scale) < 1:
            layers.append(MaxDown([max(int(1 / one), 1) for one in scale], partial=partial))
        self.resample = nn.Sequential(*layers)
        self.reduce = self._layer(dim, out_channels, 1, ndim, norm)
        self.merge = self._layer(out_channels, out_channels, 3, ndim, norm)

    @staticmethod
    def _layer(in_channels: int, out_channels: int, kernel: int, ndim: int, norm: bool) -> nn.Sequential:
        conv = nd.conv(ndim)(in_channels, out_channels, kernel, padding=kernel // 2, bias=not norm)
        return nn.Sequential(conv, ChannelNorm(out_channels, eps=EPS)) if norm else nn.Sequential(conv)

    def forward(self, x: Tensor) -> Tensor:
        """Resample and convolve."""
        return self.merge(self.reduce(self.resample(x)))


class MaxDown(nn.Module):
    """Maximum of windows, `(B, C, *S) -> (B, C, *(S / window))`; for `partial` see `ViT`."""

    def __init__(self, window: Sequence[int], *, partial: str):
        super().__init__()
        self.window, self.partial = tuple(window), partial

    def forward(self, x: Tensor) -> Tensor:
        """Downsample."""
        if self.partial == "drop":
            x = whole_windows(x, self.window)
        return nd.max_pool(x, self.window, stride=self.window, ceil=True)
