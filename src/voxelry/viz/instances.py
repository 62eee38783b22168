"""Instances on paper: outlines over orthogonal planes, and curves of how well objects are found."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from voxelry.core.errors import SettingError
from voxelry.core.space import Space
from voxelry.viz.planes import Plane, PlaneRow, paper
from voxelry.viz.style import INK, QUIET, as_array, clean, colour, headline, new_figure, row_of_keys

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["ERROR", "draw_instances", "froc", "instance_planes", "precision_recall", "size_errors"]

ERROR = "#D55E00"  # objects that were missed or invented; none of the colours of the others comes near it
_COLOURS = ("#56B4E9", "#F0E442", "#009E73", "#CC79A7", "#0072B2")  # Okabe & Ito 2008, those that show on grey
_FILL = 0.2  # opacity inside an outline
_PIXELS = 700  # of the longer side of a plane, so that outlines are thin


def instance_planes(
    image: Any,
    space: Space,
    *,
    truth: Any = None,
    predicted: Any = None,
    matches: Mapping[int, int] | None = None,
    at: Sequence[float] | None = None,
    title: str = "",
) -> Figure:
    """Orthogonal planes with the outlines of true objects, and of predicted ones beside or below.

    A predicted object has the colour of the true one it matches; what has no partner is vermilion on both sides.

    Args:
        image: `(C, *spatial)` or `(*spatial)`.
        space: its grid.
        truth, predicted: `(*spatial)` integer ids, 0 for background; either may be left out.
        matches: predicted id to true id. None: nothing is known of partners, every object has a colour by its id.
        at: index coordinate that the planes go through; by default the middle of the objects.
        title: one line.

    Raises:
        SettingError: neither truth nor prediction, or an array of another shape than `space`.
    """
    given = {"truth": truth, "predicted": predicted}
    labels = {name: _ids(values, space, name) for name, values in given.items() if values is not None}
    if not labels:
        raise SettingError("truth, predicted: expected at least one of them")
    row = PlaneRow.of(image, space, _middle(list(labels.values())) if at is None else at)
    width, height = (side + 2 * row.margin for side in paper(row.planes))
    beside = len(row.planes) == 1  # planes of a volume are a row already: the other side goes below
    columns, rows = (len(labels), 1) if beside else (1, len(labels))
    panel = min(4.6 if beside else 9.6, 3.2 * len(row.planes))
    tall = height * panel / width + 0.28
    top = 0.36 if title else 0.05
    fig = new_figure(panel * columns, tall * rows + top + 0.3)
    total = fig.get_size_inches()[1]
    grid = fig.add_gridspec(
        rows, columns, wspace=0.04, hspace=0.1, left=0.01, right=0.99, top=1 - (top + 0.22) / total, bottom=0.3 / total
    )
    colours = _colours(labels, matches)
    for place, (name, values) in enumerate(labels.items()):
        axes = fig.add_subplot(grid[place])
        row.draw(axes, partial(draw_instances, labels=values, index=row.index, colours=colours[name]))
        wrong = 0 if matches is None else sum(shade == ERROR for shade in colours[name].values())
        note = f", {wrong} {'missed' if name == 'truth' else 'without a partner'}" if wrong else ""
        count = len(np.unique(values[values > 0]))
        axes.set_title(f"{name.capitalize()}: {count}{note}", loc="left", fontsize=9.5, color=INK, pad=2)
    if matches is not None:
        _keys(fig, total)
    headline(fig, title)
    return fig


def draw_instances(
    axes: Axes, plane: Plane, labels: NDArray[np.integer], index: Sequence[float], colours: Mapping[int, str]
) -> None:
    """Outlines of the objects that a plane cuts, filled faintly.

    Args:
        labels: `(*spatial)` ids.
        colours: of each id.
    """
    from matplotlib.colors import to_rgba

    values = plane.pixels(labels, index)
    # each voxel becomes a block of pixels, as many along an axis as its side is long: the outline is even
    pixel = max(plane.size) / _PIXELS
    across, down = (max(1, round(step / pixel)) for step in plane.step)
    fine = values.repeat(down, axis=0).repeat(across, axis=1)
    paint = np.zeros((*fine.shape, 4))
    for number in np.unique(values[values > 0]).tolist():
        paint[fine == number] = to_rgba(colours[number], _FILL)
    edge = _outline(fine, width=max(2, round(0.006 * max(fine.shape))))
    paint[..., 3][edge] = 1.0
    axes.imshow(paint, extent=plane.extent, interpolation="nearest")


def precision_recall(curves: Mapping[str, tuple[Any, Any]], *, title: str = "") -> Figure:
    """Precision against recall as detections are accepted by falling score.

    Args:
        curves: name to `(recall, precision)`, each `(K,)` in [0, 1].
        title: one line.
    """
    fig = new_figure(4.8, 4.2)
    axes = clean(fig.add_subplot(), xlabel="recall (%)", ylabel="precision (%)", title=title)
    for i, (name, (recall, precision)) in enumerate(curves.items()):
        x, y = (100 * as_array(values, name, ndim=1) for values in (recall, precision))
        if len(x):
            axes.step(np.append([0.0], x), np.append(y[:1], y), where="pre", color=colour(i), linewidth=1.6, label=name)
            axes.plot(x[-1:], y[-1:], "o", color=colour(i), markersize=4)
    axes.set_xlim(0, 102)
    axes.set_ylim(0, 102)
    if axes.lines:
        row_of_keys(axes, loc="lower left")
    fig.set_layout_engine("tight")
    return fig


def froc(curves: Mapping[str, tuple[Any, Any]], *, rates: Sequence[float] = (), title: str = "") -> Figure:
    """Sensitivity against false positives per image, whose axis is logarithmic.

    Args:
        curves: name to `(false positives per image, sensitivity in [0, 1])`, each `(K,)` and growing.
        rates: false positives per image to mark.
        title: one line.
    """
    fig = new_figure(5.4, 4.2)
    axes = clean(fig.add_subplot(), xlabel="false positives per image", ylabel="sensitivity (%)", title=title)
    marks = np.asarray(sorted(rates) or [0.125, 8.0])
    low, high = marks[0] / 1.4, marks[-1] * 1.4
    for i, (name, (false, sensitivity)) in enumerate(curves.items()):
        x, y = as_array(false, name, ndim=1), 100 * as_array(sensitivity, name, ndim=1)
        # without false positives there is no place on a logarithmic axis: what was found before comes in from the left
        axes.step([*np.maximum(x, low), max(high, float(x[-1]))], [*y, y[-1]], where="post", color=colour(i),
                  linewidth=1.6, label=name)  # fmt: skip
        axes.plot(marks, y[np.searchsorted(x, marks, side="right") - 1], "o", color=colour(i), markersize=4)
    axes.set_xscale("log", base=2)
    axes.set_xlim(low, high)
    axes.set_ylim(0, 102)
    axes.set_xticks(marks, [f"{rate:g}" if rate >= 1 else f"1/{round(1 / rate)}" for rate in marks])
    axes.minorticks_off()
    if curves:
        row_of_keys(axes, loc="lower right")
    fig.set_layout_engine("tight")
    return fig


def size_errors(
    sizes: Any, iou: Any, *, unit: str = "mm³", threshold: float = 0.5, bins: int = 5, title: str = ""
) -> Figure:
    """Each true object by its size and by how well it was found, and the share found in groups of one size.

    Args:
        sizes: `(N,)` volumes (areas) above 0.
        iou: `(N,)` IoU with its partner, 0 without one.
        unit: of the sizes.
        threshold: IoU from which an object counts as found.
        bins: number of groups, with as many objects each.
        title: one line.

    Raises:
        SettingError: another number of sizes than of IoUs.
    """
    x, y = as_array(sizes, "sizes", ndim=1), as_array(iou, "iou", ndim=1)
    if x.shape != y.shape:
        raise SettingError(f"sizes, iou: expected one of each per object, got {len(x)} and {len(y)}")
    fig = new_figure(6.6, 3.9)
    axes = clean(fig.add_subplot(), xlabel=f"size of the true object ({unit})", ylabel="IoU", title=title)
    found = y >= threshold
    axes.axhline(threshold, color=QUIET, linewidth=0.9, linestyle=(0, (4, 3)))
    axes.plot(x[found], y[found], "o", color=colour(0), markersize=4, alpha=0.55, mew=0, label="found")
    axes.plot(x[~found], y[~found], "o", color=ERROR, markersize=4.5, alpha=0.75, mew=0, label="missed")
    if len(x):
        order = np.argsort(x, kind="stable")
        parts = [part for part in np.array_split(order, min(bins, len(x))) if len(part)]
        middles = [float(np.exp(np.log(x[part]).mean())) for part in parts]
        shares = [float(found[part].mean()) for part in parts]
        axes.plot(middles, shares, "s-", color=INK, linewidth=1.3, markersize=4, label="share found")
        axes.set_xscale("log")
        _plain_ticks(axes, float(x.min()), float(x.max()))
    axes.set_ylim(-0.03, 1.03)
    if len(x):
        row_of_keys(axes, outside=True)
    fig.set_layout_engine("tight")
    return fig


def _ids(values: Any, space: Space, name: str) -> NDArray[np.int64]:
    if hasattr(values, "detach"):
        values = values.detach().cpu().numpy()
    array = np.asarray(values)
    if array.shape != space.shape or array.dtype.kind not in "ui":
        raise SettingError(f"{name}: expected integer ids of shape {space.shape}, got {array.dtype} of {array.shape}")
    return array.astype(np.int64)


def _middle(labels: Sequence[NDArray[np.int64]]) -> tuple[float, ...]:
    """The median of the objects' voxels, or the middle of the image."""
    for values in labels:
        places = np.nonzero(values)
        if len(places[0]):
            return tuple(float(np.median(along)) for along in places)
    return tuple((size - 1) / 2 for size in labels[0].shape)


