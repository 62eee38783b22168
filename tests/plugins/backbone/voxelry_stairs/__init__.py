"""A backbone of strided convolutions, the plainest there is."""

from itertools import pairwise

from torch import Tensor, nn

from voxelry.backbones.base import Backbone
from voxelry.nn import nd


class Stairs(Backbone):
    """Each level is half as fine as the one before it and twice as wide."""

    name = "stairs"

    def __init__(self, *, ndim: int, in_channels: int = 1, width: int = 8, levels: int = 3):
        super().__init__()
        self._settings = {"ndim": ndim, "in_channels": in_channels, "width": width, "levels": levels}
        self.ndim, self.in_channels = ndim, in_channels
        self.out_channels = {f"s{level}": width * 2**level for level in range(levels)}
        self.strides = {f"s{level}": (2 ** (level + 1),) * ndim for level in range(levels)}
        widths = [in_channels, *self.out_channels.values()]
        self.steps = nn.ModuleList(nd.conv(ndim)(a, b, 3, stride=2, padding=1) for a, b in pairwise(widths))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x, levels = self.check(x), {}
        for name, step in zip(self.strides, self.steps, strict=True):
            x = levels[name] = step(x).relu()
        return levels
