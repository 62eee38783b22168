"""Planes through an image as a reader of radiographs expects them, in millimetres.

Superior is up; where there is no superior, anterior is up. The patient's right, or anterior where left and
right aren't in the plane, is on the left of the picture (the radiological convention). A grid without
orientation of its own is shown as an image is: rows down, columns to the right, axes named.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from voxelry.core.errors import SettingError
from voxelry.core.space import Space
from voxelry.viz.style import INK, QUIET, as_array, colour

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "Plane",
    "PlaneRow",
    "Window",
    "draw",
    "draw_labels",
    "frame",
    "grey_window",
    "lay_out",
    "name_edges",
    "paper",
    "planes_of",
    "scale_bar",
    "volume_of",
]

Window = tuple[float, float]

_OPPOSITE = {"L": "R", "R": "L", "P": "A", "A": "P", "I": "S", "S": "I"}
_ARRAY_AXES = "zyx"


@dataclass(frozen=True)
class Plane:
    """How the planes along two array axes are laid on paper.

    Attributes:
        across: array axis that runs along the picture's rows.
        down: array axis that runs along the picture's columns.
        signs: +1 where the index grows to the right (downwards), -1 where it falls; `(across, down)`.
        size: width and height in mm, voxel edge to voxel edge.
        step: mm per voxel `(across, down)`.
        edges: what lies at the left, right, top and bottom edge, such as `("R", "L", "S", "I")`.
        corner: mm on the paper of the top left corner.
    """

    across: int
    down: int
    signs: tuple[int, int]
    size: tuple[float, float]
    step: tuple[float, float]
    edges: tuple[str, str, str, str]
    corner: tuple[float, float] = (0.0, 0.0)

    @property
    def extent(self) -> tuple[float, float, float, float]:
        """Left, right, bottom, top in mm on the paper, whose y grows downwards."""
        left, top = self.corner
        return left, left + self.size[0], top + self.size[1], top

    def pixels(self, volume: NDArray[Any], index: Sequence[float]) -> NDArray[Any]:
        """The plane of `volume` `(*spatial)` through the voxel nearest to `index`, as `(rows, columns)`."""
        place: list[Any] = [
            slice(None) if axis in (self.across, self.down) else int(np.clip(round(at), 0, size - 1))
            for axis, (at, size) in enumerate(zip(index, volume.shape, strict=True))
        ]
        plane = volume[tuple(place)]
        if self.down > self.across:
            plane = plane.T
        return plane[:: self.signs[1], :: self.signs[0]]

    def project(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Index coordinates `(..., ndim)` to mm on the paper `(..., 2)`; NaN stays NaN."""
        columns = []
        for axis, sign, step, size, start in zip(
            (self.across, self.down), self.signs, self.step, self.size, self.corner, strict=True
        ):
            along = (points[..., axis] + 0.5) * step
            columns.append(start + (along if sign > 0 else size - along))
        return np.stack(columns, axis=-1)

    def off_plane(self, points: NDArray[np.float64], index: Sequence[float], space: Space) -> NDArray[np.float64]:
        """Distance in mm of index coordinates `(..., ndim)` from the plane through `index`, `(...)`."""
        hidden = [axis for axis in range(space.ndim) if axis not in (self.across, self.down)]
        steps = [(points[..., axis] - index[axis]) * space.spacing[axis] for axis in hidden]
        return np.linalg.norm(np.stack(steps, axis=-1), axis=-1) if steps else np.zeros(points.shape[:-1])


