"""The one look of all figures: light ground, few lines, colours that colour-blind readers tell apart."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from voxelry.core.errors import SettingError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "GRID",
    "INK",
    "PALETTE",
    "PREDICTED",
    "QUIET",
    "TRUTH",
    "as_array",
    "clean",
    "colour",
    "headline",
    "new_figure",
    "row_of_keys",
]

# Okabe & Ito, "Color Universal Design", 2008; without black and without the yellow that light paper swallows.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
TRUTH = "#56B4E9"  # these two lie on grey images, hence the light pair
PREDICTED = "#E69F00"
INK = "#1b2430"
QUIET = "#5b6775"
GRID = "#e3e7ec"


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of `width` × `height` inches that belongs to no window system and no registry."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    fig = Figure(figsize=(width, height), facecolor="white")
    FigureCanvasAgg(fig)
    return fig


def clean(axes: Axes, *, xlabel: str = "", ylabel: str = "", title: str = "") -> Axes:
    """Strip a chart to its two axes and a faint horizontal grid; title on the left."""
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(QUIET)
        axes.spines[side].set_linewidth(0.8)
    axes.tick_params(colors=QUIET, labelcolor=INK, labelsize=9, width=0.8, length=3)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.set_xlabel(xlabel, color=INK, fontsize=10)
    axes.set_ylabel(ylabel, color=INK, fontsize=10)
    if title:
        axes.set_title(title, loc="left", color=INK, fontsize=11, fontweight="bold", pad=10)
    return axes


def headline(fig: Figure, title: str) -> None:
    """The title of a whole figure, at its top left."""
    if title:
        inches = fig.get_size_inches()[1]
        fig.text(0.012, 1 - 0.08 / inches, title, ha="left", va="top", fontsize=11, fontweight="bold", color=INK)


def row_of_keys(axes: Axes, *, outside: bool = False, **options: Any) -> None:
    """The legend, without a frame; `outside` puts it right of the axes."""
    place: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (1.01, 1.0)} if outside else {"loc": "best"}
    axes.legend(frameon=False, fontsize=9, labelcolor=INK, **{**place, **options})


def colour(index: int) -> str:
    """Colour of the `index`-th series; they repeat after six."""
    return PALETTE[index % len(PALETTE)]


def as_array(values: Any, name: str, *, ndim: int | None = None) -> NDArray[np.float64]:
    """Numbers from a tensor, array or list as float64, with `ndim` axes if that is given.

    Raises:
        SettingError: another number of axes; the message names the argument.
    """
    if hasattr(values, "detach"):
        values = values.detach().float().cpu().numpy()
    array: NDArray[np.float64] = np.asarray(values, dtype=np.float64)
    if ndim is not None and array.ndim != ndim:
        raise SettingError(f"{name}: expected an array of {ndim} axes, got shape {array.shape}")
    return array
