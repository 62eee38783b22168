"""The one record that flows from a reader to a network, alone and in batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import torch
from torch import Tensor

from voxelry.core.errors import DataError
from voxelry.core.space import Space

__all__ = ["Batch", "Sample", "collate"]


@dataclass
class Sample:
    """An image and what is known of it, all on one grid.

    Attributes:
        image: `(C, *spatial)` float32.
        space: the grid of `image`; every other field is in its index coordinates.
        name: what the case is called, unique in a dataset.
        source: the file it came from, for messages.
        landmarks: `(N, ndim)` float32, continuous index coordinates in array order, NaN for an absent one.
        landmark_names: one name per landmark.
        labels: `(*spatial)` int64 class per voxel.
        boxes: `(K, 2 * ndim)` float32, all lows then all highs, array order, continuous.
        masks: `(*spatial)` int64 instance ids, 0 for background; box `k` belongs to id `k + 1`.
        classes: `(K,)` int64 class of each box, 1 for the first; None where there is one class only.
        target: `(C_t, *spatial)` float32, what the image is to become, on the image's own grid.
        present: `(C,)` bool, which channels of the image there are; an absent one is all zeros. None: all of them.
        context: `(ndim + C, *spatial)` float32, where a patch lies in its image (see `voxelry.data.context`).
        borders: `(2 * ndim, *spatial)` float32, mm to the borders of the image that this was cut and changed from
            (see `voxelry.data.context.border_distances`).
        levels: `(C + C_t, 2)` float32, the physical values of 0 and 1 of each channel, the image's first and then
            the target's: `physical = low + value * (high - low)`. They may differ from case to case.
    """

    image: Tensor
    space: Space
    name: str
    source: str = ""
    landmarks: Tensor | None = None
    landmark_names: tuple[str, ...] = ()
    labels: Tensor | None = None
    boxes: Tensor | None = None
    masks: Tensor | None = None
    classes: Tensor | None = None
    target: Tensor | None = None
    present: Tensor | None = None
    context: Tensor | None = None
    borders: Tensor | None = None
    levels: Tensor | None = None

    @property
    def ndim(self) -> int:
        """Number of spatial axes, 2 or 3."""
        return self.space.ndim

    def replace(self, **changes: Any) -> Self:
        """A copy with some fields changed."""
        return replace(self, **changes)


@dataclass
class Batch:
    """Samples of one shape, stacked.

    Attributes:
        image: `(B, C, *spatial)` float32.
        spaces, names, sources: one per sample.
        landmarks: `(B, N, ndim)`, or None when no sample has any.
        labels, masks: `(B, *spatial)`, or None.
        boxes: one `(K, 2 * ndim)` tensor per sample, or None.
        classes: one `(K,)` tensor per sample, or None.
        target: `(B, C_t, *spatial)`, or None.
        present: `(B, C)` bool, or None.
        context: `(B, ndim + C, *spatial)`, or None.
        borders: `(B, 2 * ndim, *spatial)`, or None when a sample has none.
        levels: `(B, C + C_t, 2)`, or None when a sample has none.
    """

    image: Tensor
    spaces: list[Space]
    names: list[str]
    sources: list[str] = field(default_factory=list)
    landmarks: Tensor | None = None
    landmark_names: tuple[str, ...] = ()
    labels: Tensor | None = None
    boxes: list[Tensor] | None = None
    masks: Tensor | None = None
    classes: list[Tensor] | None = None
    target: Tensor | None = None
    present: Tensor | None = None
    context: Tensor | None = None
    borders: Tensor | None = None
    levels: Tensor | None = None

    def __len__(self) -> int:
        return len(self.image)

    @property
    def spacing(self) -> Tensor:
        """mm per voxel, `(B, ndim)` float32, on the image's device."""
        return torch.tensor([space.spacing for space in self.spaces], dtype=torch.float32, device=self.image.device)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        """The batch with its tensors on `device`."""

        def move(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.to(device, non_blocking=non_blocking)

        def move_all(tensors: list[Tensor] | None) -> list[Tensor] | None:
            return None if tensors is None else [tensor.to(device, non_blocking=non_blocking) for tensor in tensors]

        return replace(
            self,
            image=self.image.to(device, non_blocking=non_blocking),
            landmarks=move(self.landmarks),
            labels=move(self.labels),
            masks=move(self.masks),
            boxes=move_all(self.boxes),
            classes=move_all(self.classes),
            target=move(self.target),
            present=move(self.present),
            context=move(self.context),
            borders=move(self.borders),
            levels=move(self.levels),
        )


def collate(samples: Sequence[Sample]) -> Batch:
    """Stack samples of one shape.

    Raises:
        DataError: shapes, channel or landmark counts differ; the message names both cases.
    """
    first = samples[0]
    for sample in samples:
        if sample.image.shape != first.image.shape:
            raise DataError(
                f"{sample.name}: image of shape {tuple(sample.image.shape)} can't share a batch with {first.name} of "
                f"shape {tuple(first.image.shape)} (set image_size or patch_size, or batch_size=1)"
            )
        if _count(sample.target) != _count(first.target):
            raise DataError(
                f"{sample.name}: a target of {_count(sample.target)} channels can't share a batch with "
                f"{first.name}, whose target has {_count(first.target)}"
            )
        if _count(sample.landmarks) != _count(first.landmarks):
            raise DataError(
                f"{sample.name}: {_count(sample.landmarks)} landmarks, but {first.name} has {_count(first.landmarks)}"
            )
    return Batch(
        image=torch.stack([sample.image for sample in samples]),
        spaces=[sample.space for sample in samples],
        names=[sample.name for sample in samples],
        sources=[sample.source for sample in samples],
        landmarks=_stack([sample.landmarks for sample in samples]),
        landmark_names=first.landmark_names,
        labels=_stack([sample.labels for sample in samples]),
        masks=_stack([sample.masks for sample in samples]),
        boxes=_listed([sample.boxes for sample in samples]),
        classes=_listed([sample.classes for sample in samples]),
        target=_stack([sample.target for sample in samples]),
        present=_presence(samples),
        context=_stack([sample.context for sample in samples]),
        borders=_stack([sample.borders for sample in samples]),
        levels=_stack([sample.levels for sample in samples]),
    )


def _count(rows: Tensor | None) -> int:
    return 0 if rows is None else len(rows)


def _presence(samples: Sequence[Sample]) -> Tensor | None:
    """`(B, C)`: a sample that doesn't say so has all of its channels."""
    if all(sample.present is None for sample in samples):
        return None
    whole = torch.ones(len(samples[0].image), dtype=torch.bool)
    return torch.stack([whole if sample.present is None else sample.present for sample in samples])


def _stack(tensors: Sequence[Tensor | None]) -> Tensor | None:
    present = [tensor for tensor in tensors if tensor is not None]
    return torch.stack(present) if len(present) == len(tensors) else None


def _listed(tensors: Sequence[Tensor | None]) -> list[Tensor] | None:
    present = [tensor for tensor in tensors if tensor is not None]
    return present if len(present) == len(tensors) else None
