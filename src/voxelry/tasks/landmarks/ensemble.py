"""Asking the network about shifted and mirrored copies of an image, and averaging the answers.

A strided network answers a little differently for each position of its grid; the mean over a few
shifts removes that part of the error without any training.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from voxelry.core.errors import SettingError

__all__ = ["View", "average_views", "make_views", "swap_order"]


@dataclass(frozen=True)
class View:
    """One way to look at an image: moved by whole voxels, then mirrored along some spatial axes."""

    shift: tuple[int, ...]
    flips: tuple[int, ...] = ()


def make_views(ndim: int, shift: int = 0, flips: Sequence[int] = ()) -> list[View]:
    """The image itself; moved by `shift` voxels both ways along each axis; and all of these mirrored.

    Args:
        shift: 0 for none, otherwise `1 + 2 * ndim` positions.
        flips: spatial axes in array order along which a mirror image is as good as the image.

    Raises:
        SettingError: an axis that the image doesn't have, or a negative shift.
    """
    if shift < 0 or any(not 0 <= axis < ndim for axis in flips):
        raise SettingError(f"ensemble: expected shift >= 0 and axes in 0..{ndim - 1}, got {shift} and {tuple(flips)}")
    moves = [(0,) * ndim]
    if shift:
        for axis, step in itertools.product(range(ndim), (-shift, shift)):
            moves.append(tuple(step if other == axis else 0 for other in range(ndim)))
    mirrors = [
        chosen for count in range(len(flips) + 1) for chosen in itertools.combinations(sorted(set(flips)), count)
    ]
    return [View(move, mirror) for mirror in mirrors for move in moves]


def swap_order(names: Sequence[str], pairs: Sequence[Sequence[str]]) -> list[int]:
    """The order of landmarks in a mirror image: each name of a pair takes the other's place.

    Raises:
        SettingError: a name that is unknown or in two pairs, or a pair of another length.
    """
    order = list(range(len(names)))
    seen: set[str] = set()
    for pair in pairs:
        if len(pair) != 2 or pair[0] == pair[1] or not set(pair) <= set(names) or seen & set(pair):
            raise SettingError(f"swap: expected pairs of different landmark names, each used once, got {list(pair)}")
        seen |= set(pair)
        left, right = names.index(pair[0]), names.index(pair[1])
        order[left], order[right] = right, left
    return order


def average_views(
    image: Tensor,
    network: Callable[[Tensor], Tensor],
    views: Sequence[View],
    order: Sequence[int],
    mirror: Callable[[Tensor, Sequence[int]], Tensor] | None = None,
) -> Tensor:
    """Mean of the network's answers over `views`, each moved back, `(B, C, *spatial) -> (B, N, *spatial)`.

    What a shift moves in from outside repeats the border.

    Args:
        order: where each output channel comes from in a mirror image (`swap_order`).
        mirror: what the network is shown of an image mirrored along some spatial axes; by default just that.
    """
    total: Tensor | None = None
    for view in views:
        seen = _shifted(image, view.shift)
        axes = [axis + 2 for axis in view.flips]
        if axes:
            seen = seen.flip(axes) if mirror is None else mirror(seen, view.flips)
        answer = network(seen)
        if axes:
            answer = answer.flip(axes)
            if len(axes) % 2:
                answer = answer[:, list(order)]
        answer = _shifted(answer, tuple(-step for step in view.shift))
        total = answer if total is None else total + answer
    if total is None:
        raise SettingError("ensemble: expected at least one view")
    return total if len(views) == 1 else total / len(views)


def _shifted(image: Tensor, shift: Sequence[int]) -> Tensor:
    """`image` at index `i + shift`, its border repeated."""
    if not any(shift):
        return image
    padding = [amount for step in reversed(shift) for amount in (max(-step, 0), max(step, 0))]
    padded = F.pad(image, padding, mode="replicate")
    windows = [slice(max(step, 0), max(step, 0) + size) for step, size in zip(shift, image.shape[2:], strict=True)]
    return padded[(slice(None), slice(None), *windows)].contiguous()
