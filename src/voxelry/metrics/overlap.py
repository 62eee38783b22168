"""How two sets of instances overlap: one sparse contingency table, never an array per object."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voxelry.core.errors import SettingError
from voxelry.ops.instances import Instances

__all__ = ["Overlaps", "Source", "box_overlaps", "label_boxes", "mask_overlaps"]

_SLAB = 1 << 24  # voxels compared at a time

Source = Instances | NDArray[np.integer]
"""Instances with masks, or a label volume `(*spatial)` of integer ids, 0 for background."""


@dataclass(frozen=True, eq=False)
class Overlaps:
    """Pairs that overlap, and the size of every object; positions are ranks of ids, from 0.

    Attributes:
        predicted, truth: `(E,)` int64, the two objects of each overlapping pair.
        shared: `(E,)` float64, what they share (voxels).
        predicted_sizes: `(P,)` float64.
        truth_sizes: `(T,)` float64.
    """

    predicted: NDArray[np.int64]
    truth: NDArray[np.int64]
    shared: NDArray[np.float64]
    predicted_sizes: NDArray[np.float64]
    truth_sizes: NDArray[np.float64]

    def keep(self, *, predicted: NDArray[np.bool_] | None = None, truth: NDArray[np.bool_] | None = None) -> Overlaps:
        """Without the predictions `(P,)` and the true objects `(T,)` that aren't marked; None keeps all."""
        predicted = np.ones(len(self.predicted_sizes), dtype=bool) if predicted is None else predicted
        truth = np.ones(len(self.truth_sizes), dtype=bool) if truth is None else truth
        edges = predicted[self.predicted] & truth[self.truth]
        return Overlaps(
            (np.cumsum(predicted) - 1)[self.predicted[edges]],
            (np.cumsum(truth) - 1)[self.truth[edges]],
            self.shared[edges],
            self.predicted_sizes[predicted],
            self.truth_sizes[truth],
        )

    @property
    def iou(self) -> NDArray[np.float64]:
        """Intersection over union of each pair, `(E,)` in (0, 1]."""
        union = self.predicted_sizes[self.predicted] + self.truth_sizes[self.truth] - self.shared
        return self.shared / union


def mask_overlaps(prediction: Source, truth: Source) -> Overlaps:
    """Shared voxels of every pair of masks that meet.

    Two label volumes are compared slab by slab through a histogram of paired ids; overlapping masks, each
    inside its own window. Objects of a label volume are numbered by growing id; an id without a voxel doesn't
    exist.

    Raises:
        SettingError: label volumes of different shapes, or no integers.
    """
    if isinstance(prediction, Instances) and isinstance(truth, Instances):
        return _of_crops(prediction, truth)
    if isinstance(prediction, Instances):
        return _of_crops_and_labels(prediction, truth)
    if isinstance(truth, Instances):
        turned = _of_crops_and_labels(truth, prediction)
        return Overlaps(turned.truth, turned.predicted, turned.shared, turned.truth_sizes, turned.predicted_sizes)
    return _of_labels(prediction, truth)


def box_overlaps(prediction: NDArray[np.floating], truth: NDArray[np.floating]) -> Overlaps:
    """Shared volume of every pair of boxes that meet, `(P, 2 * ndim), (T, 2 * ndim)`."""
    first, second = np.asarray(prediction, dtype=np.float64), np.asarray(truth, dtype=np.float64)
    ndim = second.shape[1] // 2
    pairs: list[NDArray[np.int64]] = []
    shared = []
    for row, box in enumerate(first):
        sides = np.minimum(box[ndim:], second[:, ndim:]) - np.maximum(box[:ndim], second[:, :ndim])
        meets = np.flatnonzero((sides > 0).all(axis=1))
        pairs.append(np.stack([np.full(len(meets), row), meets], axis=1))
        shared.append(sides[meets].prod(axis=1))
    flat = np.concatenate([np.zeros((0, 2), dtype=np.int64), *pairs])
    sizes = [np.clip(boxes[:, ndim:] - boxes[:, :ndim], 0, None).prod(axis=1) for boxes in (first, second)]
    return Overlaps(flat[:, 0], flat[:, 1], np.concatenate([np.zeros(0), *shared]), sizes[0], sizes[1])


