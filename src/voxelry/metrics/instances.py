"""Instance segmentation measured in one call, each number under the name of what it is.

- `ap_50`, `ap_75`, ...: "average precision" as microscopy uses the word, TP / (TP + FP + FN) at an IoU of at least a
  threshold (Caicedo et al. 2019, doi:10.1038/s41592-019-0612-7); `ap_mean` over 0.50, 0.55, ..., 0.95. No ranking.
- `precision_50`, `recall_50`, `f1_50`, `mean_iou_50` (of the matched pairs).
- `pq` = `sq` × `rq`: panoptic quality (Kirillov et al. 2019, arXiv:1801.00868), of pairs with an IoU above 0.5, which
  are unique.
- `seg`, `det`: of the Cell Tracking Challenge, see `metrics.tracking_scores`.
- `coco_map_box`, `coco_map_mask`: COCO's mAP over IoU 0.5 to 0.95, by class, ranked by score.
- `froc_0.125` to `froc_8`, `froc_mean`: sensitivity at false positives per image.
- `count_error`: predicted minus true objects; over a data set the mean of its absolute values, added over classes.

What is ranked by score uses every detection with its whole mask; all else, the disjoint label volume that detections of
at least `score_threshold` make, where the higher score has a voxel that several want. An object is matched (Hungarian,
one-to-one) with one of its class only, and a score is the mean over the classes that occur. Where there are several,
`NAME.CLASS` is that of one class and `NAME_class_blind` what it would be if all objects were of one.

Nothing here is NaN. An image with neither true nor predicted objects is perfect: 1 in every score. With one but not the
other it is 0 (over a data set it adds what it has to the sums).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from voxelry.core.errors import SettingError
from voxelry.metrics.detection import FROC_RATES, Detections, average_precision, froc
from voxelry.metrics.instance_sums import THRESHOLDS, Sums, ap_name, scores_of
from voxelry.metrics.matching import matched
from voxelry.metrics.overlap import Overlaps, Source, box_overlaps, label_boxes, mask_overlaps
from voxelry.ops.instances import Instances, disjoint

__all__ = [
    "RANKED",
    "THRESHOLDS",
    "InstanceRecord",
    "Scoring",
    "accuracy_by_score",
    "instance_metrics",
    "instance_row",
    "metric_names",
    "records_of",
    "summarise",
]

Row = dict[str, float | str]

RANKED = ("coco_map_box", "coco_map_mask", *(f"froc_{rate:g}" for rate in FROC_RATES), "froc_mean")
"""The metrics that rank detections by score."""

_HIDDEN = {ap_name(threshold) for threshold in THRESHOLDS if threshold not in (0.5, 0.75, 0.9)}  # of a single image


@dataclass(frozen=True, eq=False)
class InstanceRecord:
    """Sums of one image, from which those of a data set are made.

    Attributes:
        classes: class to the sums over its objects.
        blind: the sums over all objects, matched whatever their classes.
        detections: what ranking needs; None where nothing is ranked.
    """

    classes: Mapping[int, Sums]
    blind: Sums
    detections: Detections | None

    def to_text(self) -> str:
        """The record as JSON, small enough for a column of a table."""
        fields = {
            "classes": {str(number): sums.plain() for number, sums in self.classes.items()},
            "blind": self.blind.plain(),
            "detections": None if self.detections is None else self.detections.plain(),
        }
        return json.dumps(fields, separators=(",", ":"))

    @classmethod
    def from_text(cls, text: str) -> Self:
        """The record that `to_text` gave."""
        fields: dict[str, Any] = json.loads(text)
        ranked = fields["detections"]
        return cls(
            {int(number): Sums.from_plain(sums) for number, sums in fields["classes"].items()},
            Sums.from_plain(fields["blind"]),
            None if ranked is None else Detections.from_plain(ranked),
        )


def instance_metrics(
    predictions: Source | Sequence[Source], truths: Source | Sequence[Source], **settings: Any
) -> dict[str, float]:
    """Every metric of an image or a data set; see the top of this file for the names.

    Args:
        predictions: label volumes `(*spatial)` of ids, or `Instances` with scores and perhaps overlapping masks;
            one, or one per image.
        truths: the same for the annotations.
        settings: those of `Scoring`, and `truth_classes` for a single image.

    Raises:
        SettingError: another number of predictions than truths, or shapes that differ.
    """
    if isinstance(predictions, Instances) or hasattr(predictions, "shape"):
        predictions, truths = [predictions], [truths]  # type: ignore[list-item]
    if len(predictions) != len(truths):
        raise SettingError(f"predictions: expected {len(truths)}, one per truth, got {len(predictions)}")
    return summarise([instance_row(one, other, **settings) for one, other in zip(predictions, truths, strict=True)])  # type: ignore[arg-type]


@dataclass(frozen=True, kw_only=True)
class Scoring:
    """How the objects of an image are scored.

    Attributes:
        score_threshold: detections below count only where detections are ranked.
        max_detections: per class, for COCO's mAP and FROC; COCO's own limit is 100, None takes all, because a
            volume may well hold more objects than that.
        thresholds: IoU of further `ap_...`.
        ranked: whether detections are ranked by score; masks are compared once more for it.
        counted: classes whose objects count, predicted and true ones; None: all.
    """

    score_threshold: float = 0.5
    max_detections: int | None = None
    thresholds: Sequence[float] = THRESHOLDS
    ranked: bool = True
    counted: Sequence[int] | None = None

    def counts(self, classes: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which objects of these classes count."""
        return np.ones(len(classes), dtype=bool) if self.counted is None else np.isin(classes, self.counted)


