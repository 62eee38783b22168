"""Which of several overlapping boxes to keep: greedy and soft suppression, and clusters of boxes.

Boxes `(K, 2 * ndim)` as in `voxelry.ops.boxes`, scores `(K,)`. Boxes are taken by falling score, equal scores by
rising index. One suppresses another if their IoU is above the threshold, both in the precision of
`boxes.widened` (float32 for half precision), so that an IoU of 3/10 isn't above 0.3 in any type.

A box with a coordinate that isn't finite, or with a NaN score, is no detection and never returned. A box
without volume overlaps nothing, and is kept. Nothing here is differentiable.
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from voxelry.core.choice import check_choice
from voxelry.core.errors import SettingError
from voxelry.ops.boxes import boxes_ndim, iou, paired_iou, volume, widened
from voxelry.ops.kernels.dispatch import choose

__all__ = ["batched_nms", "cluster", "nms", "soft_nms", "weighted_box_clustering"]

_BLOCK = 256  # boxes against all others at a time, without a compiler

Separation = Literal["exact", "offset", "torchvision"]


def nms(boxes: Tensor, scores: Tensor, threshold: float) -> Tensor:
    """Indices of the boxes kept, int64, by falling score: none suppressed by one before it.

    Args:
        boxes: `(K, 2 * ndim)`.
        scores: `(K,)`.
        threshold: IoU in [0, 1] above which the lower score goes.

    Raises:
        SettingError: shapes that don't fit, or a threshold outside [0, 1].
    """
    boxes, scores, order = _prepare(boxes, scores, threshold)
    return order[_survivors(boxes[order], torch.zeros_like(order), threshold)]


def batched_nms(
    boxes: Tensor, scores: Tensor, groups: Tensor, threshold: float, *, separate: Separation = "exact"
) -> Tensor:
    """`nms` within each group (a class, a level, an image) in one pass; indices by falling score over all.

    Args:
        boxes: `(K, 2 * ndim)`.
        scores: `(K,)`.
        groups: `(K,)` integers; boxes of different groups never meet.
        threshold: IoU in [0, 1].
        separate: "exact" compares the boxes as they are. "offset" first moves each group by a multiple of the
            largest coordinate plus one, which rounds coordinates; "torchvision" does so where torchvision does
            (up to 4,000 coordinates on the CPU, 100,000 elsewhere): for the same keep sets to the last bit.

    Raises:
        SettingError: shapes that don't fit, groups that aren't integers, a threshold outside [0, 1], or an
            unknown `separate`.
    """
    check_choice("separate", separate, get_args(Separation))
    groups = _integers(groups, len(boxes), "groups")
    limit = 4_000 if boxes.device.type == "cpu" else 100_000
    offset = separate == "offset" or (separate == "torchvision" and boxes.numel() <= limit)
    boxes, scores, order = _prepare(boxes, scores, threshold)
    boxes, groups = boxes[order], groups[order]
    if offset and len(boxes):
        boxes = boxes + (groups.to(boxes.dtype) * (boxes.max() + 1))[:, None]
        groups = torch.zeros_like(groups)
    return order[_survivors(boxes, groups, threshold)]


def cluster(boxes: Tensor, scores: Tensor, threshold: float, *, groups: Tensor | None = None) -> Tensor:
    """The kept box that each box falls to, `(K,)` int64 indices: what `nms` keeps, and for whom the others went.

    A kept box has its own index, a suppressed one that of the best box kept that suppresses it, and what is no
    detection -1.

    Args:
        boxes: `(K, 2 * ndim)`.
        scores: `(K,)`.
        threshold: IoU in [0, 1].
        groups: `(K,)` integers; boxes of different groups never meet. None for one group.

    Raises:
        SettingError: shapes that don't fit, groups that aren't integers, or a threshold outside [0, 1].
    """
    groups = torch.zeros_like(scores, dtype=torch.int64) if groups is None else groups
    groups = _integers(groups, len(boxes), "groups")
    boxes, scores, order = _prepare(boxes, scores, threshold)
    result = torch.full((len(boxes),), -1, dtype=torch.int64, device=boxes.device)
    result[order] = order[_owners(boxes[order], groups[order], threshold)]
    return result


def _prepare(boxes: Tensor, scores: Tensor, threshold: float) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes and scores wide enough, and the indices of those that are detections by falling score."""
    boxes_ndim(boxes)
    if boxes.ndim != 2 or scores.shape != boxes.shape[:1]:
        raise SettingError(
            f"boxes: expected (K, 2 * ndim) and scores (K,), got {tuple(boxes.shape)} and {tuple(scores.shape)}"
        )
    if not 0 <= threshold <= 1:
        raise SettingError(f"threshold: expected an IoU in [0, 1], got {threshold}")
    boxes, scores = widened(boxes.detach()), widened(scores.detach())
    order = torch.sort(scores, descending=True, stable=True).indices
    usable = torch.isfinite(boxes).all(dim=1) & ~torch.isnan(scores)
    return boxes, scores, order[usable[order]]


