"""From noise to images: DDPM, DDIM, DPM-Solver++(2M) and Heun.

Pure functions over a callable: `predict(x_t, t)` returns what the objective names (epsilon, x0 or v) for the
images `x_t` `(B, C, *spatial)` at the one time step `t`. With `self_condition=True` it is called as
`predict(x_t, t, estimate)`, where `estimate` is the previous step's x0, None at first (Chen et al. 2022,
arXiv:2208.04202).

A sampler starts from `x`, the image at the last step of an ascending list of time steps, which is pure noise
when that is the schedule's last step; `start_from` gives both for a partially noised image. Coefficients are
computed in float64; images keep their type.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from voxelry.core.choice import check_choice
from voxelry.core.errors import SettingError
from voxelry.diffusion.objectives import convert, noise_like, q_sample
from voxelry.diffusion.schedules import Schedule

__all__ = [
    "SAMPLERS",
    "Callback",
    "Estimator",
    "Predict",
    "Step",
    "ddim",
    "ddpm",
    "dpm_solver",
    "heun",
    "network_calls",
    "sample",
    "start_from",
    "told_steps",
]

Predict = Callable[..., Tensor]


@dataclass(frozen=True)
class Step:
    """What a callback is shown after each step.

    Attributes:
        index: 0 for the first step, `total - 1` for the last.
        total: number of steps.
        t: the time step the network was asked at.
        t_next: the time step of `x`; -1 for the clean image.
        x: the images after the step.
        estimate: the clean images as the network saw them at `t`.
    """

    index: int
    total: int
    t: int
    t_next: int
    x: Tensor
    estimate: Tensor


Callback = Callable[[Step], None]

_Advance = Callable[[Tensor, Tensor, int, int], Tensor]
"""`(x_t, x0 estimate, t, next t) -> x at the next t`."""


@dataclass(frozen=True, kw_only=True)
class Estimator:
    """The clean images as a network sees them: what all samplers ask for.

    Attributes:
        predict, schedule, self_condition: as above.
        objective: what `predict` returns: `epsilon`, `x0` or `v`.
        clip: range that the estimate of x0 is kept in at every step; None leaves it.
    """

    predict: Predict
    schedule: Schedule
    objective: str = "epsilon"
    clip: tuple[float, float] | None = None
    self_condition: bool = False

    def __call__(self, x: Tensor, t: int, before: Tensor | None) -> Tensor:
        """The estimate in `x` at `t`; `before` is the one that was made last."""
        output = self.predict(x, t, before) if self.self_condition else self.predict(x, t)
        estimate = convert(output.to(x.dtype), x, t, self.schedule, self.objective, "x0")
        return estimate if self.clip is None else estimate.clamp(*self.clip)


def ddpm(
    predict: Predict,
    x: Tensor,
    schedule: Schedule,
    steps: Sequence[int],
    *,
    variance: str = "small",
    generator: torch.Generator | None = None,
    callback: Callback | None = None,
    **settings: Any,
) -> Tensor:
    """Ancestral sampling (Ho et al. 2020, eqs. 6 and 7), over all steps or any list of them.

    Args:
        predict, x, schedule, steps: as above.
        variance: of the noise added at each step: `small`, that of the posterior, or `large`, the step's beta
            (the two ends of Ho et al. 2020, section 3.2).
        generator: of the noise; torch's own when None.
        callback: called after each step.
        settings: of the `Estimator`.

    Raises:
        SettingError: an unknown variance.
    """
    check_choice("variance", variance, ("small", "large"))

    def advance(x: Tensor, estimate: Tensor, t: int, t_next: int) -> Tensor:
        alpha, alpha_next = schedule.alpha_bar(t), schedule.alpha_bar(t_next)
        beta = 1 - alpha / alpha_next
        mean = math.sqrt(alpha_next) * beta / (1 - alpha) * estimate
        mean = mean + math.sqrt(1 - beta) * (1 - alpha_next) / (1 - alpha) * x
        if t_next < 0:
            return mean
        spread = beta if variance == "large" else beta * (1 - alpha_next) / (1 - alpha)
        return mean + math.sqrt(spread) * noise_like(x, generator)

    return _walk(Estimator(predict=predict, schedule=schedule, **settings), x, steps, advance, callback)


def ddim(
    predict: Predict,
    x: Tensor,
    schedule: Schedule,
    steps: Sequence[int],
    *,
    eta: float = 0.0,
    generator: torch.Generator | None = None,
    callback: Callback | None = None,
    **settings: Any,
) -> Tensor:
    """Implicit sampling (Song et al. 2021, arXiv:2010.02502, eq. 12): a result in few steps, the same every time.

    Args:
        predict, x, schedule, steps: as above.
        eta: share of random noise, 0 for none, 1 for as much as DDPM adds.
        generator: of the noise, where eta > 0; torch's own when None.
        callback: called after each step.
        settings: of the `Estimator`; the noise is derived from a clipped estimate, so that both still make up `x_t`.
    """

    def advance(x: Tensor, estimate: Tensor, t: int, t_next: int) -> Tensor:
        alpha, alpha_next = schedule.alpha_bar(t), schedule.alpha_bar(t_next)
        noise = (x - math.sqrt(alpha) * estimate) / math.sqrt(1 - alpha)
        spread = eta * math.sqrt((1 - alpha_next) / (1 - alpha) * (1 - alpha / alpha_next))
        moved = math.sqrt(alpha_next) * estimate + math.sqrt(max(1 - alpha_next - spread**2, 0.0)) * noise
        return moved + spread * noise_like(x, generator) if spread > 0 else moved

    return _walk(Estimator(predict=predict, schedule=schedule, **settings), x, steps, advance, callback)


def dpm_solver(
    predict: Predict,
    x: Tensor,
    schedule: Schedule,
    steps: Sequence[int],
    *,
    callback: Callback | None = None,
    **settings: Any,
) -> Tensor:
    """DPM-Solver++(2M) (Lu et al. 2022, arXiv:2211.01095, algorithm 2): second order, deterministic.

    The first step, which has no estimate before it, and the last, which ends at the clean image, are of first
    order.

    Args:
        predict, x, schedule, steps: as above.
        callback: called after each step.
        settings: of the `Estimator`.
    """
    before: tuple[Tensor, float] | None = None  # the previous estimate, and the half log SNR where it was made

    def advance(x: Tensor, estimate: Tensor, t: int, t_next: int) -> Tensor:
        nonlocal before
        if t_next < 0:  # the half log SNR of a clean image is infinite, and the formula's limit is the estimate
            return estimate
        now, then = _half_log_snr(schedule, t), _half_log_snr(schedule, t_next)
        combined = estimate
        if before is not None:
            earlier, earlier_place = before
            ratio = (now - earlier_place) / (then - now)
            combined = estimate + (estimate - earlier) / (2 * ratio)
        before = (estimate, now)
        noise, noise_next = (math.sqrt(1 - schedule.alpha_bar(step)) for step in (t, t_next))
        return noise_next / noise * x - math.sqrt(schedule.alpha_bar(t_next)) * math.expm1(now - then) * combined

    return _walk(Estimator(predict=predict, schedule=schedule, **settings), x, steps, advance, callback)


def heun(
    predict: Predict,
    x: Tensor,
    schedule: Schedule,
    steps: Sequence[int],
    *,
    callback: Callback | None = None,
    **settings: Any,
) -> Tensor:
    """Second order by a look ahead, deterministic: two calls a step, one for the last, `2 * len(steps) - 1` in all.

    As in Karras et al. 2022 (arXiv:2206.00364, algorithm 1), a step is tried, the network is asked at its end, and
    the step is made with both estimates. Between the two, x0 is taken to be linear in the half log SNR, and the rest
    of the equation is integrated exactly (Lu et al. 2022, arXiv:2211.01095, eq. 8). Unlike the trapezoid in sigma,
    this stays bounded where a schedule ends in almost pure noise: sigma is 20,000 at the end of the cosine one.

    Args:
        predict, x, schedule, steps: as above.
        callback: called after each step, with the estimate at its beginning.
        settings: of the `Estimator`.
    """

    estimator = Estimator(predict=predict, schedule=schedule, **settings)

    def advance(x: Tensor, estimate: Tensor, t: int, t_next: int) -> Tensor:
        if t_next < 0:
            return estimate
        length = _half_log_snr(schedule, t_next) - _half_log_snr(schedule, t)
        alpha_next = schedule.alpha_bar(t_next)
        kept = math.sqrt((1 - alpha_next) / (1 - schedule.alpha_bar(t)))
        gained = -math.expm1(-length)
        tried = kept * x + math.sqrt(alpha_next) * gained * estimate
        ahead = estimator(tried, t_next, estimate)
        return tried + math.sqrt(alpha_next) * (1 - gained / length) * (ahead - estimate)

    return _walk(estimator, x, steps, advance, callback)


def told_steps(network: Callable[[Tensor, Tensor], Tensor]) -> Predict:
    """A network that is told the time step of each image, `(B,)`, as samplers ask it."""

    def predict(x: Tensor, t: int) -> Tensor:
        return network(x, torch.full((len(x),), t, device=x.device))

    return predict


SAMPLERS: dict[str, Callable[..., Tensor]] = {"ddpm": ddpm, "ddim": ddim, "dpm_solver": dpm_solver, "heun": heun}
_RANDOM = ("ddpm", "ddim")


def network_calls(method: str, steps: int) -> int:
    """How often a sampler asks the network on its way over so many time steps."""
    return 2 * steps - 1 if method == "heun" else steps


def sample(
    method: str,
    predict: Predict,
    x: Tensor,
    schedule: Schedule,
    steps: Sequence[int],
    *,
    generator: torch.Generator | None = None,
    **settings: object,
) -> Tensor:
    """Sample by the name of the method, one of `SAMPLERS`; `generator` goes only to those that draw noise.

    Raises:
        SettingError: an unknown name.
    """
    check_choice("sampler", method, SAMPLERS)
    if method in _RANDOM:
        settings["generator"] = generator
    return SAMPLERS[method](predict, x, schedule, steps, **settings)


def start_from(
    image: Tensor,
    t: int,
    schedule: Schedule,
    steps: Sequence[int],
    *,
    noise: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, list[int]]:
    """A partially noised image and the steps left for it: what a sampler needs to begin in the middle.

    Args:
        image: clean, `(B, C, *spatial)`.
        t: the time step to noise it to.
        schedule: of the diffusion.
        steps: an ascending list; those below `t` are kept and `t` itself is put last.
        noise: standard normal, like `image`; drawn from `generator` when None.
        generator: torch's own when None.

    Returns:
        The noised image, and the list.

    Raises:
        SettingError: `t` is no step of the schedule.
    """
    if not 0 <= t < schedule.steps:
        raise SettingError(f"t_start: expected a step from 0 to {schedule.steps - 1}, got {t}")
    noise = noise_like(image, generator) if noise is None else noise
    return q_sample(image, t, noise, schedule), [*(step for step in steps if step < t), t]


def _walk(
    estimator: Estimator, x: Tensor, steps: Sequence[int], advance: _Advance, callback: Callback | None
) -> Tensor:
    """The loop that all samplers share: ask, estimate x0, advance."""
    order, count = list(steps), estimator.schedule.steps
    if not order or order != sorted(set(order)) or order[0] < 0 or order[-1] >= count:
        raise SettingError(f"timesteps: expected ascending steps from 0 to {count - 1}, got {order}")
    estimate: Tensor | None = None
    for index, t in enumerate(reversed(order)):
        t_next = order[-index - 2] if index + 1 < len(order) else -1
        estimate = estimator(x, t, estimate)
        x = advance(x, estimate, t, t_next)
        if callback is not None:
            callback(Step(index, len(order), t, t_next, x, estimate))
    return x


def _half_log_snr(schedule: Schedule, t: int) -> float:
    alpha = schedule.alpha_bar(t)
    return 0.5 * (math.log(alpha) - math.log1p(-alpha))
