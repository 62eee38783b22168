"""The landmark part of a report: error tables, curves, coverage, and the cases to look at."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voxelry.data.sample import Sample
from voxelry.metrics.landmarks import SDR_THRESHOLDS_MM
from voxelry.tasks.base import Row
from voxelry.tasks.evaluate import Evaluation
from voxelry.tasks.landmarks.calibration import LEVELS
from voxelry.tasks.landmarks.predict import LandmarkPrediction
from voxelry.tasks.landmarks.scores import ORIGINAL
from voxelry.tasks.landmarks.task import LandmarkTask
from voxelry.viz import figures
from voxelry.viz.report import Report

__all__ = ["add_cases", "add_errors", "add_few_shot", "add_results", "add_uncertainty"]


def add_results(report: Report, task: LandmarkTask, found: Evaluation[LandmarkPrediction]) -> Report:
    """Everything below, in the order a reader asks for it; the cases are samples with their points."""
    add_errors(report, task, found.rows)
    add_uncertainty(report, task, found.rows)
    return add_cases(report, task, found.predictions, found.cases, found.rows)


def add_errors(report: Report, task: LandmarkTask, rows: Sequence[Row]) -> Report:
    """Summary with its interval, a table and a box per landmark, the cumulative curve."""
    summary = task.summary(rows)
    report.section(
        "Errors",
        f"Distances in mm to the original points of {len(rows)} held-out cases. The interval is a 95 % bootstrap over "
        "cases. SDR is the fraction of points within a distance; a point that was not found is no success.",
    )
    interval = f"{_mm(summary['mre_mm'])} ({_mm(summary['mre_mm_low'])} to {_mm(summary['mre_mm_high'])})"
    facts: dict[str, Any] = {"mean radial error (mm)": interval, "median (mm)": summary["median_mm"]}
    if not math.isnan(summary.get("mean_position_mm", math.nan)):
        facts["mean position of the training set (mm)"] = summary["mean_position_mm"]
    facts |= {"mAP (OKS)": summary["map_oks"], "not found": summary["missed"]}
    if task.presence and not math.isnan(summary["presence_auc"]):
        facts["presence AUC"] = summary["presence_auc"]
    report.facts(facts)
    errors = _errors(task, rows)
    report.table([_landmark_row(name, errors[:, i]) for i, name in enumerate(task.names)], caption="Each landmark")
    rates = {f"≤ {limit:g} mm": 100 * summary[f"sdr_{limit:g}mm"] for limit in SDR_THRESHOLDS_MM}
    report.table([rates], caption="SDR (%)")
    theirs = {name.removeprefix(ORIGINAL): value for name, value in summary.items() if name.startswith(ORIGINAL)}
    if theirs:
        report.table([theirs], caption="By the original's own definitions, in whole pixels of the resized image")
    if np.isfinite(errors).any():
        report.figure(figures.box_by_landmark(errors, task.names), "Radial error of each landmark")
        report.figure(figures.cumulative_error({"all landmarks": errors}), "Share of points within a distance")
    return report


def add_uncertainty(report: Report, task: LandmarkTask, rows: Sequence[Row]) -> Report:
    """Promised against observed coverage of the radii."""
    cases = int(task.calibration.cases.item())
    source = f"calibrated on {cases} validation cases" if cases else "not calibrated: those of a Gaussian heatmap"
    summary = task.summary(rows)
    observed = [summary[f"coverage_{100 * level:g}"] for level in LEVELS]
    report.section(
        "Uncertainty",
        f"Each point comes with radii in mm that should hold the truth with a given probability, {source}.",
    )
    report.table(
        [
            {"promised (%)": 100 * level, "observed (%)": 100 * found}
            for level, found in zip(LEVELS, observed, strict=True)
        ],
        caption="Coverage of the held-out points",
    )
    if np.isfinite(observed).all():
        report.figure(figures.calibration(LEVELS, observed), "Promised and observed coverage of the radii")
    return report


def add_cases(
    report: Report,
    task: LandmarkTask,
    predictions: Sequence[LandmarkPrediction],
    samples: Sequence[Sample],
    rows: Sequence[Row],
) -> Report:
    """The best, the median and the worst case in orthogonal slices, and a table of all."""
    report.section("Cases", "True and predicted points, joined; rings are the radii of the highest probability.")
    for title, index in _chosen(rows).items():
        sample, prediction = samples[index], predictions[index]
        report.figure(
            figures.orthogonal(
                sample.image,
                figures.PointPairs(
                    sample.space,
                    truth=sample.landmarks,
                    predicted=prediction.index,
                    names=task.names,
                    uncertainty_mm=prediction.uncertainty_mm,
                ),
                title=f"{title}: {sample.name}",
            ),
            f"{title} case, {sample.name}: mean radial error {_mm(float(rows[index]['mre_mm']))} mm",
        )
    columns = ["name", "mre_mm", "worst_mm", "missed"]
    worst_first = sorted(rows, key=lambda row: -_sortable(row["mre_mm"]))
    return report.table(worst_first, columns=columns, caption="Every held-out case, the worst first")


def add_few_shot(
    report: Report, counts: Sequence[int], errors: Mapping[str, Any], *, baseline: Mapping[str, float] | None = None
) -> Report:
    """Error against the number of labelled cases.

    Args:
        counts: numbers of labels.
        errors: method to mean radial errors in mm, `(seeds, counts)`, NaN for a missing run.
        baseline: name to an error drawn as a level line.
    """
    report.section("Few labels", "Each point is the mean over repeated draws of the labelled cases, with its interval.")
    report.figure(figures.few_shot(counts, errors, baseline=baseline), "Mean radial error by number of labelled cases")
    tables = {name: np.asarray(values, dtype=np.float64) for name, values in errors.items()}
    return report.table(
        [
            {"labels": count} | {name: _mean_and_sd(table[:, column]) for name, table in tables.items()}
            for column, count in enumerate(counts)
        ],
        caption="Mean radial error (mm), mean ± standard deviation over the draws",
    )


def _errors(task: LandmarkTask, rows: Sequence[Row]) -> NDArray[np.float64]:
    values = [[float(row[f"error_mm.{name}"]) for name in task.names] for row in rows]
    return np.array(values, dtype=np.float64).reshape(len(rows), len(task.names))


def _landmark_row(name: str, errors: NDArray[np.float64]) -> dict[str, Any]:
    known = errors[np.isfinite(errors)]
    empty = not known.size
    return {
        "landmark": name,
        "points": len(known),
        "mean (mm)": math.nan if empty else float(known.mean()),
        "median (mm)": math.nan if empty else float(np.median(known)),
        "95th percentile (mm)": math.nan if empty else float(np.percentile(known, 95)),
        "worst (mm)": math.nan if empty else float(known.max()),
    }


def _chosen(rows: Sequence[Row]) -> dict[str, int]:
    """Which cases to show, each once; none without a known error."""
    known = [index for index, row in enumerate(rows) if not math.isnan(float(row["mre_mm"]))]
    order = sorted(known, key=lambda index: float(rows[index]["mre_mm"]))
    if not order:
        return {}
    # with fewer than three cases the same one can be several of these: shown once, by its last name
    picks = {order[0]: "Best", order[len(order) // 2]: "Median", order[-1]: "Worst"}
    return {title: index for index, title in picks.items()}


def _sortable(value: float | str) -> float:
    number = float(value)
    return -math.inf if math.isnan(number) else number


def _mm(value: float) -> str:
    return f"{value:.2f}"


def _mean_and_sd(values: NDArray[np.float64]) -> str:
    known = values[np.isfinite(values)]
    return f"{known.mean():.2f} ± {known.std():.2f}" if known.size else ""
