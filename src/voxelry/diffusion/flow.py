"""Rectified flow: straight paths between two ends, and the velocity along them.

Liu et al. 2022 (arXiv:2209.03003): a path leads from `x1` (noise, or a condition such as a degraded image) at
`t = 1` to `x0` (data) at `t = 0`,

    x_t = (1 - t) * x0 + t * x1,        velocity = dx_t / dt = x1 - x0.

A network learns the mean velocity at `(x_t, t)`; sampling follows it from 1 down to 0. Time is continuous here, a
float for the whole batch or `(B,)`; tensors are `(B, ...)` of any rank. The diffusion schedules' integer steps
have no part in this file.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

import torch
from torch import Tensor

from voxelry.core.choice import check_choice
from voxelry.core.errors import SettingError

__all__ = [
    "FLOW_SAMPLERS",
    "FLOW_SOLVERS",
    "GOLDEN_RATIO",
    "TIME_DISTRIBUTIONS",
    "FlowSolver",
    "FlowStep",
    "draw_times",
    "estimate_x0",
    "euler",
    "expected_velocity",
    "flow_times",
    "heun",
    "interpolate",
    "midpoint",
    "runge_kutta",
    "velocity",
    "velocity_by",
    "velocity_from_x0",
]

Time = float | Tensor
"""One time for the whole batch, or `(B,)`; in [0, 1], 0 at the data."""

_Number = TypeVar("_Number", float, Tensor)

TIME_DISTRIBUTIONS = ("uniform", "logit_normal")

GOLDEN_RATIO = (math.sqrt(5) - 1) / 2
"""Steps of this length fill [0, 1) evenly for every number of them: what to add to `draw_times(position=...)`."""


@dataclass(frozen=True)
class FlowStep:
    """What a callback is shown after each step.

    Attributes:
        index: 0 for the first step, `total - 1` for the last.
        total: number of steps.
        t: the time the step began at.
        t_next: the time of `x`; 0 for the data.
        x: the batch after the step.
        estimate: `x0` as the network saw it at `t`.
    """

    index: int
    total: int
    t: float
    t_next: float
    x: Tensor
    estimate: Tensor


FlowCallback = Callable[[FlowStep], None]
FlowPredict = Callable[[Tensor, float], Tensor]
"""`(x_t, t) -> velocity`, of the shape of `x_t`."""


def interpolate(x0: Tensor, x1: Tensor, t: Time) -> Tensor:
    """The point of the straight path at time `t`, `(B, ...)`: `x0` at 0, `x1` at 1, both exactly."""
    t = _spread(t, x0)
    return (1 - t) * x0 + t * x1


def velocity(x0: Tensor, x1: Tensor) -> Tensor:
    """What the network should answer anywhere on the path from `x1` to `x0`: `x1 - x0`."""
    return x1 - x0


def estimate_x0(velocity: Tensor, x_t: Tensor, t: Time) -> Tensor:
    """The data end that a velocity at `x_t` points to: `x_t - t * velocity`."""
    return x_t - _spread(t, x_t) * velocity


def velocity_from_x0(x0: Tensor, x_t: Tensor, t: Time) -> Tensor:
    """The velocity at `x_t` that leads to `x0`: `(x_t - x0) / t`, for `t` in (0, 1]; `estimate_x0` undoes it."""
    return (x_t - x0) / _spread(t, x_t)


def velocity_by(network: Callable[[Tensor, Tensor], Tensor], objective: str, ticks: float = 1.0) -> FlowPredict:
    """The velocity as a network has it.

    Args:
        network: `(x_t, times (B,))` to the velocity or the data end.
        objective: what it answers: `v` or `x0`.
        ticks: of the time from data to noise, in which it counts.
    """

    def predict(x_t: Tensor, t: float) -> Tensor:
        answer = network(x_t, torch.full((len(x_t),), t, device=x_t.device) * ticks).to(x_t.dtype)
        return answer if objective == "v" else velocity_from_x0(answer, x_t, t)

    return predict


def expected_velocity(x_t: Tensor, t: Tensor, estimate: Tensor, error: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation of the velocity at `x_t` if the data were normal around an estimate.

    For `x0 ~ N(estimate, error²)` and standard normal `x1`, `x_t` is normal too, and so is `x1 - x0` given it.

    Args:
        x_t: `(B, ...)`.
        t: `(B,)`.
        estimate: as `x_t`.
        error: shaped to go with `x_t`, above 0.
    """
    now = t.to(x_t).view(-1, *(1,) * (x_t.ndim - 1))
    variance = (1 - now).square() * error.square() + now.square()
    away = (x_t - (1 - now) * estimate) / variance
    mean = now * away - (estimate + (1 - now) * error.square() * away)
    return mean, error / variance.sqrt()


