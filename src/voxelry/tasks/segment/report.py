"""The segmentation part of a report: scores, curves, errors by size, and the cases to look at, the worst first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voxelry.core.space import Space
from voxelry.data.sample import Sample
from voxelry.metrics.detection import FROC_RATES, froc_curve, precision_recall
from voxelry.metrics.instances import THRESHOLDS, InstanceRecord, records_of, summarise
from voxelry.metrics.matching import matched
from voxelry.metrics.overlap import mask_overlaps
from voxelry.tasks.base import Row, Task
from voxelry.tasks.evaluate import Evaluation
from voxelry.tasks.segment.predict import MICROSCOPIC_MM, InstancePrediction
from voxelry.viz import figures
from voxelry.viz import instances as pictures
from voxelry.viz.report import Report

__all__ = ["add_cases", "add_results", "add_scores", "add_sizes"]

_MOST_IDS = 10  # in a caption; all of them are in the table of cases
_BLIND = "_class_blind"
_FACTS = {
    "ap_50": "AP at IoU 0.5",
    "ap_mean": "AP, 0.5 to 0.95",
    "pq": "PQ",
    "seg": "SEG",
    "det": "DET",
    "coco_map_mask": "COCO mask mAP",
    "coco_map_box": "COCO box mAP",
    "froc_mean": "FROC",
    "count_error": "mean error of the count",
}
_BASELINE = "watershed_record"  # the row's column that the task fills with the baseline's sums


def add_results(report: Report, task: Task, found: Evaluation[InstancePrediction]) -> Report:
    """Everything below, in the order a reader asks for it; the cases are samples on the grids of the predictions."""
    add_scores(report, task, found.rows)
    add_sizes(report, [prediction.space for prediction in found.predictions], found.rows)
    several = len(getattr(task, "class_names", ())) > 1
    return add_cases(report, found.predictions, found.cases, found.rows, several=several)


def add_scores(report: Report, task: Task, rows: Sequence[Row]) -> Report:
    """Summary, accuracy at every IoU threshold, precision and recall, FROC; the baseline's beside ours."""
    summary = task.summary(rows)
    sides = {"ours": summary}
    blind = {name.removesuffix(_BLIND): value for name, value in summary.items() if name.endswith(_BLIND)}
    if blind:
        sides["ours, classes not told apart"] = blind
    others = [{"record": row[_BASELINE]} for row in rows if _BASELINE in row]
    if others:
        sides["watershed"] = summarise(others)
    report.section(
        "Instances",
        f"{summary['truth']:.0f} annotated and {summary['predicted']:.0f} predicted objects in {len(rows)} held-out "
        "images. AP is TP / (TP + FP + FN) at an IoU threshold, as microscopy uses the word; COCO's mAP ranks "
        "detections by their scores. PQ is panoptic quality, SEG and DET are those of the Cell Tracking Challenge. Of "
        "several classes all are means over the classes.",
    )
    report.facts({shown: summary[name] for name, shown in _FACTS.items()})
    _add_classes(report, summary)
    names = {"precision_50": "precision", "recall_50": "recall", "f1_50": "F1", "mean_iou_50": "mean IoU of pairs"}
    report.table(
        [
            {"method": side}
            | {f"AP at {threshold:.2f}": values[_ap(threshold)] for threshold in THRESHOLDS[::2]}
            | {f"{shown}": values[name] for name, shown in names.items()}
            for side, values in sides.items()
        ],
        caption="Matched one to one; precision, recall and F1 at an IoU of 0.5",
    )
    report.figure(
        figures.curves(
            {
                side: (THRESHOLDS, [values[_ap(threshold)] for threshold in THRESHOLDS])
                for side, values in sides.items()
            },
            xlabel="IoU threshold",
            ylabel="TP / (TP + FP + FN)",
        ),
        "Accuracy as pairs must agree better and better",
    )
    return _add_curves(report, records_of(rows))


