"""One-to-one matching of instances, and what microscopy and panoptic segmentation count with it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from voxelry.metrics.overlap import Overlaps

__all__ = ["best_matches", "f1_score", "matched", "ratio"]

_TOUCH = 0.1  # below this neighbours that merely touch would chain all objects of a tissue into one problem


def matched(overlaps: Overlaps, threshold: float) -> NDArray[np.int64]:
    """Positions among the pairs of `overlaps` that are matched: as many as possible, then the largest IoU in sum.

    Only pairs with an IoU of at least `threshold` count. The assignment (Kuhn 1955, the Hungarian method) is
    solved for each group of objects that have such a pair in common, so that its cost doesn't grow with the
    square of the number of objects.
    """
    from scipy.optimize import linear_sum_assignment
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    iou = overlaps.iou
    edges = np.flatnonzero(iou >= threshold)
    if not len(edges):
        return edges
    predicted, truth = overlaps.predicted[edges], overlaps.truth[edges]
    rows, columns = len(overlaps.predicted_sizes), len(overlaps.truth_sizes)
    graph = coo_array((np.ones(len(edges)), (predicted, truth + rows)), shape=(rows + columns, rows + columns))
    _, group = connected_components(graph, directed=False)
    order = np.argsort(group[predicted], kind="stable")
    found = []
    for part in np.split(order, np.flatnonzero(np.diff(group[predicted][order])) + 1):
        if len(part) == 1:
            found.append(part)
            continue
        left, left_ranks = np.unique(predicted[part], return_inverse=True)
        right, right_ranks = np.unique(truth[part], return_inverse=True)
        gain = np.zeros((len(left), len(right)))
        # a further pair outweighs any gain in IoU: all IoUs of the group sum to less than 1 after the division
        gain[left_ranks, right_ranks] = 1 + iou[edges[part]] / (1 + min(gain.shape))
        which = np.full(gain.shape, -1)
        which[left_ranks, right_ranks] = part
        chosen = which[linear_sum_assignment(gain, maximize=True)]
        found.append(chosen[chosen >= 0])
    return np.sort(edges[np.concatenate(found)])


def best_matches(overlaps: Overlaps) -> NDArray[np.float64]:
    """IoU of each true object with its partner in the matching at an IoU of 0.1, `(T,)`; 0 without a partner."""
    pairs = matched(overlaps, _TOUCH)
    found = np.zeros(len(overlaps.truth_sizes))
    found[overlaps.truth[pairs]] = overlaps.iou[pairs]
    return found


def ratio(part: float, whole: float, *, empty: float) -> float:
    """`part / whole`, and `empty` where there is nothing to divide."""
    return part / whole if whole else empty


def f1_score(hits: float, predicted: float, truth: float) -> float:
    """2 TP / (2 TP + FP + FN); 1 where both are empty."""
    return ratio(2 * hits, predicted + truth, empty=1.0)
