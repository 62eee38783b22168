"""Detections ranked by score, over a data set: average precision as COCO defines it, and FROC.

For each image only one bit per detection and IoU threshold is kept: whether it found a true object.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from voxelry.core.choice import check_choice, unknown_choice
from voxelry.metrics.overlap import Overlaps

__all__ = [
    "COCO_THRESHOLDS",
    "FROC_RATES",
    "HIT_THRESHOLDS",
    "Detections",
    "average_precision",
    "froc",
    "froc_curve",
    "precision_recall",
]

COCO_THRESHOLDS = tuple(round(0.5 + 0.05 * step, 2) for step in range(10))
HIT_THRESHOLDS = (0.1, *COCO_THRESHOLDS)  # 0.1 is usual for detection in 3-D, where boxes of small objects rarely agree
FROC_RATES = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
KINDS = ("box", "mask")


@dataclass(frozen=True, eq=False)
class Detections:
    """What ranking metrics need of one image.

    Attributes:
        scores: `(K,)` by falling score.
        classes: `(K,)` int64.
        hits: `box` and `mask` to `(K, len(HIT_THRESHOLDS))` bool: whether it found an object of its class that no
            better detection had found.
        truth: number of true objects of each class.
    """

    scores: NDArray[np.float64]
    classes: NDArray[np.int64]
    hits: Mapping[str, NDArray[np.bool_]]
    truth: Mapping[int, int]

    @classmethod
    def match(
        cls,
        overlaps: Mapping[str, Overlaps],
        scores: NDArray[np.floating],
        classes: NDArray[np.integer],
        truth_classes: NDArray[np.integer],
        *,
        max_detections: int | None = None,
    ) -> Self:
        """Give each detection, by falling score, the free object of its class with the largest IoU.

        The greedy matching of COCO's evaluation (Lin et al. 2014, arXiv:1405.0312).

        Args:
            overlaps: of detections with true objects; `box` and `mask`.
            max_detections: the best of each class that count; COCO itself uses 100, None counts all.
        """
        ranked = np.asarray(scores, dtype=np.float64)
        order = np.argsort(-ranked, kind="stable")
        if max_detections is not None:
            ranks = np.zeros(len(order), dtype=np.int64)
            for number in np.unique(classes):
                mine = classes[order] == number
                ranks[mine] = np.arange(np.count_nonzero(mine))
            order = order[ranks < max_detections]
        numbers, counts = np.unique(truth_classes, return_counts=True)
        return cls(
            ranked[order],
            np.asarray(classes, dtype=np.int64)[order],
            {kind: _greedy(table, order, classes, truth_classes) for kind, table in overlaps.items()},
            dict(zip(numbers.tolist(), counts.tolist(), strict=True)),
        )

    def plain(self) -> dict[str, Any]:
        """The record in JSON's types; hits as one integer of bits per detection."""
        places = 1 << np.arange(len(HIT_THRESHOLDS))
        return {
            "scores": [float(f"{score:.9g}") for score in self.scores],
            "classes": self.classes.tolist(),
            "hits": {kind: (hits @ places).tolist() for kind, hits in self.hits.items()},
            "truth": {str(number): count for number, count in self.truth.items()},
        }

    @classmethod
    def from_plain(cls, record: Mapping[str, Any]) -> Self:
        """The record that `plain` gave."""
        places = np.arange(len(HIT_THRESHOLDS))
        hits = {
            kind: (np.array(bits, dtype=np.int64)[:, None] >> places & 1).astype(bool)
            for kind, bits in record["hits"].items()
        }
        truth = {int(number): int(count) for number, count in record["truth"].items()}
        return cls(
            np.array(record["scores"], dtype=np.float64), np.array(record["classes"], dtype=np.int64), hits, truth
        )


def average_precision(
    records: Sequence[Detections], overlap: str = "mask", thresholds: Sequence[float] = COCO_THRESHOLDS
) -> float:
    """COCO's mAP over a data set, in [0, 1]: mean over classes and IoU thresholds of the 101-point average precision.

    Precision is made monotone from the right and read at recalls 0, 0.01, ..., 1. Classes without a true object
    are left out. Without any object at all COCO defines nothing: 1 if nothing was predicted either, else 0.

    Args:
        overlap: `mask` or `box`, which IoU decides.
        thresholds: from `HIT_THRESHOLDS`; `(0.5,)` gives AP50.
    """
    values = []
    for number in sorted({number for record in records for number in record.truth}):
        for threshold in thresholds:
            recall, precision = precision_recall(records, overlap, threshold, number=number)
            envelope = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)
            places = np.searchsorted(recall, np.linspace(0, 1, 101), side="left")
            values.append(float(envelope[places].mean()))
    if not values:
        return float(not any(len(record.scores) for record in records))
    return float(np.mean(values))