def flow_times(count: int, *, shift: float = 1.0) -> tuple[float, ...]:
    """Times that a sampler walks in `count` steps: `count + 1` values from 1 down to 0.

    Args:
        count: number of steps.
        shift: 1 for even steps; above 1 more of them near `t = 1` (Esser et al. 2024, arXiv:2403.03206, eq. 23:
            `shift * t / (1 + (shift - 1) * t)`).

    Raises:
        SettingError: no steps, or a shift that is not positive.
    """
    if count < 1:
        raise SettingError(f"sample_steps: expected at least 1 step, got {count}")
    _check_shift(shift)
    return tuple(_shifted(1 - i / count, shift) for i in range(count + 1))


def draw_times(
    count: int,
    *,
    generator: torch.Generator | None = None,
    method: str = "uniform",
    shift: float = 1.0,
    stratified: bool = True,
    position: float | None = None,
) -> Tensor:
    """Times to train at, `(count,)` float32 in (0, 1], on the generator's device (or the CPU).

    Args:
        count: how many.
        generator: torch's own when None.
        method: `uniform`, or `logit_normal`: the logistic function of a standard normal number, dense in the
            middle of the path (Esser et al. 2024, section 3.1).
        shift: as in `flow_times`, applied to what is drawn.
        stratified: one draw from each `count`-th of the distribution, in random order: each is still distributed
            as asked, the batch covers the range evenly, and the loss varies less (Kingma et al. 2021,
            arXiv:2107.00630, appendix I.1).
        position: where in [0, 1) the first stratum begins, instead of a random place. A caller that adds
            `GOLDEN_RATIO` (mod 1) from step to step covers the range evenly across steps too, which is what
            stratifies batches of one. Needs `stratified`.

    Raises:
        SettingError: an unknown method, a shift that is not positive, or a position without strata.
    """
    check_choice("times", method, TIME_DISTRIBUTIONS)
    _check_shift(shift)
    device = torch.device("cpu") if generator is None else generator.device
    if not stratified:
        if position is not None:
            raise SettingError("position: of stratified times only")
        place = torch.rand(count, generator=generator, device=device, dtype=torch.float64)
    else:
        start = (
            torch.rand((), generator=generator, device=device, dtype=torch.float64) if position is None else position
        )
        place = (start + torch.randperm(count, generator=generator, device=device).double() / max(count, 1)) % 1
    times = 1 - place  # (0, 1]: at 0 nothing is left to learn, and x0 gives no velocity there
    if method == "logit_normal":
        times = torch.sigmoid(torch.special.ndtri(times))
    times = _shifted(times, shift).float()
    return times.clamp(min=torch.finfo(torch.float32).eps)  # rounding must not reach 0


_Ask = Callable[[Tensor, float], Tensor]
_Slope = Callable[[_Ask, Tensor, Tensor, float, float], Tensor]
"""`(ask, x, velocity at x and t, t, t_next) -> velocity of the whole step`."""


def _first(ask: _Ask, x: Tensor, slope: Tensor, t: float, t_next: float) -> Tensor:
    return slope


def _both_ends(ask: _Ask, x: Tensor, slope: Tensor, t: float, t_next: float) -> Tensor:
    return slope if t_next == 0 else 0.5 * (slope + ask(x + (t_next - t) * slope, t_next))


def _middle(ask: _Ask, x: Tensor, slope: Tensor, t: float, t_next: float) -> Tensor:
    half = 0.5 * (t_next - t)
    return ask(x + half * slope, t + half)


