"""Features at the occupied cells of a grid, and layers on them.

A `SparseTensor` is a list of cells with a row of features each; what is known of the cells alone (who is whose
neighbour, which lie in one window) is found once and kept by their `Cells`. Nothing here grows with the grid, nor with
the square of the number of cells.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from voxelry.core.errors import SettingError
from voxelry.nn import nd
from voxelry.ops.submanifold import submanifold_convolve

__all__ = [
    "Cells",
    "Grouping",
    "SparseGroupNorm",
    "SparseTensor",
    "SubmanifoldConv",
    "subdivide",
    "subdivided_convolve",
]

KERNEL = 3  # cells per axis
BLOCK = 65536  # cells at a time, where a derived map is made


@dataclass(frozen=True)
class Grouping:
    """Cells sorted into groups, those of one length together.

    Attributes:
        buckets: rows of the cells, `(groups, length)` int64 each, of all lengths that there are.
        restore: `(N,)` int64, the place of each cell in the buckets one after the other.
    """

    buckets: list[Tensor]
    restore: Tensor

    @classmethod
    def of(cls, group: Tensor) -> Grouping:
        """By a number for each cell, `(N,)` int64; a group keeps the order of its cells."""
        rows = torch.argsort(group, stable=True)
        lengths = torch.unique_consecutive(group[rows], return_counts=True)[1]
        starts = lengths.cumsum(0) - lengths
        buckets = []
        for length in torch.unique(lengths):
            own = starts[lengths == length]
            buckets.append(rows[own[:, None] + torch.arange(int(length), device=rows.device)])
        flat = torch.cat([bucket.flatten() for bucket in buckets])
        restore = torch.empty_like(flat)
        restore[flat] = torch.arange(len(flat), device=flat.device)
        return cls(buckets, restore)


class Cells:
    """Occupied cells of one or more grids.

    Args:
        coords: `(N, 1 + ndim)` integers: the item of the batch, then the place on each axis, 0 or more; no cell twice,
            items in any order.
        items: number of items; by default as many as there are.

    Raises:
        SettingError: another shape, negative places, a cell that is there twice.
    """

    def __init__(self, coords: Tensor, items: int | None = None):
        if coords.ndim != 2 or coords.shape[1] < 2 or coords.is_floating_point():
            raise SettingError(f"coords: expected integers (N, 1 + ndim), got {coords.dtype} {tuple(coords.shape)}")
        if not len(coords):
            raise SettingError("coords: expected at least one occupied cell, got none")
        if coords.min() < 0:
            raise SettingError(f"coords: expected places of 0 and more, got {int(coords.min())}")
        self.coords = coords.long()
        self.items = int(coords[:, 0].max()) + 1 if items is None else items
        self.kept: dict[Any, Any] = {}

    def __len__(self) -> int:
        return len(self.coords)

    @property
    def ndim(self) -> int:
        """Axes of the grid."""
        return self.coords.shape[1] - 1

    @property
    def device(self) -> torch.device:
        """Where the cells are."""
        return self.coords.device

    @cached_property
    def neighbours(self) -> Tensor:
        """Rows of the 3-wide neighbourhood of each cell, `(N, 3^ndim)` int32, the last axis fastest; -1 for none.

        Raises:
            SettingError: a cell that is there twice.
        """
        sizes = [int(size) + 1 + 2 for size in self.coords[:, 1:].amax(dim=0)]  # an empty border on either side
        keys = _numbered(self.coords + F.pad(torch.ones_like(self.coords[:1, 1:]), (1, 0)), sizes)
        ordered, rows = torch.sort(keys)
        if (ordered[1:] == ordered[:-1]).any():
            raise SettingError("coords: expected every cell once, got one twice")
        found = torch.empty(len(self), KERNEL**self.ndim, dtype=torch.int32, device=self.device)
        for tap, offset in enumerate(product((-1, 0, 1), repeat=self.ndim)):
            wanted = keys + int(_numbered(torch.tensor([[0, *offset]]), sizes))
            place = torch.searchsorted(ordered, wanted).clamp(max=len(ordered) - 1)
            found[:, tap] = torch.where(ordered[place] == wanted, rows[place], -1).int()
        return found

    @cached_property
    def by_item(self) -> Grouping:
        """The cells of each item."""
        return Grouping.of(self.coords[:, 0])

    def windows(self, size: int, shift: int = 0) -> Grouping:
        """The cells of each cube of `size` cells per axis, which begin `shift` cells before the grid."""
        key = ("windows", size, shift)
        if key not in self.kept:
            coords = self.coords.clone()
            coords[:, 1:] = (coords[:, 1:] + shift) // size
            self.kept[key] = Grouping.of(_numbered(coords, [int(most) + 1 for most in coords[:, 1:].amax(dim=0)]))
        found: Grouping = self.kept[key]
        return found

    def coarser(self, factor: int = 2) -> tuple[Cells, Tensor]:
        """Cells of `factor` cells per axis, sorted by item and place, and the row of each cell's own `(N,)`."""
        key = ("coarser", factor)
        if key not in self.kept:
            coords = self.coords.clone()
            coords[:, 1:] //= factor
            unique, parent = torch.unique(coords, dim=0, return_inverse=True)
            self.kept[key] = Cells(unique, self.items), parent
        found: tuple[Cells, Tensor] = self.kept[key]
        return found

    @cached_property
    def finer(self) -> Cells:
        """Every cell cut in half along each axis: its children in a row, the last axis fastest."""
        return _Children(self)


