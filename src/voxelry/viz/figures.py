"""Figures of images: orthogonal planes with points, contact sheets, the noising process.

All take images of rank 2 or 3 with or without a channel axis (the first channel is shown), tensors or
arrays, and draw them in millimetres, so that anisotropic voxels keep their shape. Charts are in
`voxelry.viz.charts` and can be had from here as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from voxelry.core.errors import SettingError
from voxelry.core.space import Space
from voxelry.viz.charts import box_by_landmark, calibration, cumulative_error, curves, few_shot, small_multiples
from voxelry.viz.comparison import Panel, comparison
from voxelry.viz.montage import process, sheet
from voxelry.viz.planes import (
    Window,
    draw,
    draw_labels,
    frame,
    grey_window,
    lay_out,
    name_edges,
    paper,
    planes_of,
    scale_bar,
    volume_of,
)
from voxelry.viz.points import PointPairs, draw_points, list_points
from voxelry.viz.style import INK, headline, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "Panel",
    "box_by_landmark",
    "calibration",
    "comparison",
    "cumulative_error",
    "curves",
    "few_shot",
    "landmark_slices",
    "orthogonal",
    "process",
    "sheet",
    "small_multiples",
]


def orthogonal(
    image: Any,
    space: Space,
    *,
    truth: Any = None,
    predicted: Any = None,
    names: Sequence[str] | None = None,
    uncertainty_mm: Any = None,
    labels: Any = None,
    at: Sequence[float] | None = None,
    title: str = "",
    window: Window | None = None,
    anatomical: bool | None = None,
) -> Figure:
    """Orthogonal planes through the centre of the points, true and predicted points joined, errors listed.

    All points are projected on every plane; those away from it are drawn smaller. The distances in the list
    are in the world, not on the paper.

    Args:
        image: `(C, *spatial)` or `(*spatial)`.
        space: its grid.
        truth: `(N, ndim)` index coordinates, NaN for an absent point.
        predicted: the same.
        names: one per landmark; numbers when left out.
        uncertainty_mm: `(N,)` radius of a ring around each predicted point.
        labels: `(*spatial)` classes, drawn in colour over the image; 0 is left out.
        at: index coordinate that the planes go through, instead of the centre of the points.
        title: one line.
        window: grey values of black and white; by default the 0.5th and 99.5th percentile of the image.
        anatomical: see `planes_of`.

    Raises:
        SettingError: an array of another shape than described; the message names it.
    """
    volume = volume_of(image, space)
    points = PointPairs(space, truth, predicted, names, uncertainty_mm)
    index = tuple(at) if at is not None else points.centre()
    planes = lay_out(planes_of(space, anatomical=anatomical), gap=0.14 * max(space.extent))
    width, height = paper(planes)
    listed = points.has_details
    panel = min(9.0, 3.1 * len(planes) + 0.6)
    scale = panel / width
    list_width = 3.0 if listed else 0.0
    rows_height = 0.75 + 0.23 * len(points) if listed else 0.0
    fig = new_figure(panel + list_width, max(height * scale, rows_height) + 0.5)
    grid = fig.add_gridspec(
        1, 2 if listed else 1, width_ratios=[panel, list_width][: 1 + listed], wspace=0.02,
        left=0.01, right=0.99, top=1 - 0.4 / fig.get_size_inches()[1], bottom=0.02,
    )  # fmt: skip
    axes = fig.add_subplot(grid[0])
    grey = window or grey_window(volume)
    overlay = None if labels is None else volume_of(labels, space, "labels")
    for plane in planes:
        draw(axes, plane, volume, index, grey)
        if overlay is not None:
            draw_labels(axes, plane, overlay, index)
        draw_points(axes, plane, points, index)
    frame(axes, planes, margin=0.06 * max(space.extent))
    scale_bar(axes, planes)
    if listed:
        list_points(fig.add_subplot(grid[1]), points)
    headline(fig, title)
    return fig


def landmark_slices(
    image: Any,
    space: Space,
    *,
    truth: Any = None,
    predicted: Any = None,
    names: Sequence[str] | None = None,
    uncertainty_mm: Any = None,
    which: Sequence[int] | None = None,
    radius_mm: float | None = None,
    title: str = "",
    window: Window | None = None,
    anatomical: bool | None = None,
) -> Figure:
    """One row of orthogonal planes per landmark, each through the true point (the predicted one if absent).

    Args:
        image, space, truth, predicted, names, uncertainty_mm, title, window, anatomical: as in `orthogonal`.
        which: landmarks to show, by default all that are present.
        radius_mm: half the side of the shown window; by default the whole plane.

    Raises:
        SettingError: neither true nor predicted points, or an array of another shape than described.
    """
    from matplotlib.patches import Rectangle

    volume = volume_of(image, space)
    points = PointPairs(space, truth, predicted, names, uncertainty_mm)
    centres = np.where(np.isfinite(points.truth), points.truth, points.predicted)
    chosen = [i for i in (range(len(points)) if which is None else which) if np.isfinite(centres[i]).all()]
    if not chosen:
        raise SettingError("truth, predicted: expected at least one present landmark to show")
    grey = window or grey_window(volume)
    planes = planes_of(space, anatomical=anatomical)
    half = max(space.extent) if radius_mm is None else radius_mm
    columns = [2 * half if radius_mm is not None else plane.size[0] for plane in planes]
    height = 2 * half if radius_mm is not None else max(plane.size[1] for plane in planes)
    scale = min(2.4 * len(planes) / sum(columns), 2.6 / height)
    row = height * scale + 0.45
    fig = new_figure(sum(columns) * scale + 0.35 * len(planes), row * len(chosen) + 0.35)
    grid = fig.add_gridspec(
        len(chosen), len(planes), width_ratios=columns, wspace=0.18, hspace=0.25,
        left=0.05, right=0.95, top=1 - 0.65 / fig.get_size_inches()[1], bottom=0.03,
    )  # fmt: skip
    for i, landmark in enumerate(chosen):
        for j, plane in enumerate(planes):
            axes = fig.add_subplot(grid[i, j])
            x, y = plane.project(centres[landmark])
            if radius_mm is not None:
                axes.add_patch(Rectangle((x - half, y - half), 2 * half, 2 * half, color="black", zorder=-1))
            draw(axes, plane, volume, centres[landmark], grey)
            draw_points(axes, plane, points.only(landmark), centres[landmark])
            frame(axes, [plane], margin=0.0, label=radius_mm is None)
            if radius_mm is not None:
                axes.set_xlim(x - half, x + half)
                axes.set_ylim(y + half, y - half)
                name_edges(axes, plane.edges, (x - half, x + half, y + half, y - half))
            if j == 0:
                label = f"{landmark + 1}  {points.names[landmark]}  {points.describe(landmark)}".rstrip()
                axes.set_title(label, loc="left", fontsize=9, color=INK, pad=14)
    headline(fig, title)
    return fig
