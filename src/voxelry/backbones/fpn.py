"""Feature pyramid on top of a backbone (Lin et al. 2017, arXiv:1612.03144), in any rank."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from voxelry.backbones.base import Backbone, every_second
from voxelry.backbones.build import build_backbone
from voxelry.core.choice import check_choice
from voxelry.core.settings import plain
from voxelry.nn import nd
from voxelry.nn.norm import make_norm

__all__ = ["FPN"]


class FPN(Backbone):
    """Every level of a backbone with the same channels and what the coarser levels know.

    A 1-wide convolution of each level, plus the coarser sum repeated to its size (nearest), then a 3-wide
    convolution; torchvision's `FeaturePyramidNetwork`. It is a backbone itself, with the levels' names.

    Args:
        backbone: a `Backbone`, or its description for `build_backbone`.
        out_channels: channels of every level.
        extra: "maxpool" adds a level "pool", every second voxel of the coarsest; None adds nothing.
        norm: normalisation after each convolution, which has no bias then; None for neither.
        norm_eps: its constant.

    Raises:
        SettingError: an unknown name.
    """

    name: ClassVar[str] = "fpn"

    def __init__(
        self,
        backbone: Backbone | Mapping[str, Any],
        *,
        out_channels: int = 256,
        extra: str | None = "maxpool",
        norm: str | None = None,
        norm_eps: float = 1e-5,
    ):
        super().__init__()
        if isinstance(backbone, Mapping):
            backbone = build_backbone(backbone)
        check_choice("extra", extra, ("maxpool", None))
        self.backbone, self.extra = backbone, extra
        self.ndim, self.in_channels = backbone.ndim, backbone.in_channels
        self._settings = {
            "backbone": plain(backbone.describe()),
            "out_channels": out_channels,
            "extra": extra,
            "norm": norm,
            "norm_eps": norm_eps,
        }
        self.lateral, self.merge = nn.ModuleList(), nn.ModuleList()
        for channels in backbone.out_channels.values():
            self.lateral.append(pyramid_layer(channels, out_channels, 1, self.ndim, norm, norm_eps))
            self.merge.append(pyramid_layer(out_channels, out_channels, 3, self.ndim, norm, norm_eps))
        self.strides = dict(backbone.strides)
        if extra is not None:
            self.strides["pool"] = tuple(2 * step for step in list(backbone.strides.values())[-1])
        self.out_channels = dict.fromkeys(self.strides, out_channels)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Run backbone and pyramid.

        Args:
            x: `(B, in_channels, *S)`.

        Returns:
            Level → `(B, out_channels, *ceil(S / stride))`, fine to coarse.
        """
        return self.pyramid(self.backbone(x))

    def pyramid(self, levels: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The pyramid alone, of the backbone's levels."""
        found: dict[str, Tensor] = {}
        above: Tensor | None = None
        for index, (name, level) in reversed(list(enumerate(levels.items()))):
            sideways = self.lateral[index](level)
            if above is not None:
                sideways = sideways + nd.nearest(above, sideways.shape[2:])
            above = sideways
            found[name] = self.merge[index](sideways)
        ordered = dict(reversed(found.items()))
        if self.extra is not None:
            ordered["pool"] = every_second(next(iter(found.values())))
        return ordered


def pyramid_layer(
    in_channels: int, out_channels: int, kernel: int, ndim: int, norm: str | None, eps: float
) -> nn.Sequential:
    """A convolution that keeps the size, and a normalisation where one is named."""
    conv = nd.conv(ndim)(in_channels, out_channels, kernel, padding=kernel // 2, bias=norm is None)
    nn.init.kaiming_uniform_(conv.weight, a=1)
    if norm is None:
        nn.init.zeros_(conv.bias)
        return nn.Sequential(conv)
    return nn.Sequential(conv, make_norm(norm, out_channels, ndim=ndim, eps=eps))
