"""Which stored axis of a file is which.

A file's axes are letters, one per stored axis: `z`, `y`, `x` are spatial, every other letter is a kind of
channel (`t` time, `s` colours or components, `c` whatever else). Whatever their stored order, an image leaves
its reader as `(C, z, y, x)` or `(C, y, x)`; several channel axes are flattened in stored order, the last fastest.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from voxelry.core.errors import FileError
from voxelry.core.space import Space
from voxelry.io.advice import way_to_say

__all__ = ["AxisOrder", "name_axes", "named_axes", "order_axes"]

_NAMES = {
    "x": ("x", "width", "column", "columns", "col"),
    "y": ("y", "height", "row", "rows"),
    "z": ("z", "depth", "plane", "planes", "slice", "slices"),
    "c": ("c", "channel", "channels", "ch", "band"),
    "t": ("t", "time", "frame", "frames", "timepoint"),
    "s": ("s", "sample", "samples", "rgb"),
}
_LETTERS = {name: letter for letter, names in _NAMES.items() for name in names}
_UNNAMED = re.compile(r"|(phony_)?dim_?\d+|axis_?\d+")  # what libraries call an axis that has no name
_FEW_CHANNELS = 4  # colours with transparency: a first axis that short, before a longer last one, is likelier channels


@dataclass(frozen=True)
class AxisOrder:
    """How stored axes become `(C, *spatial)`.

    Args:
        shape: stored shape.
        spatial: stored axes that are spatial, in array order (plane, row, column).
    """

    shape: tuple[int, ...]
    spatial: tuple[int, ...]

    @property
    def others(self) -> tuple[int, ...]:
        """Stored axes that become channels, in stored order."""
        return tuple(axis for axis in range(len(self.shape)) if axis not in self.spatial)

    @property
    def channels(self) -> int:
        """Number of channels; 1 without a channel axis."""
        return prod(self.shape[axis] for axis in self.others)

    @property
    def spatial_shape(self) -> tuple[int, ...]:
        """Spatial shape in array order."""
        return tuple(self.shape[axis] for axis in self.spatial)

    def index(self, window: Sequence[slice]) -> tuple[slice, ...]:
        """The slices of the stored array that hold a spatial window; channels are taken whole."""
        index = [slice(0, size) for size in self.shape]
        for axis, part in zip(self.spatial, window, strict=True):
            index[axis] = part
        return tuple(index)

    def arrange(self, array: np.ndarray) -> np.ndarray:
        """A stored array, or the part of it that `index` names, as `(C, *spatial)`."""
        moved = array.transpose(self.others + self.spatial)
        return moved.reshape(-1, *moved.shape[len(self.others) :])

    def space(self, steps: Mapping[int, ArrayLike], origin: ArrayLike) -> Space:
        """The grid, given for each stored spatial axis its step in world mm, and the world of voxel 0."""
        affine = np.zeros((4, len(self.spatial) + 1))
        for column, axis in enumerate(self.spatial):
            affine[:3, column] = steps[axis]
        affine[:3, -1] = origin
        affine[3, -1] = 1.0
        return Space(self.spatial_shape, affine)

    def plain_space(self, spacing: Mapping[int, float], origin: Mapping[int, float] | None = None) -> Space:
        """The grid of a file without orientation: spacing (and origin) in mm by stored axis, 1 (0) where absent.

        An axis that was dropped because it is one voxel long keeps its origin, so a plane stays where it was.
        """
        corner = np.zeros(3)
        for world, axis in enumerate(reversed(self.spatial)):
            corner[world] = (origin or {}).get(axis, 0.0)
        return Space.from_spacing(
            self.spatial_shape, [spacing.get(axis, 1.0) for axis in self.spatial], tuple(float(c) for c in corner)
        )


def name_axes(path: str | Path, shape: Sequence[int], *, ndim: int | None, channel_axis: int | None) -> str:
    """Letters for an array that doesn't say what its axes are.

    Without further word 2-D is `yx`, 3-D is `zyx` and 4-D is `zyxc`. `ndim=2` makes a 3-D array `yxc`;
    `channel_axis` (negative counts from the end) takes that axis as channel, the rest are spatial in order.

    Raises:
        FileError: another number of axes, a `channel_axis` that isn't there, or channels that seem to come first.
    """
    rank = len(shape)
    if channel_axis is not None:
        axis = _channel(path, rank, channel_axis)
        letters = list(_spatial(path, rank, rank - 1))
        letters.insert(axis, "c")
        return "".join(letters)
    if rank != 4 and not (rank == 3 and ndim == 2):
        return _spatial(path, rank, rank)
    if shape[0] <= _FEW_CHANNELS < shape[-1]:
        raise FileError(
            path,
            f"shape {tuple(shape)} looks like channels first, where they are expected last",
            f"say where they are: {way_to_say(channel_axis=0)}, or -1 for last",
        )
    return "zyxc"[4 - rank :]


def named_axes(
    path: str | Path, names: Sequence[object], shape: Sequence[int], *, ndim: int | None, channel_axis: int | None
) -> str:
    """Letters for an array whose axes have names, such as `z` or `height`; without any as `name_axes`.

    Raises:
        FileError: names that mean nothing or the same, unless `ndim` or `channel_axis` says what the axes are.
    """
    words = ["" if name is None else str(name).strip().lower() for name in names]
    if all(_UNNAMED.fullmatch(word) for word in words):
        return name_axes(path, shape, ndim=ndim, channel_axis=channel_axis)
    letters = [_LETTERS.get(word, "") for word in words]
    if channel_axis is not None:
        letters[_channel(path, len(words), channel_axis)] = "c"
    spatial = [letter for letter in letters if letter and letter in "zyx"]
    if all(letters) and len(spatial) == len(set(spatial)) >= 2:
        return "".join(letters)
    if ndim is not None or channel_axis is not None:
        return name_axes(path, shape, ndim=ndim, channel_axis=channel_axis)
    raise FileError(
        path,
        f"its axes are called {', '.join(word or 'nothing' for word in words)}, of which not all can be placed",
        f"of z, y, x (and channels) in order {way_to_say(ndim=3)}; with channels first {way_to_say(channel_axis=0)}",
    )


def order_axes(
    path: str | Path, shape: Sequence[int], axes: str, *, ndim: int | None = None, channel_axis: int | None = None
) -> AxisOrder:
    """Decide which stored axes are spatial.

    A volume that is exactly one voxel thick along one axis is a plane, and has rank 2, unless `ndim=3`. With
    `ndim=3` a file of planes that calls its pages time or channel is a volume if there is only one such axis
    (only time, where a depth of one is named beside it).

    Args:
        path: named in errors.
        shape: stored shape.
        axes: one letter per stored axis; `z`, `y`, `x` are spatial.
        ndim: rank that is wanted, or None for the file's own.
        channel_axis: stored axis to take as channels, whatever its letter says.

    Raises:
        FileError: another number of axes than of letters, the wanted rank can't be had from this file, or it has fewer
            than two spatial axes.
    """
    letters = list(axes)
    if len(letters) != len(shape):
        raise FileError(path, f"expected {len(letters)} axes ({axes}), got shape {tuple(shape)}")
    if channel_axis is not None:
        letters[_channel(path, len(shape), channel_axis)] = "c"
    depth = letters.index("z") if "z" in letters else None
    if ndim == 3 and channel_axis is None and (depth is None or shape[depth] == 1):
        stacks = [axis for axis, letter in enumerate(letters) if letter not in "yxs" and shape[axis] > 1]
        stacks = [axis for axis in stacks if depth is None or letters[axis] == "t"]
        if len(stacks) == 1:
            if depth is not None:
                letters[depth] = "c"
            letters[stacks[0]] = "z"
    spatial = [letters.index(letter) for letter in "zyx" if letter in letters]
    thin = [axis for axis in spatial if shape[axis] == 1]
    if len(spatial) == 3 and thin and (ndim == 2 or (ndim is None and len(thin) == 1)):
        spatial.remove(thin[0])
    wanted = len(spatial) if ndim is None else ndim
    if len(spatial) != wanted or wanted not in (2, 3):
        expected = "2 or 3" if ndim is None else str(ndim)
        raise FileError(
            path,
            f"expected {expected} spatial axes, got {len(spatial)} in axes {''.join(letters)} of shape {tuple(shape)}",
            f"say which axis is channels, {way_to_say(channel_axis=0)}, or the rank, {way_to_say(ndim=2)}",
        )
    return AxisOrder(tuple(int(size) for size in shape), tuple(spatial))


def _spatial(path: str | Path, rank: int, count: int) -> str:
    if count not in (2, 3):
        raise FileError(
            path,
            f"an array of {rank} axes, {count} of them spatial; expected 2 or 3, and one of channels",
            "save one channel or time point, or name its axes",
        )
    return "zyx"[3 - count :]


def _channel(path: str | Path, rank: int, channel_axis: int) -> int:
    if not -rank <= channel_axis < rank:
        raise FileError(path, f"channel_axis {channel_axis} is not there: the array has {rank} axes")
    return channel_axis % rank
