"""The mask of every region, learnt on the class it has (He et al. 2017, arXiv:1703.06870, section 3)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from voxelry.models.mask_rcnn.detections import Detections
from voxelry.models.mask_rcnn.heads import MaskHead
from voxelry.models.mask_rcnn.roi_heads import Regions
from voxelry.models.mask_rcnn.roi_pool import RegionPool, Scales
from voxelry.models.mask_rcnn.settings import MaskSettings
from voxelry.ops.roi_align import roi_masks

__all__ = ["MaskBranch"]


class MaskBranch(nn.Module):
    """A mask for every region, on a grid of `size` over its box.

    Args:
        head: from features of regions to logits.
        pool: features of the regions.
        settings: how many regions at a time.
    """

    def __init__(self, head: MaskHead, pool: RegionPool, settings: MaskSettings):
        super().__init__()
        self.head, self.pool, self.chosen = head, pool, settings

    @property
    def size(self) -> tuple[int, ...]:
        """Voxels of a mask, per axis."""
        return tuple(a * b for a, b in zip(self.pool.output_size, self.head.upsample, strict=True))

    def loss(
        self, features: Sequence[Tensor], scales: Scales, regions: Regions, masks: Sequence[Tensor]
    ) -> dict[str, Tensor]:
        """`loss_mask`: mean binary cross-entropy of the positive regions, on the channel of their class.

        The goal is each object's own mask, averaged over the voxels of the region's grid.

        Args:
            features, scales: as for `RegionPool`.
            regions: those sampled for the box losses.
            masks: per image ids `(*S)`, or one mask per object `(K, *S)`.
        """
        positive = torch.where(regions.classes > 0)[0]
        if not len(positive):  # every parameter keeps its part in the graph
            return {"loss_mask": sum((weight.sum() * 0 for weight in self.head.parameters()), features[0].sum() * 0)}
        boxes, images = regions.boxes[positive], regions.batch_index[positive]
        with torch.no_grad():
            goals = boxes.new_empty(len(positive), *self.size)
            for index, mask in enumerate(masks):
                rows = torch.where(images == index)[0]
                if len(rows):
                    goals[rows] = self.goals(mask, regions.matched[positive[rows]], boxes[rows])
        pooled = self.pool(features, scales, boxes, images)
        logits = self.logits(pooled, regions.classes[positive])
        return {"loss_mask": F.binary_cross_entropy_with_logits(logits.float(), goals)}

    def goals(self, mask: Tensor, matched: Tensor, boxes: Tensor) -> Tensor:
        """Masks of one image's objects on the grids of boxes matched to them, `(K, *size)` in [0, 1]."""
        first = torch.zeros_like(matched)
        if mask.ndim == boxes.shape[1] // 2:
            return roi_masks(mask[None].long(), matched + 1, boxes, first, self.size)
        return roi_masks(mask.long(), first + 1, boxes, matched, self.size)

    def logits(self, pooled: Tensor, classes: Tensor) -> Tensor:
        """Logits of one class per region, `(K, C, *M), (K,) -> (K, *size)`."""
        if not (self.chosen.checkpointing and torch.is_grad_enabled()):
            return self.head(pooled, classes)
        # the statistics of a batch normalisation are those of all regions
        size = len(pooled) if self.head.norm == "batch" else self.chosen.chunk
        parts = zip(pooled.split(size), classes.split(size), strict=True)
        return torch.cat([checkpoint(self.head, x, kind, use_reentrant=False) for x, kind in parts])

    def predict(self, features: Sequence[Tensor], scales: Scales, found: Sequence[Detections]) -> list[Detections]:
        """The detections of each image, in voxels of the batch, with their masks."""
        results = []
        for index, detections in enumerate(found):
            parts = [detections.boxes.new_empty(0, *self.size)]
            for boxes, classes in zip(
                detections.boxes.split(self.chosen.chunk), detections.classes.split(self.chosen.chunk), strict=True
            ):
                if len(boxes):
                    pooled = self.pool(features, scales, boxes, torch.full_like(classes, index))
                    parts.append(self.head(pooled, classes).float().sigmoid())
            results.append(detections.replace(masks=torch.cat(parts)))
        return results
