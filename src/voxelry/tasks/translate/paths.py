"""The way from where a translation begins to the target: time steps, training points and sampler of one object.

A diffusion begins at noise and follows a noise schedule. A flow follows straight lines, from noise or from the
condition itself: then it is a bridge, whose beginning is near the target already. Without noise and with a single
step a bridge is plain regression.

Every path is asked the same way: `draw` gives training times, `between` the image at such a time, `goal` what the
network should answer there, `walk` samples. Images are `(B, C, *spatial)` in the network's range.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import torch
from torch import Tensor

from voxelry.core.choice import check_choice
from voxelry.core.errors import SettingError
from voxelry.diffusion import flow
from voxelry.diffusion.inputs import Range
from voxelry.diffusion.objectives import convert, q_sample
from voxelry.diffusion.plan import TRAIN_STEPS, Plan, PlanSettings
from voxelry.diffusion.samplers import told_steps

__all__ = ["MODES", "DiffusionPath", "FlowPath", "Path", "make_path"]

MODES = ("bridge", "flow", "diffusion", "regression")

Predict = Callable[[Tensor, Tensor], Tensor]
"""`(x_t, clock (B,)) -> ` what the path's objective names, of the shape of `x_t`."""

_CLOCK = 1000.0  # a flow's time as the network is shown it: its embedding is made for the steps of a schedule
_STRAIGHT = ("x0", "v")
_OF_PLANS = tuple(field.name for field in fields(PlanSettings))


