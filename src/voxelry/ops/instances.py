"""Instances of one image without dense masks: boxes, scores, classes, and each mask inside its own window.

Index coordinates as everywhere: voxel `i` spans `i - 0.5` to `i + 0.5`, boxes are all lows then all highs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from voxelry.core.errors import SettingError
from voxelry.ops.rle import Crop

__all__ = ["Crop", "Instances", "LabelVolume", "PackedCrops", "disjoint", "from_labels", "paint_blocks"]

Window = tuple[slice, ...]


class PackedCrops(Sequence[Crop]):
    """Masks at one bit per voxel of their windows; an item is unpacked when it is asked for.

    Args:
        starts: `(K, ndim)` int64, first voxel of each window.
        sizes: `(K, ndim)` int64, voxels of each window along each axis.
        bits: uint8, the masks one after the other, each in C order and padded to whole bytes.
    """

    def __init__(self, starts: NDArray[np.int64], sizes: NDArray[np.int64], bits: NDArray[np.uint8]):
        self.starts = np.asarray(starts, dtype=np.int64)
        self.sizes = np.asarray(sizes, dtype=np.int64)
        self.bits = np.asarray(bits, dtype=np.uint8)
        lengths = -(-self.sizes.prod(axis=1) // 8) if len(self.sizes) else np.zeros(0, dtype=np.int64)
        self._ends = np.concatenate([[0], np.cumsum(lengths)])
        if self.starts.shape != self.sizes.shape or self.bits.shape != (self._ends[-1],):
            raise SettingError(
                f"bits: expected {self._ends[-1]} bytes for {len(self.sizes)} windows, got {self.bits.shape}"
            )

    @classmethod
    def pack(cls, crops: Sequence[Crop], ndim: int) -> Self:
        """Pack masks with their windows; `ndim` is the rank of an empty list."""
        starts = np.array([[part.start for part in window] for window, _ in crops], dtype=np.int64)
        sizes = np.array([mask.shape for _, mask in crops], dtype=np.int64)
        bits = [np.packbits(np.ascontiguousarray(mask, dtype=bool).ravel()) for _, mask in crops]
        flat = np.concatenate(bits) if bits else np.zeros(0, dtype=np.uint8)
        return cls(starts.reshape(-1, ndim), sizes.reshape(-1, ndim), flat)

    @classmethod
    def join(cls, parts: Sequence[PackedCrops], ndim: int) -> Self:
        """One after the other, without unpacking."""
        empty = np.zeros((0, ndim), dtype=np.int64)
        return cls(
            np.concatenate([empty, *(part.starts for part in parts)]),
            np.concatenate([empty, *(part.sizes for part in parts)]),
            np.concatenate([np.zeros(0, dtype=np.uint8), *(part.bits for part in parts)]),
        )

    def take(self, indices: Sequence[int] | NDArray[np.integer]) -> Self:
        """Some of them, in the given order, without unpacking."""
        chosen = np.asarray(indices, dtype=np.int64)
        parts = [self.bits[self._ends[i] : self._ends[i + 1]] for i in chosen]
        flat = np.concatenate(parts) if parts else np.zeros(0, dtype=np.uint8)
        return type(self)(self.starts[chosen], self.sizes[chosen], flat)

    def shift(self, offset: Sequence[int] | NDArray[np.integer]) -> Self:
        """The same masks in windows moved by whole voxels."""
        return type(self)(self.starts + np.asarray(offset, dtype=np.int64), self.sizes, self.bits)

    def voxels(self) -> NDArray[np.int64]:
        """Number of voxels of each mask, `(K,)`; the padding holds none."""
        places = zip(
            self._ends[:-1], self._ends[1:], strict=True
        )  # one by one: sums of all bytes would be 8 times theirs
        counts = (np.bitwise_count(self.bits[start:end]).sum(dtype=np.int64) for start, end in places)
        return np.fromiter(counts, dtype=np.int64, count=len(self))

    def voxels_in(
        self, indices: NDArray[np.int64], low: NDArray[np.int64], high: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """Voxels of some masks in a region each, `(P,)`, without unpacking.

        Args:
            indices: `(P,)` masks.
            low, high: `(P, ndim)` first voxel of each region and the one after its last.
        """
        from voxelry.ops.kernels.packed import count_inside

        low = np.maximum(low, self.starts[indices])
        high = np.minimum(high, self.starts[indices] + self.sizes[indices])
        counts = np.zeros(len(indices), dtype=np.int64)
        count_inside(self.bits, self._ends[:-1], self.starts, self.sizes, indices, low, high, counts)
        return counts

    def shared_voxels(
        self,
        first: NDArray[np.int64],
        second: NDArray[np.int64],
        low: NDArray[np.int64] | None = None,
        high: NDArray[np.int64] | None = None,
    ) -> NDArray[np.int64]:
        """Voxels that pairs of masks share, `(P,)`, without unpacking.

        Args:
            first, second: `(P,)` masks.
            low, high: `(P, ndim)` a region for each pair, outside which nothing counts; everywhere if not given.
        """
        from voxelry.ops.kernels.packed import count_shared

        begin = np.maximum(self.starts[first], self.starts[second])
        end = np.minimum(self.starts[first] + self.sizes[first], self.starts[second] + self.sizes[second])
        begin = begin if low is None else np.maximum(begin, low)
        end = end if high is None else np.minimum(end, high)
        counts = np.zeros(len(first), dtype=np.int64)
        count_shared(self.bits, self._ends[:-1], self.starts, self.sizes, first, second, begin, end, counts)
        return counts

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index = int(index) % len(self)
        size = tuple(int(length) for length in self.sizes[index])
        bits = self.bits[self._ends[index] : self._ends[index + 1]]
        mask = np.unpackbits(bits, count=prod(size)).view(bool).reshape(size)
        window = tuple(
            slice(int(start), int(start) + length) for start, length in zip(self.starts[index], size, strict=True)
        )
        return window, mask


@dataclass(frozen=True, eq=False)
class Instances:
    """K objects of one image.

    Attributes:
        boxes: `(K, 2 * ndim)` float32, continuous index coordinates.
        scores: `(K,)` float32 in [0, 1]; 1 where the objects are annotations.
        classes: `(K,)` int64, from 1.
        crops: K windows with their masks; masks may overlap.
    """

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    classes: NDArray[np.int64]
    crops: Sequence[Crop]

    def __post_init__(self) -> None:
        boxes = np.asarray(self.boxes, dtype=np.float32)
        count = len(self.crops)
        if boxes.ndim != 2 or boxes.shape[1] % 2 or {len(boxes), len(self.scores), len(self.classes)} != {count}:
            raise SettingError(
                f"instances: expected boxes (K, 2 * ndim), K scores, classes and crops, got boxes {boxes.shape}, "
                f"{len(self.scores)} scores, {len(self.classes)} classes and {count} crops"
            )
        object.__setattr__(self, "boxes", boxes)
        object.__setattr__(self, "scores", np.asarray(self.scores, dtype=np.float32))
        object.__setattr__(self, "classes", np.asarray(self.classes, dtype=np.int64))

    @classmethod
    def empty(cls, ndim: int) -> Self:
        """No objects in an image of rank `ndim`."""
        return cls(np.zeros((0, 2 * ndim)), np.zeros(0), np.zeros(0), [])  # type: ignore[arg-type]

    @property
    def ndim(self) -> int:
        """Number of spatial axes."""
        return self.boxes.shape[1] // 2

    def __len__(self) -> int:
        return len(self.crops)

    def packed(self) -> PackedCrops:
        """The masks at one bit per voxel."""
        return self.crops if isinstance(self.crops, PackedCrops) else PackedCrops.pack(self.crops, self.ndim)

    def voxels(self) -> NDArray[np.int64]:
        """Number of voxels of each mask, `(K,)`."""
        if isinstance(self.crops, PackedCrops):
            return self.crops.voxels()
        return np.array([np.count_nonzero(mask) for _, mask in self.crops], dtype=np.int64)

    def windows(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """First voxel of each mask's window and the one after its last, `(K, ndim)` each."""
        if isinstance(self.crops, PackedCrops):
            return self.crops.starts, self.crops.starts + self.crops.sizes
        low = np.array([[part.start for part in window] for window, _ in self.crops], dtype=np.int64)
        high = np.array([[part.stop for part in window] for window, _ in self.crops], dtype=np.int64)
        return low.reshape(-1, self.ndim), high.reshape(-1, self.ndim)

    def take(self, indices: Sequence[int] | NDArray[np.integer]) -> Self:
        """Some of them, in the given order."""
        chosen = np.asarray(indices, dtype=np.int64)
        crops: Sequence[Crop] = (
            self.crops.take(chosen) if isinstance(self.crops, PackedCrops) else [self.crops[i] for i in chosen]
        )
        return type(self)(self.boxes[chosen], self.scores[chosen], self.classes[chosen], crops)


