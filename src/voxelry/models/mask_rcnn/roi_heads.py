"""Classes and boxes of proposed regions (Ren et al. 2015; Lin et al. 2017), as torchvision samples and weighs them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from voxelry.core.choice import check_choice
from voxelry.models.mask_rcnn.detections import Detections, select
from voxelry.models.mask_rcnn.heads import BOX_HEADS, BoxPredictor
from voxelry.models.mask_rcnn.roi_pool import RegionPool, Scales
from voxelry.models.mask_rcnn.rpn import sparse_box_loss
from voxelry.models.mask_rcnn.settings import BoxSettings
from voxelry.ops.boxes import decode, encode, giou
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
        channels: of every level.
        pool: features of the regions.
        num_classes: classes with background.
        settings: the head, and which regions are learnt from and kept.
        low, separate: see `detections.select`.
    """

    def __init__(
        self,
        channels: int,
        pool: RegionPool,
        num_classes: int,
        settings: BoxSettings,
        *,
        low: float = -0.5,
        separate: Separation = "exact",
    ):
        super().__init__()
        check_choice("box.head", settings.head, BOX_HEADS)
        ndim = len(pool.output_size)
        convs = {"convs": settings.convs, "norm": settings.norm} if settings.head == "conv" else {}
        self.head = BOX_HEADS[settings.head](channels, pool.output_size, ndim=ndim, width=settings.channels, **convs)
        self.predictor = BoxPredictor(settings.channels, num_classes, ndim=ndim)
        self.pool, self.chosen, self.low, self.separate = pool, settings, low, separate

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
        deltas of their class, and divided by the number of all; see `BoxSettings.loss`.
        """
        regions = self.sample(proposals, boxes, classes)
        logits, deltas = self(features, scales, regions.boxes, regions.batch_index)
        logits, deltas = logits.float(), deltas.float()
        positive = torch.where(regions.classes > 0)[0]
        found = deltas[positive, regions.classes[positive]]
        count = len(regions.classes)
        wanted = regions.deltas[positive]
        if self.chosen.loss == "giou":
            found, wanted = (decode(each, regions.boxes[positive], self.chosen.reg_weights) for each in (found, wanted))
            loss = (1 - giou(found, wanted)).sum() / max(count, 1)
        else:
            loss = sparse_box_loss(found, wanted, count)
        return regions, {
            "loss_classifier": F.cross_entropy(logits, regions.classes) if count else logits.sum() * 0,
            "loss_box_reg": loss,
        }

    @torch.no_grad()
    def sample(self, proposals: Sequence[Tensor], boxes: Sequence[Tensor], classes: Sequence[Tensor]) -> Regions:
        """Draw regions from the proposals and the objects themselves, image by image."""
        own, parts = self.chosen, list[Regions]()
        for image, (proposed, truth, kinds) in enumerate(zip(proposals, boxes, classes, strict=True)):
            candidates = torch.cat((proposed, truth.to(proposed.dtype)))
            matched = match(truth, candidates, high=own.fg_iou_thresh, low=own.bg_iou_thresh, low_quality=False)
            drawn = sample_balanced(matched + 1, own.batch_size_per_image, own.positive_fraction)
            chosen = torch.cat(drawn).sort().values
            matched = matched[chosen]
            positive = torch.where(matched >= 0)[0]
            labels = torch.zeros_like(matched)
            labels[positive] = kinds[matched[positive]]
            deltas = candidates.new_zeros(len(chosen), candidates.shape[1])
            deltas[positive] = encode(truth[matched[positive]], candidates[chosen[positive]], own.reg_weights)
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
            found.append(select(logits, deltas, boxes, shape, self.chosen, low=self.low, separate=self.separate))
        return found