def _four(ask: _Ask, x: Tensor, slope: Tensor, t: float, t_next: float) -> Tensor:
    half = 0.5 * (t_next - t)
    second = ask(x + half * slope, t + half)
    third = ask(x + half * second, t + half)
    last = ask(x + 2 * half * third, t_next)
    return (slope + 2 * second + 2 * third + last) / 6


@dataclass(frozen=True)
class FlowSolver:
    """Follow the velocity from noise to data.

    Attributes:
        step: the velocity of a whole step.
    """

    step: _Slope

    def __call__(
        self,
        predict: FlowPredict,
        x1: Tensor,
        times: Sequence[float],
        *,
        clip: tuple[float, float] | None = None,
        callback: FlowCallback | None = None,
    ) -> Tensor:
        """Follow.

        Args:
            predict: network, `(x_t, t)` to velocity.
            x1: where the path begins, `(B, ...)`.
            times: descending, in [0, 1]; see `flow_times`. It may begin below 1, for a point in the middle of a path,
                and end above 0.
            clip: range that the estimate of `x0` is kept in at every call; None leaves it.
            callback: called after each step.

        Returns:
            The batch at the last time; for one straight step to 0 that is the estimate of `x0` itself.

        Raises:
            SettingError: times that do not descend within [0, 1].
        """
        order = [float(t) for t in times]
        descends = all(later < earlier for earlier, later in pairwise(order))
        if len(order) < 2 or not descends or order[0] > 1 or order[-1] < 0:
            raise SettingError(f"times: expected at least two times descending within [0, 1], got {order}")
        x = x1

        def ask(x: Tensor, t: float) -> Tensor:
            """Velocity at `t`, which clipping needs above 0."""
            answer = predict(x, t).to(x.dtype)
            if clip is None or t == 0:
                return answer
            return velocity_from_x0(estimate_x0(answer, x, t).clamp(*clip), x, t)

        for index, (t, t_next) in enumerate(pairwise(order)):
            slope = ask(x, t)
            estimate = estimate_x0(slope, x, t)
            if clip is not None:
                estimate = estimate.clamp(*clip)  # the same but for rounding
            whole = self.step(ask, x, slope, t, t_next)
            # a straight step to 0 ends at the estimate, without the rounding
            x = estimate if t_next == 0 and whole is slope else x + (t_next - t) * whole
            if callback is not None:
                callback(FlowStep(index, len(order) - 1, t, t_next, x, estimate))
        return x


euler = FlowSolver(_first)
"""Straight steps: one call of the network for each."""

heun = FlowSolver(_both_ends)
"""Steps of second order: the mean of the velocities at both ends of each.

A step that ends at 0 is a straight one, as in Karras et al. 2022 (arXiv:2206.00364, algorithm 1), because networks are
not trained there: `N` steps from 1 to 0 take `2 N - 1` calls.
"""

midpoint = FlowSolver(_middle)
"""Steps of second order, by the velocity in the middle of each: two calls for every step."""

runge_kutta = FlowSolver(_four)
"""Steps of fourth order (Kutta 1901): four calls for every step, the last one at its end."""

FLOW_SAMPLERS: dict[str, FlowSolver] = {"euler": euler, "heun": heun}
"""Samplers whose last step ends at the network's own estimate of the data."""

FLOW_SOLVERS = {**FLOW_SAMPLERS, "midpoint": midpoint, "runge_kutta": runge_kutta}
"""These, and solvers that treat the last step as any other."""


def _spread(t: Time, like: Tensor) -> Time:
    """Times shaped to multiply `like` `(B, ...)`, of its type and device."""
    if not isinstance(t, Tensor) or t.ndim == 0:
        return t
    return t.to(like.device, like.dtype).reshape(-1, *(1,) * (like.ndim - 1))


def _shifted(t: _Number, shift: float) -> _Number:
    return shift * t / (1 + (shift - 1) * t)


def _check_shift(shift: float) -> None:
    if not shift > 0:
        raise SettingError(f"shift: expected a positive number, got {shift:g}")
