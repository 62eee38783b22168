"""Which truth each anchor answers for, and which anchors a loss is computed on.

Anchors by the million against truths by the hundred: the matrix of their IoUs is never held, only a part of it
at a time, and of that only the truths that lie where the part's anchors do.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from voxelry.core.errors import SettingError
from voxelry.ops.boxes import boxes_ndim, iou, volume, widened
from voxelry.ops.kernels.dispatch import choose

__all__ = ["BACKGROUND", "BETWEEN", "match", "sample_balanced"]

BACKGROUND = -1
"""Index of an anchor that answers for no truth."""

BETWEEN = -2
"""Index of an anchor that overlaps a truth too much for background and too little for a match."""

_CHUNK = 1 << 21  # pairs at a time: 8 MB for each temporary


def match(
    truths: Tensor,
    anchors: Tensor | Iterable[Tensor],
    *,
    high: float,
    low: float,
    low_quality: bool,
    chunk: int = _CHUNK,
    allow_disjoint: bool = False,
) -> Tensor:
    """Index of the truth that each anchor answers for, `(A,)` int64, or `BACKGROUND` or `BETWEEN`.

    Each anchor takes the truth it overlaps most, the first of several, if their IoU is at least `high`
    (Ren et al. 2015, arXiv:1506.01497, section 3.1.2; torchvision's matcher to the last bit). Below `low` it is
    background. With `low_quality`, the anchors that overlap some truth as much as any anchor does, ties included,
    take the truth they overlap most whatever the IoU: so that no truth goes without an anchor.

    Args:
        truths: `(M, 2 * ndim)`; those without volume, or not finite, match nothing.
        anchors: `(A, 2 * ndim)`, or parts of it one after another, such as levels; each part is used once.
        high: IoU from which an anchor is matched.
        low: IoU below which it is background, at most `high`.
        low_quality: see above.
        chunk: pairs of anchor and truth compared at a time; memory beyond the result is a few times that.
        allow_disjoint: a truth that overlaps no anchor makes every anchor a low-quality match, as in torchvision;
            otherwise it goes without.

    Raises:
        SettingError: boxes of different ranks, `low` above `high`, or a chunk below 1.
    """
    if not low <= high:
        raise SettingError(f"low, high: expected low <= high, got {low} and {high}")
    if chunk < 1:
        raise SettingError(f"chunk: expected 1 pair at least, got {chunk}")
    ndim = boxes_ndim(truths)
    truths = widened(truths.detach())
    none = torch.zeros(0, dtype=torch.int64, device=truths.device)
    result, choices, offered = [none], [none], 0
    record = truths.new_zeros(len(truths))  # the best IoU of each truth so far
    candidates: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []  # anchor, its own choice, truth, IoU
    for part in [anchors] if isinstance(anchors, Tensor) else anchors:
        if part.ndim != 2 or boxes_ndim(part) != ndim:
            raise SettingError(f"anchors: expected (A, {2 * ndim}), got {tuple(part.shape)}")
        for block in part.detach().split(max(1, chunk // max(1, len(truths)))):
            best, choice, peak, (anchor, truth) = _compare(truths, widened(block), record, ndim)
            matched = torch.where(best < best.new_full((), high), BETWEEN, choice)
            result.append(torch.where(best < best.new_full((), low), BACKGROUND, matched))
            if low_quality and allow_disjoint:
                choices.append(choice)
            if low_quality:
                record = torch.maximum(record, peak)
                candidates.append((offered + anchor, choice[anchor], truth, peak[truth]))
            offered += len(block)
    if low_quality and allow_disjoint and bool((record == 0).any()):
        return torch.cat(choices)  # all overlap that truth as little as any anchor does
    matches = torch.cat(result)
    for anchor, choice, truth, quality in candidates:
        final = quality == record[truth]
        matches[anchor[final]] = choice[final]
    return matches


def _compare(
    truths: Tensor, anchors: Tensor, record: Tensor, ndim: int
) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor, Tensor]]:
    """Of each anchor the best IoU and its truth, and of each truth its best IoU here.

    Returns:
        The three, and pairs of an anchor and a truth that are as good as that, of truths whose record it reaches.
    """
    if choose(anchors) == "numba" and truths.dtype == anchors.dtype:
        return _compare_compiled(truths, anchors, record, ndim)
    best, choice = anchors.new_zeros(len(anchors)), _indices(anchors, len(anchors))
    peak = record.new_zeros(len(truths))
    if not len(anchors) or not len(truths):
        return best, choice, peak, (choice[:0], choice[:0])
    # Anchors come in the order of the grid, so that a part of them is a slab of the image.
    first = anchors[:, :ndim].nan_to_num(nan=torch.inf).amin(dim=0)
    last = anchors[:, ndim:].nan_to_num(nan=-torch.inf).amax(dim=0)
    near = torch.nonzero(((truths[:, ndim:] > first) & (truths[:, :ndim] < last)).all(dim=1))[:, 0]
    if not len(near):
        return best, choice, peak, (choice[:0], choice[:0])
    quality = iou(anchors, truths[near])
    best, index = quality.max(dim=1)
    choice = torch.where(best > 0, near[index], 0)  # with nothing in common, the first truth of all
    peak = peak.to(quality.dtype).index_copy(0, near, quality.amax(dim=0))
    ahead = (peak >= record) & (peak > 0)
    anchor, place = torch.nonzero((quality == peak[near]) & ahead[near], as_tuple=True)
    return best, choice, peak, (anchor, near[place])


def _compare_compiled(
    truths: Tensor, anchors: Tensor, record: Tensor, ndim: int
) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor, Tensor]]:
    """`_compare` on the CPU, without the matrix of all pairs."""
    from voxelry.ops.kernels.matching import at_peak, best_truths

    boxes = torch.cat((truths, anchors))
    inputs = [part.contiguous().numpy() for part in (boxes[:, :ndim], boxes[:, ndim:], volume(boxes))]
    best, choice, peak = anchors.new_zeros(len(anchors)), _indices(anchors, len(anchors)), torch.zeros_like(record)
    best_truths(*inputs, *(each.numpy() for each in (best, choice, peak)))
    wanted = torch.nonzero((peak >= record) & (peak > 0))[:, 0]
    pairs = at_peak(*inputs, peak.numpy(), wanted.numpy())
    return best, choice, peak, (torch.from_numpy(pairs[0]), torch.from_numpy(pairs[1]))


def _indices(like: Tensor, count: int) -> Tensor:
    """Zeros that are indices, `(count,)` int64."""
    return torch.zeros(count, dtype=torch.int64, device=like.device)


def sample_balanced(
    labels: Tensor, size: int, positive_fraction: float, *, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Draw anchors for a loss: positives up to a share of `size`, negatives for the rest.

    As torchvision draws them: two permutations on the device of the labels, of the positives and then of the
    negatives, so that one seed gives one choice.

    Args:
        labels: `(A,)`: 1 or more positive, 0 negative, below 0 never drawn.
        size: how many to draw; fewer if there aren't as many.
        positive_fraction: at most `int(size * positive_fraction)` are positives, in [0, 1].
        generator: None for PyTorch's own of that device.

    Returns:
        Indices of the positives and of the negatives drawn, int64, each rising.

    Raises:
        SettingError: labels that aren't a row, a negative size or a fraction outside [0, 1].
    """
    if labels.ndim != 1:
        raise SettingError(f"labels: expected (A,), got {tuple(labels.shape)}")
    if size < 0 or not 0 <= positive_fraction <= 1:
        raise SettingError(f"size, positive_fraction: expected >= 0 and in [0, 1], got {size} and {positive_fraction}")
    positive = torch.nonzero(labels >= 1)[:, 0]
    negative = torch.nonzero(labels == 0)[:, 0]
    positives = min(len(positive), int(size * positive_fraction))
    negatives = min(len(negative), size - positives)
    drawn = []
    for indices, count in ((positive, positives), (negative, negatives)):
        order = torch.randperm(len(indices), device=labels.device, generator=generator)
        drawn.append(indices[order[:count]].sort().values)
    return drawn[0], drawn[1]
