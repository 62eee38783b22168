"""True and predicted points: kept together, drawn on planes, listed with their errors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from voxelry.core.errors import SettingError
from voxelry.core.space import Space
from voxelry.viz.planes import Plane
from voxelry.viz.style import INK, PREDICTED, QUIET, TRUTH, as_array

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["PointPairs", "draw_points", "list_points"]

_NEAR = 0.04  # of the image's longest side: within this distance from the plane a point is drawn in full


class PointPairs:
    """True and predicted points of one image, either of which may be missing.

    Args:
        space: the image's grid.
        truth, predicted: `(N, ndim)` index coordinates, NaN for an absent point.
        names: one per landmark; numbers when left out.
        uncertainty_mm: `(N,)` radius of a ring around each predicted point.

    Raises:
        SettingError: an array of another shape; the message names it.
    """

    def __init__(
        self,
        space: Space,
        *,
        truth: Any = None,
        predicted: Any = None,
        names: Sequence[str] | None = None,
        uncertainty_mm: Any = None,
    ):
        given = {
            name: as_array(values, name, ndim=2)
            for name, values in (("truth", truth), ("predicted", predicted))
            if values is not None
        }
        count = len(next(iter(given.values()))) if given else 0
        for name, values in given.items():
            if values.shape != (count, space.ndim):
                raise SettingError(f"{name}: expected shape ({count}, {space.ndim}), got {values.shape}")
        absent = np.full((count, space.ndim), np.nan)
        self.space = space
        self.truth = given.get("truth", absent)
        self.predicted = given.get("predicted", absent)
        self.names = [str(i + 1) for i in range(count)] if names is None else list(names)
        self.radius = np.full(count, np.nan) if uncertainty_mm is None else as_array(uncertainty_mm, "uncertainty_mm")
        self.numbers = list(range(1, count + 1))
        if len(self.names) != count or len(self.radius) != count:
            raise SettingError(
                f"names, uncertainty_mm: expected {count}, one per landmark, got {len(self.names)}, {len(self.radius)}"
            )
        self.error = np.linalg.norm(space.to_world(self.truth) - space.to_world(self.predicted), axis=-1)

    def __len__(self) -> int:
        return len(self.names)

    def centre(self) -> tuple[float, ...]:
        """Index coordinate of the middle of all present points; of the grid, if there is none."""
        present = np.concatenate([self.truth, self.predicted])
        present = present[np.isfinite(present).all(axis=-1)]
        middle = (np.asarray(self.space.shape) - 1) / 2
        return tuple(present.mean(axis=0) if len(present) else middle)

    @property
    def compared(self) -> bool:
        """Whether there are both true and predicted points."""
        return bool(np.isfinite(self.truth).any() and np.isfinite(self.predicted).any())

    @property
    def has_details(self) -> bool:
        """Whether there is more to say of a point than its number."""
        return self.compared or self.names != [str(number) for number in self.numbers]

    def describe(self, landmark: int) -> str:
        """The error in mm, or which of the two is absent; nothing where there is nothing to compare."""
        if np.isfinite(self.error[landmark]):
            return f"{self.error[landmark]:.2f} mm"
        if not self.compared:
            return ""
        seen = np.isfinite(self.truth[landmark]).all(), np.isfinite(self.predicted[landmark]).all()
        return {(True, False): "true only", (False, True): "predicted only", (False, False): "absent"}[seen]


def draw_points(axes: Axes, plane: Plane, points: PointPairs, index: Sequence[float]) -> None:
    """True points as rings, predicted ones as crosses, joined; small where far from the plane through `index`."""
    from matplotlib.patches import Circle, Rectangle
    from matplotlib.patheffects import withStroke

    left, right, bottom, top = plane.extent
    inside = Rectangle((left, top), right - left, bottom - top, transform=axes.transData)
    truth, predicted = plane.project(points.truth), plane.project(points.predicted)
    shown = np.where(np.isfinite(points.truth), points.truth, points.predicted)
    away = plane.off_plane(shown, index, points.space)
    edge = withStroke(linewidth=2.4, foreground=(0, 0, 0, 0.45))  # keeps white visible on white
    for i in range(len(points)):
        near = away[i] <= _NEAR * max(points.space.extent)
        strength, size, weight = (1.0, 6.5, 1.6) if near else (0.8, 4.5, 1.0)
        line: dict[str, Any] = {"alpha": strength, "mew": weight}
        artists: list[Any] = []
        artists += axes.plot(*np.stack([truth[i], predicted[i]], axis=-1), color="white", lw=0.8, path_effects=[edge])
        artists += axes.plot(*truth[i], "o", markersize=size, mfc="none", mec=TRUTH, **line)
        artists += axes.plot(*predicted[i], "x", markersize=size - 1, color=PREDICTED, **line)
        if np.isfinite(predicted[i]).all() and np.isfinite(points.radius[i]):
            ring = Circle(tuple(predicted[i]), points.radius[i], fill=False, color=PREDICTED, lw=0.8, alpha=strength)
            artists.append(axes.add_patch(ring))
        for artist in artists:
            artist.set_clip_path(inside)
        place = truth[i] if np.isfinite(truth[i]).all() else predicted[i]
        if np.isfinite(place).all():
            axes.annotate(
                str(points.numbers[i]), tuple(place), xytext=(5, 4), textcoords="offset points", fontsize=7.5,
                color="white", alpha=strength, clip_on=True, path_effects=[edge],
            )  # fmt: skip


def list_points(axes: Axes, points: PointPairs) -> None:
    """Number, name and error of every point, and what ring, cross and circle mean."""
    axes.axis("off")
    axes.set_xlim(0, 1)
    count = len(points)
    inches = axes.get_position().height * axes.figure.get_size_inches()[1]  # type: ignore[union-attr]
    line = 0.23 / inches
    top = 1 - max(0.0, (1 - line * (count + 3)) / 2)
    keys = [("o", TRUTH, "true", np.isfinite(points.truth).any())]
    keys += [("x", PREDICTED, "predicted", np.isfinite(points.predicted).any())]
    x = 0.06
    for marker, shade, text, wanted in keys:
        if wanted:
            face = "none" if marker == "o" else shade
            axes.plot(x, top - line, marker, color=shade, markerfacecolor=face, markersize=6.5, mew=1.6)
            axes.text(x + 0.06, top - line, text, va="center", fontsize=9, color=INK)
            x += 0.36
    axes.set_ylim(0, 1)
    for i in range(count):
        y = top - line * (i + 2.3)
        axes.text(0.09, y, str(points.numbers[i]), va="center", ha="right", fontsize=9, color=QUIET)
        name = points.names[i] if points.names[i] != str(points.numbers[i]) else ""
        short = name if len(name) <= 20 else name[:19] + "\N{HORIZONTAL ELLIPSIS}"
        axes.text(0.13, y, short, va="center", fontsize=9, color=INK)
        axes.text(0.98, y, points.describe(i), va="center", ha="right", fontsize=9, color=INK)
    if np.isfinite(points.error).any():
        y = top - line * (count + 2.6)
        axes.plot([0.03, 0.98], [y + 0.65 * line] * 2, color=QUIET, linewidth=0.6)
        axes.text(0.13, y, "mean", va="center", fontsize=9, color=QUIET)
        axes.text(0.98, y, f"{np.nanmean(points.error):.2f} mm", va="center", ha="right", fontsize=9, color=INK)
