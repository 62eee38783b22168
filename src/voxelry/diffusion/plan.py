"""Which time steps a model is trained at and sampled over, and how: one object for both.

A network that learned a few time steps knows nothing of the others (Jiang et al. 2024, arXiv:2405.14802, train at
ten of a thousand). A `Plan` therefore hands out the training times and does the sampling, goes into the bundle with
the weights, and refuses a request for steps that were never trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor

from voxelry.core.choice import check_choice
from voxelry.core.errors import SettingError
from voxelry.core.settings import settle
from voxelry.diffusion import samplers
from voxelry.diffusion.flow import GOLDEN_RATIO
from voxelry.diffusion.objectives import PREDICTIONS, sample_times
from voxelry.diffusion.schedules import Schedule, timesteps

__all__ = ["TRAIN_STEPS", "Plan"]

TRAIN_STEPS = ("visited", "all")


@dataclass(frozen=True, kw_only=True)
class ScheduleSettings:
    """A schedule, and how it is walked through when sampling.

    Attributes:
        schedule, n_timestep, linear_start, linear_end: see `Schedule.from_name`.
        spacing: a rule or a list of time steps, see `diffusion.schedules.timesteps`.
        eta: share of random noise in `ddim`, 0 for none.
    """

    schedule: str = "cosine"
    n_timestep: int = 1000
    linear_start: float = 1e-4
    linear_end: float = 0.02
    spacing: str | Sequence[int] = "trailing"
    eta: float = 0.0

    def make_schedule(self) -> Schedule:
        """The schedule.

        Raises:
            SettingError: as `Schedule.from_name`.
        """
        return Schedule.from_name(self.schedule, steps=self.n_timestep, start=self.linear_start, end=self.linear_end)


@dataclass(frozen=True, kw_only=True)
class PlanSettings(ScheduleSettings):
    """A `Plan` in plain values, as configurations and bundles hold them.

    Attributes:
        steps: how many time steps the rule is asked for; of no meaning for a list. The network is called once
            for each, but by `heun` twice for all but the last: 2 steps are 3 calls, 3 steps 5.
        sampler, objective, clip: see `Plan`.
        train_steps: what training draws: `visited`, the steps of sampling; `all`, every step of the schedule, so
            that any number of steps can be asked for later; or a list.
    """

    steps: int | None = 4
    sampler: str = "ddim"
    objective: str = "v"
    clip: Sequence[float] | None = (-1.0, 1.0)
    train_steps: str | Sequence[int] = "visited"

    def __post_init__(self) -> None:
        if isinstance(self.train_steps, str) and self.train_steps not in TRAIN_STEPS:
            raise SettingError(f"train_steps: expected {', '.join(TRAIN_STEPS)} or a list, got {self.train_steps!r}")


@dataclass(frozen=True)
class Plan:
    """Time steps, sampler and objective of a diffusion.

    Args:
        schedule: the noise at each of its time steps.
        steps: the time steps that sampling visits, ascending.
        sampler: one of `samplers.SAMPLERS`.
        objective: what the network answers: `epsilon`, `x0` or `v`.
        clip: range that estimates of the clean image are kept in while sampling; None leaves them.
        eta: share of random noise in `ddim`, 0 for none.
        trained: the time steps that training draws, ascending; None for every one of the schedule.
        spacing: the rule that `steps` follow, see `diffusion.schedules.timesteps`; None for a list of their own.
        count: what that rule was asked for; Fast-DDPM's answer has a step more or less.

    Raises:
        SettingError: an unknown name, steps outside the schedule, or steps that are sampled but not trained.
    """

    schedule: Schedule
    steps: tuple[int, ...]
    sampler: str = "ddim"
    objective: str = "v"
    clip: tuple[float, float] | None = (-1.0, 1.0)
    eta: float = 0.0
    trained: tuple[int, ...] | None = None
    spacing: str | None = None
    count: int | None = None

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ("sampler", self.sampler, samplers.SAMPLERS),
            ("objective", self.objective, PREDICTIONS),
        ):
            check_choice(name, value, allowed)
        if self.eta < 0 or (self.eta > 0 and self.sampler != "ddim"):
            raise SettingError(f"eta: expected 0, or more for the sampler ddim; got {self.eta} for {self.sampler}")
        if self.clip is not None and not self.clip[0] < self.clip[1]:
            raise SettingError(f"clip: expected a low and a high value or null, got {list(self.clip)}")
        for listed in (self.steps, self.trained or ()):
            if list(listed) != (timesteps(listed, self.schedule.steps) if listed else []):
                raise SettingError(f"timesteps: expected ascending steps, got {list(listed)}")
        if not self.steps:
            raise SettingError("timesteps: expected at least one step")
        self._check_trained()

    @classmethod
    def from_settings(cls, **settings: Any) -> Self:
        """A plan from the values of `PlanSettings`.

        Raises:
            SettingError: as `Plan`, `Schedule.from_name` and `timesteps`.
        """
        own = settle(PlanSettings, settings)
        chosen = own.make_schedule()
        visited = tuple(timesteps(own.spacing, own.n_timestep, own.steps))
        trained: tuple[int, ...] | None = visited
        if not isinstance(own.train_steps, str):
            trained = tuple(timesteps(own.train_steps, own.n_timestep))
        elif own.train_steps == "all":
            trained = None
        return cls(
            schedule=chosen,
            steps=visited,
            sampler=own.sampler,
            objective=own.objective,
            clip=None if own.clip is None else (float(own.clip[0]), float(own.clip[1])),
            eta=float(own.eta),
            trained=trained,
            spacing=own.spacing if isinstance(own.spacing, str) else None,
            count=own.steps if isinstance(own.spacing, str) else None,
        )

    def settings(self) -> dict[str, Any]:
        """Plain values from which `Plan.from_settings` makes the same plan again.

        Raises:
            SettingError: the schedule has no name.
        """
        return {
            **self.schedule.settings(),
            "spacing": self.spacing or list(self.steps),
            "steps": self.count,
            "sampler": self.sampler,
            "objective": self.objective,
            "clip": None if self.clip is None else list(self.clip),
            "eta": self.eta,
            "train_steps": "all" if self.trained is None else list(self.trained),
        }

    @property
    def calls(self) -> int:
        """How often the network is called for one sample."""
        return samplers.network_calls(self.sampler, len(self.steps))

    def draw(
        self,
        count: int,
        generator: torch.Generator | None = None,
        *,
        stratified: bool = True,
        position: float | None = None,
    ) -> Tensor:
        """Time steps to train at, `(count,)` int64 on the generator's device (or the CPU).

        Args:
            count: samples of the batch.
            generator: torch's own when None; of no meaning with a `position`.
            stratified: spread the batch evenly over the trained steps, see `sample_times`.
            position: where a sequence that spreads evenly over *batches* stands, in [0, 1): the sample `i` takes the
                place `position + i / golden ratio`, modulo 1, so that any run of draws covers the steps evenly, one
                by one as well (a Kronecker sequence; Niederreiter 1992, chapter 3). The next batch begins at
                `(position + count * GOLDEN_RATIO) % 1`. The data should come in random order.
        """
        known = torch.arange(self.schedule.steps) if self.trained is None else torch.tensor(self.trained)
        if position is None:
            place = sample_times(count, len(known), generator=generator, stratified=stratified)
        else:
            share = (position + torch.arange(count, dtype=torch.float64) * GOLDEN_RATIO) % 1
            place = (share * len(known)).long().clamp(max=len(known) - 1)
        return known.to(place.device)[place]

    def sample(
        self,
        predict: samplers.Predict,
        x: Tensor,
        *,
        generator: torch.Generator | None = None,
        callback: samplers.Callback | None = None,
        self_condition: bool = False,
    ) -> Tensor:
        """Walk from `x`, the images at the last of `steps`, to clean ones, `(B, C, *spatial)`.

        Args:
            predict: the network, `(x_t, t) -> ` what `objective` names; called `calls` times.
            x: noise, `(B, C, *spatial)`.
            generator: of the noise that the sampler adds; torch's own when None.
            callback: shown a `samplers.Step` after each time step.
            self_condition: whether `predict` is given its last estimate, see `diffusion.samplers`.
        """
        settings: dict[str, Any] = {"eta": self.eta} if self.sampler == "ddim" else {}
        return samplers.sample(
            self.sampler,
            predict,
            x,
            self.schedule,
            self.steps,
            generator=generator,
            objective=self.objective,
            clip=self.clip,
            callback=callback,
            self_condition=self_condition,
            **settings,
        )

    def request(self, steps: int | None = None, sampler: str | None = None, eta: float | None = None) -> Plan:
        """The plan with another number of time steps, another sampler or another share of noise.

        Args:
            steps: time steps to visit, by the same rule; of a list of its own, so many evenly from its end.
            sampler: one of `samplers.SAMPLERS`.
            eta: of `ddim`; None keeps it where the sampler takes one.

        Raises:
            SettingError: an unknown name, or time steps that the model was not trained at.
        """
        chosen = sampler or self.sampler
        kept = self.eta if chosen == "ddim" else 0.0
        plan = replace(self, sampler=chosen, eta=kept if eta is None else eta)
        if steps is None:
            return plan
        return replace(plan, steps=self._visited(steps), count=None if self.spacing is None else steps)

    def _visited(self, count: int) -> tuple[int, ...]:
        """The time steps that so many of the plan's rule are."""
        if self.spacing is not None:
            return tuple(timesteps(self.spacing, self.schedule.steps, count))
        if not 1 <= count <= len(self.steps):
            raise SettingError(f"sample_steps: expected 1 to {len(self.steps)} of {_listed(self.steps)}, got {count}")
        return tuple(self.steps[place] for place in timesteps("trailing", len(self.steps), count))

    def _check_trained(self) -> None:
        if self.trained is None or set(self.steps) <= set(self.trained):
            return
        raise SettingError(
            f"sample_steps: {len(self.steps)} steps would visit {_listed(self.steps)}, "
            f"but the model was trained at {_listed(self.trained)} only{self._possible()}"
        )

    def _possible(self) -> str:
        """The hint of `_check_trained`: the numbers of steps that would do."""
        known = set(self.trained or ())
        fitting = []
        for count in range(1, len(known) + 1):
            try:
                visited = self._visited(count)
            except SettingError:
                continue  # a rule may have no list of that length
            if known.issuperset(visited):
                fitting.append(str(count))
        return f" (it can do {', '.join(fitting)} of them)" if fitting else ""


def _listed(steps: Sequence[int]) -> str:
    """The steps in words, no more than a line of them."""
    shown = [str(step) for step in steps]
    return ", ".join(shown if len(shown) <= 12 else [*shown[:5], "...", *shown[-5:]])
