"""From what a detector answers to instances: masks at the voxels of the image, doubles taken out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from voxelry.models.mask_rcnn.detections import Detections
from voxelry.ops.instances import Crop, Instances, PackedCrops
from voxelry.ops.masks import mask_crops

__all__ = ["decode"]


def decode(
    found: Detections,
    shape: Sequence[int],
    *,
    score_threshold: float = 0.05,
    mask_threshold: float = 0.5,
    min_voxels: int = 1,
    min_visible: float = 0.3,
) -> Instances:
    """Instances of one image by falling score, each mask in its own window; overlaps are kept.

    Args:
        found: of the image; without masks a box is its own mask.
        shape: of the image.
        score_threshold: instances below are left out.
        mask_threshold: probability from which a voxel belongs to the instance.
        min_voxels: smaller masks are left out.
        min_visible: share of a mask that better instances must leave uncovered, in [0, 1]: below, it is a double of
            what they have already found.
    """
    ndim = len(shape)
    order = found.scores.float().argsort(descending=True, stable=True)
    order = order[found.scores[order] >= score_threshold].cpu()
    boxes = found.boxes.float().cpu()[order]
    masks = torch.ones(len(order), *(1,) * ndim) if found.masks is None else found.masks.float().cpu()[order]
    taken = np.zeros(tuple(shape), dtype=bool)
    kept: list[int] = []
    crops: list[Crop] = []
    for place, (window, mask) in enumerate(mask_crops(masks, boxes, shape, threshold=mask_threshold)):
        voxels = int(np.count_nonzero(mask))
        if voxels < max(min_voxels, 1):
            continue
        seen = int(np.count_nonzero(mask & ~taken[window]))
        if seen < min_visible * voxels:
            continue
        taken[window] |= mask
        kept.append(place)
        crops.append((window, mask))
    chosen = order[kept]
    return Instances(
        boxes[kept].numpy(),
        found.scores.float().cpu()[chosen].numpy(),
        found.classes.cpu()[chosen].numpy(),
        PackedCrops.pack(crops, ndim),
    )
