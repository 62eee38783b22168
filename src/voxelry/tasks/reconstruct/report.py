"""The reconstruction part of a report: scores beside the baselines', and the cases to look at, the worst first."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from voxelry.data.slices.case import SliceCase
from voxelry.metrics.intervals import LEVELS
from voxelry.metrics.surfaces import signed_error
from voxelry.ops.sdf import signed_distance
from voxelry.ops.surface import extract_surface
from voxelry.tasks.base import Row, Task
from voxelry.tasks.evaluate import Evaluation
from voxelry.tasks.reconstruct.predict import ReconstructPrediction
from voxelry.viz.charts import calibration
from voxelry.viz.meshes import surfaces
from voxelry.viz.report import Report
from voxelry.viz.style import PREDICTED, QUIET, TRUTH, headline, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["add_cases", "add_hypotheses", "add_results", "add_scores", "prompt_figure"]

_BASELINES = {
    "mean_shape_dice": "mean shape at the prompt",
    "ellipsoid_dice": "ellipsoid from the slice's true mask",
    "nearest_shape_dice": "training shape nearest to the slice's true mask",
}
_HYPOTHESES = {
    "dice": "mean of the hypotheses",
    "hypothesis_dice": "one hypothesis, on average",
    "best_hypothesis_dice": "the best of them",
    "without_flow_dice": "without the flow",
}
_SHOWN = 3


def add_results(report: Report, task: Task, found: Evaluation[ReconstructPrediction]) -> Report:
    """Everything below, in the order a reader asks for it; of the cases only those that are shown are read."""
    add_scores(report, task, found.rows)
    if any("hypothesis_dice" in row for row in found.rows):
        add_hypotheses(report, task, found.rows)
    return add_cases(report, found.predictions, found.cases, found.rows)


def add_scores(report: Report, task: Task, rows: Sequence[Row]) -> Report:
    """The summary, Dice beside the baselines', by plane and by distance from the slice."""
    summary = task.summary(rows)
    report.section(
        "Shapes",
        f"{len(rows)} held-out prompts. Volumes are filled, nothing is aligned or rescaled; HD95 is the larger of the "
        "two directed 95th percentiles, Chamfer the mean distance of the surfaces, both ways.",
    )
    report.facts(
        {
            "Dice": f"{summary['dice']:.3f} ({summary['dice_low']:.3f} to {summary['dice_high']:.3f})",
            "HD95 (mm)": summary["hd95_mm"],
            "ASSD (mm)": summary["assd_mm"],
            "Chamfer (mm)": summary["chamfer_mm"],
            "normal consistency": summary["normal_consistency"],
            "volume error (ml)": summary["volume_error_ml"],
            "contour on the slice (mm)": summary["on_slice_contour_mm"],
            "IoU of the 2-D mask": summary["mask_iou"],
        }
    )
    methods = [{"method": "ours", "Dice": summary["dice"]}]
    methods += [{"method": title, "Dice": summary[name]} for name, title in _BASELINES.items() if name in summary]
    report.table(methods, caption="Beside shapes that don't look at the image")
    organs = _by(rows, "organ")
    if len(organs) > 1:
        report.table(organs, caption="By organ")
    report.table(_by(rows, "plane"), caption="By the plane of the slice")
    slabs = [name for name in summary if name.startswith("dice_") and "_mm" in name]
    return report.table(
        [{"distance from the slice": name[5:].replace("_", " "), "Dice": summary[name]} for name in slabs],
        caption="Away from what was seen",
    )


def add_hypotheses(report: Report, task: Task, rows: Sequence[Row]) -> Report:
    """How hypotheses do beside their mean, and whether the truth lies within their spread."""
    summary = task.summary(rows)
    report.section(
        "Hypotheses",
        "Each is an organ that the prompt leaves possible; the answer is their mean. The spread is how far their "
        "surfaces are from a vertex of the answer; an interval of some level should hold the true surface at that "
        "share of the vertices.",
    )
    report.table(
        [{"shape": title, "Dice": summary[name]} for name, title in _HYPOTHESES.items() if name in summary],
        caption="The mean, its hypotheses, and the answer that needs none",
    )
    observed = [summary.get(f"coverage_{100 * level:.0f}", math.nan) for level in LEVELS]
    if math.isfinite(observed[0]):
        report.facts({"mean spread (mm)": summary["spread_mm"]})
        report.figure(calibration(LEVELS, observed), "Promised and observed coverage of the spread")
    return report


