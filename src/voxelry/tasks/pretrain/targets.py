"""What the network sees and what it must answer.

Images arrive in their data range, [0, 1] from the usual preprocessing, and are noised in the diffusion range,
[-1, 1] by default: centred, as Ho et al. 2020 (section 3.3) do, so that pure noise and images have the same mean.
The seed noises images in [0, 1] as they are: `diffusion_range=(0, 1)`.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from voxelry.core.errors import SettingError
from voxelry.diffusion.objectives import Objective, q_sample
from voxelry.diffusion.schedules import Schedule

__all__ = ["Noised", "Range", "Rescale", "band_edges", "band_of", "fixed_noise", "noised"]

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


@dataclass(frozen=True)
class Noised:
    """A batch on its way through the diffusion.

    Attributes:
        x_t: noised images, `(B, C, *spatial)`: what the network sees.
        t: their time steps, `(B,)` int64 on the CPU, where the schedule is.
        target: what it must answer, `(B, C, *spatial)`.
    """

    x_t: Tensor
    t: Tensor
    target: Tensor


def noised(x0: Tensor, t: Tensor, noise: Tensor, objective: Objective, schedule: Schedule) -> Noised:
    """Noise clean images `(B, C, *spatial)`, in the diffusion range, to the time steps `t` `(B,)`."""
    return Noised(q_sample(x0, t, noise, schedule), t.cpu(), objective.target(x0, noise, t, schedule))


def fixed_noise(names: Sequence[str], like: Tensor, *, seed: int) -> Tensor:
    """Standard normal noise that belongs to a case and not to a moment: `(B, C, *spatial)` like `like`.

    The same name and seed give the same noise in every epoch, in any batch and on any device, so that a curve of
    held-out losses shows the network and not the draw.
    """
    generators = (torch.Generator().manual_seed(zlib.crc32(f"{seed}/{name}".encode())) for name in names)
    drawn = [torch.randn(like.shape[1:], generator=generator) for generator in generators]
    return torch.stack(drawn).to(device=like.device, dtype=like.dtype)


def band_edges(steps: int, bands: int) -> list[int]:
    """`bands + 1` time steps that cut `[0, steps)` into equal bands.

    Raises:
        SettingError: no band, or more bands than steps.
    """
    if not 1 <= bands <= steps:
        raise SettingError(f"time_bands: expected 1 to {steps} (the schedule's time steps), got {bands}")
    return [round(index * steps / bands) for index in range(bands + 1)]


def band_of(t: Tensor, edges: Sequence[int]) -> Tensor:
    """The band each time step is in, `(B,) -> (B,)` int64."""
    return torch.bucketize(t, torch.tensor(edges[1:-1], dtype=torch.int64, device=t.device), right=True)