def _integers(values: Tensor, count: int, name: str) -> Tensor:
    if values.shape != (count,) or values.is_floating_point() or values.is_complex():
        raise SettingError(f"{name}: expected {count} integers, got {values.dtype} {tuple(values.shape)}")
    return values.to(torch.int64)


def _survivors(boxes: Tensor, groups: Tensor, threshold: float) -> Tensor:
    """Which of the boxes, given by falling score, are kept, `(N,)` bool."""
    if choose(boxes) == "triton":
        from voxelry.ops.kernels import triton_nms

        if len(boxes) <= triton_nms.LIMIT:
            return triton_nms.survivors(boxes, groups, threshold)
    return _owners(boxes, groups, threshold) == torch.arange(len(boxes), device=boxes.device)


def _owners(boxes: Tensor, groups: Tensor, threshold: float) -> Tensor:
    """Position of the box that each box, given by falling score, falls to, `(N,)` int64."""
    if choose(boxes) == "numba":
        return torch.from_numpy(_sweep(boxes.numpy(), groups.numpy(), threshold))
    return _owners_by_block(boxes, groups, threshold)


def _sweep(boxes: np.ndarray, groups: np.ndarray, threshold: float) -> np.ndarray:
    from voxelry.ops.kernels.nms import sweep

    ndim, count = boxes.shape[1] // 2, len(boxes)
    if not count:
        return np.zeros(0, dtype=np.int64)
    extent = np.maximum(boxes[:, ndim:] - boxes[:, :ndim], 0)
    # The axis along which the fewest boxes meet one: the widest, measured in boxes.
    axis = int(np.argmax(np.ptp(boxes[:, :ndim], axis=0) / np.maximum(extent.mean(axis=0), np.finfo(boxes.dtype).tiny)))
    rank = np.lexsort((boxes[:, axis], groups))
    placed = np.ascontiguousarray(boxes[rank])
    visits = np.empty_like(rank)
    visits[rank] = np.arange(count)
    owner = np.full(count, -1, dtype=np.int64)
    volumes = volume(torch.from_numpy(placed)).numpy()
    low, high = np.ascontiguousarray(placed[:, :ndim]), np.ascontiguousarray(placed[:, ndim:])
    sweep(low, high, volumes, groups[rank], visits, axis, boxes.dtype.type(threshold), owner)
    result = np.empty_like(owner)
    result[rank] = rank[owner]
    return result


def _owners_by_block(boxes: Tensor, groups: Tensor, threshold: float) -> Tensor:
    """The same in plain PyTorch, a block of boxes against all later ones at a time: O(N) memory."""
    count, bound = len(boxes), boxes.new_full((), threshold)
    owner = torch.full((count,), -1, dtype=torch.int64, device=boxes.device)
    for start in range(0, count, _BLOCK):
        block = slice(start, min(start + _BLOCK, count))
        size = block.stop - start
        over = (iou(boxes[block], boxes[start:]) > bound) & (groups[block, None] == groups[start:])
        over = over.triu(diagonal=1)
        waiting = owner[block] < 0
        kept, before = waiting, None
        while before is None or not torch.equal(kept, before):  # each round settles one more box at least
            before = kept
            kept = waiting & ~(over[:, :size] & kept[:, None]).any(dim=0)
        hit = over & kept[:, None]
        hit[torch.arange(size), torch.arange(size)] = kept
        rest = owner[start:]
        first = start + hit.to(torch.uint8).argmax(dim=0)
        owner[start:] = torch.where((rest < 0) & hit.any(dim=0), first, rest)
    return owner


