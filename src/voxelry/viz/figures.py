"""Figures of images: orthogonal planes with points, contact sheets, the noising process.

All take images of rank 2 or 3 with or without a channel axis (the first channel is shown), tensors or
arrays, and draw them in millimetres, so that anisotropic voxels keep their shape. Charts are in
`voxelry.viz.charts` and can be had from here as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

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
    paper,
    planes_of,
    scale_bar,
    volume_of,
)
from voxelry.viz.points import PointPairs, draw_points, list_points
from voxelry.viz.style import headline, new_figure

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
