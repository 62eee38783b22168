"""What a network has to know of an image beside its voxels: where a window lies, how the whole looks, where it ends.

Positions as in patch diffusion (Wang et al. 2023, arXiv:2304.12526): one channel per axis, from -1 at the first
voxel's outer edge to 1 at the last one's. The view of the whole is the image reduced to the window's size, so
that both fit the same network.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from voxelry.core.space import Space

__all__ = ["border_distances", "context", "positions", "swapped_borders", "whole_view"]


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


def border_distances(space: Space) -> Tensor:
    """mm from each voxel's centre to the image's low and to its high outer edge along each axis.

    `(2 * ndim, *shape)` float32: low and high of the first axis, of the second, and so on. Images that were cut out
    around what is looked for tell by their borders where it is.
    """
    axes = []
    for axis, (count, step) in enumerate(zip(space.shape, space.spacing, strict=True)):
        low = (torch.arange(count, dtype=torch.float64) + 0.5) * step
        along = [count if other == axis else 1 for other in range(space.ndim)]
        axes += [line.reshape(along).expand(space.shape) for line in (low, low.flip(0))]
    return torch.stack(axes).to(torch.float32)


def swapped_borders(ndim: int, axes: Sequence[int]) -> list[int]:
    """The order of `border_distances`' channels once these axes are flipped: low for high along each."""
    order = list(range(2 * ndim))
    for axis in axes:
        order[2 * axis], order[2 * axis + 1] = order[2 * axis + 1], order[2 * axis]
    return order
