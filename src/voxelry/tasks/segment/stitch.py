"""From the detections of overlapping tiles to the objects of the whole volume.

Two tiles see the same object in the region they share, so that is where they are compared: detections whose
masks agree there are one object. Where one tile saw the whole of it, its mask is the object's; an object that
every tile cut is the union of its parts. What is left of double detections falls to non-maximum suppression
between tiles.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voxelry.ops.instances import Instances, PackedCrops

__all__ = ["TileDetections", "candidate_pairs", "stitch"]

_TOUCHING = 0.25  # share of the smaller mask above which boxes that overlap are the same object seen twice


@dataclass(frozen=True, eq=False)
class TileDetections:
    """Detections of all tiles in the index coordinates of the whole volume.

    Attributes:
        instances: N detections, packed; tile by tile, in the detector's own order.
        tiles: `(N,)` number of the tile that each comes from.
        cut: `(N,)` whether its mask reaches a border of its tile that is not one of the volume.
        windows: `(tiles, 2 * ndim)` int64 first voxel and the one after the last of each tile.
    """

    instances: Instances
    tiles: NDArray[np.int64]
    cut: NDArray[np.bool_]
    windows: NDArray[np.int64]


def stitch(
    found: TileDetections, *, join_iou: float = 0.5, nms_iou: float = 0.5, least_score: float = 0.0
) -> Instances:
    """One instance per object, by falling score (ties: the detection of the earlier tile first).

    Args:
        join_iou: detections of one class in two tiles are one object if the IoU of their masks, within what
            both tiles see, is at least this. Above 1/2 no detection can join two disjoint ones of another tile.
        nms_iou: of the joined objects of one class, those that share no tile and whose boxes overlap by more
            than this while their masks touch by a quarter of the smaller one are the same: the best stays.
        least_score: objects whose best detection has less are left out; the others are what they would be with them.
    """
    ndim = found.instances.ndim
    if not len(found.instances):
        return Instances.empty(ndim)
    ids = (found.tiles.astype(np.uint64) << np.uint64(32)) | _rank_in_tile(found.tiles)
    groups = _groups(found, join_iou, least_score)
    if not groups:
        return Instances.empty(ndim)
    objects = [_merge(found, members[np.argsort(ids[members], kind="stable")]) for members in groups]
    boxes = np.stack([box for box, *_ in objects])
    scores = np.array([score for _, score, *_ in objects], dtype=np.float32)
    classes = np.array([number for *_, number, _ in objects], dtype=np.int64)
    first = np.array([ids[members].min() for members in groups])
    crops = PackedCrops.join([crop for *_, crop in objects], ndim)
    tiles = [set(found.tiles[members].tolist()) for members in groups]
    merged = Instances(boxes, scores, classes, crops)
    return merged.take(_suppress(merged, np.lexsort((first, -scores)), tiles, nms_iou))


def candidate_pairs(
    boxes: NDArray[np.floating], cell: Sequence[float] | NDArray[Any] | None = None
) -> NDArray[np.int64]:
    """Pairs `(P, 2)` with `i < j` of boxes that overlap, found through a grid of cells instead of N × N.

    Args:
        boxes: `(N, 2 * ndim)`.
        cell: side of the grid's cells per axis; by default twice the mean of the boxes' sides.
    """
    boxes = np.asarray(boxes, dtype=np.float64)
    ndim = boxes.shape[1] // 2
    if cell is None:
        cell = np.maximum(1.0, 2 * (boxes[:, ndim:] - boxes[:, :ndim]).mean(axis=0)) if len(boxes) else np.ones(ndim)
    buckets: dict[tuple[int, ...], list[int]] = {}
    low = np.floor(boxes[:, :ndim] / cell).astype(np.int64)
    high = np.floor(boxes[:, ndim:] / cell).astype(np.int64)
    for number, (a, b) in enumerate(zip(low.tolist(), high.tolist(), strict=True)):
        for place in product(*(range(s, e + 1) for s, e in zip(a, b, strict=True))):
            buckets.setdefault(place, []).append(number)
    pairs = []
    for place, members in buckets.items():
        if len(members) == 1:
            continue
        i, j = np.triu_indices(len(members), 1)
        one, other = np.asarray(members)[i], np.asarray(members)[j]
        start = np.maximum(boxes[one, :ndim], boxes[other, :ndim])
        meets = (np.minimum(boxes[one, ndim:], boxes[other, ndim:]) > start).all(axis=1)
        # a pair that meets in several cells belongs to the one in which what they share begins
        here = (np.maximum(low[one], low[other]) == place).all(axis=1)
        pairs.append(np.stack([one, other], axis=1)[meets & here])
    found = np.concatenate([np.zeros((0, 2), dtype=np.int64), *pairs])
    return found[np.lexsort((found[:, 1], found[:, 0]))]


def _rank_in_tile(tiles: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Position of each detection among those of its tile; `tiles` is sorted."""
    starts = np.searchsorted(tiles, tiles, side="left")
    return (np.arange(len(tiles)) - starts).astype(np.uint64)


