"""What a diffusion network is shown: values in its own range, and noise that belongs to a case.

Images arrive in their data range, [0, 1] from the usual preprocessing, and are noised in the diffusion range, [-1, 1]
by default.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from voxelry.core.errors import SettingError

__all__ = ["Range", "Rescale", "fixed_noise"]

Range = tuple[float, float]


@dataclass(frozen=True)
class Rescale:
    """The linear map from the data's range of values to the one that is diffused, and back.

    Args:
        data: low and high of the images as they arrive; values beyond are mapped by the same line, not clipped.
        diffusion: where these two go.

    Raises:
        SettingError: a range that is empty.
    """

    data: Range = (0.0, 1.0)
    diffusion: Range = (-1.0, 1.0)

    def __post_init__(self) -> None:
        for name in ("data", "diffusion"):
            pair = tuple(float(value) for value in getattr(self, name))
            if len(pair) != 2 or not pair[0] < pair[1]:
                raise SettingError(f"{name}_range: expected a low and a higher number, got {getattr(self, name)}")
            object.__setattr__(self, name, pair)

    @property
    def scale(self) -> float:
        """Diffusion units per data unit."""
        return (self.diffusion[1] - self.diffusion[0]) / (self.data[1] - self.data[0])

    def forward(self, image: Tensor) -> Tensor:
        """Data range to diffusion range."""
        return (image - self.data[0]) * self.scale + self.diffusion[0]

    def inverse(self, image: Tensor) -> Tensor:
        """Diffusion range to data range."""
        return (image - self.diffusion[0]) / self.scale + self.data[0]


def fixed_noise(names: Sequence[str], like: Tensor, *, seed: int) -> Tensor:
    """Standard normal noise that belongs to a case and not to a moment: `(B, C, *spatial)` like `like`.

    The same name and seed give the same noise in every epoch, in any batch and on any device, so that a curve of
    held-out losses shows the network and not the draw.
    """
    generators = (torch.Generator().manual_seed(zlib.crc32(f"{seed}/{name}".encode())) for name in names)
    drawn = [torch.randn(like.shape[1:], generator=generator) for generator in generators]
    return torch.stack(drawn).to(device=like.device, dtype=like.dtype)
