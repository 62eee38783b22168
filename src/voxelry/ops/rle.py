"""Masks as run lengths: overlapping instances of a whole volume in a few numbers each, ready for JSON.

`{"size": [...], "order": "C" or "F", "counts": [...]}`: the lengths of the runs of background and foreground in
turn over the whole image, background first. "F" runs along the first axis, which is COCO's uncompressed form in
two dimensions; "C" runs along the last, as the image lies in memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from voxelry.core.errors import DataError, SettingError

__all__ = ["Crop", "decode_rle", "encode_rle"]

Crop = tuple[tuple[slice, ...], np.ndarray]
"""Where in the image, and what lies there."""

Order = Literal["C", "F"]


def encode_rle(
    crop: np.ndarray, window: Sequence[slice], shape: Sequence[int], *, order: Order = "C"
) -> dict[str, Any]:
    """Run lengths of the mask `crop` at `window` of an image of that shape; the image itself is never made.

    Raises:
        SettingError: the crop hasn't the shape of its window, or the window leaves the image.
    """
    starts = [part.start for part in window]
    inside = all(0 <= part.start <= part.stop <= size for part, size in zip(window, shape, strict=True))
    if not inside or tuple(part.stop - part.start for part in window) != crop.shape:
        raise SettingError(
            f"crop, window: expected one shape within {tuple(shape)}, got {crop.shape} and {tuple(window)}"
        )
    voxels = tuple(index + start for index, start in zip(np.nonzero(crop), starts, strict=True))
    flat = np.ravel_multi_index(voxels, tuple(shape), order=order) if voxels[0].size else np.zeros(0, dtype=np.int64)
    flat = np.sort(flat)
    breaks = np.flatnonzero(np.diff(flat) > 1)
    firsts = flat[np.concatenate([[0], breaks + 1])] if flat.size else flat
    lasts = flat[np.concatenate([breaks, [flat.size - 1]])] + 1 if flat.size else flat
    total = int(np.prod(shape, dtype=np.int64))
    edges = np.concatenate([[0], np.stack([firsts, lasts], axis=1).ravel(), [total]])
    counts = np.diff(edges).tolist()
    if len(counts) > 1 and counts[-1] == 0:
        counts.pop()
    return {"size": [int(size) for size in shape], "order": order, "counts": counts}


def decode_rle(rle: Mapping[str, Any]) -> Crop:
    """The smallest window that holds the mask, and the mask in it; nothing as large as the image is made.

    An empty mask has an empty window at the origin. Without "order" it is COCO's, "F".

    Raises:
        DataError: counts that don't fill the image, or an unknown order.
    """
    try:
        shape = tuple(int(size) for size in rle["size"])
        counts = np.asarray(rle["counts"], dtype=np.int64)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise DataError(f"run lengths: expected size and counts, both of whole numbers ({error})") from error
    order = rle.get("order", "F")
    if order not in ("C", "F"):
        raise DataError(f"run lengths: expected order C or F, got {order!r}")
    total = int(np.prod(shape, dtype=np.int64))
    if counts.ndim != 1 or (counts < 0).any() or int(counts.sum()) != total:
        raise DataError(f"run lengths: expected counts that sum to the {total} voxels of {shape}")
    ends = np.cumsum(counts)
    lengths = counts[1::2]
    if not lengths.sum():
        return (slice(0, 0),) * len(shape), np.zeros((0,) * len(shape), dtype=bool)
    before = np.cumsum(lengths) - lengths
    flat = np.arange(int(lengths.sum())) + np.repeat(ends[0::2][: len(lengths)] - before, lengths)
    voxels = np.unravel_index(flat, shape, order=order)
    window = tuple(slice(int(index.min()), int(index.max()) + 1) for index in voxels)
    crop = np.zeros(tuple(part.stop - part.start for part in window), dtype=bool)
    crop[tuple(index - part.start for index, part in zip(voxels, window, strict=True))] = True
    return window, crop