def soft_nms(
    boxes: Tensor,
    scores: Tensor,
    *,
    method: Literal["gaussian", "linear"] = "gaussian",
    sigma: float = 0.5,
    threshold: float = 0.3,
    min_score: float = 0.001,
) -> tuple[Tensor, Tensor]:
    """Soft-NMS (Bodla et al. 2017, arXiv:1704.04503, eqs. 2 and 3): overlap weakens a score instead of removing it.

    The best box left is taken, and the scores of the others are multiplied by `exp(-IoU² / sigma)` ("gaussian"),
    or by `1 - IoU` where the IoU is above `threshold` ("linear"), until none is above `min_score`.

    Args:
        boxes: `(K, 2 * ndim)`.
        scores: `(K,)`, not negative.
        method: see above.
        sigma: above 0; the smaller, the harder. "gaussian" alone uses it.
        threshold: IoU in [0, 1]. "linear" alone uses it.
        min_score: boxes that aren't above it are left out.

    Returns:
        Indices of the boxes taken, int64, and their new scores, both by falling new score.

    Raises:
        SettingError: shapes that don't fit, an unknown method, a sigma that isn't positive, or a threshold
            outside [0, 1].
    """
    check_choice("method", method, ("gaussian", "linear"))
    if not sigma > 0:
        raise SettingError(f"sigma: expected a number above 0, got {sigma}")
    boxes, scores, order = _prepare(boxes, scores, threshold)
    order = order.sort().values  # ties go to the lower index, not to the better score before
    boxes, left = boxes[order], scores[order].to(torch.float64)
    if choose(boxes) == "numba":
        taken = _decay(boxes, left, method == "gaussian", sigma, threshold, min_score)
    else:
        taken = _decay_by_step(boxes, left, method == "gaussian", sigma, threshold, min_score)
    return order[taken], left[taken].to(scores.dtype)


def _decay(boxes: Tensor, scores: Tensor, gaussian: bool, sigma: float, threshold: float, min_score: float) -> Tensor:
    """Weaken `scores` in place; positions of the boxes taken, in their order."""
    from voxelry.ops.kernels.nms import decay

    ndim = boxes_ndim(boxes)
    taken = np.empty(len(boxes), dtype=np.int64)
    values = boxes.numpy()
    low, high = np.ascontiguousarray(values[:, :ndim]), np.ascontiguousarray(values[:, ndim:])
    bound = values.dtype.type(threshold)
    count = decay(low, high, volume(boxes).numpy(), scores.numpy(), gaussian, sigma, bound, min_score, taken)
    return torch.from_numpy(taken[:count])


def _decay_by_step(
    boxes: Tensor, scores: Tensor, gaussian: bool, sigma: float, threshold: float, min_score: float
) -> Tensor:
    """The same in plain PyTorch, one box taken at a time."""
    bound = boxes.new_full((), threshold)
    waiting = torch.ones_like(scores, dtype=torch.bool)
    taken = []
    while (waiting & (scores > min_score)).any():
        best = int(torch.where(waiting, scores, -torch.inf).argmax())
        taken.append(best)
        waiting[best] = False
        overlap = paired_iou(boxes[best], boxes)
        wide = overlap.to(torch.float64)
        factor = torch.exp(-(wide * wide) / sigma) if gaussian else torch.where(overlap > bound, 1 - wide, 1.0)
        scores[waiting] *= factor[waiting]
    return torch.tensor(taken, dtype=torch.int64, device=boxes.device)


def weighted_box_clustering(
    boxes: Tensor, scores: Tensor, threshold: float, *, min_score: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Weighted box clustering (Jaeger et al. 2020, arXiv:1811.08661, section 2.3): one box from all that agree.

    Boxes fall to the best of them as in `cluster`. With the IoU `u_k` of box `k` and the best of its cluster as its
    weight, and its score `s_k`, `score = sum(u s) / sum(u)` and `box = sum(u s box) / sum(u s)`.

    Args:
        boxes: `(K, 2 * ndim)`, of one class.
        scores: `(K,)`, not negative.
        threshold: IoU in [0, 1] above which a box joins a cluster.
        min_score: clusters that aren't above it are left out.

    Returns:
        Boxes `(M, 2 * ndim)` and scores `(M,)`, float32 or float64, by falling score.

    Raises:
        SettingError: shapes that don't fit, or a threshold outside [0, 1].
    """
    owner = cluster(boxes, scores, threshold)
    member = torch.nonzero(owner >= 0)[:, 0]
    heads, of = torch.unique(owner[member], return_inverse=True)
    given, wide = widened(boxes.detach())[member], widened(scores.detach()).to(torch.float64)[member]
    own = member == owner[member]
    weight = torch.where(own, 1.0, paired_iou(given, widened(boxes.detach())[owner[member]])).to(torch.float64)

    def total(values: Tensor) -> Tensor:
        return values.new_zeros(len(heads), *values.shape[1:]).index_add_(0, of, values)

    scored = total(weight * wide)
    new_scores = scored / total(weight)
    new_boxes = total((weight * wide)[:, None] * given) / scored[:, None]
    kept = (scored > 0) & (new_scores > min_score)
    new_boxes, new_scores = new_boxes[kept].to(given.dtype), new_scores[kept].to(widened(scores).dtype)
    order = torch.sort(new_scores, descending=True, stable=True).indices
    return new_boxes[order], new_scores[order]
