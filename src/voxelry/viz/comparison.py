"""Versions of one image beside each other, and maps of how they differ: a column each, a row per plane."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from voxelry.core.choice import check_choice
from voxelry.core.errors import SettingError
from voxelry.core.space import Space
from voxelry.viz.planes import Plane, Window, draw, frame, grey_window, planes_of, scale_bar, volume_of
from voxelry.viz.style import INK, QUIET, headline, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["KINDS", "Panel", "comparison"]

KINDS = {"grey": "gray", "error": "RdBu_r", "spread": "magma"}
"""What a panel may show, and its map of colours."""

Place = tuple[float, float, float, float]
"""Left, bottom, width and height, as shares of a figure."""

_PANEL = 2.3  # inches, the longest side of a picture
_WIDTH = 9.0  # inches for all pictures of a row
_GAP = 0.07
_MARGIN = 0.32  # room for the names of the edges
_HEAD = 0.55
_BAR = 0.2  # room for the scales of colours


@dataclass(frozen=True)
class Panel:
    """One column.

    Attributes:
        title: what stands above it; a line break makes two lines.
        image: `(C, *spatial)`, of which the first channel is shown, or `(*spatial)`.
        kind: `grey`; `error`, of both signs, red above and blue below zero; or `spread`, from zero on.
    """

    title: str
    image: Any
    kind: str = "grey"


def comparison(
    panels: Sequence[Panel],
    space: Space,
    *,
    window: Window | None = None,
    unit: str = "",
    at: Sequence[float] | None = None,
    title: str = "",
    anatomical: bool | None = None,
) -> Figure:
    """Columns of planes; all of one kind share one scale, so that they can be compared.

    Args:
        panels: from left to right.
        space: the grid they share.
        window: grey values of black and white; by default the 0.5th and 99.5th percentile of the grey panels.
        unit: of the panels in colour, written below their scales.
        at: index coordinate that the planes go through, by default the middle.
        title: one line.
        anatomical: see `planes_of`.

    The ends of the colours are the 99.5th percentile of the size of all errors, and of all spreads.

    Raises:
        SettingError: no panels, an unknown kind, or an image of another shape than the grid's.
    """
    if not panels:
        raise SettingError("panels: expected at least one")
    for panel in panels:
        check_choice("kind", panel.kind, KINDS)
    volumes = [volume_of(panel.image, space, panel.title.replace("\n", " ")) for panel in panels]
    windows = {
        kind: _window(kind, [volume for volume, panel in zip(volumes, panels, strict=True) if panel.kind == kind])
        for kind in {panel.kind for panel in panels}
    }
    if window is not None:
        windows["grey"] = window
    planes = planes_of(space, anatomical=anatomical)
    index = [(size - 1) / 2 for size in space.shape] if at is None else list(at)
    fig, places = _layout(planes, len(panels), bars="error" in windows or "spread" in windows)
    for column, (panel, volume) in enumerate(zip(panels, volumes, strict=True)):
        for row, plane in enumerate(planes):
            axes = fig.add_axes(places[row][column])
            draw(axes, plane, volume, index, windows[panel.kind], colours=KINDS[panel.kind])
            frame(axes, [plane], margin=0.0, label=column == 0)
            if row == 0:
                axes.set_title(panel.title, fontsize=9, color=INK, pad=12)
                if column == 0:
                    scale_bar(axes, [plane])
        if panel.kind != "grey":
            _colour_bar(fig, panel, windows[panel.kind], places[-1][column], unit)
    headline(fig, title)
    return fig


def _window(content: str, volumes: Sequence[NDArray[np.float64]]) -> Window:
    values = np.stack(volumes)
    if content == "grey":
        return grey_window(values)
    finite = np.abs(values[np.isfinite(values)])
    end = float(np.percentile(finite, 99.5)) if finite.size else 0.0
    end = end if end > 0 else 1.0
    return (-end if content == "error" else 0.0), end


def _layout(planes: Sequence[Plane], columns: int, *, bars: bool) -> tuple[Figure, list[list[Place]]]:
    """An empty figure, and where in it each plane (row) of each panel (column) goes."""
    widest = max(plane.size[0] for plane in planes)
    # inches per mm
    scale = min(_PANEL / max(max(plane.size) for plane in planes), _WIDTH / (columns * widest))
    step = widest * scale + _GAP
    first = 2 * _MARGIN - _GAP  # the first column has names on both sides
    width = first + columns * step + _GAP
    height = _HEAD + sum(plane.size[1] * scale + _MARGIN for plane in planes) + (_BAR if bars else 0.0)
    fig = new_figure(width, height)
    places, top = [], _HEAD
    for plane in planes:
        across, down = plane.size[0] * scale, plane.size[1] * scale
        bottom = 1 - (top + down) / height
        starts = [_MARGIN, *(first + column * step for column in range(1, columns))]
        lefts = [start + (widest * scale - across) / 2 for start in starts]
        places.append([(left / width, bottom, across / width, down / height) for left in lefts])
        top += down + _MARGIN
    return fig, places


def _colour_bar(fig: Figure, panel: Panel, window: Window, above: Place, unit: str) -> None:
    """The scale of a panel, below its last picture."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.ticker import MaxNLocator

    height = fig.get_size_inches()[1]
    left, bottom, across, _ = above
    axes = fig.add_axes((left + 0.08 * across, bottom - 0.22 / height, 0.84 * across, 0.08 / height))
    scale = ScalarMappable(Normalize(*window), KINDS[panel.kind])
    bar = fig.colorbar(scale, cax=axes, orientation="horizontal", ticks=MaxNLocator(2, symmetric=panel.kind == "error"))
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=7.5, colors=QUIET, labelcolor=INK, length=2)
    bar.ax.set_xlabel(unit, fontsize=8, color=INK, labelpad=1)