def instance_row(
    prediction: Source,
    truth: Source,
    *,
    name: str = "",
    truth_classes: Any = None,
    truth_ids: Sequence[int] | None = None,
    **settings: Any,
) -> Row:
    """The metrics of one image, and in `record` what `summarise` needs of it.

    `missed_ids` are the true objects without a partner of their class with an IoU of 0.5, `extra_ids` the predicted
    ones of at least `score_threshold`, in one text each.

    Args:
        prediction: a label volume `(*spatial)` (its objects have score 1 and class 1) or `Instances`.
        truth: the same.
        truth_classes: class of id k + 1 at position k, as in `Sample.classes`; for a label volume only.
        truth_ids: what id k + 1 is called at position k, as in `Sample.ids`; by default by itself. Predicted objects
            are called as in the label volume that is made of those of at least `score_threshold`.
        settings: those of `Scoring`.

    Raises:
        SettingError: shapes that differ, no integers, or fewer classes than ids.
    """
    scoring = Scoring(**settings)
    found, known = _described(prediction, None, scoring.score_threshold), _described(truth, truth_classes)
    if truth_ids is not None:
        known = known._replace(ids=np.array(truth_ids, dtype=np.uint64)[known.ids.astype(np.int64) - 1])
    ours, theirs = scoring.counts(found.classes), scoring.counts(known.classes)
    detections = None
    if scoring.ranked:
        overlaps = {"mask": mask_overlaps(prediction, truth), "box": box_overlaps(found.boxes, known.boxes)}
        detections = Detections.match(
            {kind: pairs.keep(predicted=ours, truth=theirs) for kind, pairs in overlaps.items()},
            found.scores[ours],
            found.classes[ours],
            known.classes[theirs],
            max_detections=scoring.max_detections,
        )
    seen, shown = _shown(prediction, truth)
    sure = (found.scores[shown] >= scoring.score_threshold) & ours[shown]
    seen, found, known = seen.keep(predicted=sure, truth=theirs), found.take(shown[sure]), known.take(theirs)
    sums: dict[int, Sums] = {}
    missed: list[int] = []
    extra: list[int] = []
    for number in sorted({*found.classes.tolist(), *known.classes.tolist()}):
        predicted, true = found.classes == number, known.classes == number
        part = seen.keep(predicted=predicted, truth=true)
        sums[number] = Sums.of(part, scoring.thresholds)
        pairs = matched(part, 0.5)
        missed += np.delete(known.ids[true], part.truth[pairs]).tolist()
        extra += np.delete(found.ids[predicted], part.predicted[pairs]).tolist()
    record = InstanceRecord(sums, Sums.of(seen, scoring.thresholds), detections)
    alone = {"missed_ids": " ".join(map(str, sorted(missed))), "extra_ids": " ".join(map(str, sorted(extra)))}
    return {"name": name} | _figures(record, scoring.thresholds) | alone | {"record": record.to_text()}


