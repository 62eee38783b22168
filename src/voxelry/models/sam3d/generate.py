"""From noise to latents, with networks that count time as SAM 3D Objects does.

Its time runs from 0 at noise to 1 at data and is told to the networks times 1000, as are lengths of steps; velocities
point to the data. `diffusion.flow` counts from 1 at noise down to 0. Both meet here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from voxelry.core.choice import check_choice
from voxelry.diffusion.flow import FLOW_SOLVERS, FlowStep, flow_times
from voxelry.diffusion.guidance import Guidance, guided
from voxelry.diffusion.latents import Latents, pack, unpack
from voxelry.diffusion.shortcut import StepPredict

__all__ = ["TICKS", "Generation", "ask", "generate", "guided_teacher"]

TICKS = 1000.0

Network = Callable[..., Latents]
"""`(latents, ticks, condition, step ticks or None) -> velocities` towards the data."""


@dataclass(frozen=True, kw_only=True)
class Generation:
    """How latents are generated.

    Attributes:
        steps: number of steps.
        shift: above 1 more of them near the noise, see `flow_times`; the original's `rescale_t`.
        sampler: one of `FLOW_SOLVERS`.
        guidance: see `Guidance`; its interval is in times of `diffusion.flow`: the original's [0, 500] is [0.5, 1].
        shortcut: "step" tells the network the length of an even step, "zero" a length of 0, "none" nothing.
        keeps_step: whether the length is told without the condition, too, or is 0 there.
        ticks: of the time from noise to data.

    Raises:
        SettingError: an unknown sampler or shortcut.
    """

    steps: int = 25
    shift: float = 1.0
    sampler: str = "euler"
    guidance: Guidance = field(default_factory=Guidance)
    shortcut: str = "none"
    keeps_step: bool = False
    ticks: float = TICKS

    def __post_init__(self) -> None:
        check_choice("sampler", self.sampler, FLOW_SOLVERS)
        check_choice("shortcut", self.shortcut, ("step", "zero", "none"))

    def by_shortcuts(self) -> Generation:
        """The same where the network is told the length of its steps: it answers for Euler steps of that length."""
        return replace(self, sampler="euler") if self.shortcut == "step" else self

    def without_shortcut(self) -> Generation:
        """The same for a network that isn't told the length of a step."""
        return replace(self, shortcut="none")


def ask(
    network: Network, x: Latents, t: Tensor | float, condition: Any, step: Tensor | float | None, ticks: float = TICKS
) -> dict[str, Tensor]:
    """A network's velocities as `diffusion.flow` has them, away from the data.

    Args:
        network: counts as the original.
        x: latents at `t`.
        t: 1 at noise, 0 at data; for the whole batch, or `(B,)`.
        condition: what the network is led by.
        step: length of the step, in the same unit; None for networks that aren't told.
        ticks: of the whole path.
    """
    batch = next(iter(x.values()))
    now = torch.as_tensor(1 - t, device=batch.device, dtype=torch.float32).expand(len(batch)) * ticks
    length = None
    if step is not None:
        length = torch.as_tensor(step, device=batch.device, dtype=torch.float32).expand(len(batch)) * ticks
    return {name: -each for name, each in network(x, now, condition, length).items()}


def generate(
    network: Network,
    noise: Latents,
    condition: Tensor,
    how: Generation,
    *,
    inverse: bool = False,
    callback: Callable[[FlowStep], None] | None = None,
) -> dict[str, Tensor]:
    """Latents from noise.

    Args:
        network: counts as the original.
        noise: where to begin.
        condition: `(B, M, C)` tokens; without guidance by them they are zeros.
        how: steps, sampler, guidance.
        inverse: lead the other way, from latents to the noise that they would come from; times of the callback are
            then 1 at the latents.
        callback: called after each step, with packed latents (`diffusion.latents.unpack`).
    """
    step = {"step": 1 / how.steps, "zero": 0.0, "none": None}[how.shortcut]
    bare = step if how.keeps_step or step is None else 0.0

    def predict(packed: Tensor, t: float) -> Tensor:
        x, t = unpack(packed, noise), 1 - t if inverse else t
        found = ask(network, x, t, condition, step, how.ticks)
        strengths = {name: value for name, value in how.guidance.strengths(t, x).items() if value}
        if strengths:
            without = ask(network, x, t, torch.zeros_like(condition), bare, how.ticks)
            found = guided(found, without, strengths)
        answer = pack({name: found[name] for name in noise})
        return -answer if inverse else answer

    times = flow_times(how.steps, shift=how.shift)
    return unpack(FLOW_SOLVERS[how.sampler](predict, pack(noise), times, callback=callback), noise)


def guided_teacher(
    network: Network,
    condition: Tensor,
    *,
    strength: float,
    count: int,
    names: Sequence[str] | None = None,
    keeps_step: bool = False,
) -> StepPredict:
    """A network that leads some items away from their unconditional answers, for `shortcut_loss`.

    Args:
        network: counts as the original.
        condition: `(B, M, C)`.
        strength: of the guidance.
        count: how many items are guided, the first of those whose step has a length.
        names: kinds of latents that are; None for all.
        keeps_step: see `Generation`.
    """

    def predict(x: Latents, t: Tensor, step: Tensor) -> dict[str, Tensor]:
        found = ask(network, x, t, condition, step)
        if not count:
            return found
        without = ask(network, x, t, torch.zeros_like(condition), step if keeps_step else torch.zeros_like(step))
        stepping = step > 0
        chosen = strength * (stepping & (stepping.cumsum(dim=0) <= count))
        kinds = [name for name in x if names is None or name in names]
        return guided(found, without, {name: chosen.to(x[name]).view(-1, *(1,) * (x[name].ndim - 1)) for name in kinds})

    return predict
