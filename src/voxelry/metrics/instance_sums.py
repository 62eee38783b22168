"""Sums over matched objects, of which every score that doesn't rank is made: of an image, a class or a data set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np

from voxelry.metrics.detection import COCO_THRESHOLDS
from voxelry.metrics.matching import best_matches, f1_score, matched, ratio
from voxelry.metrics.overlap import Overlaps
from voxelry.metrics.tracking_scores import det_score, detection_errors, seg_scores

__all__ = ["THRESHOLDS", "Sums", "ap_name", "scores_of"]

THRESHOLDS = COCO_THRESHOLDS
_ABOVE_HALF = float(np.nextafter(0.5, 1.0))


def ap_name(threshold: float) -> str:
    """`ap_50` for an IoU of 0.5."""
    return f"ap_{round(100 * threshold, 6):g}"


@dataclass(frozen=True, eq=False)
class Sums:
    """Sums over the objects of one image, all of them or those of one class.

    Attributes:
        predicted, truth: numbers of objects.
        hits: matched pairs with an IoU of at least each threshold, by the name of its score.
        iou: sum of the IoU of those of 0.5 and more.
        panoptic: pairs with an IoU above 0.5, and the sum of theirs.
        seg: sum over true objects of the Jaccard index of SEG.
        errors: AOGM-D.
        sizes: voxels of each true object.
        found: IoU of each true object with its partner, 0 without one.
    """

    predicted: int
    truth: int
    hits: Mapping[str, int]
    iou: float
    panoptic: tuple[int, float]
    seg: float
    errors: float
    sizes: tuple[float, ...]
    found: tuple[float, ...]

    @classmethod
    def of(cls, overlaps: Overlaps, thresholds: Sequence[float] = THRESHOLDS) -> Self:
        """The sums of two sets of objects; those at `THRESHOLDS` are always among the hits."""
        pairs = {threshold: matched(overlaps, threshold) for threshold in sorted({*THRESHOLDS, *thresholds})}
        above = matched(overlaps, _ABOVE_HALF)
        return cls(
            predicted=len(overlaps.predicted_sizes),
            truth=len(overlaps.truth_sizes),
            hits={ap_name(threshold): len(found) for threshold, found in pairs.items()},
            iou=float(overlaps.iou[pairs[0.5]].sum()),
            panoptic=(len(above), float(overlaps.iou[above].sum())),
            seg=float(seg_scores(overlaps).sum()),
            errors=detection_errors(overlaps),
            sizes=tuple(overlaps.truth_sizes.tolist()),
            found=tuple(best_matches(overlaps).tolist()),
        )

    def plain(self) -> dict[str, Any]:
        """The sums in JSON's types."""
        return asdict(self)

    @classmethod
    def from_plain(cls, record: Mapping[str, Any]) -> Self:
        """The sums that `plain` gave."""
        values: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in record.items()
        }
        return cls(**values)


def scores_of(parts: Sequence[Sums]) -> dict[str, float]:
    """The scores of pooled objects: `ap_...`, `precision_50`, `pq`, `seg` and the others, see `metrics.instances`."""
    predicted, truth = sum(part.predicted for part in parts), sum(part.truth for part in parts)
    empty = float(not predicted and not truth)
    names = dict.fromkeys([*map(ap_name, THRESHOLDS), *(name for part in parts for name in part.hits)])
    hits = {name: sum(part.hits.get(name, 0) for part in parts) for name in names}
    accuracy = {name: ratio(found, predicted + truth - found, empty=1.0) for name, found in hits.items()}
    matches, iou = hits[ap_name(0.5)], sum(part.iou for part in parts)
    panoptic, panoptic_iou = (sum(part.panoptic[place] for part in parts) for place in (0, 1))
    quality, recognition = ratio(panoptic_iou, panoptic, empty=empty), f1_score(panoptic, predicted, truth)
    return {
        **accuracy,
        "ap_mean": float(np.mean([accuracy[ap_name(threshold)] for threshold in THRESHOLDS])),
        "precision_50": ratio(matches, predicted, empty=empty),
        "recall_50": ratio(matches, truth, empty=empty),
        "f1_50": f1_score(matches, predicted, truth),
        "mean_iou_50": ratio(iou, matches, empty=empty),
        "pq": quality * recognition,
        "sq": quality,
        "rq": recognition,
        "seg": ratio(sum(part.seg for part in parts), truth, empty=empty),
        "det": det_score(sum(part.errors for part in parts), truth, predicted),
    }
