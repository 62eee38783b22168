"""Instance masks in any rank: an integer image of ids, 0 for background."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from voxelry.core.errors import SettingError

__all__ = ["mask_boxes"]


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