def _add_curves(report: Report, records: Sequence[InstanceRecord]) -> Report:
    """What ranks detections by their scores: precision and recall, FROC."""
    detections = [record.detections for record in records if record.detections is not None]
    kinds = {"masks": "mask", "boxes": "box"}
    report.figure(
        pictures.precision_recall(
            {
                f"{name}, IoU {threshold:g}": precision_recall(detections, kind, threshold)
                for name, kind in kinds.items()
                for threshold in (0.5, 0.75)
            }
        ),
        "Precision and recall as detections are accepted by falling score; the dot is all of them",
    )
    return report.figure(
        pictures.froc(
            {f"{name}, IoU {threshold:g}": froc_curve(detections, kind, threshold)
             for name, kind, threshold in (("masks", "mask", 0.5), ("boxes", "box", 0.5), ("boxes", "box", 0.1))},
            rates=FROC_RATES,
        ),
        "FROC: share of objects found with so many false positives per image",
    )  # fmt: skip


def _add_classes(report: Report, summary: Mapping[str, float]) -> None:
    """A row for each of several classes."""
    classes = [name.removeprefix("truth.") for name in summary if name.startswith("truth.")]
    columns = {"ap_50": "AP at 0.50", "ap_75": "AP at 0.75", "pq": "PQ", "truth": "annotated", "predicted": "predicted"}
    if classes:
        report.table(
            [{"class": one} | {shown: summary[f"{name}.{one}"] for name, shown in columns.items()} for one in classes],
            caption="Each class by itself",
        )


def add_sizes(report: Report, spaces: Sequence[Space], rows: Sequence[Row]) -> Report:
    """Which sizes are found and which are missed, of images on these grids."""
    records = records_of(rows)
    sizes, iou, unit = _sizes(spaces, records)
    if not len(sizes):
        return report
    report.section("Errors by size", "Every annotated object; groups of one size hold as many objects each.")
    groups = [part for part in np.array_split(np.argsort(sizes, kind="stable"), min(4, len(sizes))) if len(part)]
    report.figure(pictures.size_errors(sizes, iou, unit=unit), "IoU of each object with its partner, by size")
    return report.table(
        [
            {
                f"size ({unit})": f"{sizes[part].min():.3g} to {sizes[part].max():.3g}",
                "objects": len(part),
                "found at IoU 0.5 (%)": 100 * float((iou[part] >= 0.5).mean()),
                "mean IoU": float(iou[part].mean()),
                "without a partner": int((iou[part] == 0).sum()),
            }
            for part in groups
        ],
        caption="From the smallest to the largest",
    )


def add_cases(
    report: Report,
    predictions: Sequence[InstancePrediction],
    samples: Sequence[Sample],
    rows: Sequence[Row],
    *,
    several: bool = False,
) -> Report:
    """Outlines of the worst, the median and the best case beside the truth, and a table of all.

    Args:
        several: whether there are several classes, and pairs are of one class.
    """
    report.section("Cases", "The worst first. Matched pairs share a colour; objects without a partner are vermilion.")
    order = sorted(range(len(rows)), key=lambda index: (float(rows[index]["ap_50"]), float(rows[index]["pq"])))
    for title, index in _chosen(order).items():
        sample, prediction, row = samples[index], predictions[index], rows[index]
        assert sample.masks is not None  # rows come from comparing with them
        truth, found = sample.masks.cpu().numpy(), np.asarray(prediction.label_volume)
        kinds = (prediction.classes, sample.classes.cpu().numpy()) if several and sample.classes is not None else None
        matches = match_ids(found, truth, classes=kinds)
        report.figure(
            pictures.instance_planes(
                sample.image,
                sample.space,
                truth=truth,
                predicted=found,
                matches=matches,
                at=_fault(found, truth, matches),
                title=f"{title}: {sample.name}",
            ),
            f"{title} case, {sample.name}: AP {float(row['ap_50']):.2f} at IoU 0.5, PQ {float(row['pq']):.2f}, "
            f"{float(row['predicted']):.0f} predicted of {float(row['truth']):.0f}{_told_ids(row)}",
        )
    columns = ["name", "ap_50", "ap_75", "pq", "seg", "det", "recall_50", "precision_50", "predicted", "truth"]
    return report.table([rows[index] for index in order], columns=columns, caption="Every held-out case")