def label_boxes(labels: Any) -> tuple[NDArray[np.uint64], NDArray[np.float64]]:
    """Ids above 0 of a label volume by growing id, and their boxes `(T, 2 * ndim)`, slab by slab."""
    from scipy.ndimage import find_objects

    ndim = len(labels.shape)
    boxes: dict[int, NDArray[np.float64]] = {}
    step = max(1, _SLAB // max(1, int(np.prod(labels.shape[1:]))))
    for start in range(0, labels.shape[0], step):
        part = _ids(labels[start : start + step], "labels")
        ids = _count(part)[0]
        ids = ids[ids > 0]
        compact = np.where(part > 0, np.searchsorted(ids, part) + 1, 0).astype(np.int32)
        for number, window in zip(ids.tolist(), find_objects(compact, max_label=len(ids)), strict=True):
            box = np.array([side.start for side in window] + [side.stop for side in window], dtype=np.float64) - 0.5
            box[[0, ndim]] += start
            known = boxes.get(number, box)
            boxes[number] = np.concatenate([np.minimum(known[:ndim], box[:ndim]), np.maximum(known[ndim:], box[ndim:])])
    order = sorted(boxes)
    return np.array(order, dtype=np.uint64), np.array([boxes[i] for i in order]).reshape(-1, 2 * ndim)


def _of_labels(prediction: Any, truth: Any) -> Overlaps:
    if tuple(prediction.shape) != tuple(truth.shape):
        raise SettingError(f"prediction: expected shape {tuple(truth.shape)} like the truth, got {prediction.shape}")
    table: dict[str, list[Any]] = {"predicted": [], "truth": [], "count": []}
    step = max(1, _SLAB // max(1, int(np.prod(truth.shape[1:]))))
    for start in range(0, truth.shape[0], step):
        first = _ids(prediction[start : start + step], "prediction").ravel()
        second = _ids(truth[start : start + step], "truth").ravel()
        occupied = (first > 0) | (second > 0)
        first_ids, first_ranks = np.unique(first[occupied], return_inverse=True)
        second_ids, second_ranks = np.unique(second[occupied], return_inverse=True)
        if len(first_ids):
            found, counts = _histogram(first_ranks * len(second_ids) + second_ranks, len(first_ids) * len(second_ids))
            table["predicted"].append(first_ids[found // len(second_ids)].astype(np.uint64))
            table["truth"].append(second_ids[found % len(second_ids)].astype(np.uint64))
            table["count"].append(counts)
    empty = np.zeros(0, dtype=np.uint64)
    predicted, true = (np.concatenate([empty, *table[name]]) for name in ("predicted", "truth"))
    count = np.concatenate([np.zeros(0), *table["count"]])
    predicted_ids, predicted_ranks = np.unique(predicted, return_inverse=True)
    true_ids, true_ranks = np.unique(true, return_inverse=True)
    predicted_sizes = _sums(predicted_ranks, count, len(predicted_ids))
    true_sizes = _sums(true_ranks, count, len(true_ids))
    keys, where = np.unique(np.stack([predicted_ranks, true_ranks], axis=1), axis=0, return_inverse=True)
    shared = _sums(where.ravel(), count, len(keys))
    # background, id 0, sorts first where it occurs
    skip_first, skip_second = int(0 in predicted_ids[:1]), int(0 in true_ids[:1])
    real = (keys[:, 0] >= skip_first) & (keys[:, 1] >= skip_second)
    return Overlaps(
        keys[real, 0] - skip_first,
        keys[real, 1] - skip_second,
        shared[real],
        predicted_sizes[skip_first:],
        true_sizes[skip_second:],
    )


def _histogram(keys: NDArray[np.int64], limit: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Which of the keys below `limit` occur, and how often."""
    if limit > 4 * len(keys) + 1024:  # a table of all pairs would be larger than the image
        return np.unique(keys, return_counts=True)
    counts = np.bincount(keys, minlength=limit)
    found = np.flatnonzero(counts)
    return found, counts[found]


def _of_crops_and_labels(instances: Instances, labels: Any) -> Overlaps:
    """Instances against a label volume; rows are instances, columns the ids of the volume."""
    ids, sizes = _count_ids(labels)
    rows, columns, shared = [], [], []
    for row, (window, mask) in enumerate(instances.crops):
        beneath = _ids(labels[window], "labels")
        if beneath.shape != mask.shape:
            raise SettingError(f"prediction: a mask in window {window} leaves the truth of shape {labels.shape}")
        found, counts = np.unique(beneath[mask], return_counts=True)
        counts = counts[found > 0]
        found = found[found > 0].astype(np.uint64)
        rows.append(np.full(len(found), row))
        columns.append(np.searchsorted(ids, found))
        shared.append(counts)
    none = np.zeros(0, dtype=np.int64)
    return Overlaps(
        np.concatenate([none, *rows]),
        np.concatenate([none, *columns]),
        np.concatenate([np.zeros(0), *shared]),
        instances.voxels().astype(np.float64),
        sizes,
    )


def _of_crops(prediction: Instances, truth: Instances) -> Overlaps:
    low, high = prediction.windows()
    other_low, other_high = truth.windows()
    rows, columns, shared = [], [], []
    for row in range(len(prediction)):
        meets = np.logical_and(low[row] < other_high, high[row] > other_low).all(axis=1)
        if not meets.any():
            continue
        window, mask = prediction.crops[row]
        for column in np.flatnonzero(meets).tolist():
            other, other_mask = truth.crops[column]
            starts = [max(a.start, b.start) for a, b in zip(window, other, strict=True)]
            stops = [min(a.stop, b.stop) for a, b in zip(window, other, strict=True)]
            one, two = (
                tuple(slice(s - part.start, e - part.start) for s, e, part in zip(starts, stops, place, strict=True))
                for place in (window, other)
            )
            both = int(np.count_nonzero(mask[one] & other_mask[two]))
            if both:
                rows.append(row)
                columns.append(column)
                shared.append(both)
    return Overlaps(
        np.array(rows, dtype=np.int64),
        np.array(columns, dtype=np.int64),
        np.array(shared, dtype=np.float64),
        prediction.voxels().astype(np.float64),
        truth.voxels().astype(np.float64),
    )


def _count_ids(labels: Any) -> tuple[NDArray[np.uint64], NDArray[np.float64]]:
    """Ids above 0 of a label volume and their voxels, slab by slab."""
    step = max(1, _SLAB // max(1, int(np.prod(labels.shape[1:]))))
    ids, counts = [np.zeros(0, dtype=np.uint64)], [np.zeros(0)]
    for start in range(0, labels.shape[0], step):
        found, number = _count(_ids(labels[start : start + step], "labels"))
        ids.append(found[found > 0].astype(np.uint64))
        counts.append(number[found > 0].astype(np.float64))
    unique, ranks = np.unique(np.concatenate(ids), return_inverse=True)
    return unique, _sums(ranks, np.concatenate(counts), len(unique))


def _count(part: NDArray[np.integer]) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Ids that occur and how often; without sorting the voxels where the ids are small."""
    if not part.size or int(part.max()) > part.size:
        return np.unique(part, return_counts=True)
    counts = np.bincount(part.ravel().astype(np.int64, copy=False))
    ids = np.flatnonzero(counts)
    return ids, counts[ids]


def _sums(ranks: NDArray[np.integer], weights: NDArray[np.floating], count: int) -> NDArray[np.float64]:
    """Sum of the weights of each rank below `count`."""
    return np.bincount(ranks, weights, count).astype(np.float64, copy=False)


def _ids(part: Any, name: str) -> NDArray[Any]:
    array = np.asarray(part)
    if array.dtype.kind not in "ui":
        raise SettingError(f"{name}: expected integer instance ids, got {array.dtype}")
    if array.dtype.kind == "i" and array.size and array.min() < 0:
        raise SettingError(f"{name}: expected ids from 0, got {array.min()}")
    return array
