"""Blocks of voxels to channels and back (pixel unshuffle, Shi et al. 2016, arXiv:1609.05158, section 3.2), any rank."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["fold_voxels", "unfold_voxels"]

_LARGE = 1 << 15  # numbers, from which on a copy for each place in a block pays
_FEW = 8  # channels of voxels, up to which it pays on the way back


def fold_voxels(x: Tensor, fold: Sequence[int]) -> Tensor:
    """Blocks to channels, `(B, C, *S) -> (B, C * prod(fold), *ceil(S / fold))`; borders are repeated to fill up."""
    missing = [-size % step for size, step in zip(x.shape[2:], fold, strict=True)]
    if any(missing):
        x = F.pad(x, [side for gap in reversed(missing) for side in (0, gap)], mode="replicate")
    return _Fold.apply(x, tuple(fold)) if _pays(x, fold) else _to_channels(x, fold)


def unfold_voxels(x: Tensor, fold: Sequence[int]) -> Tensor:
    """Channels to blocks, the inverse of `fold_voxels`: `(B, C * prod(fold), *S) -> (B, C, *(S * fold))`."""
    return _Unfold.apply(x, tuple(fold)) if _pays(x, fold) else _to_voxels(x, fold)


def _pays(x: Tensor, fold: Sequence[int]) -> bool:
    """Whether strided copies, one for each place in a block, are faster than one copy of all.

    That one turns as many axes as the blocks have, the innermost of two numbers. Measured on one thread of a CPU, see
    benchmarks/RESULTS.md: a half to a fifth of the time for blocks two voxels wide, no less for wider ones.
    """
    return x.device.type == "cpu" and max(fold) == 2 and x.numel() >= _LARGE and not torch.compiler.is_compiling()


class _Fold(torch.autograd.Function):
    """`fold_voxels` of whole blocks by strided copies."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, fold: tuple[int, ...]) -> Tensor:
        ctx.fold = fold
        x = x.movedim(1, -1)
        size = [length // step for length, step in zip(x.shape[1:-1], fold, strict=True)]
        folded = x.new_empty(len(x), *size, x.shape[-1], *fold)
        for place in _places(fold):
            _at(folded, place).copy_(x[_every(place, fold)])
        return folded.flatten(1 + len(fold)).movedim(-1, 1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return unfold_voxels(gradient, ctx.fold), None


class _Unfold(torch.autograd.Function):
    """`unfold_voxels` by strided copies, or by one where there are many channels."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, fold: tuple[int, ...]) -> Tensor:
        ctx.fold = fold
        channels = x.shape[1] // prod(fold)
        if channels > _FEW:
            return _to_voxels(x, fold)
        x = x.movedim(1, -1).unflatten(-1, (-1, *fold))
        size = [length * step for length, step in zip(x.shape[1:], fold, strict=False)]
        voxels = x.new_empty(len(x), *size, channels)
        for place in _places(fold):
            voxels[_every(place, fold)] = _at(x, place)
        return voxels.movedim(-1, 1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return fold_voxels(gradient, ctx.fold), None


def _places(fold: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Of voxels in their block."""
    return product(*(range(step) for step in fold))


def _at(x: Tensor, place: Sequence[int]) -> Tensor:
    """One place of all blocks, which are the last axes."""
    for index in reversed(place):
        x = x.select(-1, index)
    return x


def _every(place: Sequence[int], fold: Sequence[int]) -> tuple[slice, ...]:
    """The voxels at a place of their blocks, `(B, *S, C)`."""
    return (slice(None), *(slice(start, None, step) for start, step in zip(place, fold, strict=True)))


def _to_channels(x: Tensor, fold: Sequence[int]) -> Tensor:
    """`fold_voxels` of whole blocks by one copy, channels-last, in which it then comes and goes."""
    ndim, x = len(fold), x.movedim(1, -1)
    for axis, step in enumerate(fold):
        x = x.unflatten(1 + 2 * axis, (-1, step))
    outer, inner = range(1, 1 + 2 * ndim, 2), range(2, 2 + 2 * ndim, 2)
    return x.permute(0, *outer, 1 + 2 * ndim, *inner).flatten(1 + ndim).movedim(-1, 1)


def _to_voxels(x: Tensor, fold: Sequence[int]) -> Tensor:
    """`unfold_voxels` by one copy."""
    ndim, size = len(fold), [length * step for length, step in zip(x.shape[2:], fold, strict=True)]
    x = x.movedim(1, -1).unflatten(-1, (-1, *fold))
    pairs = [axis for pair in zip(range(1, 1 + ndim), range(2 + ndim, 2 + 2 * ndim), strict=True) for axis in pair]
    return x.permute(0, *pairs, 1 + ndim).reshape(len(x), *size, -1).movedim(-1, 1)
