"""Grids of tokens cut into windows and put together again, in any rank."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

__all__ = ["merge_windows", "split_windows"]


def split_windows(x: Tensor, window: Sequence[int]) -> Tensor:
    """Windows of a grid, `(B, *S, C) -> (B * windows, *window, C)`, row by row.

    The end of each axis is filled with zeros up to a multiple of the window.
    """
    missing = [-size % side for size, side in zip(x.shape[1:-1], window, strict=True)]
    if any(missing):
        x = F.pad(x, [0, 0, *(side for gap in reversed(missing) for side in (0, gap))])
    ndim = len(window)
    for axis, side in enumerate(window):
        x = x.unflatten(1 + 2 * axis, (-1, side))
    counts, sides = range(1, 1 + 2 * ndim, 2), range(2, 2 + 2 * ndim, 2)
    return x.permute(0, *counts, *sides, -1).flatten(0, ndim)


def merge_windows(windows: Tensor, size: Sequence[int]) -> Tensor:
    """The grid of `split_windows` without what was filled up, `(B * windows, *window, C) -> (B, *size, C)`."""
    window = windows.shape[1:-1]
    ndim = len(window)
    counts = [-(-length // side) for length, side in zip(size, window, strict=True)]
    x = windows.unflatten(0, (-1, *counts))
    x = x.permute(0, *(axis for pair in zip(range(1, 1 + ndim), range(1 + ndim, 1 + 2 * ndim), strict=True)
                       for axis in pair), -1)  # fmt: skip
    for axis, length in enumerate(size, start=1):
        x = x.flatten(axis, axis + 1).narrow(axis, 0, length)
    return x