def _figures(record: InstanceRecord, thresholds: Sequence[float]) -> dict[str, float]:
    """The metrics of a single image."""
    hidden = _HIDDEN - _names(thresholds)
    scores = {name: value for name, value in _mean_scores([record]).items() if name not in hidden}
    predicted, truth = float(record.blind.predicted), float(record.blind.truth)
    counts = {"count_error": predicted - truth, "predicted": predicted, "truth": truth}
    return scores | _ranked([record], rates=()) | counts


def accuracy_by_score(
    predictions: Sequence[Source],
    truths: Sequence[Source],
    levels: Sequence[float],
    thresholds: Sequence[float] = (0.5, 0.75),
    *,
    truth_classes: Sequence[Any] | None = None,
) -> NDArray[np.float64]:
    """TP / (TP + FP + FN) of a data set were only detections of at least each score reported, `(levels, thresholds)`.

    As `ap_50` and `ap_75` of `summarise` with that `score_threshold`; masks are compared once.

    Args:
        predictions, truths, truth_classes: one of each per image, as in `instance_row`.

    Raises:
        SettingError: shapes that differ, or no integers.
    """
    hits: dict[int, NDArray[np.float64]] = {}
    totals: dict[int, NDArray[np.float64]] = {}
    for place, (prediction, truth) in enumerate(zip(predictions, truths, strict=True)):
        seen, shown = _shown(prediction, truth)
        objects = _described(prediction, None).take(shown)
        classes, scores = objects.classes, objects.scores
        true_classes = _described(truth, None if truth_classes is None else truth_classes[place]).classes
        for number in sorted({*classes.tolist(), *true_classes.tolist()}):
            found = hits.setdefault(number, np.zeros((len(levels), len(thresholds))))
            total = totals.setdefault(number, np.zeros(len(levels)))
            for row, level in enumerate(levels):
                kept = seen.keep(predicted=(classes == number) & (scores >= level), truth=true_classes == number)
                found[row] += [len(matched(kept, threshold)) for threshold in thresholds]
                total[row] += len(kept.predicted_sizes) + len(kept.truth_sizes)
    table = np.full((len(hits) + 1, len(levels), len(thresholds)), np.nan)
    for place, number in enumerate(hits):
        missed = totals[number][:, None] - hits[number]
        np.divide(hits[number], missed, out=table[place], where=missed > 0)
    known = np.isfinite(table)
    return np.where(known.any(axis=0), np.nansum(table, axis=0) / np.maximum(known.sum(axis=0), 1), 1.0)


def summarise(
    rows: Sequence[Mapping[str, float | str]], *, class_names: Mapping[int, str] | None = None
) -> dict[str, float]:
    """The metrics of a data set from the rows of its images.

    Objects of all images are pooled, class by class: every object of a class counts alike, wherever it lies.
    `ap_50_by_image` is the mean over images instead, as some report it. Without any row everything is as for one empty
    image.

    Args:
        rows: as `instance_row` gives them.
        class_names: class to its name; of several, those that occur get scores of their own.
    """
    records = records_of(rows)
    scores = _mean_scores(records)
    by_image = [_mean_scores([record])["ap_50"] for record in records]
    count = max(1, len(records))
    found = (
        scores
        | {"ap_50_by_image": float(np.mean(by_image)) if by_image else 1.0}
        | _ranked(records, rates=FROC_RATES)
        | {
            "count_error": sum(_off(sums) for record in records for sums in record.classes.values()) / count,
            "predicted": float(sum(record.blind.predicted for record in records)),
            "truth": float(sum(record.blind.truth for record in records)),
            "images": float(len(records)),
        }
    )
    if class_names is None or len(class_names) < 2:
        return found
    blind = [record.blind for record in records]
    found |= {f"{name}_class_blind": value for name, value in scores_of(blind).items()}
    found["count_error_class_blind"] = sum(map(_off, blind)) / count
    for number, parts in _by_class(records).items():
        named = class_names.get(number, str(number))
        objects = {"predicted": sum(part.predicted for part in parts), "truth": sum(part.truth for part in parts)}
        found |= {f"{name}.{named}": float(value) for name, value in (scores_of(parts) | objects).items()}
    return found


