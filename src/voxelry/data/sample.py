"""The one record that flows from a reader to a network, alone and in batches; `data.collate` makes the latter."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Self

import torch
from torch import Tensor

from voxelry.core.space import Space
from voxelry.io.notebook import notebook_view

__all__ = ["Batch", "Sample"]


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
        ids: what the file calls each of the K objects, up to 2^64 - 1; None where no file is known.
        target: `(C_t, *spatial)` float32, what the image is to become, on the image's own grid.
        present: `(C,)` bool, which channels of the image there are; an absent one is all zeros. None: all of them.
        context: `(ndim + C, *spatial)` float32, where a patch lies in its image (see `voxelry.data.context`).
        borders: `(2 * ndim, *spatial)` float32, mm to the borders of the image that this was cut and changed from
            (see `voxelry.data.context.border_distances`).
        levels: `(C + C_t, 2)` float32, the physical values of 0 and 1 of each channel, the image's first and then
            the target's: `physical = low + value * (high - low)`. They may differ from case to case.
        despeckled: whether speckle was removed from the image, which is done once.
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
    ids: tuple[int, ...] | None = None
    target: Tensor | None = None
    present: Tensor | None = None
    context: Tensor | None = None
    borders: Tensor | None = None
    levels: Tensor | None = None
    despeckled: bool = False

    @property
    def ndim(self) -> int:
        """Number of spatial axes, 2 or 3."""
        return self.space.ndim

    def replace(self, **changes: Any) -> Self:
        """A copy with some fields changed."""
        return replace(self, **changes)

    def show(self) -> Any:
        """The image in a notebook, with its masks or else its labels over it; see `io.notebook.notebook_view`.

        Raises:
            MissingDependencyError: ipyniivue isn't installed.
        """
        over = self.labels if self.masks is None else self.masks
        return notebook_view(self.image.numpy(), self.space, labels=None if over is None else over.numpy())


@dataclass
class Batch:
    """Samples on grids of one shape, stacked; see `data.collate.collate`.

    Attributes:
        image: `(B, C, *spatial)` float32.
        spaces, names, sources: one per sample.
        landmarks: `(B, N, ndim)`, or None when no sample has any.
        labels, masks: `(B, *spatial)`, or None.
        boxes: one `(K, 2 * ndim)` tensor per sample, or None.
        classes: one `(K,)` tensor per sample, or None.
        ids: one per sample, see `Sample`.
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
    ids: list[tuple[int, ...] | None] = field(default_factory=list)
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
