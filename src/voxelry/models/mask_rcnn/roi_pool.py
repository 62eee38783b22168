"""Features of regions from the level of a pyramid that suits their size (Lin et al. 2017, arXiv:1612.03144, eq. 1)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from voxelry.core.rank import per_axis
from voxelry.models.mask_rcnn.settings import RegionSettings
from voxelry.nn import nd
from voxelry.ops.boxes import pyramid_level
from voxelry.ops.roi_align import roi_align

__all__ = ["RegionPool", "region_levels"]

Scales = Sequence[Sequence[float]]


class RegionPool:
    """Features of fixed size for boxes of any, `(B, C, *S), (K, 2 * ndim) -> (K, C, *output_size)`.

    Args:
        output_size: feature voxels of a region, one number or one per axis.
        settings: where they are read.
        arranged: whether convolutions come next, and features lie in memory as they want them (`nn.nd.arranged`).
    """

    def __init__(
        self, output_size: int | Sequence[int], settings: RegionSettings, *, ndim: int, arranged: bool = False
    ):
        self.output_size = per_axis(output_size, ndim, "output_size")
        self.chosen, self.arranged = settings, arranged

    def __call__(self, features: Sequence[Tensor], scales: Scales, boxes: Tensor, batch_index: Tensor) -> Tensor:
        """Pool every box from its level.

        Args:
            features: levels, fine to coarse.
            scales: feature voxels per image voxel of each level, per axis.
            boxes: `(K, 2 * ndim)` float32 in image voxels.
            batch_index: image of each box, `(K,)` int64.
        """
        levels = region_levels(boxes, scales, self.chosen.canonical_size, self.chosen.canonical_level)
        order, parts = [], []
        for level, (feature, scale) in enumerate(zip(features, scales, strict=True)):
            chosen = torch.where(levels == level)[0]
            if len(chosen):
                order.append(chosen)
                parts.append(
                    roi_align(
                        feature,
                        boxes[chosen],
                        batch_index[chosen],
                        self.output_size,
                        scale=scale,
                        sampling_ratio=self.chosen.sampling_ratio,
                        channels_last=self.arranged and nd.pays(feature),
                    )
                )
        if not parts:
            return features[0].new_zeros(0, features[0].shape[1], *self.output_size)
        return torch.cat(parts)[torch.argsort(torch.cat(order))] if len(parts) > 1 else parts[0]


def region_levels(boxes: Tensor, scales: Scales, canonical_size: float, canonical_level: float) -> Tensor:
    """Level of each box, `(K, 2 * ndim) -> (K,)` int64, 0 for the finest.

    `ops.boxes.pyramid_level` for strides that may differ per axis: the coarsest level whose mean log2 of the strides
    is at most `canonical_level + log2(side / canonical_size)`, the finest where there is none.
    """
    found = torch.zeros(len(boxes), dtype=torch.int64, device=boxes.device)
    for scale in scales[1:]:
        octaves = -sum(math.log2(factor) for factor in scale) / len(scale)
        found += pyramid_level(
            boxes,
            k_min=0,
            k_max=1,
            canonical_scale=canonical_size,
            canonical_level=1 + canonical_level - octaves,
        )
    return found
