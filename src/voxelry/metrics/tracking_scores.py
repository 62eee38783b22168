"""SEG and DET of the Cell Tracking Challenge (Ulman et al. 2017, doi:10.1038/nmeth.4473).

Both match a true object with a prediction that covers more than half of it: with disjoint predictions there is
one at most.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from voxelry.metrics.overlap import Overlaps

__all__ = ["AOGM_WEIGHTS", "covered", "det_score", "detection_errors", "seg_scores"]

# Matula et al. 2015, doi:10.1371/journal.pone.0144959: cost of splitting a node, adding one, deleting one
AOGM_WEIGHTS = {"split": 5.0, "missed": 10.0, "false": 1.0}


def covered(overlaps: Overlaps) -> NDArray[np.int64]:
    """Positions of the pairs in which the prediction covers more than half of the true object.

    Where masks overlap and several do, the one with the largest IoU is taken.
    """
    half = np.flatnonzero(overlaps.shared > 0.5 * overlaps.truth_sizes[overlaps.truth])
    order = half[np.argsort(-overlaps.iou[half], kind="stable")]
    _, first = np.unique(overlaps.truth[order], return_index=True)
    return order[first]


def seg_scores(overlaps: Overlaps) -> NDArray[np.float64]:
    """Jaccard index of each true object with what covers it, `(T,)`; 0 where nothing covers more than half.

    SEG is the mean. It doesn't punish predictions where there is nothing.
    """
    scores = np.zeros(len(overlaps.truth_sizes))
    pairs = covered(overlaps)
    scores[overlaps.truth[pairs]] = overlaps.iou[pairs]
    return scores


def detection_errors(overlaps: Overlaps) -> float:
    """AOGM-D: the weighted number of edits that make the detected objects the true ones.

    A prediction that covers k objects has to be split k - 1 times (weight 5), an object that nothing covers has
    to be added (10), a prediction that covers none has to be deleted (1).
    """
    pairs = covered(overlaps)
    holders = np.bincount(overlaps.predicted[pairs], minlength=len(overlaps.predicted_sizes))
    splits = np.clip(holders - 1, 0, None).sum()
    missed = len(overlaps.truth_sizes) - len(pairs)
    false = np.count_nonzero(holders == 0)
    return float(AOGM_WEIGHTS["split"] * splits + AOGM_WEIGHTS["missed"] * missed + AOGM_WEIGHTS["false"] * false)


def det_score(errors: float, truth: float, predicted: float) -> float:
    """DET = 1 - min(D, D0) / D0, D0 the cost of adding every true object; in [0, 1].

    Without a true object D0 is 0 and the challenge defines nothing: 1 if nothing was predicted either, else 0.
    """
    if not truth:
        return float(not predicted)
    start = AOGM_WEIGHTS["missed"] * truth
    return 1.0 - min(errors, start) / start