def metric_names(class_names: Sequence[str], thresholds: Sequence[float] = ()) -> list[str]:
    """Names of everything that `summarise` may give of such classes.

    Args:
        thresholds: IoU of further `ap_...`.
    """
    further = [ap_name(threshold) for threshold in thresholds]
    names = list(dict.fromkeys([*summarise(()), *further]))
    if len(class_names) < 2:
        return names
    scores = [*scores_of(()), *further]
    names += [f"{name}_class_blind" for name in (*scores, "count_error")]
    return names + [f"{name}.{one}" for one in class_names for name in (*scores, "predicted", "truth")]


def records_of(rows: Sequence[Mapping[str, float | str]]) -> list[InstanceRecord]:
    """The record of each row."""
    return [InstanceRecord.from_text(str(row["record"])) for row in rows]


def _names(thresholds: Sequence[float]) -> set[str]:
    """The names of further accuracies than those that a data set always has."""
    return {ap_name(threshold) for threshold in thresholds} if tuple(thresholds) != THRESHOLDS else set()


def _off(sums: Sums) -> float:
    return float(abs(sums.predicted - sums.truth))


def _by_class(records: Sequence[InstanceRecord]) -> dict[int, list[Sums]]:
    """The sums of each class that occurs, image by image."""
    numbers = sorted({number for record in records for number in record.classes})
    return {number: [record.classes[number] for record in records if number in record.classes] for number in numbers}


def _mean_scores(records: Sequence[InstanceRecord]) -> dict[str, float]:
    """What doesn't rank, the mean over the classes that occur."""
    parts = [scores_of(sums) for sums in _by_class(records).values()] or [
        scores_of([record.blind for record in records])
    ]
    return {name: float(np.mean([part[name] for part in parts])) for name in parts[0]}


def _ranked(records: Sequence[InstanceRecord], rates: Sequence[float]) -> dict[str, float]:
    detections = [record.detections for record in records if record.detections is not None]
    if len(detections) < len(records):
        return {}
    found = {f"coco_map_{kind}": average_precision(detections, kind) for kind in ("box", "mask")}
    if rates:
        sensitivities = froc(detections, rates=rates)
        found |= {f"froc_{rate:g}": float(value) for rate, value in zip(rates, sensitivities, strict=True)}
        found["froc_mean"] = float(sensitivities.mean())
    return found


def _shown(prediction: Source, truth: Source) -> tuple[Overlaps, NDArray[np.int64]]:
    """Overlaps of what a label volume shows of a prediction, and which of its objects have a voxel in it.

    A better detection takes voxels from a worse one, never the other way round: without those of low scores the others
    show the same.
    """
    if not isinstance(prediction, Instances):
        overlaps = mask_overlaps(prediction, truth)
        return overlaps, np.arange(len(overlaps.predicted_sizes))
    seen = disjoint(prediction)
    visible = np.flatnonzero(seen.voxels() > 0)
    return mask_overlaps(seen.take(visible), truth), visible


class _Objects(NamedTuple):
    """Objects in the order that `mask_overlaps` numbers them."""

    boxes: NDArray[np.floating]
    classes: NDArray[np.int64]
    scores: NDArray[np.floating]
    ids: NDArray[np.uint64]

    def take(self, chosen: NDArray[Any]) -> _Objects:
        """Some of them, by places or by a bool for each."""
        return _Objects(*(values[chosen] for values in self))


def _described(source: Source, classes: Any, least: float = 0.0) -> _Objects:
    """The objects of an image.

    Args:
        classes: see `instance_row`.
        least: score from which `Instances` are numbered, from 1 on; the others have no id of their own.
    """
    if isinstance(source, Instances):
        numbered = np.cumsum(source.scores >= least).astype(np.uint64)
        return _Objects(source.boxes, source.classes, source.scores, numbered)
    ids, boxes = label_boxes(source)
    numbers = np.ones(len(ids), dtype=np.int64)
    if classes is not None:
        given = np.asarray(classes, dtype=np.int64)
        if len(ids) and int(ids[-1]) > len(given):
            raise SettingError(f"truth_classes: expected one per id up to {ids[-1]}, got {len(given)}")
        numbers = given[ids.astype(np.int64) - 1]
    return _Objects(boxes, numbers, np.ones(len(ids)), ids)
