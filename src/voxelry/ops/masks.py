"""Instance masks in any rank: integer images of ids, 0 for background, and probabilities on boxes.

A predicted mask is a small grid of probabilities `(*M)` that fills its box (lows, then highs, continuous index
coordinates, see `voxelry.ops.boxes`): its cells divide the box evenly, and a cell's value stands at its centre.
What comes of it is held as a crop and a window, `(window, array)`: the slices of the image that the box covers,
and the array of their shape; never as a whole image for each instance.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

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
    "paste_mask",
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
