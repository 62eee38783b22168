"""Classes and boxes of proposed regions (Ren et al. 2015; Lin et al. 2017), as torchvision samples and weighs them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from voxelry.models.mask_rcnn.detections import Detections, Weights, select
from voxelry.models.mask_rcnn.heads import BoxPredictor
from voxelry.models.mask_rcnn.roi_pool import RegionPool, Scales
from voxelry.models.mask_rcnn.rpn import sparse_box_loss
from voxelry.ops.boxes import encode
from voxelry.ops.matching import match, sample_balanced
from voxelry.ops.nms import Separation

__all__ = ["BoxBranch", "Regions"]


@dataclass
class Regions:
    """Regions of a batch that the losses look at.

    Attributes:
        boxes: `(R, 2 * ndim)` float32.
        batch_index: image of each, `(R,)` int64.
        classes: what each shows, `(R,)` int64, 0 for background.
        matched: number of its object among those of its image, `(R,)` int64; 0 for background.
        deltas: what takes it to its object, `(R, 2 * ndim)`; 0 for background.
    """

    boxes: Tensor
    batch_index: Tensor
    classes: Tensor
    matched: Tensor
    deltas: Tensor


class BoxBranch(nn.Module):
    """Class and box of every region.

    Args:
        head: features of regions `(K, C, *M)` to vectors, with their length as `out_channels`.
        pool: features of the regions.
        num_classes: classes with background.
        ndim: number of spatial axes.
        foreground, background: regions whose IoU with an object is at least / less than this show it / show none.
        batch_size, positive_fraction: regions in the losses of an image, and the largest part of positives.
        weights: of the deltas, see `ops.boxes.encode`.
        score_threshold, nms_threshold, limit, low, separate: see `detections.select`.
    """

    def __init__(
        self,
        head: nn.Module,
        pool: RegionPool,
        num_classes: int,
        *,
        ndim: int,
        foreground: float = 0.5,
        background: float = 0.5,
        batch_size: int = 512,
        positive_fraction: float = 0.25,
        weights: Weights = (10.0, 5.0),
        score_threshold: float = 0.05,
        nms_threshold: float = 0.5,
        limit: int = 100,
        low: float = -0.5,
        separate: Separation = "exact",
    ):
        super().__init__()
        self.head, self.pool = head, pool
        self.predictor = BoxPredictor(int(head.out_channels), num_classes, ndim=ndim)  # type: ignore[arg-type]
        self.foreground, self.background = foreground, background
        self.batch_size, self.positive_fraction = batch_size, positive_fraction
        self.weights = weights
        self.score_threshold, self.nms_threshold, self.limit, self.low = score_threshold, nms_threshold, limit, low
        self.separate = separate

    def forward(
        self, features: Sequence[Tensor], scales: Scales, boxes: Tensor, batch_index: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Logits `(K, classes)` and deltas `(K, classes, 2 * ndim)` of boxes `(K, 2 * ndim)`."""
        return self.predictor(self.head(self.pool(features, scales, boxes, batch_index)))

    def losses(
        self,
        features: Sequence[Tensor],
        scales: Scales,
        proposals: Sequence[Tensor],
        boxes: Sequence[Tensor],
        classes: Sequence[Tensor],
    ) -> tuple[Regions, dict[str, Tensor]]:
        """Regions sampled from proposals and objects, `loss_classifier` and `loss_box_reg`.

        The first is the mean cross-entropy of the regions, the second is summed over the positive ones, for the
        deltas of their class, and divided by the number of all.
        """
        regions = self.sample(proposals, boxes, classes)
        logits, deltas = self(features, scales, regions.boxes, regions.batch_index)
        logits, deltas = logits.float(), deltas.float()
        positive = torch.where(regions.classes > 0)[0]
        found = deltas[positive, regions.classes[positive]]
        count = len(regions.classes)
        return regions, {
            "loss_classifier": F.cross_entropy(logits, regions.classes) if count else logits.sum() * 0,
            "loss_box_reg": sparse_box_loss(found, regions.deltas[positive], count),
        }

    @torch.no_grad()
    def sample(self, proposals: Sequence[Tensor], boxes: Sequence[Tensor], classes: Sequence[Tensor]) -> Regions:
        """Draw regions from the proposals and the objects themselves, image by image."""
        parts: list[Regions] = []
        for image, (proposed, truth, kinds) in enumerate(zip(proposals, boxes, classes, strict=True)):
            candidates = torch.cat((proposed, truth.to(proposed.dtype)))
            matched = match(truth, candidates, high=self.foreground, low=self.background, low_quality=False)
            chosen = torch.cat(sample_balanced(matched + 1, self.batch_size, self.positive_fraction)).sort().values
            matched = matched[chosen]
            positive = torch.where(matched >= 0)[0]
            labels = torch.zeros_like(matched)
            labels[positive] = kinds[matched[positive]]
            deltas = candidates.new_zeros(len(chosen), candidates.shape[1])
            deltas[positive] = encode(truth[matched[positive]], candidates[chosen[positive]], self.weights)
            parts.append(
                Regions(candidates[chosen], torch.full_like(chosen, image), labels, matched.clamp(min=0), deltas)
            )
        fields = ("boxes", "batch_index", "classes", "matched", "deltas")
        return Regions(*(torch.cat([getattr(part, name) for part in parts]) for name in fields))

    def detect(
        self,
        features: Sequence[Tensor],
        scales: Scales,
        shapes: Sequence[tuple[int, ...]],
        proposals: Sequence[Tensor],
    ) -> list[Detections]:
        """Detections of each image from its proposals, in voxels of the batch, without masks."""
        found = []
        for image, (boxes, shape) in enumerate(zip(proposals, shapes, strict=True)):
            index = torch.full((len(boxes),), image, device=boxes.device)
            logits, deltas = self(features, scales, boxes, index)
            found.append(
                select(
                    logits,
                    deltas,
                    boxes,
                    shape,
                    weights=self.weights,
                    score_threshold=self.score_threshold,
                    nms_threshold=self.nms_threshold,
                    limit=self.limit,
                    low=self.low,
                    separate=self.separate,
                )
            )
        return found
