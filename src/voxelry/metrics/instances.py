"""Instance segmentation measured in one call, each number under the name of what it is.

- `ap_50`, `ap_75`, ...: "average precision" as microscopy uses the word, TP / (TP + FP + FN) at an IoU threshold
  (Caicedo et al. 2019, doi:10.1038/s41592-019-0612-7); `ap_mean` over 0.50, 0.55, ..., 0.95. No ranking by score.
- `precision_50`, `recall_50`, `f1_50`, `mean_iou_50` (of the matched pairs).
- `pq` = `sq` × `rq`: panoptic quality (Kirillov et al. 2019, arXiv:1801.00868), `rq` is F1 at 0.5.
- `seg`, `det`: of the Cell Tracking Challenge, see `metrics.tracking_scores`.
- `coco_map_box`, `coco_map_mask`: COCO's mAP over IoU 0.5 to 0.95, by class, ranked by score.
- `froc_0.125` to `froc_8`, `froc_mean`: sensitivity at false positives per image.
- `count_error`: predicted minus true objects; over a data set the mean of its absolute values.

What is ranked by score uses every detection; all else, those of at least `score_threshold`. Matching for these is
one-to-one (Hungarian) and ignores classes. Nothing here is NaN. An image with neither true nor predicted objects
is perfect: 1 in every score. With one but not the other it is 0 (over a data set it adds what it has to the sums).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from voxelry.core.errors import SettingError
from voxelry.metrics.detection import COCO_THRESHOLDS, FROC_RATES, Detections, average_precision, froc
from voxelry.metrics.matching import best_matches, f1_score, matched, ratio
from voxelry.metrics.overlap import Source, box_overlaps, label_boxes, mask_overlaps
from voxelry.metrics.tracking_scores import det_score, detection_errors, seg_scores
from voxelry.ops.instances import Instances

__all__ = [
    "THRESHOLDS",
    "InstanceRecord",
    "accuracy_by_score",
    "instance_metrics",
    "instance_row",
    "records_of",
    "summarise",
]

Row = dict[str, float | str]

THRESHOLDS = COCO_THRESHOLDS
_SHOWN = (0.5, 0.75, 0.9)  # of a single image; a data set has them all


@dataclass(frozen=True, eq=False)
class InstanceRecord:
    """Sums of one image, from which those of a data set are made.

    Attributes:
        predicted, truth: numbers of objects.
        hits: matched pairs at each of `THRESHOLDS`.
        iou: sum of their IoU.
        seg: sum over true objects of the Jaccard index of SEG.
        errors: AOGM-D.
        sizes: voxels of each true object.
        found: IoU of each true object with its partner, 0 without one.
        detections: what ranking needs.
    """

    predicted: int
    truth: int
    hits: tuple[int, ...]
    iou: tuple[float, ...]
    seg: float
    errors: float
    sizes: tuple[float, ...]
    found: tuple[float, ...]
    detections: Detections

    def to_text(self) -> str:
        """The record as JSON, small enough for a column of a table."""
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "detections"}
        return json.dumps(fields | {"detections": self.detections.plain()}, separators=(",", ":"))

    @classmethod
    def from_text(cls, text: str) -> Self:
        """The record that `to_text` gave."""
        fields: dict[str, Any] = json.loads(text)
        detections = Detections.from_plain(fields.pop("detections"))
        values: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()
        }
        return cls(**values, detections=detections)


def instance_metrics(
    predictions: Source | Sequence[Source], truths: Source | Sequence[Source], **settings: Any
) -> dict[str, float]:
    """Every metric of an image or a data set; see the top of this file for the names.

    Args:
        predictions: label volumes `(*spatial)` of ids, or `Instances` with scores and perhaps overlapping masks;
            one, or one per image.
        truths: the same for the annotations.
        settings: `score_threshold`, `max_detections` of `instance_row`, and `truth_classes` for a single image.

    Raises:
        SettingError: another number of predictions than truths, or shapes that differ.
    """
    if isinstance(predictions, Instances) or hasattr(predictions, "shape"):
        predictions, truths = [predictions], [truths]  # type: ignore[list-item]
    if len(predictions) != len(truths):
        raise SettingError(f"predictions: expected {len(truths)}, one per truth, got {len(predictions)}")
    return summarise([instance_row(one, other, **settings) for one, other in zip(predictions, truths, strict=True)])  # type: ignore[arg-type]


def instance_row(
    prediction: Source,
    truth: Source,
    *,
    name: str = "",
    truth_classes: Any = None,
    score_threshold: float = 0.5,
    max_detections: int | None = None,
) -> Row:
    """The metrics of one image, and in `record` what `summarise` needs of it.

    Args:
        prediction: a label volume `(*spatial)` (its objects have score 1 and class 1) or `Instances`.
        truth: the same.
        truth_classes: class of id k + 1 at position k, as in `Sample.classes`; for a label volume only.
        score_threshold: detections below count only where detections are ranked.
        max_detections: per class, for COCO's mAP and FROC; COCO's own limit is 100, None takes all, because a
            volume may well hold more objects than that.

    Raises:
        SettingError: shapes that differ, no integers, or fewer classes than ids.
    """
    overlaps = mask_overlaps(prediction, truth)
    boxes, classes, scores = _described(prediction, None)
    true_boxes, true_classes, _ = _described(truth, truth_classes)
    detections = Detections.match(
        {"mask": overlaps, "box": box_overlaps(boxes, true_boxes)},
        scores,
        classes,
        true_classes,
        max_detections=max_detections,
    )
    kept = overlaps.keep_predicted(scores >= score_threshold)
    pairs = [matched(kept, threshold) for threshold in THRESHOLDS]
    record = InstanceRecord(
        predicted=len(kept.predicted_sizes),
        truth=len(kept.truth_sizes),
        hits=tuple(len(found) for found in pairs),
        iou=tuple(float(kept.iou[found].sum()) for found in pairs),
        seg=float(seg_scores(kept).sum()),
        errors=detection_errors(kept),
        sizes=tuple(kept.truth_sizes.tolist()),
        found=tuple(best_matches(kept).tolist()),
        detections=detections,
    )
    numbers = _scores([record])
    shown = {key: value for key, value in numbers.items() if not key.startswith("ap_") or key in _SHOWN_NAMES}
    counts = {"predicted": float(record.predicted), "truth": float(record.truth)}
    error = {"count_error": float(record.predicted - record.truth)}
    return {"name": name} | shown | _ranked([detections], rates=()) | error | counts | {"record": record.to_text()}


def accuracy_by_score(
    predictions: Sequence[Source],
    truths: Sequence[Source],
    levels: Sequence[float],
    thresholds: Sequence[float] = (0.5, 0.75),
) -> NDArray[np.float64]:
    """TP / (TP + FP + FN) of a data set were only detections of at least each score reported, `(levels, thresholds)`.

    As `ap_50` and `ap_75` of `summarise` with that `score_threshold`; masks are compared once.

    Args:
        predictions, truths: one of each per image, as in `instance_row`.

    Raises:
        SettingError: shapes that differ, or no integers.
    """
    hits, objects = np.zeros((len(levels), len(thresholds))), np.zeros(len(levels))
    for prediction, truth in zip(predictions, truths, strict=True):
        overlaps = mask_overlaps(prediction, truth)
        scores = _described(prediction, None)[2]
        for row, level in enumerate(levels):
            kept = overlaps.keep_predicted(scores >= level)
            hits[row] += [len(matched(kept, threshold)) for threshold in thresholds]
            objects[row] += len(kept.predicted_sizes) + len(kept.truth_sizes)
    missed = objects[:, None] - hits
    return np.divide(hits, missed, out=np.ones_like(hits), where=missed > 0)


def summarise(rows: Sequence[Mapping[str, float | str]]) -> dict[str, float]:
    """The metrics of a data set from the rows of its images.

    Objects of all images are pooled: every object counts alike, wherever it lies. `ap_50_by_image` is the mean
    over images instead, as some report it. Without any row everything is as for one empty image.

    Args:
        rows: as `instance_row` gives them.
    """
    records = records_of(rows)
    scores = _scores(records)
    by_image = [_scores([record])["ap_50"] for record in records]
    ranked = _ranked([record.detections for record in records], rates=FROC_RATES)
    difference = [abs(record.predicted - record.truth) for record in records]
    return (
        scores
        | {"ap_50_by_image": float(np.mean(by_image)) if by_image else 1.0}
        | ranked
        | {
            "count_error": float(np.mean(difference)) if difference else 0.0,
            "predicted": float(sum(record.predicted for record in records)),
            "truth": float(sum(record.truth for record in records)),
            "images": float(len(records)),
        }
    )


def records_of(rows: Sequence[Mapping[str, float | str]]) -> list[InstanceRecord]:
    """The record of each row."""
    return [InstanceRecord.from_text(str(row["record"])) for row in rows]


def _name(threshold: float) -> str:
    return f"ap_{round(100 * threshold)}"


_SHOWN_NAMES = {*(_name(threshold) for threshold in _SHOWN), "ap_mean"}


def _scores(records: Sequence[InstanceRecord]) -> dict[str, float]:
    """What doesn't rank, from pooled objects."""
    predicted, truth = (sum(getattr(record, name) for record in records) for name in ("predicted", "truth"))
    hits = np.sum([record.hits for record in records], axis=0) if records else np.zeros(len(THRESHOLDS))
    iou = float(sum(record.iou[0] for record in records))
    empty = float(not predicted and not truth)
    accuracy = [ratio(found, predicted + truth - found, empty=1.0) for found in hits.tolist()]
    matches = float(hits[0])
    quality = ratio(iou, matches, empty=empty)
    recognition = f1_score(matches, predicted, truth)
    return {
        **{_name(threshold): value for threshold, value in zip(THRESHOLDS, accuracy, strict=True)},
        "ap_mean": float(np.mean(accuracy)),
        "precision_50": ratio(matches, predicted, empty=empty),
        "recall_50": ratio(matches, truth, empty=empty),
        "f1_50": recognition,
        "mean_iou_50": quality,
        "pq": quality * recognition,
        "sq": quality,
        "rq": recognition,
        "seg": ratio(sum(record.seg for record in records), truth, empty=empty),
        "det": det_score(sum(record.errors for record in records), truth, predicted),
    }


def _ranked(records: Sequence[Detections], rates: Sequence[float]) -> dict[str, float]:
    found = {f"coco_map_{kind}": average_precision(records, kind) for kind in ("box", "mask")}
    if rates:
        sensitivities = froc(records, rates=rates)
        found |= {f"froc_{rate:g}": float(value) for rate, value in zip(rates, sensitivities, strict=True)}
        found["froc_mean"] = float(sensitivities.mean())
    return found


def _described(source: Source, classes: Any) -> tuple[NDArray[np.floating], NDArray[np.int64], NDArray[np.floating]]:
    """Boxes, classes and scores of objects, in the order that `mask_overlaps` numbers them."""
    if isinstance(source, Instances):
        return source.boxes, source.classes, source.scores
    ids, boxes = label_boxes(source)
    numbers = np.ones(len(ids), dtype=np.int64)
    if classes is not None:
        given = np.asarray(classes, dtype=np.int64)
        if len(ids) and int(ids[-1]) > len(given):
            raise SettingError(f"truth_classes: expected one per id up to {ids[-1]}, got {len(given)}")
        numbers = given[ids.astype(np.int64) - 1]
    return boxes, numbers, np.ones(len(ids))
