"""Shortcut models: a flow whose network is told the length of the step, so that a few long ones are enough.

Frans et al. 2024 (arXiv:2410.12557): a step of length 0 is the flow's own velocity; a step of length `2 d` is taught
by two of length `d`. Times are those of `diffusion.flow`: 1 at noise, 0 at data.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from voxelry.core.errors import SettingError
from voxelry.diffusion.flow import interpolate, velocity
from voxelry.diffusion.latents import Latents, squared_errors

__all__ = ["ShortcutLoss", "draw_steps", "shortcut_loss", "shortcut_target"]

StepPredict = Callable[[Latents, Tensor, Tensor], Latents]
"""`(x_t, t, length of the step) -> velocity`, times and lengths `(B,)`."""


@dataclass(frozen=True)
class ShortcutLoss:
    """What a shortcut model is trained on.

    Attributes:
        flow: error of the velocity where the step has no length.
        consistency: error of a long step against two short ones.
        total: both, weighted.
    """

    flow: Tensor
    consistency: Tensor
    total: Tensor


def draw_steps(
    t: Tensor, *, share: float = 0.25, halvings: int = 7, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Lengths of steps to train on, and the times that fit them.

    Args:
        t: `(B,)` times as drawn for a flow; they stay where the step has no length.
        share: of the batch that gets a length, rounded; those come first.
        halvings: the shortest is `1 / 2^halvings`.
        generator: torch's own when None.

    Returns:
        Times and lengths, `(B,)`: a length `d` is a power of a half and its time a multiple of it, of at least `2 d`.

    Raises:
        SettingError: no share in [0, 1].
    """
    if not 0 <= share <= 1:
        raise SettingError(f"share: expected a number in [0, 1], got {share}")
    count, step, time = round(share * len(t)), torch.zeros_like(t), t.clone()
    powers = torch.randint(1, halvings + 1, (count,), generator=generator, device=t.device)
    step[:count] = 0.5 ** powers.to(t)
    most = 2**powers
    place = torch.rand(count, generator=generator, device=t.device, dtype=torch.float64)
    time[:count] = (2 + (place * (most - 1)).floor()).to(t) * step[:count]
    return time, step


@torch.no_grad()
def shortcut_target(predict: StepPredict, x_t: Latents, t: Tensor, step: Tensor) -> dict[str, Tensor]:
    """What a step of twice the length should answer: the mean velocity of two steps.

    Args:
        predict: the network, guided or not.
        x_t: where the steps begin.
        t: `(B,)`, at least twice `step`.
        step: `(B,)`, length of one of the two.
    """
    first = predict(x_t, t, step)
    moved = {name: each - _along(step, each) * first[name] for name, each in x_t.items()}
    second = predict(moved, t - step, step)
    return {name: 0.5 * (first[name] + second[name]) for name in x_t}


def shortcut_loss(
    predict: StepPredict,
    teacher: StepPredict,
    ends: tuple[Latents, Latents],
    times: tuple[Tensor, Tensor],
    *,
    weights: Mapping[str, float] | None = None,
    consistency_weight: float = 1.0,
) -> ShortcutLoss:
    """Flow matching where the step has no length, consistency with two steps where it has one.

    Args:
        predict: the network.
        teacher: what the two short steps are taken with: the network, guided or not; no gradients flow into it. It is
            asked with the whole batch, so that it can guide some items alone.
        ends: data and noise, x0 and x1.
        times: times and lengths of steps `(B,)`, see `draw_steps`. The network is asked for twice the length.
        weights: of each kind of latents.
        consistency_weight: of the consistency in the total.
    """
    data, noise = ends
    t, step = times
    x_t = {name: interpolate(data[name], noise[name], t) for name in data}
    found = predict(x_t, t, 2 * step)
    flows = step <= 0
    straight = {name: velocity(data[name], noise[name])[flows] for name in data}
    flow = _total(squared_errors(_items(found, flows), straight, weights))
    target = _items(shortcut_target(teacher, x_t, t, step), ~flows)
    consistency = _total(squared_errors(_items(found, ~flows), target, weights))
    return ShortcutLoss(flow, consistency, flow + consistency_weight * consistency)


def _items(latents: Latents, chosen: Tensor) -> dict[str, Tensor]:
    return {name: each[chosen] for name, each in latents.items()}


def _total(errors: Mapping[str, Tensor]) -> Tensor:
    return torch.stack(list(errors.values())).sum()


def _along(values: Tensor, like: Tensor) -> Tensor:
    return values.to(like).reshape(-1, *(1,) * (like.ndim - 1))
