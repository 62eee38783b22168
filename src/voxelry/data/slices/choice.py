"""Which planes of a volume become slices: at random, evenly, through the middle, all, or oblique."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from voxelry.core.choice import check_choice
from voxelry.core.errors import DataError, SettingError
from voxelry.core.space import Space
from voxelry.data.slices.cut import SliceSample, array_axis, oblique_plane, take_slice

__all__ = ["METHODS", "Choice", "Cut", "Draw", "choose_cuts", "method_name", "spread_out"]

METHODS = ("random_axis", "uniform", "central", "all", "oblique")


def method_name(method: str, setting: str = "method") -> str:
    """One of `METHODS`; `random` is short for `random_axis`.

    Raises:
        SettingError: another name.
    """
    if method == "random":
        return "random_axis"
    check_choice(setting, method, METHODS)
    return method


@dataclass(frozen=True, eq=False)
class Cut:
    """One plane: `axis` and `index` of a volume's grid, or an oblique `plane`."""

    axis: int | None = None
    index: int | None = None
    plane: Space | None = None

    def take(self, image: Tensor, labels: Tensor | None, space: Space, **settings: Any) -> SliceSample:
        """The slice; keywords are those of `take_slice`."""
        return take_slice(image, labels, space, axis=self.axis, index=self.index, plane=self.plane, **settings)


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Which planes are taken.

    Attributes:
        method: `random_axis` (or `random`): `count` planes, an axis at random and any of its planes that show the
            organ, each once where there are enough; `uniform`: `count` on each axis at even distances; `central`:
            on each axis the one through the organ's centroid; `all`: every one on each axis; `oblique`: `count` in any
            direction through a random voxel of the organ.
        axes: world axes that planes are perpendicular to: 0, 1, 2 for x (sagittal), y (coronal), z (axial).
        count: see `method`.
        oblique: chance that a plane of `random_axis` is oblique.
        min_pixels: planes that show less of the organ are passed over, unless all do.
        reach: half the side of oblique planes in mm; None: they span the volume.

    Raises:
        SettingError: an unknown method.
    """

    method: str = "random_axis"
    axes: Sequence[int] = (0, 1, 2)
    count: int = 1
    oblique: float = 0.0
    min_pixels: int = 9
    reach: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "method", method_name(self.method))
        object.__setattr__(self, "axes", tuple(self.axes))


@dataclass(frozen=True, eq=False)
class Draw:
    """Which slices of an organ are drawn.

    Attributes:
        case: its number.
        organ: label values that count as one.
        first: one that is among them in any case; None: any.
        count: how many in all.
        choice: of the others.
    """

    case: int
    organ: tuple[int, ...]
    first: Cut | str | None
    count: int
    choice: Choice


def choose_cuts(
    mask: NDArray[np.bool_], space: Space, choice: Choice, generator: np.random.Generator, *, count: int | None = None
) -> list[Cut]:
    """Planes that show an organ.

    Args:
        mask: `(D, H, W)` bool.
        space: its grid.
        choice: which.
        generator: of `random_axis` and `oblique`.
        count: instead of the choice's.

    Raises:
        DataError: an empty mask.
        SettingError: an unknown method or axis, a count below 1.
    """
    method, axes, reach = choice.method, choice.axes, choice.reach
    count = choice.count if count is None else count
    if count < 1 or not axes:
        raise SettingError(f"count, axes: expected at least one slice and one axis, got {count} and {list(axes)}")
    if not mask.any():
        raise DataError("no foreground to cut a slice through")
    if method == "oblique":
        return [_oblique(mask, space, generator, reach) for _ in range(count)]
    shown = {array_axis(space, world): _indices(mask, array_axis(space, world), choice.min_pixels) for world in axes}
    if method == "random_axis":
        return _random(mask, space, shown, count, generator, choice)
    cuts = []
    for axis, indices in shown.items():
        if method == "uniform":
            indices = indices[spread_out(len(indices), count)]
        elif method == "central":
            middle = np.average(np.arange(mask.shape[axis]), weights=_pixels(mask, axis))
            indices = indices[[int(np.argmin(np.abs(indices - middle)))]]
        cuts += [Cut(axis, int(index)) for index in indices]
    return cuts


def spread_out(available: int, count: int) -> NDArray[np.int64]:
    """`count` places at even distances among those available, each once."""
    return np.unique(np.floor((np.arange(count) + 0.5) / count * available).astype(np.int64))


def _pixels(mask: NDArray[np.bool_], axis: int) -> NDArray[np.int64]:
    """How many voxels of the organ each plane across `axis` shows."""
    return mask.sum(axis=tuple(other for other in range(mask.ndim) if other != axis))


def _indices(mask: NDArray[np.bool_], axis: int, min_pixels: int) -> NDArray[np.int64]:
    pixels = _pixels(mask, axis)
    return np.flatnonzero(pixels >= max(1, min(min_pixels, int(pixels.max()))))


def _random(
    mask: NDArray[np.bool_],
    space: Space,
    available: dict[int, NDArray[np.int64]],
    count: int,
    generator: np.random.Generator,
    choice: Choice,
) -> list[Cut]:
    cuts: list[Cut] = []
    taken: set[tuple[int, int]] = set()
    every = sum(len(indices) for indices in available.values())
    while len(cuts) < count:
        if choice.oblique > 0 and generator.random() < choice.oblique:
            cuts.append(_oblique(mask, space, generator, choice.reach))
            continue
        axis = list(available)[int(generator.integers(len(available)))]
        index = int(generator.choice(available[axis]))
        if (axis, index) in taken and len(taken) < every:
            continue
        taken.add((axis, index))
        cuts.append(Cut(axis, index))
    return cuts


def _oblique(mask: NDArray[np.bool_], space: Space, generator: np.random.Generator, reach: float | None) -> Cut:
    inside = np.flatnonzero(mask)
    voxel = np.unravel_index(int(inside[generator.integers(len(inside))]), mask.shape)
    normal = generator.standard_normal(3)
    step = min(space.spacing)
    half = float(np.linalg.norm(space.extent)) / 2 if reach is None else reach
    # odd, so that the voxel that was chosen is a pixel
    side = 2 * int(np.ceil(half / step)) + 1
    middle = space.to_world(np.array(voxel, dtype=np.float64))
    return Cut(plane=oblique_plane(middle, normal, spacing=step, shape=side))