def from_labels(labels: Any, classes: Any = None, scores: Any = None) -> Instances:
    """The instances of a label volume `(*spatial)`, 0 for background, by growing id.

    Args:
        labels: integer ids.
        classes: class of the k-th smallest id present, `(K,)`; all 1 if not given.
        scores: the same for scores; all 1 if not given.

    Raises:
        SettingError: no integers, negative ids, or classes or scores of another number.
    """
    from scipy.ndimage import find_objects

    labels = np.asarray(labels)
    if labels.dtype.kind not in "ui":
        raise SettingError(f"labels: expected integer instance ids, got {labels.dtype}")
    if labels.size and labels.min() < 0:
        raise SettingError(f"labels: expected ids from 0, got {labels.min()}")
    ids = np.unique(labels)
    ids = ids[ids > 0]
    compact: NDArray[np.int32] = np.where(labels > 0, np.searchsorted(ids, labels) + 1, 0).astype(np.int32)
    crops: list[Crop] = []
    for number, window in enumerate(find_objects(compact, max_label=len(ids)), start=1):
        assert window is not None
        crops.append((window, np.equal(compact[window], number)))
    boxes = [[part.start - 0.5 for part in w] + [part.stop - 0.5 for part in w] for w, _ in crops]
    return Instances(
        np.array(boxes, dtype=np.float32).reshape(-1, 2 * labels.ndim),
        np.ones(len(ids), dtype=np.float32) if scores is None else scores,
        np.ones(len(ids), dtype=np.int64) if classes is None else classes,
        crops,
    )