def match_ids(
    predicted: NDArray[np.integer],
    truth: NDArray[np.integer],
    threshold: float = 0.5,
    *,
    classes: tuple[NDArray[np.integer], NDArray[np.integer]] | None = None,
) -> dict[int, int]:
    """Predicted id to the id of the true object it is matched with, of two label volumes.

    Args:
        classes: of the predicted and of the true ids from 1 on; None matches whatever the classes are.
    """
    overlaps = mask_overlaps(predicted, truth)
    ids = [np.unique(labels[labels > 0]) for labels in (predicted, truth)]
    if classes is not None:
        kinds = [known[numbers - 1] for known, numbers in zip(classes, ids, strict=True)]
        alike = kinds[0][overlaps.predicted] == kinds[1][overlaps.truth]
        overlaps = replace(
            overlaps,
            predicted=overlaps.predicted[alike],
            truth=overlaps.truth[alike],
            shared=overlaps.shared[alike],
        )
    pairs = matched(overlaps, threshold)
    one, other = ids[0][overlaps.predicted[pairs]], ids[1][overlaps.truth[pairs]]
    return dict(zip(one.tolist(), other.tolist(), strict=True))


def _told_ids(row: Row) -> str:
    """The objects without a partner by their ids: missed ones by the label file's, others by the written volume's."""
    told = ""
    for column, words in (("missed_ids", "missed, by the label file's ids"), ("extra_ids", "predicted for nothing")):
        if ids := str(row[column]).split():
            told += f"; {words}: {', '.join(ids[:_MOST_IDS])}{', ...' * (len(ids) > _MOST_IDS)}"
    return told


def _ap(threshold: float) -> str:
    return f"ap_{round(100 * threshold)}"


def _chosen(order: Sequence[int]) -> dict[str, int]:
    """Which cases to show, each once: with fewer than three, one that is several of these has the first name."""
    picks: dict[int, str] = {}
    for title, place in (("Worst", 0), ("Median", len(order) // 2), ("Best", len(order) - 1)):
        if order:
            picks.setdefault(order[place], title)
    return {title: index for index, title in picks.items()}


def _fault(
    predicted: NDArray[np.integer], truth: NDArray[np.integer], matches: dict[int, int]
) -> tuple[float, ...] | None:
    """The middle of the largest object without a partner; None where all have one."""
    largest, where = 0, None
    for labels, known in ((truth, set(matches.values())), (predicted, set(matches))):
        ids, counts = np.unique(labels[labels > 0], return_counts=True)
        for number, count in zip(ids.tolist(), counts.tolist(), strict=True):
            if number not in known and count > largest:
                largest, where = count, labels == number
    return None if where is None else tuple(float(np.median(along)) for along in np.nonzero(where))


def _sizes(
    spaces: Sequence[Space], records: Sequence[InstanceRecord]
) -> tuple[NDArray[np.float64], NDArray[np.float64], str]:
    """Size and IoU of every true object, and the unit of the sizes: µm where all images are a microscope's."""
    ndim = spaces[0].ndim if spaces else 3
    tiny = all(max(space.spacing) < MICROSCOPIC_MM for space in spaces)
    factor = 1000.0**ndim if tiny else 1.0
    sizes = [
        np.array(record.blind.sizes) * np.prod(space.spacing) * factor
        for space, record in zip(spaces, records, strict=True)
    ]
    iou = [np.array(record.blind.found) for record in records]
    unit = ("µm" if tiny else "mm") + "²³"[ndim - 2]
    empty: Any = np.zeros(0)
    return np.concatenate([empty, *sizes]), np.concatenate([empty, *iou]), unit
