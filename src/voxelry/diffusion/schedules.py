"""Noise schedules and lists of time steps.

A schedule says how much of the clean image is left after `t + 1` additions of noise, for `t` in
`[0, steps)`: `x_t = sqrt(alpha_bar_t) * x_0 + sqrt(1 - alpha_bar_t) * noise` (Ho et al. 2020, eq. 4).
The index -1 stands for the clean image, `alpha_bar = 1`. Tables are float64 on the CPU; what is handed
out takes the type and the device of the image it meets.

Lists of time steps are ascending; samplers walk them from the end.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from voxelry.core.choice import check_choice
from voxelry.core.errors import SettingError

__all__ = ["SCHEDULES", "SPACINGS", "Schedule", "Time", "timesteps"]

Time = int | Tensor
"""One step for the whole batch, or `(B,)` integers."""


@dataclass(frozen=True, eq=False)
class Schedule:
    """The variances of the noise added at each step.

    Args:
        betas: `(steps,)`, each in (0, 1).
        name: where the betas come from, for cards and messages.
        ends: first and last beta as `from_name` was given them; None for betas from elsewhere.

    Raises:
        SettingError: betas of another rank, or outside (0, 1).
    """

    betas: Tensor
    name: str = "custom"
    ends: tuple[float, float] | None = None
    _padded: Tensor = field(init=False, repr=False)  # alpha_bar of step t at t + 1, so that -1 is the clean image

    def __post_init__(self) -> None:
        betas = torch.as_tensor(self.betas, dtype=torch.float64).detach().cpu()
        if betas.ndim != 1 or len(betas) == 0:
            raise SettingError(f"betas: expected one number per time step, got shape {tuple(betas.shape)}")
        if not bool(((betas > 0) & (betas < 1)).all()):
            raise SettingError(f"betas: expected numbers in (0, 1), got {betas.min():g} to {betas.max():g}")
        object.__setattr__(self, "betas", betas)
        padded = torch.cat([torch.ones(1, dtype=torch.float64), torch.cumprod(1 - betas, dim=0)])
        object.__setattr__(self, "_padded", padded)

    @classmethod
    def from_name(cls, name: str, *, steps: int = 500, start: float = 1e-4, end: float = 0.02) -> Schedule:
        """A schedule by name: `linear`, `cosine`, `quadratic` or `sigmoid`.

        Args:
            name: one of `SCHEDULES`.
            steps: number of time steps, T.
            start: first beta; `cosine` has its own.
            end: last beta; `cosine` has its own.

        Raises:
            SettingError: an unknown name, no steps, or an end outside (0, 1).
        """
        check_choice("schedule", name, SCHEDULES)
        if steps < 1:
            raise SettingError(f"n_timestep: expected at least 1 time step, got {steps}")
        return cls(SCHEDULES[name](steps, start, end), name, (start, end))

    def settings(self) -> dict[str, str | int | float]:
        """What `from_name` makes the same schedule of, under the names of the tasks' settings.

        Raises:
            SettingError: the betas are not from `from_name`.
        """
        if self.ends is None:
            raise SettingError(f"schedule: {self.name!r} was given as betas; only a named schedule can be stored")
        start, end = self.ends
        return {"schedule": self.name, "n_timestep": self.steps, "linear_start": start, "linear_end": end}

    def __len__(self) -> int:
        return self.steps

    @property
    def steps(self) -> int:
        """Number of time steps, T."""
        return len(self.betas)

    @property
    def alphas_bar(self) -> Tensor:
        """Share of the clean image's variance left at each step, `(steps,)` float64, falling."""
        return self._padded[1:]

    @property
    def snr(self) -> Tensor:
        """Signal to noise ratio at each step, `alpha_bar / (1 - alpha_bar)`, `(steps,)` float64."""
        return self.alphas_bar / (1 - self.alphas_bar)

    def alpha_bar(self, t: int) -> float:
        """The share left at one step; 1 for `t = -1`, the clean image."""
        return float(self._padded[t + 1])

    def signal(self, t: Time, like: Tensor) -> Tensor:
        """`sqrt(alpha_bar_t)`, shaped to multiply `like` `(B, C, *spatial)`, of its type and device."""
        return self._spread(self._padded.sqrt(), t, like)

    def noise(self, t: Time, like: Tensor) -> Tensor:
        """`sqrt(1 - alpha_bar_t)`, shaped to multiply `like` `(B, C, *spatial)`, of its type and device."""
        return self._spread((1 - self._padded).sqrt(), t, like)

    def _spread(self, table: Tensor, t: Time, like: Tensor) -> Tensor:
        values = (
            table[torch.as_tensor(t, device="cpu") + 1].to(like.dtype).to(like.device)
        )  # not every device has float64
        return values.reshape(values.shape + (1,) * (like.ndim - values.ndim)) if values.ndim else values


def _linear(steps: int, start: float, end: float) -> Tensor:
    """Ho et al. 2020, section 4."""
    return torch.linspace(start, end, steps, dtype=torch.float64)


def _quadratic(steps: int, start: float, end: float) -> Tensor:
    """Even steps of the square root of beta."""
    return torch.linspace(math.sqrt(start), math.sqrt(end), steps, dtype=torch.float64) ** 2


def _sigmoid(steps: int, start: float, end: float) -> Tensor:
    """A logistic curve from start to end, over [-6, 6]."""
    return torch.sigmoid(torch.linspace(-6, 6, steps, dtype=torch.float64)) * (end - start) + start


