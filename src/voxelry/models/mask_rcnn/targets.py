"""What a detector is trained on, checked before it is used."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from voxelry.core.errors import DataError

__all__ = ["check_targets"]


def check_targets(
    images: Sequence[Tensor],
    boxes: Sequence[Tensor],
    classes: Sequence[Tensor] | None,
    masks: Sequence[Tensor] | None,
    *,
    num_classes: int,
) -> list[Tensor]:
    """The classes of each image's boxes, `(K,)` int64: 1 for all where none are given.

    Args:
        images: `(C, *S)`.
        boxes: `(K, 2 * ndim)` per image, lows then highs.
        classes: `(K,)` per image, 1 to `num_classes - 1`, or None.
        masks: ids `(*S)`, `k + 1` for box `k`, or one mask per box `(K, *S)`; None where masks are not learnt.
        num_classes: classes with background.

    Raises:
        DataError: a box that isn't finite, has no volume or lies outside its image, a class out of range, or
            fields that don't fit together; names the image and the box, counted from 1.
    """
    for name, field in (("boxes", boxes), ("classes", classes), ("masks", masks)):
        if field is not None and len(field) != len(images):
            raise DataError(f"{name}: expected one entry for each of {len(images)} images, got {len(field)}")
    found = []
    for index, image in enumerate(images):
        where = f"image {index + 1}"
        check_boxes(boxes[index], tuple(image.shape[1:]), where)
        count = len(boxes[index])
        given = torch.ones(count, dtype=torch.int64) if classes is None else classes[index]
        given = given.to(boxes[index].device)
        if given.shape != (count,) or given.is_floating_point():
            raise DataError(f"{where}: expected {count} whole classes, got {given.dtype} of shape {tuple(given.shape)}")
        wrong = torch.where((given < 1) | (given >= num_classes))[0]
        if len(wrong):
            first = int(wrong[0])
            raise DataError(f"{where}, box {first + 1}: class {int(given[first])} is not in 1 to {num_classes - 1}")
        if masks is not None:
            check_masks(masks[index], tuple(image.shape[1:]), count, where)
        found.append(given.to(torch.int64))
    return found


def check_boxes(boxes: Tensor, shape: tuple[int, ...], where: str) -> None:
    """Raise a DataError where boxes aren't finite, have no volume or lie outside an image of that shape."""
    ndim = len(shape)
    if boxes.ndim != 2 or boxes.shape[1] != 2 * ndim:
        raise DataError(f"{where}: expected boxes of shape (K, {2 * ndim}), got {tuple(boxes.shape)}")
    low, high = boxes[:, :ndim], boxes[:, ndim:]
    size = torch.tensor(shape, device=boxes.device)
    for fault, wrong in (
        ("is not finite", ~torch.isfinite(boxes).all(dim=1)),
        ("has no volume", (high <= low).any(dim=1)),
        (f"is outside the image of {'×'.join(map(str, shape))} voxels", ((high < -0.5) | (low > size)).any(dim=1)),
    ):
        rows = torch.where(wrong)[0]
        if len(rows):
            first = int(rows[0])
            numbers = ", ".join(f"{value:g}" for value in boxes[first].tolist())
            raise DataError(f"{where}, box {first + 1}: ({numbers}) {fault}")


def check_masks(masks: Tensor, shape: tuple[int, ...], count: int, where: str) -> None:
    """Raise a DataError where masks are neither ids nor one mask per box."""
    if tuple(masks.shape) not in (shape, (count, *shape)):
        raise DataError(
            f"{where}: expected masks as ids of shape {shape} or one per box, {(count, *shape)}, "
            f"got {tuple(masks.shape)}"
        )
    if masks.is_floating_point() or masks.is_complex():
        raise DataError(f"{where}: expected whole masks (ids, or zeros and ones), got {masks.dtype}")