def planes_of(space: Space, *, anatomical: bool | None = None) -> list[Plane]:
    """Every plane along two axes of `space`: three in a volume (axial first), one in an image.

    Args:
        space: the grid; an oblique one is shown along its own axes, named by the nearest direction.
        anatomical: whether its orientation means something; by default, whether the affine says more than
            spacing.
    """
    if anatomical is None:
        anatomical = not space.is_close(Space.from_spacing(space.shape, space.spacing))
    closest = space.closest_axes()
    # The world axis that is missing orders the planes: axial (lacks z), coronal (y), sagittal (x).
    pairs = sorted(combinations(range(space.ndim), 2), key=lambda pair: [-closest[a][0] for a in _others(pair, space)])
    planes = []
    for pair in pairs:
        if anatomical:
            across, down = sorted(pair, key=lambda axis: closest[axis][0])
            # Right, anterior and superior are where the world grows; the first two go left, the last goes up.
            # The index grows rightwards (downwards) on the paper where it grows towards L, P or I.
            signs = (-closest[across][1], -closest[down][1])
            codes = space.orientation
            edges = tuple(
                end
                for axis, sign in ((across, signs[0]), (down, signs[1]))
                for end in ((_OPPOSITE[codes[axis]], codes[axis])[::sign])
            )
        else:
            down, across = pair
            signs = (1, 1)
            names = _ARRAY_AXES[-space.ndim :]
            edges = ("", names[across], "", names[down])
        planes.append(
            Plane(
                across=across,
                down=down,
                signs=signs,
                size=(space.extent[across], space.extent[down]),
                step=(space.spacing[across], space.spacing[down]),
                edges=(edges[0], edges[1], edges[2], edges[3]),
            )
        )
    return planes


def lay_out(planes: Sequence[Plane], gap: float, corner: tuple[float, float] = (0.0, 0.0)) -> list[Plane]:
    """Put planes side by side, `gap` mm apart, their middles on one line; `corner` is the top left of the row."""
    height = max(plane.size[1] for plane in planes)
    placed, left = [], corner[0]
    for plane in planes:
        placed.append(replace(plane, corner=(left, corner[1] + (height - plane.size[1]) / 2)))
        left += plane.size[0] + gap
    return placed


def draw(
    axes: Axes,
    plane: Plane,
    volume: NDArray[Any],
    index: Sequence[float],
    window: Window,
    *,
    colours: str = "gray",
) -> None:
    """One plane through `index`, black at `window[0]`, white at `window[1]`, or in another map of colours."""
    low, high = window
    axes.imshow(
        plane.pixels(volume, index),
        cmap=colours,
        vmin=low,
        vmax=high if high > low else low + 1,
        extent=plane.extent,
        interpolation="nearest",
    )


def draw_labels(axes: Axes, plane: Plane, labels: NDArray[Any], index: Sequence[float]) -> None:
    """Classes over the image in translucent colour, 0 left out; class k has the k-th colour of the palette."""
    from matplotlib.colors import to_rgba

    values = plane.pixels(labels, index).astype(int)
    paint = np.zeros((*values.shape, 4))
    for value in np.unique(values[values != 0]):
        paint[values == value] = to_rgba(colour(int(value) - 1), 0.4)
    axes.imshow(paint, extent=plane.extent, interpolation="nearest")


def volume_of(image: Any, space: Space, name: str = "image") -> NDArray[np.float64]:
    """The first channel of `(C, *spatial)`, or `(*spatial)` as it is, on the grid of `space`.

    Raises:
        SettingError: its spatial shape isn't that of `space`.
    """
    array = as_array(image, name)
    volume = array[0] if array.ndim == space.ndim + 1 else array
    if volume.shape != space.shape:
        raise SettingError(f"{name}: expected spatial shape {space.shape}, got {array.shape}")
    return volume


def grey_window(volume: NDArray[np.float64]) -> Window:
    """Grey values of black and white: the 0.5th and 99.5th percentile of what is finite."""
    finite = volume[np.isfinite(volume)]
    low, high = np.percentile(finite, (0.5, 99.5)) if finite.size else (0.0, 1.0)
    return float(low), float(high)


def paper(planes: Sequence[Plane]) -> tuple[float, float]:
    """Width and height in mm of everything that is laid out."""
    left, right, bottom, top = np.asarray([plane.extent for plane in planes]).T
    return float(right.max() - left.min()), float(bottom.max() - top.min())