def _cosine(steps: int, start: float, end: float) -> Tensor:
    """Nichol & Dhariwal 2021 (arXiv:2102.09672), eq. 17, s = 0.008; betas are kept in [1e-4, 0.9999]."""
    offset = 0.008
    # float32, whose rounding near the end (1e-5 of a beta) is part of the schedule that networks were trained with
    place = torch.linspace(0, steps, steps + 1, dtype=torch.float32) / steps
    share = torch.cos((place + offset) / (1 + offset) * math.pi * 0.5) ** 2
    share = share / share[0]
    return (1 - share[1:] / share[:-1]).clamp(1e-4, 0.9999).double()


def _alpha_cosine(steps: int, start: float, end: float) -> Tensor:
    """As `_cosine`, in double precision and with nothing but the largest beta limited (Jiang et al. 2025)."""
    place = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    return _from_shares(torch.cos((place + 0.008) / 1.008 * math.pi * 0.5) ** 2)


def _alpha_sigmoid(steps: int, start: float, end: float) -> Tensor:
    """The share of the image falls along a logistic curve over [-6, 6] (Jiang et al. 2025)."""
    return _from_shares(torch.sigmoid(-torch.linspace(-6, 6, steps + 1, dtype=torch.float64)))


def _alpha_linear(steps: int, start: float, end: float) -> Tensor:
    """The share of the image falls evenly (Jiang et al. 2025)."""
    return _from_shares(1 - torch.linspace(0, 1, steps + 1, dtype=torch.float64))


def _from_shares(share: Tensor) -> Tensor:
    """Betas of shares of the image, `(steps + 1,)`, at most 0.999."""
    return (1 - share[1:] / share[:-1]).clamp(max=0.999)


SCHEDULES: dict[str, Callable[[int, float, float], Tensor]] = {
    "linear": _linear,
    "cosine": _cosine,
    "quadratic": _quadratic,
    "sigmoid": _sigmoid,
    "alpha_cosine": _alpha_cosine,
    "alpha_sigmoid": _alpha_sigmoid,
    "alpha_linear": _alpha_linear,
}


def timesteps(spacing: str | Sequence[int], steps: int, count: int | None = None) -> list[int]:
    """The steps that a sampler visits, ascending, each in `[0, steps)` and no step twice.

    Args:
        spacing: a list to be checked and sorted, or one of `SPACINGS`:

            - `uniform`: even, with both ends: `count` steps from 0 to `steps - 1`;
            - `trailing`: even, counted back from `steps - 1` (Lin et al. 2024, arXiv:2305.08891, table 2);
            - `leading`: even, counted on from 0, so that the last step is not reached;
            - `quadratic`: dense near the clean image (Song et al. 2021, arXiv:2010.02502, D.3), with both ends;
            - `fast_ddpm_uniform`, `fast_ddpm_non_uniform`: the two of Jiang et al. 2024 (arXiv:2405.14802),
              as their code has them: the uniform one gives `count + 1` steps where `count` divides `steps`;
              the other puts 40 % of the steps in the first 70 % of the time.
        steps: time steps of the schedule.
        count: how many steps; None for all of them. Of no meaning for a list.

    Raises:
        SettingError: an unknown name, more steps than there are, or a list outside `[0, steps)`.
    """
    if not isinstance(spacing, str):
        listed = sorted({int(t) for t in spacing})
        if not listed or listed[0] < 0 or listed[-1] >= steps:
            raise SettingError(f"timesteps: expected steps from 0 to {steps - 1}, got {list(spacing)}")
        return listed
    if spacing not in SPACINGS:
        raise SettingError(f"timesteps: expected a list or one of {', '.join(SPACINGS)}, got {spacing!r}")
    count = steps if count is None else count
    if not 1 <= count <= steps:
        raise SettingError(f"sample_steps: expected 1 to {steps} (the schedule's time steps), got {count}")
    return sorted(set(SPACINGS[spacing](steps, count)))


def _uniform(steps: int, count: int) -> list[int]:
    # a single step has to start from pure noise
    return [steps - 1] if count == 1 else [round(i * (steps - 1) / (count - 1)) for i in range(count)]


def _trailing(steps: int, count: int) -> list[int]:
    return [round(steps - i * steps / count) - 1 for i in range(count)]


def _leading(steps: int, count: int) -> list[int]:
    return [i * (steps // count) for i in range(count)]


def _dense_at_the_start(steps: int, count: int) -> list[int]:
    return [steps - 1] if count == 1 else [round((i / (count - 1)) ** 2 * (steps - 1)) for i in range(count)]


def _fast_ddpm_uniform(steps: int, count: int) -> list[int]:
    return [max(t, 0) for t in range(-1, steps, steps // count)]


def _fast_ddpm_non_uniform(steps: int, count: int) -> list[int]:
    last = steps - 1
    turn = round(0.7 * steps) - 1
    if count == 10:  # written out in the original; its formula below would give another list
        return [0, *(round(share * steps) - 1 for share in (0.2, 0.4, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 1.0))]
    early, late = int(0.4 * count), int(0.6 * count)
    if late == 0:
        raise SettingError(f"sample_steps: fast_ddpm_non_uniform needs at least 2 steps, got {count}")
    # float32 before the rounding up, as in the original, or some steps would be off by one
    first = torch.linspace(0, turn, early + 1)[:-1].ceil().long().tolist()
    return [*first, *torch.linspace(turn, last, late).ceil().long().tolist()]


SPACINGS: dict[str, Callable[[int, int], list[int]]] = {
    "uniform": _uniform,
    "trailing": _trailing,
    "leading": _leading,
    "quadratic": _dense_at_the_start,
    "fast_ddpm_uniform": _fast_ddpm_uniform,
    "fast_ddpm_non_uniform": _fast_ddpm_non_uniform,
}