def add_cases(
    report: Report,
    predictions: Sequence[ReconstructPrediction],
    cases: Sequence[SliceCase],
    rows: Sequence[Row],
) -> Report:
    """Slice, contours and surfaces of the worst prompts and of the median and the best, and a table of all."""
    order = sorted(range(len(rows)), key=lambda index: float(rows[index]["dice"]))
    report.section(
        "Cases",
        "The worst first. On the slice the cross is the click, the line the cut of the predicted shape, the light one "
        "the truth, thin ones hypotheses. On the surface red lies outside of the truth and blue inside.",
    )
    chosen = dict.fromkeys([*order[:_SHOWN], order[len(order) // 2], order[-1]])
    for index in chosen:
        prediction, case, row = predictions[index], cases[index], rows[index]
        title = f"{prediction.name}, {row['plane']}: Dice {float(row['dice']):.2f}"
        report.figure(prompt_figure(prediction, case), f"{title}; the slice and the click")
        if case.truth is None:
            continue
        distances = signed_distance(case.truth.numpy().astype(bool), case.space.spacing, truncation=10.0)
        if distances is None:
            continue
        truth = extract_surface(distances, case.space)
        mesh = prediction.mesh
        if not mesh.is_empty:
            mesh = mesh.with_values(**mesh.values, error_mm=signed_error(mesh, truth))
        report.figure(
            surfaces(
                mesh,
                truth,
                values=None if mesh.is_empty else "error_mm",
                label="error",
                planes=prediction.planes,
                title=title,
            ),
            f"{title}; volume {float(row['volume_ml']):.2f} ml, truly {float(row['truth_volume_ml']):.2f} ml",
        )
        if "spread_mm" in mesh.values and index == order[0]:
            report.figure(
                surfaces(mesh, values="spread_mm", label="spread (mm)", planes=prediction.planes, title=title),
                f"{title}; how far {len(prediction.hypotheses)} hypotheses are from each vertex",
            )
    columns = [
        "name",
        "organ",
        "slice",
        "click",
        "dice",
        "hd95_mm",
        "assd_mm",
        "volume_error",
        "on_slice_contour_mm",
        "mask_iou",
    ]
    return report.table([rows[index] for index in order], columns=columns, caption="Every held-out prompt")


def prompt_figure(prediction: ReconstructPrediction, case: SliceCase) -> Figure:
    """Each slice as the network saw it, with the click, the cut of the shape and, where it is known, the true mask."""
    count = len(prediction.views)
    fig = new_figure(3.2 * count + 0.2, 3.6)
    for place, view in enumerate(prediction.views):
        axes = fig.add_axes(((0.1 + 3.2 * place) / (3.2 * count + 0.2), 0.02, 3.0 / (3.2 * count + 0.2), 0.86))
        # rows run to the superior or anterior, which belongs at the top, columns to the anterior or right, on the left
        size = (view.shape[1] * view.spacing[1], view.shape[0] * view.spacing[0])
        across, up = (np.arange(n) + 0.5 for n in view.shape[::-1])
        across, up = across * view.spacing[1], up * view.spacing[0]
        axes.imshow(case.image[place, 0].numpy(), cmap="gray", origin="lower", extent=(0, size[0], 0, size[1]))
        for other in prediction.hypotheses:
            cut = -replace(prediction, sdf=other, hypotheses=()).distances(view)
            if cut.min() < 0 < cut.max():
                axes.contour(across, up, cut, levels=[0.0], colors=[PREDICTED], linewidths=0.6, alpha=0.5)
        for field, colour in ((case.mask_target[place].numpy() - 0.5, TRUTH), (-prediction.distances(view), PREDICTED)):
            if field.min() < 0 < field.max():
                axes.contour(across, up, field, levels=[0.0], colors=[colour], linewidths=1.4)
        if place < len(prediction.clicks):
            row, column = np.asarray(view.to_index(prediction.clicks[place]))
            axes.plot(
                (column + 0.5) * view.spacing[1], (row + 0.5) * view.spacing[0], "+", color="white", ms=9, mew=1.6
            )
        axes.set_xlim(size[0], 0)
        axes.set_ylim(0, size[1])
        axes.set_xticks([])
        axes.set_yticks([])
        ends = view.orientation
        axes.set_title(f"{ends[0]} up, {ends[1]} left; {size[0]:.0f} mm across", fontsize=8, color=QUIET, loc="left")
    headline(fig, prediction.name)
    return fig


def _by(rows: Sequence[Row], column: str) -> list[dict[str, float | str]]:
    """Means of the rows that share a word in a column."""
    found: list[dict[str, float | str]] = []
    for word in sorted({str(row.get(column, "")) for row in rows}):
        own = [row for row in rows if str(row.get(column, "")) == word]
        found.append({column: word, "prompts": len(own), **_means(own, ("dice", "hd95_mm", "assd_mm"))})
    return found


def _means(rows: Sequence[Row], names: Sequence[str]) -> dict[str, float]:
    return {name: float(np.nanmean([float(row[name]) for row in rows])) for name in names}