def paint_blocks(
    instances: Instances, shape: Sequence[int], block: Sequence[int] | None = None
) -> Iterator[tuple[Window, NDArray[np.int32]]]:
    """A label volume block by block, `(window, (*window) int32)`; id k + 1 is the k-th instance.

    Where masks overlap the higher score has the voxel; equal scores, the lower id. Only one block is held.

    Args:
        shape: of the whole volume; parts of masks outside are left out.
        block: voxels of a block along each axis; the whole volume if not given.
    """
    from itertools import product

    size = tuple(int(length) for length in (shape if block is None else block))
    low, high = instances.windows()
    # painted in this order, so that the last word is that of the highest score and, among equals, the lowest id
    order = np.lexsort((-np.arange(len(instances)), instances.scores))
    for corner in product(*(range(0, int(length), step) for length, step in zip(shape, size, strict=True))):
        start = np.asarray(corner)
        stop = np.minimum(start + size, shape)
        out = np.zeros(tuple(stop - start), dtype=np.int32)
        outside = np.any((low >= stop) | (high <= start), axis=1)
        for number in order[~np.take(outside, order)].tolist():
            window, mask = instances.crops[number]
            first = [max(part.start, int(a)) for part, a in zip(window, start, strict=True)]
            last = [min(part.stop, int(b)) for part, b in zip(window, stop, strict=True)]
            inside = tuple(
                slice(a - part.start, b - part.start) for a, b, part in zip(first, last, window, strict=True)
            )
            place = tuple(slice(a - int(c), b - int(c)) for a, b, c in zip(first, last, start, strict=True))
            out[place][mask[inside]] = number + 1
        yield tuple(slice(int(a), int(b)) for a, b in zip(start, stop, strict=True)), out


class LabelVolume:
    """The label volume of some instances, painted where it is looked at: it takes no memory of its own.

    Cut it with slices of step 1, one per axis or the first ones, or take it whole with `numpy.asarray`.

    Args:
        instances: id k + 1 is the k-th.
        shape: of the volume.
    """

    dtype = np.dtype(np.int32)

    def __init__(self, instances: Instances, shape: Sequence[int]):
        self.instances = instances
        self.shape = tuple(int(size) for size in shape)
        self.ndim = len(self.shape)

    def __getitem__(self, window: slice | Window) -> NDArray[np.int32]:
        given = window if isinstance(window, tuple) else (window,)
        if len(given) > self.ndim or any(part.step not in (None, 1) for part in given):
            raise SettingError(f"window: expected up to {self.ndim} slices without a step, got {window}")
        full = (*given, *(slice(None),) * (self.ndim - len(given)))
        bounds = [part.indices(size)[:2] for part, size in zip(full, self.shape, strict=True)]
        start = [low for low, _ in bounds]
        size = [max(0, high - low) for low, high in bounds]
        if 0 in size:
            return np.zeros(size, dtype=np.int32)
        low, high = self.instances.windows()
        inside = np.flatnonzero(np.all((low < np.add(start, size)) & (high > start), axis=1))
        chosen = self.instances.take(inside)
        moved = Instances(
            chosen.boxes, chosen.scores, chosen.classes, chosen.packed().shift([-first for first in start])
        )
        ((_, painted),) = paint_blocks(moved, size)
        ids: NDArray[np.int32] = np.concatenate([[0], inside + 1]).astype(np.int32)
        return ids[painted]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return self[(slice(None),) * self.ndim].astype(self.dtype if dtype is None else dtype, copy=False)


def disjoint(instances: Instances) -> Instances:
    """The same instances with the voxels that a label volume shows of each: masks without overlaps, some of them empty.

    Where masks overlap the higher score has the voxel; equal scores, the lower id.
    """
    _, high = instances.windows()
    volume = LabelVolume(instances, high.max(axis=0, initial=0).tolist())
    crops = [(window, volume[window] == number) for number, (window, _) in enumerate(instances.crops, start=1)]
    return Instances(instances.boxes, instances.scores, instances.classes, PackedCrops.pack(crops, instances.ndim))
