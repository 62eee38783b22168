"""Residual networks (He et al. 2016, arXiv:1512.03385), in any rank and with strides per axis.

With its defaults it is torchvision's `ResNet` without the classifier: the stride of a bottleneck is on its
3-wide convolution.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from voxelry.backbones.base import Backbone, product
from voxelry.core.errors import SettingError
from voxelry.core.rank import check_ndim, per_axis
from voxelry.core.settings import settle
from voxelry.nn import nd
from voxelry.nn.norm import make_norm

__all__ = ["STAGES", "ConvNorm", "ResNet"]

STAGES = ("p2", "p3", "p4", "p5")


class ConvNorm(nn.Module):
    """A convolution that keeps the size up to its stride, and its normalisation, `(B, C, *S)`."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int | Sequence[int],
        *,
        ndim: int,
        stride: Sequence[int] | int = 1,
        dilation: Sequence[int] | int = 1,
        groups: int = 1,
        norm: str = "batch",
        eps: float = 1e-5,
    ):
        super().__init__()
        sizes, gaps = per_axis(kernel, ndim, "kernel"), per_axis(dilation, ndim, "dilation")
        self.conv = nd.conv(ndim)(
            in_channels,
            out_channels,
            sizes,
            stride=stride,
            padding=tuple(size // 2 * gap for size, gap in zip(sizes, gaps, strict=True)),
            dilation=gaps,
            groups=groups,
            bias=False,
        )
        self.norm = make_norm(norm, out_channels, ndim=ndim, eps=eps)
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Convolve and normalise."""
        return self.norm(self.conv(x))


class Residual(nn.Module):
    """Layers with ReLU between them, added to the input, then ReLU, `(B, C_in, *S) -> (B, C_out, *S / stride)`."""

    def __init__(self, layers: Sequence[ConvNorm], shortcut: nn.Module):
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        """Transform and add."""
        y = self.layers[0](x)
        for layer in self.layers[1:]:
            y = layer(F.relu(y))
        return F.relu(y + self.shortcut(x))


@dataclass(frozen=True, kw_only=True)
class ResNetSettings:
    """A residual network.

    Attributes:
        ndim: 2 or 3.
        in_channels: channels of the image.
        block: "basic" (two 3-wide convolutions) or "bottleneck" (1, 3, 1 wide, four times the channels out).
        layers: blocks of each stage; (2, 2, 2, 2) is ResNet-18, (3, 4, 6, 3) with bottlenecks ResNet-50.
        levels: stages to give out, of "p2", "p3", "p4", "p5"; a mapping gives them other names. Later stages
            are not made.
        width: channels of the stem and of the first stage; each stage doubles them.
        stem_kernel: width of the stem's convolution, odd, one number or one per axis.
        stem_stride: its stride.
        pool_kernel: window of the stem's maximum, odd.
        pool_stride: its stride; None leaves the maximum out.
        stage_strides: stride of each stage, each one number or one per axis, e.g. `(1, (1, 2, 2), 2, 2)`.
        dilated: for each stage whether its stride is turned into dilation (Yu & Koltun 2016, arXiv:1511.07122).
        norm: "batch", "frozen_batch", "group" or "layer".
        norm_eps: its constant.
        groups, group_width: of the 3-wide convolutions of bottlenecks (Xie et al. 2017, arXiv:1611.05431).
    """

    ndim: int
    in_channels: int = 1
    block: str = "basic"
    layers: Sequence[int] = (2, 2, 2, 2)
    levels: Sequence[str] | Mapping[str, str] = STAGES
    width: int = 64
    stem_kernel: int | Sequence[int] = 7
    stem_stride: int | Sequence[int] = 2
    pool_kernel: int | Sequence[int] = 3
    pool_stride: int | Sequence[int] | None = 2
    stage_strides: Sequence[int | Sequence[int]] = (1, 2, 2, 2)
    dilated: Sequence[bool] = (False, False, False, False)
    norm: str = "batch"
    norm_eps: float = 1e-5
    groups: int = 1
    group_width: int = 64


class ResNet(Backbone):
    """Stem and up to four stages of residual blocks.

    Raises:
        SettingError: an unknown name, or numbers that do not fit together.
    """

    Settings = ResNetSettings

    name: ClassVar[str] = "resnet"

    def __init__(self, **settings: Any):
        super().__init__()
        own = self._settings = settle(ResNetSettings, settings)
        self.ndim, self.in_channels = check_ndim(own.ndim), own.in_channels
        self.levels = dict(own.levels) if isinstance(own.levels, Mapping) else {level: level for level in own.levels}
        count = check_stages(self.levels, own.layers, own.stage_strides, own.dilated)
        kernel, window = (
            per_axis(own.stem_kernel, own.ndim, "stem_kernel"),
            per_axis(own.pool_kernel, own.ndim, "pool_kernel"),
        )
        if any(size % 2 == 0 for size in (*kernel, *window)):
            raise SettingError(f"stem_kernel, pool_kernel: expected odd widths, got {kernel} and {window}")
        stride = per_axis(own.stem_stride, own.ndim, "stem_stride")
        self.stem = ConvNorm(
            own.in_channels, own.width, kernel, ndim=own.ndim, stride=stride, norm=own.norm, eps=own.norm_eps
        )
        self.pool_kernel = window
        self.pool_stride = None if own.pool_stride is None else per_axis(own.pool_stride, own.ndim, "pool_stride")
        total = product(stride, self.pool_stride or (1,) * own.ndim)
        self.stages = nn.ModuleList()
        self.out_channels, self.strides = {}, {}
        channels, dilation = own.width, (1,) * own.ndim
        for stage, name in enumerate(STAGES[:count]):
            step = per_axis(own.stage_strides[stage], own.ndim, "stage_strides")
            blocks: list[nn.Module] = []
            before, dilation = dilation, product(dilation, step) if own.dilated[stage] else dilation
            for index in range(own.layers[stage]):
                first = index == 0
                made = make_block(
                    own,
                    channels,
                    own.width << stage,
                    stride=step if first and not own.dilated[stage] else (1,) * own.ndim,
                    dilations=(before if first else dilation, dilation),
                )
                channels = made.layers[-1].conv.out_channels  # type: ignore[union-attr, assignment]
                blocks.append(made)
            self.stages.append(nn.Sequential(*blocks))
            total = total if own.dilated[stage] else product(total, step)
            if name in self.levels:
                self.out_channels[self.levels[name]] = channels
                self.strides[self.levels[name]] = total

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Run the network.

        Args:
            x: `(B, in_channels, *S)`, any size.

        Returns:
            Level → `(B, C, *ceil(S / stride))`, fine to coarse.
        """
        x = F.relu(self.stem(self.check(x)))
        if self.pool_stride is not None:
            padding = [size // 2 for size in self.pool_kernel]
            x = nd.max_pool(x, self.pool_kernel, stride=self.pool_stride, padding=padding)
        found = {}
        for name, stage in zip(STAGES, self.stages, strict=False):
            x = stage(x)
            if name in self.levels:
                found[self.levels[name]] = x
        return found


def make_block(
    own: ResNetSettings,
    in_channels: int,
    width: int,
    *,
    stride: Sequence[int],
    dilations: tuple[Sequence[int], Sequence[int]],
) -> Residual:
    """A residual block of `own.block`; with a stride or other channels the input is projected to the sum.

    `dilations` are those of the first 3-wide convolution, which may have had a stride, and of what follows it.

    Raises:
        SettingError: an unknown name, or groups in a basic block.
    """
    conv = partial(ConvNorm, ndim=own.ndim, norm=own.norm, eps=own.norm_eps)
    if own.block == "basic":
        if own.groups != 1 or own.group_width != 64:
            raise SettingError(
                f"groups, group_width: a basic block has 1 and 64, got {own.groups} and {own.group_width}"
            )
        out = width
        layers = [
            conv(in_channels, width, 3, stride=stride, dilation=dilations[0]),
            conv(width, width, 3, dilation=dilations[1]),
        ]
    elif own.block == "bottleneck":
        inner, out = int(width * (own.group_width / 64)) * own.groups, 4 * width
        layers = [
            conv(in_channels, inner, 1),
            conv(inner, inner, 3, stride=stride, dilation=dilations[0], groups=own.groups),
            conv(inner, out, 1),
        ]
    else:
        raise SettingError(f"block: expected basic or bottleneck, got {own.block!r}")
    same = in_channels == out and max(stride) == 1
    return Residual(layers, nn.Identity() if same else conv(in_channels, out, 1, stride=stride))


def check_stages(
    levels: Mapping[str, str],
    layers: Sequence[int],
    strides: Sequence[int | Sequence[int]],
    dilated: Sequence[bool],
) -> int:
    """How many stages the levels need.

    Raises:
        SettingError: an unknown or repeated level, or too few numbers for the stages.
    """
    unknown = [level for level in levels if level not in STAGES]
    if unknown or not levels:
        raise SettingError(f"levels: expected some of {', '.join(STAGES)}, got {', '.join(levels) or 'none'}")
    if len(set(levels.values())) < len(levels):
        raise SettingError(f"levels: expected a name of its own for each, got {', '.join(levels.values())}")
    count = 1 + max(STAGES.index(level) for level in levels)
    for name, values in (("layers", layers), ("stage_strides", strides), ("dilated", dilated)):
        if len(values) < count:
            raise SettingError(f"{name}: level {STAGES[count - 1]} needs {count} values, got {len(values)}")
    if min(layers[:count]) < 1:
        raise SettingError(f"layers: expected at least 1 block per stage, got {tuple(layers)}")
    return count