def _groups(found: TileDetections, join_iou: float, least_score: float) -> list[NDArray[np.int64]]:
    """Detections that are one object: the connected components of agreeing pairs with a score that is enough."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    low, high = found.instances.windows()
    pairs = candidate_pairs(np.concatenate([low, high], axis=1))
    tiles, classes = found.tiles, found.instances.classes
    i, j = pairs.T
    pairs = pairs[(tiles[i] != tiles[j]) & (classes[i] == classes[j])]
    reached = found.instances.scores >= least_score
    agreeing = [np.zeros((0, 2), dtype=np.int64)]
    # what no chain of agreeing pairs links to a sure detection is never compared
    due = reached[pairs].any(axis=1)
    while due.any():
        agree = pairs[due][_agree(found, pairs[due], join_iou)]
        agreeing.append(agree)
        reached[agree] = True
        pairs = pairs[~due]
        due = reached[pairs].any(axis=1)
    i, j = np.concatenate(agreeing).T
    count = len(tiles)
    _, labels = connected_components(coo_array((np.ones(len(i)), (i, j)), shape=(count, count)), directed=False)
    members = np.flatnonzero(reached)
    order = members[np.argsort(labels[members], kind="stable")]
    if not len(order):
        return []
    return np.split(order, np.flatnonzero(np.diff(labels[order])) + 1)


def _agree(found: TileDetections, pairs: NDArray[np.int64], join_iou: float) -> NDArray[np.bool_]:
    """Whether the IoU of two masks within the region that both tiles see is enough, `(P, 2) -> (P,)`.

    It is 0 where neither has a voxel there.
    """
    ndim = found.instances.ndim
    packed = found.instances.packed()
    one, other = pairs.T
    first, second = _voxels_seen(found, one, found.tiles[other]), _voxels_seen(found, other, found.tiles[one])
    here, there = found.windows[found.tiles[one]], found.windows[found.tiles[other]]
    low = np.maximum.reduce([here[:, :ndim], there[:, :ndim], packed.starts[one], packed.starts[other]])
    ends = packed.starts + packed.sizes
    high = np.minimum.reduce([here[:, ndim:], there[:, ndim:], ends[one], ends[other]])
    most = np.minimum.reduce([first, second, np.clip(high - low, 0, None).prod(axis=1)])
    close = np.flatnonzero(_ratio(most, first + second - most) >= join_iou)
    both = np.zeros(len(pairs), dtype=np.int64)
    both[close] = packed.shared_voxels(one[close], other[close], low[close], high[close])
    agree: NDArray[np.bool_] = _ratio(both, first + second - both) >= join_iou
    return agree


def _voxels_seen(found: TileDetections, members: NDArray[np.int64], tiles: NDArray[np.int64]) -> NDArray[np.int64]:
    """Voxels of detections that another tile sees, `(P,)`, counted once for each two that occur."""
    ndim = found.instances.ndim
    keys, where = np.unique(members * len(found.windows) + tiles, return_inverse=True)
    chosen, seen = np.divmod(keys, len(found.windows))
    windows = found.windows[seen]
    return found.instances.packed().voxels_in(chosen, windows[:, :ndim], windows[:, ndim:])[where]


def _ratio(part: NDArray[Any], whole: NDArray[Any]) -> NDArray[np.float64]:
    """`part / whole`, 0 where the whole is nothing."""
    return np.divide(part, whole, out=np.zeros(len(part)), where=whole > 0)


def _merge(
    found: TileDetections, members: NDArray[np.int64]
) -> tuple[NDArray[np.float32], np.float32, np.int64, PackedCrops]:
    """Box, score, class and mask of one object."""
    instances = found.instances
    packed = instances.packed()
    best = members[np.argmax(instances.scores[members])]
    score, number = instances.scores[best], instances.classes[best]
    whole = members[~found.cut[members]]
    if len(whole) or len(members) == 1:
        chosen = whole[np.argmax(instances.scores[whole])] if len(whole) else best
        return instances.boxes[chosen], score, number, packed.take([chosen])
    start = packed.starts[members].min(axis=0)
    stop = (packed.starts[members] + packed.sizes[members]).max(axis=0)
    union = np.zeros(tuple(stop - start), dtype=bool)
    for member in members:
        window, mask = packed[int(member)]
        place = tuple(slice(part.start - int(a), part.stop - int(a)) for part, a in zip(window, start, strict=True))
        union[place] |= mask
    ndim = instances.ndim
    boxes = instances.boxes[members]
    box = np.concatenate([boxes[:, :ndim].min(axis=0), boxes[:, ndim:].max(axis=0)])
    window = tuple(slice(int(a), int(b)) for a, b in zip(start, stop, strict=True))
    return box, score, number, PackedCrops.pack([(window, union)], ndim)


def _suppress(objects: Instances, order: NDArray[np.int64], tiles: list[set[int]], nms_iou: float) -> NDArray[np.int64]:
    """Indices that stay, in the given order of falling score."""
    pairs = candidate_pairs(objects.boxes)
    i, j = pairs.T
    alike = (objects.classes[i] == objects.classes[j]) & (_box_iou(objects.boxes[i], objects.boxes[j]) > nms_iou)
    pairs = pairs[alike]
    pairs = pairs[np.array([not tiles[one] & tiles[other] for one, other in pairs.tolist()], dtype=bool)]
    i, j = pairs.T
    packed, voxels = objects.packed(), objects.voxels()
    touching = packed.shared_voxels(i, j) >= _TOUCHING * np.minimum(voxels[i], voxels[j])
    rivals: dict[int, list[int]] = {}
    for one, other in pairs[touching].tolist():
        rivals.setdefault(one, []).append(other)
        rivals.setdefault(other, []).append(one)
    gone: set[int] = set()
    keep = []
    for index in order.tolist():
        if index not in gone:
            keep.append(index)
            gone.update(rivals.get(index, []))
    return np.array(keep, dtype=np.int64)


def _box_iou(one: NDArray[np.float32], other: NDArray[np.float32]) -> NDArray[np.float64]:
    """IoU of pairs of boxes, `(P, 2 * ndim) -> (P,)`."""
    ndim = one.shape[1] // 2
    a, b = one.astype(np.float64), other.astype(np.float64)
    both = np.clip(np.minimum(a[:, ndim:], b[:, ndim:]) - np.maximum(a[:, :ndim], b[:, :ndim]), 0, None).prod(axis=1)
    sizes = [(box[:, ndim:] - box[:, :ndim]).prod(axis=1) for box in (a, b)]
    return _ratio(both, sizes[0] + sizes[1] - both)
