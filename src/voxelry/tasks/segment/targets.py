"""From the annotations of a batch to what a detector learns from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from voxelry.core.errors import DataError, SettingError
from voxelry.data.sample import Batch

__all__ = ["Targets", "anchors_for", "classes_of", "make_targets"]


@dataclass(frozen=True)
class Targets:
    """Annotations of a batch, one entry per image.

    Attributes:
        boxes: `(K, 2 * ndim)` float32.
        classes: `(K,)` int64, from 1.
        masks: `(B, *spatial)` int64; id k + 1 belongs to box k.
    """

    boxes: list[Tensor]
    classes: list[Tensor]
    masks: Tensor


def make_targets(batch: Batch, num_classes: int) -> Targets:
    """The instances of a batch without those that have vanished (NaN boxes) or nearly so, ids renumbered to match.

    Args:
        num_classes: classes of objects, background not counted.

    Raises:
        DataError: no instances were read, a box without volume or out of the image, an unknown class; names the
            case.
    """
    if batch.boxes is None or batch.masks is None:
        raise DataError(f"{batch.names[0]}: no instances; expected a label volume to learn from")
    boxes, classes, masks = [], [], []
    for place, name in enumerate(batch.names):
        found = batch.boxes[place].float()
        kinds = classes_of(name, found, None if batch.classes is None else batch.classes[place], num_classes)
        ids = batch.masks[place]
        kept = torch.isfinite(found).all(dim=1) & ~_slivers(found, ids.shape)
        if not bool(kept.all()):
            numbers = torch.zeros(len(kept) + 1, dtype=torch.int64, device=ids.device)
            numbers[1:] = torch.where(kept, kept.cumsum(0), 0)
            ids = numbers[ids.clamp(0, len(kept))]
            found, kinds = found[kept], kinds[kept]
        _check(name, found, ids)
        boxes.append(found)
        classes.append(kinds)
        masks.append(ids)
    return Targets(boxes, classes, torch.stack(masks))


def _slivers(boxes: Tensor, shape: Sequence[int]) -> Tensor:
    """Objects of which the border of the image leaves less than three voxels: `(K, 2 * ndim) -> (K,)` bool.

    No anchor fits what is left of them, and the logarithm of their size would rule the loss.
    """
    ndim = len(shape)
    if boxes.shape[1] != 2 * ndim:  # told by `_check`
        return torch.zeros(len(boxes), dtype=torch.bool, device=boxes.device)
    low, high = boxes[:, :ndim], boxes[:, ndim:]
    size = torch.tensor(shape, device=boxes.device)
    at_border = (low <= 0) | (high >= size - 1)
    return (at_border & (high - low < 3) & (size > 3)).any(dim=1)


def classes_of(name: str, boxes: Tensor, kinds: Tensor | None, num_classes: int) -> Tensor:
    """The classes of an image's instances, `(K,)` int64: 1 for all where there is one class only.

    Args:
        name: the case.
        boxes: `(K, 2 * ndim)`.
        kinds: what is annotated, `(K,)`, or None.

    Raises:
        DataError: a class that there isn't, or another number of them than of instances; names the case.
    """
    count = len(boxes)
    if num_classes == 1 or count == 0:  # label volumes of one class may call it what they like
        return torch.ones(count, dtype=torch.int64, device=boxes.device)
    if kinds is None:
        raise DataError(
            f"{name}: no class labels for its instances; expected labels/ beside instances/, of classes "
            f"1 to {num_classes}"
        )
    if len(kinds) != count:
        raise DataError(f"{name}: {len(kinds)} classes for {count} boxes")
    if count and not 1 <= int(kinds.min()) <= int(kinds.max()) <= num_classes:
        unknown = int(kinds.max()) if int(kinds.max()) > num_classes else int(kinds.min())
        background = " (all of its voxels are background in labels/)" * (unknown == 0)
        raise DataError(f"{name}: an instance of class {unknown}{background}; expected 1 to {num_classes}")
    return kinds


def _check(name: str, boxes: Tensor, ids: Tensor) -> None:
    ndim = ids.ndim
    if boxes.shape[1] != 2 * ndim:
        raise DataError(f"{name}: boxes of {boxes.shape[1]} numbers; expected {2 * ndim} at rank {ndim}")
    if int(ids.max()) > len(boxes):
        raise DataError(f"{name}: an instance id {int(ids.max())}, but there are {len(boxes)} boxes")
    low, high = boxes[:, :ndim], boxes[:, ndim:]
    size = torch.tensor(ids.shape, device=boxes.device)
    for fault, wrong in (
        ("has no volume", (high <= low).any(dim=1)),
        ("lies outside the image", ((high < -0.5) | (low > size - 0.5)).any(dim=1)),
    ):
        if bool(wrong.any()):
            raise DataError(f"{name}: the box of instance {int(torch.where(wrong)[0][0]) + 1} {fault}")


def anchors_for(boxes: Tensor, levels: int, per_level: int = 1) -> list[list[list[float]]]:
    """Anchor sizes that suit some objects: for each level of a pyramid `per_level` sizes per axis, in voxels.

    The objects, ordered by volume, are cut into as many groups as there are anchors; each anchor has the median
    length of its group along each axis, so that flat voxels get flat anchors.

    Args:
        boxes: `(K, 2 * ndim)` of the training cases, in voxels of the network's input.

    Raises:
        SettingError: no boxes.
    """
    finite = boxes[torch.isfinite(boxes).all(dim=1)].double()
    if not len(finite):
        raise SettingError("anchors.sizes: expected at least one object to propose sizes from, got none")
    ndim = finite.shape[1] // 2
    lengths = finite[:, ndim:] - finite[:, :ndim]
    lengths = lengths[lengths.log().sum(dim=1).argsort()]
    # cut objects are small: the least of them say more of the border than of the anchors
    lengths = lengths[len(lengths) // 10 :]
    count = levels * per_level
    groups = [lengths[len(lengths) * k // count : max(len(lengths) * (k + 1) // count, 1)] for k in range(count)]
    sizes = [_rounded(group if len(group) else lengths) for group in groups]
    return [sizes[level * per_level : (level + 1) * per_level] for level in range(levels)]


def _rounded(lengths: Tensor) -> list[float]:
    values: Sequence[float] = lengths.median(dim=0).values.tolist()
    return [max(round(value, 1), 1.0) for value in values]
