"""Figures of surfaces: prediction beside truth from several sides, numbers on the surface in colour."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from voxelry.core.choice import check_choice
from voxelry.core.errors import SettingError
from voxelry.core.space import Space
from voxelry.ops.surface import Mesh
from voxelry.viz.planes import name_edges
from voxelry.viz.raster import VIEWS, render_mesh
from voxelry.viz.style import INK, PREDICTED, QUIET, TRUTH, headline, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["surfaces"]

_PANEL = 2.4  # inches, the longer side of a picture
_PIXELS = 110  # per inch
_LEFT, _TOP = 0.45, 0.7  # inches around all pictures
_GAP, _BETWEEN = 0.4, 0.45  # between columns and between rows


def surfaces(
    prediction: Mesh,
    truth: Mesh | None = None,
    *,
    values: str | None = None,
    label: str = "",
    limit: float | None = None,
    views: Sequence[str] = ("anterior", "left", "superior"),
    planes: Sequence[Space] = (),
    title: str = "",
) -> Figure:
    """A reconstructed surface beside the true one, all at one scale and around one centre.

    One column per view; one row for the truth, one for the prediction, one for the prediction coloured by
    `values`. A dark line marks where the prompt slices cut the surface.

    Args:
        prediction: world mm; an empty one is said to be empty.
        truth: the same.
        values: which of the prediction's `values` is shown in colour. Numbers of both signs get colours that
            diverge from zero (red outside, blue inside of the truth), others colours that grow from zero.
        label: what the colour bar says; by default the name of the values.
        limit: number at the end of the colours; by default the 98th percentile of their size.
        views: sides of the patient, keys of `VIEWS`.
        planes: grids of rank 2.
        title: one line.

    Raises:
        SettingError: an unknown view or value, nothing at all to show.
    """
    for view in views:
        check_choice("views", view, VIEWS)
    if values is not None:
        check_choice("values", values, sorted(prediction.values))
    meshes = [mesh for mesh in (prediction, truth) if mesh is not None and not mesh.is_empty]
    if not meshes or not views:
        raise SettingError("prediction, truth: expected a surface and a view to show")
    rows: list[tuple[str, Mesh, Any]] = [("predicted", prediction, _rgb(PREDICTED))]
    if truth is not None:
        rows.insert(0, ("true", truth, _rgb(TRUTH)))
    scale = None
    if values is not None and not prediction.is_empty:
        scale = _colour_scale(prediction.values[values], limit)
        rows.append((label or values.replace("_", " "), prediction, scale.to_rgba(prediction.values[values])[:, :3]))
    grid = _Grid(meshes, views, len(rows), bar=scale is not None)
    fig = new_figure(grid.width, grid.height)
    for row, (name, mesh, colours) in enumerate(rows):
        for column, view in enumerate(views):
            axes = fig.add_axes(grid.place(row, column))
            look = {"centre": grid.centre, "size": grid.pixels(column), "step": grid.step}
            _panel(axes, mesh, view, **look, colours=colours, planes=planes)
            if row == 0:
                axes.set_title(view, fontsize=9, color=QUIET, pad=16)
        _name_row(fig.axes[row * len(views)], name, 0.3 / grid.widths[0])
    _scale_bar(fig.axes[0], grid.sizes[0][0])
    if scale is not None:
        _colour_bar(fig.colorbar(scale, cax=fig.add_axes(grid.bar)), "mm" if values and values.endswith("mm") else "")
    headline(fig, title)
    return fig


class _Grid:
    """A column for each view, a row for each surface: pictures at one scale and around one centre, in inches."""

    def __init__(self, meshes: Sequence[Mesh], views: Sequence[str], rows: int, *, bar: bool):
        every = np.concatenate([mesh.vertices for mesh in meshes])
        low, high = every.min(axis=0), every.max(axis=0)
        self.centre = (low + high) / 2
        room = 1.1 * (high - low) + 1e-6
        self.sizes = [np.abs(VIEWS[view].axes[:2]) @ room for view in views]  # mm across and up
        self.step = max(size.max() for size in self.sizes) / (_PANEL * _PIXELS)  # mm per pixel
        self.widths = [size[0] / self.step / _PIXELS for size in self.sizes]
        self.tallest = max(size[1] for size in self.sizes) / self.step / _PIXELS
        self.right, self.rows = 0.95 if bar else 0.2, rows
        self.width = _LEFT + sum(self.widths) + _GAP * (len(views) - 1) + self.right
        self.height = _TOP + rows * (self.tallest + _BETWEEN)

    def pixels(self, column: int) -> tuple[int, int]:
        """Height and width of a picture."""
        return max(1, round(self.tallest * _PIXELS)), max(1, round(self.sizes[column][0] / self.step))

    def place(self, row: int, column: int) -> tuple[float, float, float, float]:
        """Left, bottom, width and height of a picture, as shares of the figure."""
        left = _LEFT + sum(self.widths[:column]) + _GAP * column
        return left / self.width, self._bottom(row), self.widths[column] / self.width, self.tallest / self.height

    @property
    def bar(self) -> tuple[float, float, float, float]:
        """The place of the scale of colours, beside the last row."""
        left = (self.width - self.right + 0.3) / self.width
        return left, self._bottom(self.rows - 1), 0.12 / self.width, self.tallest / self.height

    def _bottom(self, row: int) -> float:
        return (self.height - _TOP - (row + 1) * self.tallest - row * _BETWEEN) / self.height


def _colour_bar(bar: Any, unit: str) -> None:
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=8, colors=QUIET, labelcolor=INK, length=2)
    bar.ax.set_title(unit, fontsize=8, color=INK, loc="left", pad=5)


def _name_row(axes: Axes, name: str, away: float) -> None:
    """What a row shows, along its left side."""
    look: dict[str, Any] = {"rotation": 90, "ha": "center", "va": "center", "fontsize": 9, "color": INK}
    axes.text(-away, 0.5, name, transform=axes.transAxes, **look)


def _panel(axes: Axes, mesh: Mesh, view: str, *, centre: Any, size: tuple[int, int], step: float, **look: Any) -> None:
    """One picture in mm, its edges named."""
    half = size[1] * step / 2, size[0] * step / 2
    extent = (-half[0], half[0], -half[1], half[1])
    if mesh.is_empty:
        axes.text(0, 0, "empty", ha="center", va="center", fontsize=9, color=QUIET)
    else:
        picture = render_mesh(mesh, view, centre=centre, size=size, step=step, **look)
        axes.imshow(picture, extent=extent, interpolation="antialiased")
    axes.set_xlim(extent[:2])
    axes.set_ylim(extent[2:])
    axes.set_aspect("equal")
    axes.axis("off")
    name_edges(axes, VIEWS[view].edges, extent)


def _scale_bar(axes: Axes, width: float) -> None:
    """A bar of 1, 2 or 5 times a power of ten mm, a third of the picture at most, at its lower left."""
    power = 10.0 ** np.floor(np.log10(width / 3))
    length = power * max(step for step in (1, 2, 5) if step * power <= width / 3)
    left, bottom = axes.get_xlim()[0], axes.get_ylim()[0]
    axes.plot([left, left + length], [bottom, bottom], color=INK, linewidth=2, solid_capstyle="butt", clip_on=False)
    axes.annotate(
        f"{length:g} mm",
        (left, bottom),
        xytext=(0, 3),
        textcoords="offset points",
        fontsize=7.5,
        color=INK,
        va="bottom",
    )


def _colour_scale(numbers: NDArray[np.floating], limit: float | None) -> Any:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    signed = bool((numbers < 0).any())
    end = float(np.percentile(np.abs(numbers), 98)) if limit is None else float(limit)
    end = end if end > 0 else 1.0
    return ScalarMappable(Normalize(-end if signed else 0.0, end), "RdBu_r" if signed else "YlOrRd")


def _rgb(colour: str) -> tuple[float, float, float]:
    from matplotlib.colors import to_rgb

    return to_rgb(colour)
