"""What the network sees and what it must answer.

Images arrive in their data range, [0, 1] from the usual preprocessing, and are noised in the diffusion range,
[-1, 1] by default: centred, as Ho et al. 2020 (section 3.3) do, so that pure noise and images have the same mean.
The original noises images in [0, 1] as they are: `diffusion_range=(0, 1)`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from voxelry.core.errors import SettingError
from voxelry.diffusion.inputs import Range, Rescale, fixed_noise
from voxelry.diffusion.objectives import Objective, q_sample
from voxelry.diffusion.schedules import Schedule

__all__ = ["Noised", "Range", "Rescale", "band_edges", "band_of", "fixed_noise", "noised"]


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
