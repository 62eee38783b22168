"""What a network that sees a window has to know of the rest: where the window lies, and how the whole looks.

Positions as in patch diffusion (Wang et al. 2023, arXiv:2304.12526): one channel per axis, from -1 at the first
voxel's outer edge to 1 at the last one's. The view of the whole is the image reduced to the window's size, so
that both fit the same network.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["context", "positions", "whole_view"]


def context(image: Tensor, start: Sequence[int], size: Sequence[int]) -> Tensor:
    """Positions and view of the whole for one window, `(ndim + C, *size)`.

    Args:
        image: the whole, `(C, *spatial)`.
        start: the window's first voxel; the window may reach beyond the image.
        size: voxels of the window.
    """
    return torch.cat([positions(image.shape[1:], start, size).to(image), whole_view(image, size)])


def positions(shape: Sequence[int], start: Sequence[int], size: Sequence[int]) -> Tensor:
    """Where each voxel of a window lies in an image of `shape`, `(ndim, *size)` float32.

    Within [-1, 1] inside of the image, and further on in the same steps outside.
    """
    axes = [
        (2 * (low + torch.arange(count, dtype=torch.float64)) + 1) / length - 1
        for length, low, count in zip(shape, start, size, strict=True)
    ]
    return torch.stack(torch.meshgrid(*axes, indexing="ij")).to(torch.float32)


def whole_view(image: Tensor, size: Sequence[int]) -> Tensor:
    """`(C, *spatial)` reduced to `(C, *size)` by area averages; an axis that is shorter repeats its voxels."""
    return functional.interpolate(image[None], size=tuple(size), mode="area")[0]
