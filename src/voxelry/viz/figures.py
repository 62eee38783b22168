"""Figures of images: orthogonal planes with points, contact sheets, the noising process.

All take images of rank 2 or 3 with or without a channel axis (the first channel is shown), tensors or
arrays, and draw them in millimetres, so that anisotropic voxels keep their shape. Charts are in
`voxelry.viz.charts` and can be had from here as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from voxelry.viz.charts import box_by_landmark, calibration, cumulative_error, curves, few_shot, small_multiples
from voxelry.viz.comparison import Panel, comparison
from voxelry.viz.montage import process, sheet
from voxelry.viz.planes import Plane, PlaneRow, draw_labels, paper, volume_of
from voxelry.viz.points import PointPairs, draw_points, list_points
from voxelry.viz.style import headline, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "Panel",
    "PointPairs",
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
    image: Any, points: PointPairs, *, labels: Any = None, at: Sequence[float] | None = None, title: str = ""
) -> Figure:
    """Orthogonal planes through the centre of the points, true and predicted points joined, errors listed.

    All points are projected on every plane; those away from it are drawn smaller. The distances in the list
    are in the world, not on the paper.

    Args:
        image: `(C, *spatial)` or `(*spatial)`.
        points: on the image's grid.
        labels: `(*spatial)` classes, drawn in colour over the image; 0 is left out.
        at: index coordinate that the planes go through, instead of the centre of the points.
        title: one line.

    Raises:
        SettingError: an array of another shape than the grid's; the message names it.
    """
    row = PlaneRow.of(image, points.space, points.centre() if at is None else at)
    overlay = None if labels is None else volume_of(labels, points.space, "labels")
    width, height = paper(row.planes)
    listed = points.has_details
    panel = min(9.0, 3.1 * len(row.planes) + 0.6)
    list_width, list_height = (3.0, 0.75 + 0.23 * len(points)) if listed else (0.0, 0.0)
    fig = new_figure(panel + list_width, max(height * panel / width, list_height) + 0.5)
    grid = fig.add_gridspec(
        1, 2 if listed else 1, width_ratios=[panel, list_width][: 1 + listed], wspace=0.02,
        left=0.01, right=0.99, top=1 - 0.4 / fig.get_size_inches()[1], bottom=0.02,
    )  # fmt: skip

    def over(axes: Axes, plane: Plane) -> None:
        if overlay is not None:
            draw_labels(axes, plane, overlay, row.index)
        draw_points(axes, plane, points, row.index)

    row.draw(fig.add_subplot(grid[0]), over)
    if listed:
        list_points(fig.add_subplot(grid[1]), points)
    headline(fig, title)
    return fig