def precision_recall(
    records: Sequence[Detections], overlap: str = "mask", threshold: float = 0.5, *, number: int | None = None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Recall and precision after each detection of the data set by falling score, `(K,)` each, in [0, 1].

    Args:
        number: a class; all together if not given.
    """
    _, hits, total = _pool(records, overlap, threshold, number)
    found = np.cumsum(hits)
    return found / max(total, 1), found / np.arange(1, len(hits) + 1)


def froc_curve(
    records: Sequence[Detections], overlap: str = "mask", threshold: float = 0.5
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """False positives per image and sensitivity at every score, `(K + 1,)` each, from no detection at all on.

    Free-response ROC (Bunch et al. 1977): detections of equal score are accepted together.
    """
    scores, hits, total = _pool(records, overlap, threshold, None)
    last = np.append(np.flatnonzero(np.diff(scores)), len(scores) - 1) if len(scores) else np.zeros(0, dtype=int)
    false = np.concatenate([[0.0], np.cumsum(~hits)[last] / max(1, len(records))])
    empty = float(not len(scores))  # nothing to find and nothing found
    found = np.cumsum(hits)[last] / total if total else np.full(len(last), empty)
    return false, np.concatenate([[0.0 if total else empty], found])


def froc(
    records: Sequence[Detections],
    overlap: str = "mask",
    threshold: float = 0.5,
    rates: Sequence[float] = FROC_RATES,
) -> NDArray[np.float64]:
    """Best sensitivity in [0, 1] with at most each number of false positives per image, `(len(rates),)`.

    Their mean over the default rates is the score of LUNA16 (Setio et al. 2017, section 2.4) and of nnDetection.
    Without a true object it is 1 if nothing was predicted either, else 0.
    """
    false, sensitivity = froc_curve(records, overlap, threshold)
    return sensitivity[np.searchsorted(false, np.asarray(rates), side="right") - 1]


def _pool(
    records: Sequence[Detections], overlap: str, threshold: float, number: int | None
) -> tuple[NDArray[np.float64], NDArray[np.bool_], int]:
    """Scores and hits of all images by falling score (ties: earlier images first), and the number of true objects."""
    column = _column(threshold)
    check_choice("overlap", overlap, KINDS)
    chosen = [slice(None) if number is None else record.classes == number for record in records]
    scores = np.concatenate([np.zeros(0), *(record.scores[keep] for record, keep in zip(records, chosen, strict=True))])
    hits = [record.hits[overlap][keep, column] for record, keep in zip(records, chosen, strict=True)]
    flat = np.concatenate([np.zeros(0, dtype=bool), *hits])
    order = np.argsort(-scores, kind="stable")
    total = sum(count for record in records for c, count in record.truth.items() if number in (None, c))
    return scores[order], flat[order], total


def _column(threshold: float) -> int:
    for column, known in enumerate(HIT_THRESHOLDS):
        if abs(known - threshold) < 1e-9:
            return column
    raise unknown_choice("threshold", threshold, HIT_THRESHOLDS)


def _greedy(
    overlaps: Overlaps, order: NDArray[np.int64], classes: NDArray[np.integer], truth_classes: NDArray[np.integer]
) -> NDArray[np.bool_]:
    partners = _partners(overlaps, classes, truth_classes)
    hits = np.zeros((len(order), len(HIT_THRESHOLDS)), dtype=bool)
    for column, threshold in enumerate(HIT_THRESHOLDS):
        taken: set[int] = set()
        for row, detection in enumerate(order.tolist()):
            for iou, truth in partners.get(detection, ()):
                if iou < threshold - 1e-10:
                    break
                if truth not in taken:
                    taken.add(truth)
                    hits[row, column] = True
                    break
    return hits


def _partners(
    overlaps: Overlaps, classes: NDArray[np.integer], truth_classes: NDArray[np.integer]
) -> dict[int, list[tuple[float, int]]]:
    """For each detection the objects of its class that it overlaps, the largest IoU first."""
    found: dict[int, list[tuple[float, int]]] = {}
    for detection, truth, iou in _edges(overlaps):
        if classes[detection] == truth_classes[truth]:
            found.setdefault(detection, []).append((iou, truth))
    for partners in found.values():
        partners.sort(key=lambda pair: -pair[0])
    return found


def _edges(overlaps: Overlaps) -> Iterator[tuple[int, int, float]]:
    yield from zip(overlaps.predicted.tolist(), overlaps.truth.tolist(), overlaps.iou.tolist(), strict=True)
