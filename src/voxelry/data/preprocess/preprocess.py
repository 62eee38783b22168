"""From any file's grid and intensities to what a network is fed, and nothing lost on the way back.

The order is: orientation, grid, intensities. Image, target, labels, masks, landmarks and boxes move together,
and `space` with them, so that `result.space.to_world(result.landmarks)` are the world points of the input.
`levels` tell which values became 0 and 1, so that `physical(result.image, result.levels)` has the input's units.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from voxelry.core.choice import check_choice
from voxelry.core.errors import DataError, SettingError
from voxelry.core.memory import memory_shortage
from voxelry.core.orientation import CANONICAL, WORLD_AXES, orientation_steps
from voxelry.core.rank import per_axis
from voxelry.core.settings import plain
from voxelry.core.space import Space
from voxelry.data.preprocess.frame import filled, find_content, index_map, trimmed, untilted, world_aligned
from voxelry.data.preprocess.normalise import check_normalise, find_levels, finite, is_scaled, scale
from voxelry.data.preprocess.speckle import despeckle
from voxelry.data.sample import Sample
from voxelry.ops.labels import resample_labels
from voxelry.ops.resample import Fill, resample, resample_points

__all__ = ["Preprocess", "move"]

_FLOATS = 3  # copies of an image that resampling and scaling hold at a time
_METHOD = ("normalise", "window", "percentiles", "clip")


@dataclass(frozen=True, kw_only=True, eq=False)
class Preprocess:
    """Brings a sample to the orientation, grid and intensities of the training data.

    Args:
        orientation: direction of each axis in array order (plane, row, column): `"canonical"` is `"SAR"`, what
            NIfTI tools call RAS; another code; or None to keep the file's. Axes are permuted and reversed only,
            which is exact; an oblique image goes to the nearest. A slice keeps its plane: of a sagittal slice
            `"SAR"` asks `"SA"`. Files without orientation are read as if they were canonical.
        align: `"nearest"` leaves an oblique image on its own, tilted grid; `"world"` resamples it to a grid
            along the world's axes with the same spacing that holds all of it (needs an orientation). `"auto"` is
            `"nearest"`, but for an image that was cut along the world's axes and later put onto a tilted grid, as the
            padding around it tells: it gets back the box that it was (see `voxelry.data.preprocess.frame.untilted`).
        trim: leave out outer planes that hold nothing but padding, the one value of the corners. Landmarks there
            then lie outside of the image.
        image_size: resize to this many voxels, one number or one per axis in array order (after the
            orientation); outer edges stay where they were.
        spacing: resample to this spacing in mm, one number or one per axis in array order; at most one of
            `image_size` and `spacing`.
        normalise, window, percentiles, clip, per_channel: see `voxelry.data.preprocess.normalise.normalise`.
        channels: number of channels to deliver: one is repeated, colours (three) are averaged to one; None
            keeps what is there.
        intensity: how a target is scaled: `"own"` by the same method over its own values; `"shared"` with one
            range, that of the image's channels together, for all of them, so that equal stays equal; or what differs
            from the image's method, such as `{"normalise": "window", "window": [-1024, 3000]}`.
        outside: what becomes of values beyond 0 and 1: `"clip"` cuts them off, `"keep"` loses nothing,
            `"error"` refuses the case (of `window`: the other methods find ranges that leave some outside).
        keep_range: whether an image that is in [0, 1] already stays so; for readers of one's own, see `VolumeDataset`.
        despeckle: whether speckle is removed first, of ultrasound; see `data.preprocess.speckle.despeckle`.

    Images are interpolated linearly, and first smoothed when they shrink (see `move`); labels and masks keep
    their volumes. What an aligned grid holds beyond the image gets each channel's smallest value; the padding
    that `auto` recognised, and what lies beyond the image there, get the nearest voxel's.

    Raises:
        SettingError: settings that contradict each other; one line naming the setting.
    """

    orientation: str | None = "canonical"
    align: str = "nearest"
    trim: bool = False
    image_size: int | Sequence[int] | None = None
    spacing: float | Sequence[float] | None = None
    normalise: str | None = "minmax"
    window: Sequence[float] | None = None
    percentiles: Sequence[float] = (0.5, 99.5)
    clip: float = 3.0
    per_channel: bool = True
    channels: int | None = None
    intensity: Literal["own", "shared"] | Mapping[str, Any] = "own"
    outside: Literal["clip", "keep", "error"] = "clip"
    despeckle: bool = False
    keep_range: bool = False

    def __post_init__(self) -> None:
        if self.orientation is not None:
            object.__setattr__(self, "orientation", _code(self.orientation))
        check_choice("align", self.align, ("nearest", "world", "auto"))
        if self.align != "nearest" and self.orientation is None:
            raise SettingError(
                f"align: {self.align!r} needs an orientation, but orientation is None; expected nearest with it, "
                "data.preprocess.align=nearest"
            )
        if not isinstance(self.trim, bool):
            raise SettingError(f"trim: expected true or false, got {self.trim!r}")
        if self.image_size is not None and self.spacing is not None:
            raise SettingError("image_size: expected None when spacing is given; set one of the two")
        for size in _each(self.image_size, "image_size"):
            if isinstance(size, bool) or int(size) != size or size < 1:
                raise SettingError(f"image_size: expected positive whole numbers, got {self.image_size}")
        for step in _each(self.spacing, "spacing"):
            if not 0 < step < float("inf"):
                raise SettingError(f"spacing: expected positive millimetres, got {self.spacing}")
        if self.channels is not None and (isinstance(self.channels, bool) or self.channels < 1):
            raise SettingError(f"channels: expected a positive number or None, got {self.channels}")
        self._check_intensities()

    def _check_intensities(self) -> None:
        if isinstance(self.intensity, Mapping):
            unknown = [name for name in self.intensity if name not in _METHOD]
            if unknown:
                raise SettingError(f"intensity: expected keys of {', '.join(_METHOD)}, got {unknown[0]!r}")
        elif self.intensity not in ("own", "shared"):
            raise SettingError(f"intensity: expected own, shared or a mapping, got {self.intensity!r}")
        check_choice("outside", self.outside, ("clip", "keep", "error"))
        for settings in (self._method(), self._method(of_target=True)):
            check_normalise(**settings)
            if self.outside == "error" and settings["method"] != "window":
                raise SettingError("outside: 'error' needs normalise: window, whose range is declared")

    def settings(self) -> dict[str, Any]:
        """Plain values that can go to JSON; `Preprocess(**settings)` does the same again."""
        numbers = {"image_size": int, "spacing": float, "window": float, "percentiles": float, "clip": float}
        converted = {name: _plain(getattr(self, name), convert) for name, convert in numbers.items()}
        return {**plain({field.name: getattr(self, field.name) for field in fields(self)}), **converted}

    def __call__(self, sample: Sample) -> Sample:
        """The sample on its new grid: image and target float32, in [0, 1] unless `normalise` is None or they keep more.

        Raises:
            SettingError: a setting with another number of axes than the image; the message names it.
            DataError: channels that can't become `channels`, a grid too large to hold, or values beyond the window
                where that is an error.
        """
        sample = self.cleaned(sample)
        if self.orientation is not None:
            sample = _reordered(sample, *orientation_steps(sample.space, self.orientation))
        found = untilted(sample.image, sample.space) if self.align == "auto" else None
        if found is not None:
            box, content = found
            target = None if sample.target is None else filled(sample.target, content)
            sample = sample.replace(image=filled(sample.image, content), target=target)
            return self._scaled(self._moved(sample, box, fill="edge"))
        box = world_aligned(sample.space) if self.align == "world" else sample.space
        if self.trim:
            box = trimmed(box, find_content(sample.image), sample.space)
        return self._scaled(self._moved(sample, box))

    def cleaned(self, sample: Sample) -> Sample:
        """The first step alone: float32, the channels that are wanted, and neither NaN nor, if so wanted, speckle.

        Raises:
            DataError: channels that can't become `channels`.
        """
        image = finite(self._with_channels(sample.image.to(torch.float32), sample))
        if self.despeckle and not sample.despeckled:
            image = torch.from_numpy(despeckle(image.numpy()))
        target = None if sample.target is None else finite(sample.target.to(torch.float32))
        return sample.replace(image=image, target=target, despeckled=sample.despeckled or self.despeckle)

    def on_own_grid(self) -> Preprocess:
        """The same intensities for an image that keeps its voxels."""
        kept = {"orientation": None, "align": "nearest", "trim": False, "image_size": None, "spacing": None}
        return Preprocess(**{**self.settings(), **kept})

    def takes(self, channels: int, wanted: int) -> bool:
        """Whether an image of so many channels becomes one of `wanted`."""
        return (
            channels == wanted
            if self.channels is None
            else wanted == self.channels and (channels == wanted or channels == 1 or (channels, wanted) == (3, 1))
        )

    def target(self, space: Space) -> Space:
        """The grid on which an image on `space` comes out, if it has no padding that is left out."""
        if self.orientation is not None:
            space = space.reorder(*orientation_steps(space, self.orientation))
            if self.align == "world":
                space = world_aligned(space)
        return self._resized(space)

    def _resized(self, space: Space) -> Space:
        if self.image_size is not None:
            return space.resize(per_axis(self.image_size, space.ndim, "image_size"))
        if self.spacing is not None:
            return space.respace(per_axis(self.spacing, space.ndim, "spacing"))
        return space

    def _moved(self, sample: Sample, box: Space, fill: Fill | None = None) -> Sample:
        """The sample in a box of the world, at the size wanted."""
        return move(sample, self._resized(box), fill=fill)

    def _method(self, *, of_target: bool = False) -> dict[str, Any]:
        """The keywords of `find_levels` for the image, or for a target that has its own range."""
        chosen = {name: getattr(self, name) for name in _METHOD}
        if of_target and isinstance(self.intensity, Mapping):
            chosen |= self.intensity
        return {"method": chosen.pop("normalise"), **chosen}

    def _scaled(self, sample: Sample) -> Sample:
        """Image and target at their levels; channels that are absent stay zero and have no say in a range."""
        image, target = sample.image, sample.target
        present = torch.ones(len(image), dtype=torch.bool) if sample.present is None else sample.present
        shared = self.intensity == "shared"  # without a target, too: it may be the network that makes it
        levels = torch.tensor([[0.0, 1.0]], dtype=torch.float64).repeat(len(image), 1)
        if not (self.keep_range and is_scaled(image)):
            levels[present] = find_levels(image[present], **self._method(), per_channel=self.per_channel and not shared)
        image = self._at_levels(image, levels, self.normalise, sample, "image")
        if not present.all():
            image = torch.where(present.reshape(-1, *[1] * sample.ndim), image, 0.0)
        if target is not None:
            method = self._method(of_target=not shared)
            if shared:
                own = levels[present][:1].expand(len(target), 2)
            elif self.keep_range and is_scaled(target):
                own = torch.tensor([[0.0, 1.0]], dtype=torch.float64).expand(len(target), 2)
            else:
                own = find_levels(target, **method, per_channel=self.per_channel)
            target = self._at_levels(target, own, method["method"], sample, "target")
            levels = torch.cat([levels, own])
        return sample.replace(image=image, target=target, levels=levels.to(torch.float32))

    def _at_levels(self, image: Tensor, levels: Tensor, method: str | None, sample: Sample, part: str) -> Tensor:
        if method is None:
            return image
        low, high = levels[:, 0].min(), levels[:, 1].max()
        if self.outside == "error" and (image.min() < low or image.max() > high):
            raise DataError(
                f"{sample.source or sample.name}: the {part} has values from {image.min():g} to {image.max():g}, but "
                f"the declared window is {low:g} to {high:g}; give that of all files, such as "
                f"data.preprocess.window=[{math.floor(image.min())},{math.ceil(image.max())}], of CT [-1024,3071]"
            )
        return scale(image, levels, clip=self.outside != "keep")

    def _with_channels(self, image: Tensor, sample: Sample) -> Tensor:
        if self.channels is None or len(image) == self.channels:
            return image
        contrasts = sample.present is not None  # each channel is one of its own then
        if len(image) == 1 and not contrasts:
            return image.repeat(self.channels, *[1] * (image.ndim - 1))
        if len(image) == 3 and self.channels == 1 and not contrasts:
            return image.mean(dim=0, keepdim=True)
        raise DataError(f"{sample.source or sample.name}: {len(image)} channels, but channels is {self.channels}")


def move(sample: Sample, target: Space, *, fill: Fill | None = None) -> Sample:
    """A sample resampled to another grid: image and target linear, points and boxes exact.

    Where the new voxels are larger than the old ones the image is smoothed first, with the Gaussian that
    makes the old point spread function the new one: variance `(k^2 - 1) / (8 ln 2)` old voxels for a factor
    `k` (Cardoso et al. 2015, MICCAI, LNCS 9350, 81-89). Outside of the image is `fill`, by default each channel's
    smallest value, and 0 for labels and masks, which keep every class's and object's volume
    (`ops.labels.resample_labels`). A box becomes the box around its moved corners.

    Raises:
        DataError: a grid too large for the memory there is.
    """
    matrix, offset = index_map(sample.space, target)
    if sample.space.shape == target.shape and _is_same(matrix, offset):
        return sample.replace(space=target)
    _check_fits(sample, target)
    size = target.shape

    def shares(labels: Tensor | None) -> Tensor | None:
        return None if labels is None else torch.from_numpy(resample_labels(labels.numpy(), matrix, offset, size))

    def points(index: Tensor) -> Tensor:
        return resample_points(index.to(torch.float64), matrix, offset, size).to(torch.float32)

    image = (sample.image if sample.target is None else torch.cat([sample.image, sample.target])).to(torch.float32)
    outside = image.flatten(1).amin(dim=1).tolist() if fill is None else fill
    moved = resample(_smoothed(image, matrix), matrix, offset, size, fill=outside)
    channels = len(sample.image)
    return sample.replace(
        image=moved[:channels],
        target=None if sample.target is None else moved[channels:],
        space=target,
        landmarks=None if sample.landmarks is None else points(sample.landmarks),
        labels=shares(sample.labels),
        masks=shares(sample.masks),
        boxes=None if sample.boxes is None else _around(points(_corners(sample.boxes))),
    )


def _check_fits(sample: Sample, target: Space) -> None:
    channels = len(sample.image) + (0 if sample.target is None else len(sample.target))
    numbers = sum(labels is not None for labels in (sample.labels, sample.masks))
    shortage = memory_shortage(target.shape, 4 * _FLOATS * channels + 8 * numbers)
    if shortage:
        steps, own = (" x ".join(f"{step:.3g}" for step in space.spacing) for space in (target, sample.space))
        raise DataError(
            f"{sample.source or sample.name}: too large a grid of {steps} mm, {shortage}; give larger voxels (the "
            f"image's own are {own} mm)"
        )


def _reordered(sample: Sample, axes: Sequence[int], flips: Sequence[bool]) -> Sample:
    """Axes permuted, then some reversed: every voxel and point keeps its place in the world."""
    order = [*axes]
    reversed_axes = [axis for axis, flip in enumerate(flips) if flip]
    shape = [sample.space.shape[axis] for axis in axes]

    def turn(tensor: Tensor | None, leading: int = 0) -> Tensor | None:
        if tensor is None:
            return None
        turned = tensor.permute(*range(leading), *[axis + leading for axis in order])
        return turned.flip([axis + leading for axis in reversed_axes]).contiguous()

    def points(index: Tensor) -> Tensor:
        index = index[..., order].clone()
        for axis in reversed_axes:
            index[..., axis] = shape[axis] - 1 - index[..., axis]
        return index

    image = turn(sample.image, leading=1)
    assert image is not None
    return sample.replace(
        image=image,
        target=turn(sample.target, leading=1),
        space=sample.space.reorder(axes, flips),
        landmarks=None if sample.landmarks is None else points(sample.landmarks),
        labels=turn(sample.labels),
        masks=turn(sample.masks),
        boxes=None if sample.boxes is None else _around(points(_corners(sample.boxes))),
    )


def _smoothed(image: Tensor, matrix: NDArray[np.float64]) -> Tensor:
    from scipy.ndimage import gaussian_filter1d

    # Per old axis, the squared extent of a new voxel in old voxels; a mere rotation gives 1 and no smoothing.
    variance = (np.square(matrix).sum(axis=1) - 1) / (8 * np.log(2))
    smoothed = image.numpy()
    for axis, value in enumerate(variance):
        if value > 0.04:  # below, the neighbours' weight is under 4e-6
            smoothed = gaussian_filter1d(smoothed, float(np.sqrt(value)), axis=axis + 1, mode="nearest")
    return torch.from_numpy(smoothed)


def _corners(boxes: Tensor) -> Tensor:
    """`(K, 2 * ndim)` -> `(K, 2 ** ndim, ndim)`."""
    ndim = boxes.shape[-1] // 2
    low, high = boxes[:, :ndim], boxes[:, ndim:]
    picks = torch.cartesian_prod(*[torch.tensor([False, True])] * ndim)
    return torch.where(picks, high[:, None], low[:, None])


def _around(corners: Tensor) -> Tensor:
    return torch.cat([corners.amin(dim=1), corners.amax(dim=1)], dim=-1)


def _is_same(matrix: NDArray[np.float64], offset: NDArray[np.float64]) -> bool:
    """Whether the map moves nothing, up to rounding."""
    return bool(np.abs(matrix - np.eye(len(matrix))).max() < 1e-9 and np.abs(offset).max() < 1e-6)


def _code(orientation: str) -> str:
    code = CANONICAL if orientation == "canonical" else str(orientation).upper()
    if len(code) != 3 or {WORLD_AXES.get(letter, (None,))[0] for letter in code} != {0, 1, 2}:
        raise SettingError(
            "orientation: expected 'canonical', None or three letters, one each of L/R, P/A and I/S, in array "
            f"order (plane, row, column), got {orientation!r}"
        )
    return code


def _each(value: Any, name: str) -> tuple[Any, ...]:
    if value is None:
        return ()
    if isinstance(value, (str, bytes)):
        raise SettingError(f"{name}: expected numbers, got {value!r}")
    return tuple(value) if hasattr(value, "__len__") else (value,)


def _plain(value: Any, convert: type) -> Any:
    if value is None:
        return None
    return [convert(part) for part in value] if hasattr(value, "__len__") else convert(value)