class Path(ABC):
    """What training and sampling share.

    Attributes:
        objective: what the network answers; of a flow, `v` is the velocity.
        calls: how often the network is called for one sample.
        needs_noise: whether a sample begins at noise of unit variance, and so can't do without it.
        varies: whether two samples of one image differ.
    """

    @property
    @abstractmethod
    def objective(self) -> str:
        """See above."""

    @property
    @abstractmethod
    def needs_noise(self) -> bool:
        """See above."""

    @property
    @abstractmethod
    def varies(self) -> bool:
        """See above."""

    @property
    @abstractmethod
    def calls(self) -> int:
        """See above."""

    @abstractmethod
    def draw(self, count: int, position: float) -> Tensor:
        """Training times, `(count,)` on the CPU, see `diffusion.plan.Plan.draw` for `position`."""

    @abstractmethod
    def clock(self, t: Tensor) -> Tensor:
        """Times as the network is shown them, `(B,)`."""

    @abstractmethod
    def begin(self, start: Tensor, noise: Tensor) -> Tensor:
        """The image that sampling begins at; `start` is the condition's guess of the target."""

    @abstractmethod
    def between(self, x0: Tensor, start: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """The image on the way from `begin` to the target `x0`, at the times `t` `(B,)`."""

    @abstractmethod
    def goal(self, x0: Tensor, start: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """What the network should answer there."""

    @abstractmethod
    def walk(self, predict: Predict, x: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Sample: from `begin` to the target, in exactly `calls` calls of `predict`."""

    @abstractmethod
    def request(self, steps: int | None = None, sampler: str | None = None, eta: float | None = None) -> Self:
        """The path in another number of steps, by another sampler or with another share of noise.

        Raises:
            SettingError: steps that the model was not trained at, or a name or share that the path doesn't know.
        """

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """Plain values that `make_path` takes beside the mode."""


@dataclass(frozen=True)
class DiffusionPath(Path):
    """From pure noise, along the schedule of a `Plan`."""

    plan: Plan
    needs_noise = True
    varies = True

    @property
    def objective(self) -> str:
        """That of the plan."""
        return self.plan.objective

    @property
    def calls(self) -> int:
        """Those of the plan."""
        return self.plan.calls

    def draw(self, count: int, position: float) -> Tensor:
        """Time steps of the schedule, int64."""
        return self.plan.draw(count, position=position)

    def clock(self, t: Tensor) -> Tensor:
        """The time steps themselves."""
        return t

    def begin(self, start: Tensor, noise: Tensor) -> Tensor:
        """Noise."""
        return noise

    def between(self, x0: Tensor, start: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """The target and noise, by the schedule."""
        return q_sample(x0, t, noise, self.plan.schedule)

    def goal(self, x0: Tensor, start: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Noise, target or the velocity between them."""
        if self.objective == "epsilon":
            return noise
        x_t = self.between(x0, start, noise, t)
        return convert(x0, x_t, t, self.plan.schedule, "x0", self.objective)

    def walk(self, predict: Predict, x: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """See `Plan.sample`."""
        return self.plan.sample(told_steps(predict), x, generator=generator)

    def request(self, steps: int | None = None, sampler: str | None = None, eta: float | None = None) -> Self:
        """See `Plan.request`."""
        return replace(self, plan=self.plan.request(steps, sampler, eta))

    def settings(self) -> dict[str, Any]:
        """Those of the plan."""
        return self.plan.settings()


@dataclass(frozen=True)
class FlowPath(Path):
    """Straight from `begin` at time 1 to the target at time 0 (Liu et al. 2022, arXiv:2209.03003).

    Args:
        bridge: begin at the condition, with a little noise, instead of at pure noise.
        steps: of sampling, evenly spread.
        sampler: one of `flow.FLOW_SAMPLERS`.
        objective: `x0`, or `v` for the velocity.
        clip: range that estimates of the target are kept in while sampling; None leaves them.
        noise_scale: standard deviation of a bridge's noise at its beginning. As large as the target's own
            uncertainty, the network learns at every time to tell what the condition leaves open (as the stochastic
            bridges of Liu et al. 2023, arXiv:2302.05872, do); without any, one call says all there is to say.
        start_share: share of the training at time 1, where every sample begins and where one step ends.
        trained: times that training draws, descending from 1; None for all in (0, 1].

    Raises:
        SettingError: an unknown name, a number that can't be, or times that are sampled but not trained.
    """

    bridge: bool = True
    steps: int = 4
    sampler: str = "euler"
    objective: str = "x0"
    clip: Range | None = (-1.0, 1.0)
    noise_scale: float = 0.25
    start_share: float = 0.5
    trained: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ("sampler", self.sampler, flow.FLOW_SAMPLERS),
            ("objective", self.objective, _STRAIGHT),
        ):
            if value not in allowed:
                raise SettingError(f"{name}: a flow or bridge has one of {', '.join(allowed)}, got {value!r}")
        if self.noise_scale < 0:
            raise SettingError(f"noise_scale: expected 0 or more, got {self.noise_scale}")
        if not 0 <= self.start_share <= 1:
            raise SettingError(f"start_share: expected a share from 0 to 1, got {self.start_share}")
        missing = [t for t in self.times if not self._knows(t)]
        if missing:
            raise SettingError(
                f"sample_steps: {self.steps} steps would visit the times {_listed(self.times)}, but the model was "
                f"trained at {_listed(self.trained or ())} only{self._possible()}"
            )

    @property
    def times(self) -> tuple[float, ...]:
        """Times at which sampling asks the network, descending from 1."""
        return flow.flow_times(self.steps)[:-1]

    @property
    def needs_noise(self) -> bool:
        """A bridge doesn't: its most likely beginning is the condition alone."""
        return not self.bridge

    @property
    def varies(self) -> bool:
        """A bridge without noise gives one answer."""
        return self.needs_noise or self.noise_scale > 0

    @property
    def calls(self) -> int:
        """One for every step; Heun asks twice, but for the last."""
        return 2 * self.steps - 1 if self.sampler == "heun" else self.steps

    def draw(self, count: int, position: float) -> Tensor:
        """Times in (0, 1], float64; the share `start_share` of them is 1."""
        place = (position + torch.arange(count, dtype=torch.float64) * flow.GOLDEN_RATIO) % 1
        later = (place - self.start_share) / max(1 - self.start_share, torch.finfo(place.dtype).tiny)
        if self.trained is None:
            times = 1 - later
        else:
            known = torch.tensor(self.trained, dtype=torch.float64)
            times = known[(later.clamp(0, 1) * len(known)).long().clamp(max=len(known) - 1)]
        return torch.where(place < self.start_share, torch.ones_like(times), times)

    def clock(self, t: Tensor) -> Tensor:
        """Thousandths."""
        return t.float() * _CLOCK

    def begin(self, start: Tensor, noise: Tensor) -> Tensor:
        """The condition and a little noise, or noise."""
        return start + self.noise_scale * noise if self.bridge else noise

    def between(self, x0: Tensor, start: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """The point of the line."""
        return flow.interpolate(x0, self.begin(start, noise), t)

    def goal(self, x0: Tensor, start: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """The target, or the velocity, which is the same all along the line."""
        return x0 if self.objective == "x0" else flow.velocity(x0, self.begin(start, noise))

    def walk(self, predict: Predict, x: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Follow the velocity; `generator` is of no use, as nothing is drawn on the way."""
        slope = flow.velocity_by(predict, self.objective, _CLOCK)
        return flow.FLOW_SAMPLERS[self.sampler](slope, x, flow.flow_times(self.steps), clip=self.clip)

    def request(self, steps: int | None = None, sampler: str | None = None, eta: float | None = None) -> Self:
        """See `Path.request`."""
        if eta:
            raise SettingError("eta: of a diffusion only; a flow or bridge draws no noise on its way")
        return replace(self, steps=self.steps if steps is None else steps, sampler=sampler or self.sampler)

    def settings(self) -> dict[str, Any]:
        """Plain values, the trained times among them."""
        return {
            "steps": self.steps,
            "sampler": self.sampler,
            "objective": self.objective,
            "clip": None if self.clip is None else list(self.clip),
            "noise_scale": self.noise_scale,
            "start_share": self.start_share,
            "train_steps": "all" if self.trained is None else list(self.trained),
        }

    def _knows(self, t: float) -> bool:
        return self.trained is None or any(abs(t - known) < 1e-6 for known in self.trained)

    def _possible(self) -> str:
        fitting = [
            str(count)
            for count in range(1, len(self.trained or ()) + 1)
            if all(self._knows(t) for t in flow.flow_times(count)[:-1])
        ]
        return f" (it can do {', '.join(fitting)} of them)" if fitting else ""


def make_path(mode: str, settings: Mapping[str, Any]) -> Path:
    """The path of a mode.

    Args:
        mode: one of `MODES`.
        settings: plain values: of `Plan.from_settings`, and `noise_scale` and `start_share` of `FlowPath`. What a
            mode has no use for is passed over. `sampler` may be None for the mode's own.

    Raises:
        SettingError: an unknown mode, or settings that can't be.
    """
    check_choice("mode", mode, MODES)
    if mode == "diffusion":
        own = {name: settings[name] for name in _OF_PLANS if name in settings}
        return DiffusionPath(Plan.from_settings(**{**own, "sampler": own.get("sampler") or "ddim"}))
    clip = settings.get("clip", (-1.0, 1.0))
    kept: Range | None = None if clip is None else (float(clip[0]), float(clip[1]))
    if mode == "regression":
        return FlowPath(steps=1, clip=kept, noise_scale=0.0, trained=(1.0,))
    steps = int(settings.get("steps", 4))
    return FlowPath(
        bridge=mode == "bridge",
        steps=steps,
        sampler=settings.get("sampler") or "euler",
        objective=settings.get("objective", "x0"),
        clip=kept,
        noise_scale=float(settings.get("noise_scale", 0.25)),
        start_share=float(settings.get("start_share", 0.5)),
        trained=_trained(settings.get("train_steps", "visited"), steps),
    )


def _trained(given: str | Sequence[float], steps: int) -> tuple[float, ...] | None:
    """The times of a flow that training draws."""
    if not isinstance(given, str):
        times = tuple(sorted((float(t) for t in given), reverse=True))
        if not times or not 0 < times[-1] <= times[0] <= 1:
            raise SettingError(f"train_steps: expected times in (0, 1], got {list(given)}")
        return times
    if given not in TRAIN_STEPS:
        raise SettingError(f"train_steps: expected {', '.join(TRAIN_STEPS)} or a list, got {given!r}")
    return None if given == "all" else flow.flow_times(steps)[:-1]


def _listed(times: Sequence[float]) -> str:
    return ", ".join(f"{t:.3g}" for t in times)