class _Children(Cells):
    """Cells that were cut: their neighbours follow from their parents', without a search."""

    def __init__(self, parents: Cells):
        self.parents = parents
        offsets = torch.tensor(list(product((0, 1), repeat=parents.ndim)), device=parents.device)
        self.offsets = offsets
        doubled = parents.coords.clone()
        doubled[:, 1:] *= 2
        coords = (doubled[:, None] + F.pad(offsets, (1, 0))).flatten(0, 1)
        super().__init__(coords, parents.items)

    @cached_property
    def neighbours(self) -> Tensor:
        """As those of `Cells`."""
        ndim, children = self.ndim, len(self.offsets)
        taps = torch.tensor(list(product((-1, 0, 1), repeat=ndim)), device=self.device)
        place = self.offsets[:, None] + taps  # of each child's neighbours, from the parent's corner
        weights = torch.tensor([KERNEL**axis for axis in reversed(range(ndim))], device=self.device)
        halves = torch.tensor([2**axis for axis in reversed(range(ndim))], device=self.device)
        parent_tap = ((place // 2 + 1) * weights).sum(dim=-1)
        child = ((place % 2) * halves).sum(dim=-1).int()
        found = torch.empty(len(self), KERNEL**ndim, dtype=torch.int32, device=self.device)
        blocks = self.parents.neighbours.split(BLOCK)
        for block, out in zip(blocks, found.split(BLOCK * children), strict=True):
            parent = block[:, parent_tap]
            out.copy_(torch.where(parent >= 0, parent * children + child, -1).flatten(0, 1))
        return found


@dataclass(frozen=True)
class SparseTensor:
    """Features of cells.

    Attributes:
        features: `(N, C)`.
        cells: where they are.

    Raises:
        SettingError: not one row for each cell.
    """

    features: Tensor
    cells: Cells

    def __post_init__(self) -> None:
        if len(self.features) != len(self.cells):
            raise SettingError(f"features: expected {len(self.cells)} rows, got {len(self.features)}")

    @classmethod
    def of(cls, features: Tensor, coords: Tensor, items: int | None = None) -> SparseTensor:
        """From features `(N, C)` and coordinates as `Cells` has them."""
        return cls(features, Cells(coords, items))

    def with_features(self, features: Tensor) -> SparseTensor:
        """Other features of the same cells."""
        return SparseTensor(features, self.cells)


class SubmanifoldConv(nn.Module):
    """A 3-wide convolution at occupied cells, `(N, C_in) -> (N, C_out)`; see `ops.submanifold`.

    Args:
        in_channels, out_channels: features.
        ndim: axes of the grid.
        zero: whether it starts at zero, as the last layer of a residual branch.
    """

    def __init__(self, in_channels: int, out_channels: int, *, ndim: int = 3, zero: bool = False):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(KERNEL**ndim, in_channels, out_channels))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        if not zero:
            bound = (in_channels * KERNEL**ndim) ** -0.5
            nn.init.uniform_(self.weight, -bound, bound)

    def forward(self, x: SparseTensor) -> SparseTensor:
        """Convolve."""
        return SparseTensor(self.at(x.features, x.cells), x.cells)

    def at(self, features: Tensor, cells: Cells, *, repeats: int = 1) -> Tensor:
        """Features of `cells` from their own, or from their parents' with `repeats` children each."""
        dtype = nd.autocast_dtype(features) or features.dtype
        each = (features.to(dtype), cells.neighbours, self.weight.to(dtype), self.bias.to(dtype))
        return submanifold_convolve(*each, repeats=repeats)


class SparseGroupNorm(nn.Module):
    """Group normalisation over the cells of each item, `(N, C)` (Wu & He 2018, arXiv:1803.08494)."""

    def __init__(self, groups: int, channels: int, *, eps: float = 1e-5):
        super().__init__()
        if channels % groups:
            raise SettingError(f"groups: {groups} groups can't share {channels} channels evenly")
        self.groups, self.eps = groups, eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: SparseTensor) -> SparseTensor:
        """Normalise."""
        shape, each = (x.cells.items, x.features.shape[1]), []
        scale, shift = x.features.new_zeros(shape), x.features.new_zeros(shape)
        for rows in (rows for bucket in x.cells.by_item.buckets for rows in bucket):
            own = x.features if len(rows) == len(x.cells) else x.features[rows]
            variance, mean = torch.var_mean(own.unflatten(1, (self.groups, -1)), dim=(0, 2), correction=0)
            each.append((x.cells.coords[rows[0], 0], mean, (variance + self.eps).rsqrt()))
        items = torch.stack([item for item, _, _ in each])
        means, factors = (
            torch.stack([one[place] for one in each]).repeat_interleave(shape[1] // self.groups, dim=1)
            for place in (1, 2)
        )
        scale = scale.index_copy(0, items, factors * self.weight)
        shift = shift.index_copy(0, items, self.bias - means * factors * self.weight)
        if x.cells.items > 1:
            of = x.cells.coords[:, 0]
            scale, shift = scale[of], shift[of]
        return x.with_features(torch.addcmul(shift, x.features, scale))


def subdivide(x: SparseTensor) -> SparseTensor:
    """Every cell cut in half along each axis; children have the features of their parent."""
    finer = x.cells.finer
    return SparseTensor(x.features.repeat_interleave(len(finer) // len(x.cells), dim=0), finer)


def subdivided_convolve(x: SparseTensor, layer: SubmanifoldConv) -> SparseTensor:
    """`layer(subdivide(x))`, without the children's copies of their parents' features."""
    finer = x.cells.finer
    return SparseTensor(layer.at(x.features, finer, repeats=len(finer) // len(x.cells)), finer)


def _numbered(coords: Tensor, sizes: Sequence[int]) -> Tensor:
    """One number for each place, `(N, 1 + ndim) -> (N,)` int64, for places below `sizes`."""
    number = coords[:, 0]
    for axis, size in enumerate(sizes, start=1):
        number = number * size + coords[:, axis]
    return number