@dataclass(frozen=True, eq=False)
class PlaneRow:
    """The planes of an image through one of its places, on one line.

    Attributes:
        volume: `(*spatial)`.
        index: the index coordinate that they go through.
        planes: laid out.
        margin: mm around them, for the names of their edges.
    """

    volume: NDArray[np.float64]
    index: tuple[float, ...]
    planes: Sequence[Plane]
    margin: float

    @classmethod
    def of(cls, image: Any, space: Space, index: Sequence[float]) -> Self:
        """Of `image` `(C, *spatial)` or `(*spatial)` on the grid of `space`.

        Raises:
            SettingError: its spatial shape isn't that of `space`.
        """
        longest = max(space.extent)
        planes = lay_out(planes_of(space), gap=0.14 * longest)
        return cls(volume_of(image, space), tuple(index), planes, 0.06 * longest)

    def draw(self, axes: Axes, overlay: Callable[[Axes, Plane], None]) -> None:
        """All planes, black at the 0.5th and white at the 99.5th percentile of the image, with what lies over each."""
        window = grey_window(self.volume)
        for plane in self.planes:
            draw(axes, plane, self.volume, self.index, window)
            overlay(axes, plane)
        frame(axes, self.planes, margin=self.margin)
        scale_bar(axes, self.planes)


def scale_bar(axes: Axes, planes: Sequence[Plane]) -> None:
    """A bar of 1, 2 or 5 times a power of ten mm or µm, a quarter of the first plane at most, at its lower left."""
    from matplotlib.patheffects import withStroke

    plane = planes[0]
    left, _, bottom, _ = plane.extent
    wanted = plane.size[0] / 4
    power = 10.0 ** np.floor(np.log10(wanted))
    length = power * max(step for step in (1, 2, 5) if step * power <= wanted)
    edge = [withStroke(linewidth=2.4, foreground=(0, 0, 0, 0.45))]
    x, y = left + 0.04 * plane.size[0], bottom - 0.05 * plane.size[1]
    axes.plot([x, x + length], [y, y], color="white", linewidth=2, solid_capstyle="butt", path_effects=edge)
    axes.annotate(
        f"{length:g} mm" if length >= 0.1 else f"{1000 * length:g} µm",
        (x, y),
        xytext=(0, 3),
        textcoords="offset points",
        color="white",
        fontsize=7.5,
        va="bottom",
        path_effects=edge,
    )


def frame(axes: Axes, planes: Sequence[Plane], margin: float, *, label: bool = True) -> None:
    """Fit `axes` to the planes, without ticks, in true proportions; name the edges of each plane."""
    left, right, bottom, top = np.asarray([plane.extent for plane in planes]).T
    axes.set_xlim(left.min() - margin, right.max() + margin)
    axes.set_ylim(bottom.max() + margin, top.min() - margin)
    axes.set_aspect("equal")
    axes.axis("off")
    if label:
        for plane in planes:
            name_edges(axes, plane.edges, plane.extent)


def name_edges(axes: Axes, edges: tuple[str, str, str, str], extent: tuple[float, float, float, float]) -> None:
    """Write what lies left, right, above and below just outside of `extent` (left, right, bottom, top)."""
    left, right, bottom, top = extent
    middle_x, middle_y = (left + right) / 2, (bottom + top) / 2
    places = (
        (left, middle_y, "right", "center", (-3, 0)),
        (right, middle_y, "left", "center", (3, 0)),
        (middle_x, top, "center", "bottom", (0, 2)),
        (middle_x, bottom, "center", "top", (0, -2)),
    )
    for text, (x, y, horizontal, vertical, offset) in zip(edges, places, strict=True):
        axes.annotate(
            text,
            (x, y),
            xytext=offset,
            textcoords="offset points",
            ha=horizontal,
            va=vertical,
            fontsize=8,
            color=INK if text.isupper() else QUIET,
        )


def _others(pair: Sequence[int], space: Space) -> list[int]:
    return [axis for axis in range(space.ndim) if axis not in pair]
