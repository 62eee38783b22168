"""Charts of numbers: training curves, error distributions, calibration, few-shot curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from voxelry.core.errors import SettingError
from voxelry.ops.bootstrap import bootstrap_interval
from voxelry.viz.style import INK, QUIET, as_array, clean, colour, new_figure, row_of_keys

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["box_by_landmark", "calibration", "cumulative_error", "curves", "few_shot", "histograms", "small_multiples"]


def curves(
    series: Mapping[str, tuple[Any, Any]],
    *,
    xlabel: str = "step",
    ylabel: str = "",
    log: bool = False,
    title: str = "",
) -> Figure:
    """One line per series; NaN breaks a line, a single point is drawn as a dot.

    Args:
        series: name to `(x, y)`, each `(n,)`.
        xlabel, ylabel: with their units.
        log: whether the y axis is logarithmic; what isn't positive is left out.
        title: one line.

    Raises:
        SettingError: an x and y of different lengths; the message names the series.
    """
    fig = new_figure(7.2, 3.6)
    axes = clean(fig.add_subplot(), xlabel=xlabel, ylabel=ylabel, title=title)
    for i, (name, (x, y)) in enumerate(series.items()):
        xs, ys = as_array(x, f"{name} x", ndim=1), as_array(y, f"{name} y", ndim=1)
        if xs.shape != ys.shape:
            raise SettingError(f"{name}: expected x and y of one length, got {len(xs)} and {len(ys)}")
        if log:
            ys = np.where(ys > 0, ys, np.nan)
        marker = "o" if np.isfinite(ys).sum() == 1 else ""
        axes.plot(xs, ys, color=colour(i), linewidth=1.6, marker=marker, markersize=5, label=name)
    if log:
        axes.set_yscale("log")
    if len(series) > 1:
        row_of_keys(axes)
    return _tight(fig)


def small_multiples(
    series: Mapping[str, Sequence[Mapping[str, Any]]],
    *,
    x: str,
    ys: Mapping[str, str],
    xlabel: str = "",
    levels: Mapping[str, Mapping[str, float]] | None = None,
) -> Figure:
    """Several quantities over the same few numbers, such as 1, 2 and 4 calls: a chart each, side by side.

    Args:
        series: name to rows, each with `x` and every key of `ys`; a line each.
        x: key of the numbers, whole and positive, which are spaced as their logarithms.
        ys: key to the label of its axis, with the unit.
        xlabel: of every chart.
        levels: name to the value of every key of `ys`, drawn as a dashed line.
    """
    from matplotlib.ticker import MaxNLocator

    fig = new_figure(3.1 * len(ys) + 0.2, 3.0)
    ticks = sorted({int(row[x]) for rows in series.values() for row in rows})
    for place, (key, label) in enumerate(ys.items(), start=1):
        axes = clean(fig.add_subplot(1, len(ys), place), xlabel=xlabel, title=label)
        for i, (name, rows) in enumerate(series.items()):
            where, values = [np.log2(row[x]) for row in rows], [float(row[key]) for row in rows]
            axes.plot(where, values, "o-", color=colour(i), linewidth=1.6, markersize=4.5, label=name)
        for name, level in (levels or {}).items():
            axes.axhline(level[key], color=QUIET, linewidth=0.9, linestyle=(0, (4, 3)), label=name)
        axes.set_xticks(np.log2(ticks), [str(tick) for tick in ticks])
        axes.margins(x=0.12, y=0.12)
        axes.yaxis.set_major_locator(MaxNLocator(5))
        if place == 1 and len(series) + len(levels or {}) > 1:
            row_of_keys(axes)
    return _tight(fig)


def histograms(panels: Mapping[str, Mapping[str, Any]], *, ylabel: str = "", bins: int = 20) -> Figure:
    """How often values occur, a chart each, side by side; several series of one chart share its bins.

    Args:
        panels: label of the values with their unit, to name to values, any shape; NaN is left out.
        ylabel: what is counted.
        bins: of a chart.
    """
    from matplotlib.ticker import MaxNLocator

    fig = new_figure(4.4 * len(panels) + 0.2, 2.8)
    for place, (label, series) in enumerate(panels.items(), start=1):
        axes = clean(fig.add_subplot(1, len(panels), place), xlabel=label, ylabel=ylabel if place == 1 else "")
        flat = {name: _finite(as_array(values, name).ravel()) for name, values in series.items()}
        together = np.concatenate(list(flat.values()))
        edges = np.histogram_bin_edges(together, bins).tolist()
        for i, (name, values) in enumerate(flat.items()):
            axes.hist(values, edges, histtype="stepfilled", alpha=0.35, color=colour(i), label=name)
            axes.hist(values, edges, histtype="step", linewidth=1.4, color=colour(i))
        axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes.xaxis.set_major_locator(MaxNLocator(6))
        last = place == len(panels)
        if len(series) > 1 and (last or set(series) != set(panels[list(panels)[-1]])):
            row_of_keys(axes, outside=last)
    return _tight(fig)


def cumulative_error(errors_mm: Mapping[str, Any], *, limit: float | None = None, title: str = "") -> Figure:
    """The share of points whose error is at most x, one curve per method: the SDR at every threshold.

    Args:
        errors_mm: name to errors in mm, any shape; NaN is left out.
        limit: right end of the axis in mm; by default the largest 99th percentile.
        title: one line.
    """
    fig = new_figure(6.0, 3.8)
    axes = clean(fig.add_subplot(), xlabel="radial error (mm)", ylabel="points within (%)", title=title)
    flat = {name: np.sort(_finite(as_array(errors, name))) for name, errors in errors_mm.items()}
    if limit is None:
        limit = max((float(np.percentile(errors, 99)) for errors in flat.values() if len(errors)), default=1.0) or 1.0
    for i, (name, errors) in enumerate(flat.items()):
        if not len(errors):
            continue
        share = 100 * np.arange(len(errors) + 1) / len(errors)
        x = np.concatenate([[0.0], errors, [max(limit, float(errors[-1]))]])
        axes.step(x, np.append(share, 100.0), where="post", color=colour(i), linewidth=1.6,
                  label=f"{name} (median {np.median(errors):.2f} mm)")  # fmt: skip
    axes.set_xlim(0, limit)
    axes.set_ylim(0, 102)
    if any(len(errors) for errors in flat.values()):
        row_of_keys(axes, loc="lower right")
    return _tight(fig)


def calibration(nominal: Any, observed: Any, *, title: str = "") -> Figure:
    """Share of points inside their predicted region against the share promised; the diagonal is right.

    Args:
        nominal: `(n,)` promised coverage in [0, 1].
        observed: `(n,)` coverage found, or a mapping from name to that.
        title: one line.

    Raises:
        SettingError: another number of observed than nominal values.
    """
    fig = new_figure(4.4, 4.2)
    axes = clean(fig.add_subplot(), xlabel="promised coverage (%)", ylabel="observed coverage (%)", title=title)
    promised = 100 * as_array(nominal, "nominal", ndim=1)
    found = observed if isinstance(observed, Mapping) else {"": observed}
    axes.plot([0, 100], [0, 100], color=QUIET, linewidth=0.9, linestyle=(0, (4, 3)), label="calibrated")
    for i, (name, values) in enumerate(found.items()):
        ys = 100 * as_array(values, name or "observed", ndim=1)
        if ys.shape != promised.shape:
            raise SettingError(f"observed: expected {len(promised)} values, one per nominal one, got {len(ys)}")
        axes.plot(promised, ys, "o-", color=colour(i), linewidth=1.6, markersize=4.5, label=name or "observed")
    axes.set_xlim(0, 100)
    axes.set_ylim(0, 100)
    axes.set_aspect("equal")
    row_of_keys(axes, loc="upper left")
    return _tight(fig)


def few_shot(
    counts: Sequence[int],
    errors: Mapping[str, Any],
    *,
    ylabel: str = "mean radial error (mm)",
    baseline: Mapping[str, float] | None = None,
    title: str = "",
) -> Figure:
    """Error against the number of labelled cases: mean, 95 % interval of the mean, and every run as a dot.

    Args:
        counts: `(n,)` numbers of labelled cases.
        errors: method to `(seeds, n)`; NaN for a run that is missing.
        ylabel: with its unit.
        baseline: name to a value drawn as a level line, such as the mean position's error.
        title: one line.

    The interval is a percentile bootstrap over the seeds (Efron & Tibshirani 1993, section 13.3), with a fixed
    seed of its own; with fewer than three runs there is none.

    Raises:
        SettingError: an array that isn't `(seeds, n)`; the message names the method.
    """
    fig = new_figure(6.6, 4.0)
    axes = clean(fig.add_subplot(), xlabel="labelled cases", ylabel=ylabel, title=title)
    where = np.arange(len(counts), dtype=float)  # evenly spaced: 1, 5, 10, 25, 50 crowd on a linear axis
    for i, (name, values) in enumerate(errors.items()):
        runs = as_array(values, name, ndim=2)
        if runs.shape[1] != len(counts):
            raise SettingError(f"{name}: expected shape (seeds, {len(counts)}), got {runs.shape}")
        shift = 0.12 * (i - (len(errors) - 1) / 2)
        columns = [_finite(column) for column in runs.T]
        means = np.array([column.mean() if len(column) else np.nan for column in columns])
        bounds = np.array([_interval(column) for column in columns])
        axes.fill_between(where + shift, bounds[:, 0], bounds[:, 1], color=colour(i), alpha=0.16, linewidth=0)
        axes.plot(where + shift, means, "-", color=colour(i), linewidth=1.8, label=name)
        for x, column in zip(where + shift, columns, strict=True):
            axes.plot(np.full(len(column), x), column, "o", color=colour(i), markersize=4, alpha=0.6, mew=0)
    for name, value in (baseline or {}).items():
        axes.axhline(value, color=QUIET, linewidth=0.9, linestyle=(0, (4, 3)))
        axes.annotate(name, (1, value), xycoords=("axes fraction", "data"), xytext=(-2, 3),
                      textcoords="offset points", ha="right", fontsize=8.5, color=QUIET)  # fmt: skip
    axes.set_xticks(where, [str(count) for count in counts])
    axes.set_ylim(bottom=0)
    row_of_keys(axes, loc="lower left" if baseline else "best")
    return _tight(fig)


def box_by_landmark(errors: Any, names: Sequence[str], *, title: str = "") -> Figure:
    """The distribution of the error of each landmark, with the number of cases it was seen in.

    The box holds the middle half, the whiskers reach 1.5 times its length at most, dots lie beyond.

    Args:
        errors: `(cases, N)` in mm, NaN where a landmark is absent.
        names: N names.
        title: one line.

    Raises:
        SettingError: `errors` isn't `(cases, N)`.
    """
    table = as_array(errors, "errors", ndim=2)
    if table.shape[1] != len(names):
        raise SettingError(f"errors: expected shape (cases, {len(names)}), got {table.shape}")
    columns = [_finite(column) for column in table.T]
    fig = new_figure(6.6, 1.1 + 0.34 * len(names))
    axes = clean(fig.add_subplot(), xlabel="radial error (mm)", title=title)
    axes.grid(visible=False)
    axes.grid(axis="x", color="#e3e7ec", linewidth=0.8)
    axes.boxplot(
        columns,
        orientation="horizontal",
        widths=0.55,
        patch_artist=True,
        boxprops={"facecolor": "#cfe2f1", "edgecolor": colour(0), "linewidth": 1},
        medianprops={"color": INK, "linewidth": 1.5},
        whiskerprops={"color": colour(0), "linewidth": 1},
        capprops={"color": colour(0), "linewidth": 1},
        flierprops={"marker": "o", "markersize": 3, "markerfacecolor": colour(0), "markeredgewidth": 0, "alpha": 0.6},
    )
    labels = [f"{name}  (n = {len(column)})" for name, column in zip(names, columns, strict=True)]
    axes.set_yticks(range(1, len(names) + 1), labels)
    axes.set_ylim(len(names) + 0.6, 0.4)
    axes.set_xlim(left=0)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    return _tight(fig)


def _tight(fig: Figure) -> Figure:
    fig.set_layout_engine("tight")
    return fig


def _finite(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return values[np.isfinite(values)]


def _interval(values: NDArray[np.float64]) -> tuple[float, float]:
    """95 % interval of the mean, or its value twice when there are too few values for one."""
    if len(values) < 3:
        middle = float(values.mean()) if len(values) else float("nan")
        return middle, middle
    return bootstrap_interval(values)
