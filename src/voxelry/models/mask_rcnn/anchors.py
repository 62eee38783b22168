"""Anchor boxes on the grids of a feature pyramid, in any rank, worked out when they are asked for.

Ren et al. 2015 (arXiv:1506.01497, section 3.1.1). A 256³ volume with 27 anchors per voxel of strides 4, 8 and 16
has 8 million of them: they are numbers in a grid, and only those that are looked at become boxes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from typing import Any

import torch
from torch import Tensor

from voxelry.core.errors import SettingError
from voxelry.core.rank import check_ndim, per_axis

__all__ = ["AnchorGrid", "AnchorShapes", "Anchors"]


class AnchorShapes:
    """The anchors of one voxel of each level: every ratio with every size with every z ratio.

    The last two axes (y, x) of an anchor of size `s` and ratio `r` are `√r s` and `s / √r` voxels long, an axis
    before them (z) is `z s`. Ratios vary slowest, then sizes, then z ratios: the order of the channels of the
    region proposal network's heads. `s` is one number or one per axis, for voxels that aren't cubes.

    Attributes:
        num_anchors: anchors per voxel, the same on every level.

    Args:
        sizes: for each level a list of sizes in voxels of the network's input.
        ratios: height over width, for all levels or a list for each.
        z_ratios: length along each axis before the last two over the size; not used in 2-D. For all levels or a
            list for each.
        rounded: round the edges to whole voxels, halves to even, as torchvision does.

    Raises:
        SettingError: an empty list, a size or ratio that isn't positive, levels with unlike numbers of anchors.
    """

    def __init__(
        self,
        sizes: Sequence[Sequence[Any]],
        ratios: Sequence[Any] = (0.5, 1.0, 2.0),
        z_ratios: Sequence[Any] = (1.0,),
        *,
        ndim: int,
        rounded: bool = False,
    ):
        self.ndim = check_ndim(ndim)
        if isinstance(sizes, (str, bytes)) or not all(isinstance(level, Sequence) and len(level) for level in sizes):
            raise SettingError(f"anchors.sizes: expected a list of sizes for every level, got {sizes!r}")
        self.sizes = [[per_axis(size, ndim, "anchors.sizes") for size in level] for level in sizes]
        self.ratios = per_level(ratios, len(sizes), "anchors.ratios")
        self.z_ratios = per_level(z_ratios, len(sizes), "anchors.z_ratios")
        self.rounded = rounded
        edges = [edge for level in self.sizes for size in level for edge in size]
        if not edges or not all(edge > 0 for edge in edges):
            raise SettingError(f"anchors.sizes: expected positive numbers, got {sizes!r}")
        counts = {self.count(level) for level in range(len(self.sizes))}
        if len(counts) != 1:
            raise SettingError(f"anchors.sizes: expected as many anchors on every level, got {sorted(counts)}")
        self.num_anchors = counts.pop()

    def count(self, level: int) -> int:
        """Anchors per voxel of a level."""
        return len(self.ratios[level]) * len(self.sizes[level]) * len(self.z_ratios[level]) ** (self.ndim - 2)

    def boxes(self, level: int) -> Tensor:
        """Anchors of that level around the origin, `(num_anchors, 2 * ndim)` float32."""
        roots = torch.tensor(self.ratios[level], dtype=torch.float32).sqrt()[:, None]
        depths = list(product(self.z_ratios[level], repeat=self.ndim - 2))
        scales = torch.tensor([[*before, 1.0, 1.0] for before in depths], dtype=torch.float32)
        sizes = torch.tensor(self.sizes[level], dtype=torch.float32)
        aspects = torch.cat((torch.ones(len(roots), self.ndim - 2), roots, 1 / roots), dim=1)
        edges = (aspects[:, None, None] * sizes[:, None] * scales).reshape(-1, self.ndim)
        half = edges / 2
        boxes = torch.cat((-half, half), dim=1)
        return boxes.round() if self.rounded else boxes


def per_level(ratios: Sequence[Any], levels: int, name: str) -> list[tuple[float, ...]]:
    """Ratios of every level, from those for all or from a list for each.

    Raises:
        SettingError: another number of levels, or ratios that aren't positive numbers.
    """
    nested = [tuple(level) for level in ratios] if ratios and isinstance(ratios[0], Sequence) else [tuple(ratios)]
    nested = nested * levels if len(nested) == 1 else nested
    if len(nested) != levels or not all(level and min(level) > 0 for level in nested):
        raise SettingError(f"{name}: expected positive numbers, for all {levels} levels or each, got {ratios!r}")
    return nested


@dataclass(frozen=True)
class AnchorGrid:
    """The anchors of one level: box `a` at every voxel of `shape`, centred on the voxel times `stride`.

    Anchor `i` is shape `i % A` at the voxel `i // A`, last axis fastest.
    """

    base: Tensor
    shape: tuple[int, ...]
    stride: tuple[float, ...]

    def __len__(self) -> int:
        return len(self.base) * math.prod(self.shape)

    def boxes(self, indices: Tensor) -> Tensor:
        """Boxes of some anchors, `(...) int64 -> (..., 2 * ndim)` float32."""
        voxel = torch.div(indices, len(self.base), rounding_mode="floor")
        centre = torch.stack(torch.unravel_index(voxel, self.shape), dim=-1).to(self.base.dtype)
        centre = centre * torch.tensor(self.stride, dtype=self.base.dtype, device=self.base.device)
        return torch.cat((centre, centre), dim=-1) + self.base[indices % len(self.base)]


@dataclass(frozen=True)
class Anchors:
    """The anchors of all levels, numbered through: those of the first level, then those of the next."""

    grids: tuple[AnchorGrid, ...]

    @classmethod
    def of(cls, shapes: AnchorShapes, features: Sequence[Tensor], strides: Sequence[Sequence[float]]) -> Anchors:
        """The anchors of feature maps `(B, C, *S)` with their strides per axis, fine to coarse.

        Raises:
            SettingError: there are more or fewer maps than levels of sizes.
        """
        if len(features) != len(shapes.sizes):
            raise SettingError(f"anchors.sizes: expected {len(features)} levels, got {len(shapes.sizes)}")
        return cls(
            tuple(
                AnchorGrid(shapes.boxes(level).to(x.device), tuple(x.shape[2:]), tuple(stride))
                for level, (x, stride) in enumerate(zip(features, strides, strict=True))
            )
        )

    @property
    def offsets(self) -> list[int]:
        """The number of the first anchor of each level, and the number of all."""
        found = [0]
        for grid in self.grids:
            found.append(found[-1] + len(grid))
        return found

    def __len__(self) -> int:
        return self.offsets[-1]

    def per_level(self, indices: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Which of `indices` `(N,)` are of which level: level, places in `indices`, indices within the level."""
        offsets = self.offsets
        for level, (first, end) in enumerate(pairwise(offsets)):
            places = torch.where((indices >= first) & (indices < end))[0]
            if len(places):
                yield level, places, indices[places] - first

    def boxes(self, indices: Tensor) -> Tensor:
        """Boxes of some anchors, `(N,) int64 -> (N, 2 * ndim)` float32."""
        found = self.grids[0].base.new_empty(len(indices), self.grids[0].base.shape[1])
        for level, places, inside in self.per_level(indices):
            found[places] = self.grids[level].boxes(inside)
        return found

    def chunks(self, size: int = 1 << 18) -> Iterator[Tensor]:
        """All anchors in order, at most `size` at a time, `(n, 2 * ndim)` float32."""
        device = self.grids[0].base.device
        for grid in self.grids:
            for first in range(0, len(grid), size):
                yield grid.boxes(torch.arange(first, min(first + size, len(grid)), device=device))
