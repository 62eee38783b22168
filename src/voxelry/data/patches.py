"""Windows of a sample, for images that don't fit a network as a whole."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import compress
from math import prod
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from voxelry.core.choice import check_choice
from voxelry.core.errors import SettingError
from voxelry.core.rank import per_axis
from voxelry.core.space import Space
from voxelry.data.context import context as context_of
from voxelry.data.sample import Sample

__all__ = ["MiddleWindow", "Patches", "crop", "window_size"]


class Patches:
    """Draws one window of `size` voxels from a sample.

    With probability `foreground` the window holds something of interest: a landmark, else an instance, else a
    labelled voxel (each class as likely), else a voxel brighter than the mean of the image; which one, and
    where in the window, is drawn evenly. Otherwise any window of the image is as likely.

    Args:
        size: voxels, one number or one per axis in array order. Where the image is smaller it is padded,
            evenly on both sides.
        foreground: probability in [0, 1].
        margin: voxels cut in addition on each side, for an augmentation that turns and shifts the window:
            what it brings in from there is image, not emptiness. `trim` takes the margin off again.
        fill: what the image is padded with: `zero`, or `edge` to repeat its border, which suits images that
            are cut out of larger ones. Labels and masks always get 0.
        context: whether windows carry their place and a view of the whole, see `voxelry.data.context`. They must
            then be cut from an image that isn't moved any more, so there is no margin.

    Raises:
        SettingError: a size that isn't positive, a negative margin, a probability outside [0, 1], another fill, a
            margin with context.
    """

    def __init__(
        self,
        size: int | Sequence[int],
        *,
        foreground: float = 0.5,
        margin: int | Sequence[int] = 0,
        fill: Literal["zero", "edge"] = "zero",
        context: bool = False,
    ):
        values = tuple(size) if isinstance(size, Sequence) else (size,)
        if any(isinstance(value, bool) or int(value) != value or value < 1 for value in values):
            raise SettingError(f"patch size: expected positive whole numbers, got {size}")
        margins = tuple(margin) if isinstance(margin, Sequence) else (margin,)
        if any(isinstance(value, bool) or int(value) != value or value < 0 for value in margins):
            raise SettingError(f"margin: expected whole numbers of voxels, got {margin}")
        if not 0 <= foreground <= 1:
            raise SettingError(f"foreground: expected a probability in [0, 1], got {foreground}")
        check_choice("fill", fill, ("zero", "edge"))
        if context and any(margins):
            raise SettingError(f"margin: expected 0 with context, as such windows are cut last, got {margin}")
        self.fill = fill
        self.context = bool(context)
        self.size = size
        self.foreground = float(foreground)
        self.margin = margin

    def settings(self) -> dict[str, Any]:
        """Plain values that can go to JSON; `Patches(**settings)` does the same again."""
        return {
            "size": _plain(self.size),
            "foreground": self.foreground,
            "margin": _plain(self.margin),
            "fill": self.fill,
            "context": self.context,
        }

    def __call__(self, sample: Sample, generator: np.random.Generator) -> Sample:
        """One window and its margin; see `crop` for what becomes of points and boxes.

        Raises:
            SettingError: `size` or `margin` has another number of axes than the image.
        """
        size = np.asarray(per_axis(self.size, sample.ndim, "patch size"))
        margin = np.asarray(per_axis(self.margin, sample.ndim, "margin"))
        room = np.asarray(sample.space.shape) - size
        # Both draws are always made, so that a patch depends on its own draws alone.
        wants_foreground = generator.random() < self.foreground
        share = generator.random(sample.ndim)
        target = _target(sample, generator) if wants_foreground else None
        if target is None:
            start = np.floor(share * (np.maximum(room, 0) + 1))
        else:
            start = np.round(target) - np.floor(share * size)
        start = np.where(room > 0, np.clip(start, 0, np.maximum(room, 0)), room // 2)
        first, count = (start - margin).astype(int).tolist(), (size + 2 * margin).tolist()
        window = crop(sample, first, count, fill=self.fill)
        return window.replace(context=context_of(sample.image, first, count)) if self.context else window

    def trim(self, sample: Sample) -> Sample:
        """A window without its margin."""
        margin = per_axis(self.margin, sample.ndim, "margin")
        return crop(sample, margin, per_axis(self.size, sample.ndim, "patch size")) if any(margin) else sample


class MiddleWindow(Patches):
    """Takes the middle of a sample, of `size` voxels or of all there are where it is smaller; nothing is drawn.

    Args:
        size: voxels, one number or one per axis in array order.

    Raises:
        SettingError: a size that isn't positive.
    """

    def __init__(self, size: int | Sequence[int]):
        super().__init__(size)

    def __call__(self, sample: Sample, generator: np.random.Generator) -> Sample:
        """The window; see `crop` for what becomes of points and boxes.

        Raises:
            SettingError: `size` has another number of axes than the image.
        """
        wanted = per_axis(self.size, sample.ndim, "patch size")
        size = [min(edge, whole) for edge, whole in zip(wanted, sample.space.shape, strict=True)]
        return crop(sample, [(whole - edge) // 2 for edge, whole in zip(size, sample.space.shape, strict=True)], size)

    def trim(self, sample: Sample) -> Sample:
        """The window as it is: it has no margin, and may be smaller than asked for."""
        return sample


def window_size(shape: Sequence[int], most: int) -> tuple[int, ...]:
    """The largest window of at most `most` voxels in an image: its longest axes cut to one length.

    That length is a multiple of 8 where it can be, as networks that halve several times like it.
    """
    edge = max(shape)
    while edge > 1 and prod(min(edge, size) for size in shape) > most:
        edge = max(1, (edge - 1) // 8 * 8)
    return tuple(min(edge, size) for size in shape)


def crop(
    sample: Sample, start: Sequence[int], size: Sequence[int], *, fill: Literal["zero", "edge"] = "zero"
) -> Sample:
    """The window of `size` voxels from index `start`, which may reach beyond the image (`fill` there).

    Landmarks outside of the window become NaN: absent, as nothing of them is to be seen. Boxes are clipped;
    those of which nothing is left are dropped, and the instance ids of `masks` renumbered to match.
    """
    space = sample.space.crop(start, size)
    landmarks = sample.landmarks
    if landmarks is not None:
        landmarks = landmarks - torch.tensor(start, dtype=landmarks.dtype)
        inside = torch.from_numpy(space.contains(landmarks.numpy()))
        landmarks = torch.where(inside[:, None], landmarks, torch.nan)
    masks = _window(sample.masks, start, size)
    boxes, classes, names = sample.boxes, sample.classes, sample.ids
    if boxes is not None:
        boxes, kept = _clipped(boxes, start, space)
        if masks is not None:
            kept = kept & torch.isin(torch.arange(1, len(kept) + 1), masks)
            ids = torch.zeros(max(int(masks.max()), len(kept)) + 1, dtype=masks.dtype)
            ids[1 : len(kept) + 1] = torch.where(kept, kept.cumsum(0), 0)
            masks = ids[masks]
        boxes = boxes[kept]
        classes = None if classes is None else classes[kept]
        names = None if names is None else tuple(compress(names, kept.tolist()))
    padded = _edge_window if fill == "edge" else _window
    image = padded(sample.image, start, size)
    assert image is not None
    return sample.replace(
        image=image,
        space=space,
        landmarks=landmarks,
        labels=_window(sample.labels, start, size),
        boxes=boxes,
        masks=masks,
        classes=classes,
        ids=names,
        target=padded(sample.target, start, size),
        context=_window(sample.context, start, size),
        borders=_edge_window(sample.borders, start, size),
    )


def _plain(value: int | Sequence[int]) -> int | list[int]:
    return [int(part) for part in value] if isinstance(value, Sequence) else int(value)


def _target(sample: Sample, generator: np.random.Generator) -> np.ndarray | None:
    """Index of something worth seeing, `(ndim,)`, or None in an empty image."""
    if sample.landmarks is not None:
        points = sample.landmarks.numpy()
        points = points[sample.space.contains(points)]
        if len(points):
            return points[generator.integers(len(points))]
    if sample.boxes is not None and len(sample.boxes):
        box = sample.boxes[int(generator.integers(len(sample.boxes)))].numpy()
        return (box[: sample.ndim] + box[sample.ndim :]) / 2
    if sample.labels is not None and bool((sample.labels > 0).any()):
        classes = torch.unique(sample.labels)
        classes = classes[classes > 0]
        return _voxel(sample.labels == classes[int(generator.integers(len(classes)))], generator)
    brightness = sample.image.mean(dim=0)
    return _voxel(brightness > brightness.mean(), generator)


def _voxel(mask: Tensor, generator: np.random.Generator) -> np.ndarray | None:
    found = np.flatnonzero(mask.numpy())
    if not len(found):
        return None
    chosen = found[generator.integers(len(found))]
    return np.asarray(np.unravel_index(chosen, tuple(mask.shape)), dtype=np.float64)


def _edge_window(image: Tensor | None, start: Sequence[int], size: Sequence[int]) -> Tensor | None:
    """`(C, *size)` from index `start`, with the nearest voxel of the image beyond it."""
    if image is None:
        return None
    for axis, (low, count) in enumerate(zip(start, size, strict=True), start=1):
        places = torch.arange(low, low + count).clamp(0, image.shape[axis] - 1)
        image = image.index_select(axis, places)
    return image


def _window(tensor: Tensor | None, start: Sequence[int], size: Sequence[int]) -> Tensor | None:
    """The last axes cut to the window, with zeros beyond the tensor."""
    if tensor is None:
        return None
    leading = tensor.ndim - len(size)
    slices, padding = [slice(None)] * leading, list[int]()
    for low, count, length in zip(start, size, tensor.shape[leading:], strict=True):
        first, last = min(max(low, 0), length), max(min(low + count, length), 0)
        last = max(first, last)
        slices.append(slice(first, last))
        before = min(max(-low, 0), count)
        padding = [before, count - before - (last - first), *padding]  # torch wants the last axis first
    part = tensor[tuple(slices)]
    return functional.pad(part, padding) if any(padding) else part.clone()


def _clipped(boxes: Tensor, start: Sequence[int], space: Space) -> tuple[Tensor, Tensor]:
    """Boxes in the window's coordinates, cut at the outer edges of its voxels, and which have anything left."""
    ndim = space.ndim
    moved = boxes - torch.tensor([*start, *start], dtype=boxes.dtype)
    last = torch.tensor(space.shape, dtype=boxes.dtype) - 0.5
    low, high = moved[:, :ndim].clamp(min=-0.5), torch.minimum(moved[:, ndim:], last)
    return torch.cat([low, high], dim=1), (high > low).all(dim=1)
