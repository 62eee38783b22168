"""The translation part of a report: figures beside regression's, their price in calls, and the cases to look at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from voxelry.metrics.intervals import LEVELS
from voxelry.tasks.base import Row, Task
from voxelry.tasks.evaluate import Evaluation
from voxelry.tasks.translate.predict import TranslatePrediction
from voxelry.tasks.translate.scores import BETTER, METHODS, duel
from voxelry.viz.charts import calibration, small_multiples
from voxelry.viz.comparison import Panel, comparison
from voxelry.viz.report import Report

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["add_calls", "add_cases", "add_coverage", "add_results", "add_scores", "case_figure"]

FIGURES = {
    "psnr": "PSNR (dB)",
    "ssim": "SSIM",
    "mae": "MAE (units of the image)",
    "gmsd": "GMSD",
    "spectral_distance": "spectral distance (dB)",
    "detail_ratio": "detail ratio",
}
_CURVES = ("psnr", "gmsd", "spectral_distance")
_INPUTS = 2  # columns at most
_SHOWN = 3


def add_results(
    report: Report, task: Task, found: Evaluation[TranslatePrediction], *, calls: Sequence[Mapping[str, Any]] = ()
) -> Report:
    """Everything below, in the order a reader asks for it; `calls` of `add_calls` are left out when empty."""
    rows = found.rows
    add_scores(report, task.summary(rows), rows)
    if calls:
        add_calls(report, calls)
    if any(_coverage_name(LEVELS[0]) in row for row in rows):
        add_coverage(report, rows)
    return add_cases(report, found.predictions, rows)


def add_scores(report: Report, summary: Mapping[str, float], rows: Sequence[Row]) -> Report:
    """The figures of the translation, of its input and of the regression baseline, and who wins."""
    report.section(
        "Translated images",
        f"{len(rows)} held-out cases, each measured as a whole volume and clipped to its range. SSIM has a Gaussian "
        "window of 1.5 voxels. GMSD compares edges, the spectral distance texture; both are 0 at best. A detail ratio "
        "below 1 is blur, above 1 noise.",
    )
    report.facts(
        {
            "PSNR (dB)": _interval(summary, "psnr", 2),
            "SSIM": _interval(summary, "ssim", 3),
            "MAE": summary["mae"],
            "GMSD": summary["gmsd"],
            "network calls": summary["calls"],
            "seconds per case": summary["seconds"],
        }
    )
    methods = [
        {"method": method} | {title: summary[f"{prefix}{name}"] for name, title in FIGURES.items()}
        for prefix, method in METHODS.items()
        if f"{prefix}psnr" in summary
    ]
    report.table(
        methods,
        caption="Means over the cases",
        highlight={FIGURES[name]: "max" if sense > 0 else "min" for name, sense in BETTER.items()},
    )
    if "baseline_psnr" not in summary:
        return report
    compared = duel(rows)
    won = {name: [one["figure"] for one in compared if one["winner"] == name] for name in ("translation", "regression")}
    sentences = [f"The {name} is better in {_listed(figures)}." for name, figures in won.items() if figures]
    report.section(
        "Against regression",
        f"A second network of the same settings learned the target directly, from the same batches. It takes 1 call; "
        f"the translation takes {summary['calls']:.0f}. {' '.join(sentences) or 'No difference is certain.'}",
    )
    return report.table(
        [_told(one) for one in compared],
        caption="Translation minus regression, mean over the cases with its 95 % bootstrap interval; the winner is "
        "named where the interval leaves out 0",
    )


def add_calls(report: Report, calls: Sequence[Mapping[str, Any]]) -> Report:
    """What more calls of the network buy: pixel error and perceptual distance over their number.

    Args:
        report: added to.
        calls: the summary of the held-out cases for every way to sample, with its `sampler`, `calls` and, where it
            was measured, `seconds`.
    """
    ordered = sorted(calls, key=lambda row: (str(row["sampler"]), int(row["calls"])))
    samplers = dict.fromkeys(str(row["sampler"]) for row in ordered)
    series = {sampler: [row for row in ordered if row["sampler"] == sampler] for sampler in samplers}
    baseline = {name: ordered[0][f"baseline_{name}"] for name in FIGURES if f"baseline_{name}" in ordered[0]}
    report.section(
        "Over the number of calls",
        "More calls mean more detail, not a smaller error: the mean of all plausible images has the smallest, and is "
        "blurred." + " The dashed line is regression, in one call." * bool(baseline),
    )
    report.figure(
        small_multiples(
            series,
            x="calls",
            ys={name: FIGURES[name] for name in _CURVES},
            xlabel="calls",
            levels={"regression": baseline} if baseline else None,
        ),
        "Pixel error (PSNR, higher is better) and perceptual distances (lower is better) over the number of calls",
    )
    table = [
        {"sampler": row["sampler"], "calls": int(row["calls"]), "seconds": row.get("seconds")}
        | {title: row[name] for name, title in FIGURES.items()}
        for row in ordered
    ]
    if baseline:
        figures = {FIGURES[name]: value for name, value in baseline.items()}
        table.insert(0, {"sampler": "regression", "calls": 1, "seconds": None} | figures)
    return report.table(
        table,
        caption="Means over the held-out cases",
        highlight={FIGURES[name]: "max" if sense > 0 else "min" for name, sense in BETTER.items()},
    )


def add_coverage(report: Report, rows: Sequence[Row]) -> Report:
    """How often the truth lies in the intervals that the spread promises, mean over the cases that have one."""
    observed = [np.array([float(row.get(_coverage_name(level), np.nan)) for row in rows]) for level in LEVELS]
    means = [float(np.nanmean(values)) for values in observed]
    promise = dict(zip(LEVELS, means, strict=True))
    report.section(
        "Spread",
        "Samples differ where the image leaves the answer open. Of the true voxels "
        f"{100 * promise[0.9]:.1f} % lie in the interval that promises 90 %.",
    )
    report.figure(calibration(LEVELS, means), "Share of true voxels inside their interval; on the diagonal is right")
    table = [
        {
            "promised (%)": 100 * level,
            "observed (%)": 100 * mean,
            "lowest case (%)": 100 * float(np.nanmin(values)),
            "highest case (%)": 100 * float(np.nanmax(values)),
        }
        for level, mean, values in zip(LEVELS, means, observed, strict=True)
    ]
    return report.table(table, caption="Coverage over the held-out cases")


def add_cases(
    report: Report, predictions: Sequence[TranslatePrediction], rows: Sequence[Row], *, count: int = _SHOWN
) -> Report:
    """The worst cases and the best one in pictures, and a table of all, the worst first."""
    order = sorted(range(len(rows)), key=lambda index: float(rows[index]["psnr"]))
    report.section(
        "Cases",
        "The worst first, by PSNR. Grey values are relative to the range of each image; in the error map red is too "
        "bright and blue too dark.",
    )
    for index in dict.fromkeys([*order[:count], order[-1]]):
        row = rows[index]
        caption = f"{row['name']}: {float(row['psnr']):.2f} dB, SSIM {float(row['ssim']):.3f}"
        if "input_psnr" in row:
            caption += f"; its input {float(row['input_psnr']):.2f} dB"
        if "baseline_psnr" in row:
            caption += f", regression {float(row['baseline_psnr']):.2f} dB"
        report.figure(case_figure(predictions[index]), caption)
    columns = ["name", "psnr", "ssim", "mae", "gmsd", "detail_ratio"]
    columns += [name for name in ("input_psnr", "baseline_psnr") if name in rows[0]]
    return report.table([rows[index] for index in order], columns=columns, caption="Every held-out case")


def case_figure(prediction: TranslatePrediction, *, title: str = "") -> Figure:
    """Conditions, translation, regression and truth in grey, then the signed error and the spread, in physical units.

    What there isn't is left out; of several channels of the target the first is shown.
    """
    there = [channel for channel in prediction.image if bool(channel.any())]  # absent contrasts are zeros
    numbered = len(there) > 1
    panels = [
        Panel(f"input {number}" if numbered else "input", channel)
        for number, channel in enumerate(there[:_INPUTS], start=1)
    ]
    panels.append(Panel("translated", prediction.translated))
    if prediction.baseline is not None:
        panels.append(Panel("regression", prediction.baseline))
    if prediction.target is not None:
        panels.append(Panel("truth", prediction.target))
        error = _physical_size(prediction.translated - prediction.target, prediction)
        panels.append(Panel("translated\n− truth", error, "error"))
    if prediction.spread is not None:
        panels.append(Panel("spread", _physical_size(prediction.spread, prediction), "spread"))
    return comparison(panels, prediction.space, title=title)


def _physical_size(values: Tensor, prediction: TranslatePrediction) -> Tensor:
    """Differences, `(C_t, *spatial)`, from relative to physical."""
    levels = prediction.target_levels
    width = levels[:, 1] - levels[:, 0]
    return values * width.reshape(-1, *[1] * (values.ndim - 1))


def _told(one: Mapping[str, float | str]) -> dict[str, str]:
    """A row of `duel` in words; each has digits of its own."""
    name = str(one["figure"])
    difference, low, high = (f"{float(one[part]):+.3g}" for part in ("difference", "low", "high"))
    return {
        "figure": FIGURES[name],
        "difference": difference,
        "95 % interval": f"{low} to {high}",
        "better in": f"{one['better']} of {one['cases']}",
        "winner": str(one["winner"]),
    }


def _coverage_name(level: float) -> str:
    return f"coverage_{level * 100:.0f}"


def _interval(summary: Mapping[str, float], name: str, digits: int) -> str:
    low, high = summary[f"{name}_low"], summary[f"{name}_high"]
    return f"{summary[name]:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def _listed(figures: Sequence[Any]) -> str:
    names = [FIGURES[figure].partition(" (")[0] for figure in figures]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