def _colours(labels: Mapping[str, NDArray[np.int64]], matches: Mapping[int, int] | None) -> dict[str, dict[int, str]]:
    """Colour of every id on each side."""
    found: dict[str, dict[int, str]] = {}
    partners = {"truth": set((matches or {}).values()), "predicted": set(matches or {})}
    for name, values in labels.items():
        found[name] = {}
        for number in np.unique(values[values > 0]).tolist():
            known = matches is None or number in partners[name]
            shown = number if matches is None or name == "truth" else matches.get(number, 0)
            found[name][number] = _COLOURS[shown % len(_COLOURS)] if known else ERROR
    return found


def _outline(labels: NDArray[np.int64], width: int) -> NDArray[np.bool_]:
    """The outermost `width` pixels of each object."""
    from scipy.ndimage import maximum_filter, minimum_filter

    size = 2 * width - 1
    lowest, highest = (filtered(labels, size, mode="nearest") for filtered in (minimum_filter, maximum_filter))
    edge: NDArray[np.bool_] = (labels > 0) & (lowest != highest)
    return edge


def _plain_ticks(axes: Axes, low: float, high: float) -> None:
    """Ticks of a logarithmic axis at 1, 2 and 5 times a power of ten, as plain numbers; powers alone on a long one."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = (1, 2, 5) if len(powers) <= 4 else (1,)
    ticks = [step * 10.0**power for power in powers for step in steps]
    axes.set_xlim(low / 1.3, high * 1.3)
    axes.set_xticks([tick for tick in ticks if low / 1.3 <= tick <= high * 1.3])
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.minorticks_off()


def _keys(fig: Figure, inches: float) -> None:
    y = 0.1 / inches
    fig.text(0.012, y, "■", color=ERROR, fontsize=11, va="bottom")
    fig.text(0.012 + 0.16 / fig.get_size_inches()[0], y, "no partner; matched pairs share a colour",
             fontsize=8.5, color=QUIET, va="bottom")  # fmt: skip
