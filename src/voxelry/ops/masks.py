"""Instance masks in any rank: integer images of ids, 0 for background, and probabilities on boxes.

A predicted mask is a small grid of probabilities `(*M)` that fills its box (lows, then highs, continuous index
coordinates, see `voxelry.ops.boxes`): its cells divide the box evenly, and a cell's value stands at its centre.
What comes of it is held as a crop and a window, `(window, array)`: the slices of the image that the box covers,
and the array of their shape; never as a whole image for each instance.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from voxelry.core.errors import SettingError
from voxelry.core.rank import per_axis
from voxelry.ops.rle import Crop, decode_rle, encode_rle

__all__ = [
    "Crop",
    "decode_rle",
    "encode_rle",
    "largest_component",
    "mask_boxes",
    "mask_crops",
    "paint",
    "paste_mask",
    "paste_masks_reference",
]


def mask_boxes(masks: Tensor, count: int) -> Tensor:
    """Boxes around the instances 1 to `count`, `(*spatial) -> (count, 2 * ndim)` float32.

    All lows, then all highs, in array order: from the outer edge of the first voxel to that of the last, so
    one voxel at index `i` gives `i - 0.5` and `i + 0.5`. An id without a voxel gives NaN.

    Raises:
        SettingError: the masks aren't of an integer type.
    """
    from scipy.ndimage import find_objects

    if masks.is_floating_point() or masks.is_complex() or masks.dtype == torch.bool:
        raise SettingError(f"masks: expected integer instance ids, got {masks.dtype}")
    boxes = np.full((count, 2 * masks.ndim), np.nan, dtype=np.float32)
    found = find_objects(masks.cpu().numpy().astype(np.int32, copy=False), max_label=count) if count else []
    for box, slices in zip(boxes, found, strict=True):
        if slices is not None:
            box[:] = [s.start - 0.5 for s in slices] + [s.stop - 0.5 for s in slices]
    return torch.from_numpy(boxes).to(masks.device)


def paste_mask(
    mask: Tensor | np.ndarray, box: Tensor | np.ndarray, shape: Sequence[int]
) -> tuple[np.ndarray, tuple[slice, ...]]:
    """Probabilities at the centres of the voxels that lie in the box, `(*M), (2 * ndim,) -> (*crop)`.

    Linear between the centres of the mask's cells, in continuous coordinates: nothing is rounded to voxels, so
    that a mask moves with its box by any part of one. From the outermost centres to the box's faces the edge's
    value goes on, so that a mask of one value gives that value everywhere in the box, and nothing outside.

    Args:
        mask: probabilities in [0, 1], any float type.
        box: continuous index coordinates; may reach over the image.
        shape: of the image.

    Returns:
        The crop, float32, and its window in the image. A box outside the image, without a voxel centre, or not
        finite has an empty crop.

    Raises:
        SettingError: the ranks of mask, box and image differ, or the mask has no cell.
    """
    values, bounds = _array(mask, np.float32), _array(box, np.float64)
    sizes = per_axis(shape, values.ndim, "shape")
    if bounds.shape != (2 * values.ndim,) or not values.size:
        raise SettingError(f"mask, box: expected (*M) and ({2 * values.ndim},), got {values.shape} and {bounds.shape}")
    low, high = bounds[: values.ndim], bounds[values.ndim :]
    if not np.isfinite(bounds).all() or (high <= low).any():
        return np.zeros((0,) * values.ndim, dtype=np.float32), (slice(0, 0),) * values.ndim
    window = []
    for axis, size in enumerate(sizes):
        first = int(np.clip(np.ceil(low[axis]), 0, size))
        last = int(np.clip(np.ceil(high[axis]), first, size))  # a centre on the high face belongs to the next
        window.append(slice(first, last))
        cells = values.shape[axis]
        position = (np.arange(first, last) - low[axis]) * (cells / (high[axis] - low[axis])) - 0.5
        values = _interpolate(values, position, axis)
    return values, tuple(window)


def _array(values: Any, dtype: type[np.floating]) -> np.ndarray:
    """Numbers on any device and of any type as an array on the CPU."""
    if isinstance(values, Tensor):
        values = values.detach().to("cpu", torch.float64 if dtype is np.float64 else torch.float32)
    return np.asarray(values, dtype=dtype)


def _interpolate(values: np.ndarray, position: np.ndarray, axis: int) -> np.ndarray:
    """Linear interpolation along one axis at continuous positions, held within the axis."""
    position = np.clip(position, 0, values.shape[axis] - 1)
    before = np.minimum(position.astype(np.int64), max(values.shape[axis] - 2, 0))
    part = (position - before).astype(np.float32).reshape(-1, *(1,) * (values.ndim - axis - 1))
    after = np.minimum(before + 1, values.shape[axis] - 1)
    start = np.take(values, before, axis=axis)
    return start + part * (np.take(values, after, axis=axis) - start)


def mask_crops(
    masks: Tensor | np.ndarray, boxes: Tensor | np.ndarray, shape: Sequence[int], *, threshold: float = 0.5
) -> Iterator[Crop]:
    """Each instance as `(window, bool array)`, one at a time: voxels of at least `threshold`, overlaps kept.

    Args:
        masks: `(K, *M)` probabilities.
        boxes: `(K, 2 * ndim)`.
        shape: of the image.
        threshold: in [0, 1].

    Raises:
        SettingError: shapes that don't fit.
    """
    if len(masks) != len(boxes):
        raise SettingError(f"masks, boxes: expected as many of each, got {len(masks)} and {len(boxes)}")
    for mask, box in zip(_array(masks, np.float32), _array(boxes, np.float64), strict=True):
        crop, window = paste_mask(mask, box, shape)
        yield window, crop >= threshold


def largest_component(crop: np.ndarray) -> np.ndarray:
    """The largest part of a mask whose voxels share faces, `(*crop) -> (*crop)` bool; the first of several."""
    from scipy.ndimage import label

    parts, count = label(crop)
    if count < 2:
        return crop.astype(bool)
    sizes = np.bincount(parts.ravel())
    return parts == 1 + int(np.argmax(sizes[1:]))


def paint(
    masks: Tensor | np.ndarray | Sequence[Crop],
    boxes: Tensor | np.ndarray | None,
    scores: Tensor | np.ndarray,
    shape: Sequence[int],
    *,
    threshold: float = 0.5,
    min_voxels: int = 1,
    keep_largest_component: bool = False,
) -> np.ndarray:
    """One image of ids 1 to K, `(*shape)` int32: instance `k` has id `k + 1`, a voxel goes to the best score.

    Instances are painted by falling score (equal ones by rising index, NaN last) on what is still background. One
    of which too little can be seen leaves nothing, and its id is absent: count ids, not the largest of them.

    Args:
        masks: `(K, *M)` probabilities, or K crops `(window, bool array)` as of `mask_crops`.
        boxes: `(K, 2 * ndim)`; None with crops.
        scores: `(K,)`.
        shape: of the image.
        threshold: probability from which a voxel is inside; not for crops.
        min_voxels: fewer visible voxels than this are left as background.
        keep_largest_component: of what can be seen of an instance, only the largest part connected by faces.

    Raises:
        SettingError: numbers or shapes that don't fit.
    """
    ranks = _array(scores, np.float64)
    if ranks.shape != (len(masks),):
        raise SettingError(f"masks, scores: expected as many of each, got {len(masks)} and {ranks.shape}")
    crops: Sequence[Crop] | None = None
    if boxes is None:
        crops = cast("Sequence[Crop]", masks)
    else:
        grids, bounds = _array(masks, np.float32), _array(boxes, np.float64)
    result = np.zeros(tuple(shape), dtype=np.int32)
    for index in np.argsort(-ranks, kind="stable").tolist():
        if crops is not None:
            window, inside = crops[index]
        else:
            one = slice(index, index + 1)
            window, inside = next(mask_crops(grids[one], bounds[one], shape, threshold=threshold))
        canvas = result[window]
        if canvas.shape != inside.shape:
            raise SettingError(f"crop {index}: expected the shape of its window, {canvas.shape}, got {inside.shape}")
        visible = inside & (canvas == 0)
        if keep_largest_component:
            visible = largest_component(visible)
        if np.count_nonzero(visible) >= max(min_voxels, 1):
            canvas[visible] = index + 1
    return result


def paste_masks_reference(masks: Tensor, boxes: Tensor, shape: Sequence[int]) -> Tensor:
    """torchvision's own paste, `(N, 1, *M), (N, 2 * ndim) -> (N, 1, *shape)`: to compare with it, and for that alone.

    It rounds the box to voxels (towards zero, with one voxel more than it holds) and keeps a whole image for each
    mask. `paste_mask` does neither.

    Raises:
        SettingError: shapes that don't fit.
    """
    ndim = masks.ndim - 2
    sizes = per_axis(shape, ndim, "shape")
    if masks.shape[1] != 1 or boxes.shape != (len(masks), 2 * ndim):
        raise SettingError(
            f"masks, boxes: expected (N, 1, *M) and (N, {2 * ndim}), got {tuple(masks.shape)} and {tuple(boxes.shape)}"
        )
    result = masks.new_zeros(len(masks), 1, *sizes)
    cells = boxes.new_tensor(masks.shape[2:])
    half = (boxes[:, ndim:] - boxes[:, :ndim]) * 0.5 * ((cells + 2) / cells)
    middle = (boxes[:, ndim:] + boxes[:, :ndim]) * 0.5
    low, high = (middle - half).to(torch.int64), (middle + half).to(torch.int64)
    padded = torch.nn.functional.pad(masks, (1, 1) * ndim)
    for index in range(len(masks)):
        source: list[slice] = []
        target: list[slice] = []
        crop = padded[index, 0]
        for axis, size in enumerate(sizes):
            start, stop = int(low[index, axis]), int(high[index, axis]) + 1
            crop = _stretch(crop, max(stop - start, 1), axis)
            first, last = max(start, 0), min(stop, size)
            target.append(slice(first, max(last, first)))
            source.append(slice(first - start, max(last, first) - start))
        result[index, 0][tuple(target)] = crop[tuple(source)]
    return result


def _stretch(values: Tensor, length: int, axis: int) -> Tensor:
    """Linear interpolation of one axis to another length, with the ends of both at the same place."""
    size = values.shape[axis]
    position = (torch.arange(length, dtype=values.dtype, device=values.device) + 0.5) * (size / length) - 0.5
    position = position.clamp(min=0)
    before = position.long().clamp(max=size - 1)
    part = (position - before).reshape(-1, *(1,) * (values.ndim - axis - 1))
    after = (before + 1).clamp(max=size - 1)
    return values.index_select(axis, before) * (1 - part) + values.index_select(axis, after) * part
