"""Overlaps of anchors with truths on the CPU, without the matrix of all pairs.

Both are in one array, the truths first. Arguments are as in `voxelry.ops.kernels.nms`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from voxelry.ops.kernels import jit
from voxelry.ops.kernels.nms import overlap

__all__ = ["at_peak", "best_truths"]


@jit
def best_truths(low: Any, high: Any, volume: Any, best: Any, choice: Any, peak: Any) -> None:
    """Of each anchor the largest overlap and the first truth of which it is; of each truth the largest with an anchor.

    `best` and `choice` `(anchors,)` and `peak` `(truths,)` are zeros, and written.
    """
    for anchor in range(best.size):
        for truth in range(peak.size):
            quality = overlap(low, high, volume, peak.size + anchor, truth)
            if quality > best[anchor]:
                best[anchor], choice[anchor] = quality, truth
            if quality > peak[truth]:
                peak[truth] = quality


@jit
def at_peak(low: Any, high: Any, volume: Any, peak: Any, wanted: Any) -> tuple[Any, Any]:
    """Pairs of an anchor and a truth, of those `wanted`, that overlap as much as `peak` says, ordered by anchor."""
    anchors, truths = [np.int64(0)], [np.int64(0)]  # by which the type of the lists is known
    for anchor in range(volume.size - peak.size):
        for truth in wanted:
            if overlap(low, high, volume, peak.size + anchor, truth) == peak[truth]:
                anchors.append(np.int64(anchor))
                truths.append(np.int64(truth))
    return np.array(anchors)[1:], np.array(truths)[1:]
