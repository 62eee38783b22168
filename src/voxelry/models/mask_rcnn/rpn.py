"""The region proposal network in any rank (Ren et al. 2015, arXiv:1506.01497, section 3.1).

Semantics of torchvision's, without its memory: anchors are matched a chunk at a time, and only those become boxes
that are among the best of their level or are sampled for the losses.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from voxelry.models.mask_rcnn.anchors import Anchors, AnchorShapes
from voxelry.models.mask_rcnn.heads import ProposalHead
from voxelry.models.mask_rcnn.settings import ProposalSettings
from voxelry.ops.boxes import clip, decode, encode, valid
from voxelry.ops.matching import match, sample_balanced
from voxelry.ops.nms import Separation, batched_nms

__all__ = ["RegionProposals", "sparse_box_loss"]

Strides = Sequence[Sequence[float]]

MIN_SIZE = 1e-3  # the least length of a proposal along every axis, voxels


class RegionProposals(nn.Module):
    """Boxes that may hold an object, from a feature pyramid.

    Args:
        channels: of every level.
        shapes: the anchors of a voxel of each level.
        settings: how many proposals, and which.
        low: where the image begins, see `ops.boxes.clip`.
        torchvision_rules: match objects that overlap no anchor, and keep levels apart in the suppression, as
            torchvision does.
    """

    def __init__(
        self,
        channels: int,
        shapes: AnchorShapes,
        settings: ProposalSettings,
        *,
        low: float = -0.5,
        torchvision_rules: bool = False,
    ):
        super().__init__()
        self.shapes, self.chosen, self.low = shapes, settings, low
        self.head = ProposalHead(channels, shapes.num_anchors, ndim=shapes.ndim, depth=settings.depth)
        self.torchvision_rules = torchvision_rules
        self.separate: Separation = "torchvision" if torchvision_rules else "exact"

    def forward(
        self, features: Sequence[Tensor], strides: Strides, shapes: Sequence[Sequence[int]]
    ) -> list[tuple[Tensor, Tensor]]:
        """Proposals of each image for detection: boxes `(K, 2 * ndim)` and scores `(K,)` in [0, 1], best first.

        Args:
            features: levels `(B, C, *S)`, fine to coarse.
            strides: voxels per feature voxel of each level, per axis.
            shapes: size of each image without padding.
        """
        objectness, deltas = self.head(features)
        anchors = Anchors.of(self.shapes, features, strides)
        return self.propose(objectness, deltas, anchors, shapes, training=False)

    def losses(
        self, features: Sequence[Tensor], strides: Strides, shapes: Sequence[Sequence[int]], boxes: Sequence[Tensor]
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Proposals for training, and the two losses against the boxes `(K, 2 * ndim)` of each image."""
        objectness, deltas = self.head(features)
        anchors = Anchors.of(self.shapes, features, strides)
        found = self.propose(objectness, deltas, anchors, shapes, training=True)
        return [proposals for proposals, _ in found], self.compare(objectness, deltas, anchors, boxes)

    @torch.no_grad()
    def propose(
        self,
        objectness: Sequence[Tensor],
        deltas: Sequence[Tensor],
        anchors: Anchors,
        shapes: Sequence[Sequence[int]],
        *,
        training: bool,
    ) -> list[tuple[Tensor, Tensor]]:
        """Decode the best anchors of each level, clip, drop, suppress; per image boxes and scores, best first."""
        own = self.chosen
        pre = own.pre_nms_top_n_train if training else own.pre_nms_top_n_test
        post = own.post_nms_top_n_train if training else own.post_nms_top_n_test
        results, columns = [], 2 * self.shapes.ndim
        for image, shape in enumerate(shapes):
            boxes, logits, levels = [], [], []
            for level, (grid, scores) in enumerate(zip(anchors.grids, objectness, strict=True)):
                flat = by_anchor(scores, 1)[image, :, 0].float()
                best, indices = flat.topk(min(pre, len(flat)))
                boxes.append(decode(by_anchor(deltas[level], columns)[image, indices].float(), grid.boxes(indices)))
                logits.append(best)
                levels.append(torch.full_like(indices, level))
            found, scores = clip(torch.cat(boxes), shape, low=self.low), torch.sigmoid(torch.cat(logits))
            keep = torch.where(valid(found, MIN_SIZE) & (scores >= own.score_thresh))[0]
            found, scores, groups = found[keep], scores[keep], torch.cat(levels)[keep]
            keep = batched_nms(found, scores, groups, own.nms_thresh, separate=self.separate)[:post]
            results.append((found[keep], scores[keep]))
        return results

    def compare(
        self, objectness: Sequence[Tensor], deltas: Sequence[Tensor], anchors: Anchors, boxes: Sequence[Tensor]
    ) -> dict[str, Tensor]:
        """`loss_objectness` (mean over the sampled anchors) and `loss_rpn_box_reg` (summed over the positives,
        divided by the number of all sampled ones); both 0-d float32."""
        logits, targets, found, wanted, columns = [], [], [], [], 2 * self.shapes.ndim
        for image, truth in enumerate(boxes):
            with torch.no_grad():
                matched = match(
                    truth,
                    anchors.chunks(),
                    high=self.chosen.fg_iou_thresh,
                    low=self.chosen.bg_iou_thresh,
                    low_quality=True,
                    allow_disjoint=self.torchvision_rules,
                )
                positive, negative = sample_balanced(
                    matched + 1, self.chosen.batch_size_per_image, self.chosen.positive_fraction
                )
                goal = encode(truth[matched[positive]], anchors.boxes(positive))
            sampled = torch.cat((positive, negative))
            picked = objectness[0].new_zeros(len(sampled), dtype=torch.float32)
            for level, places, indices in anchors.per_level(sampled):
                values = by_anchor(objectness[level], 1)[image, indices, 0]
                picked = picked.index_put((places,), values.float())
            logits.append(picked)
            targets.append((torch.arange(len(sampled), device=picked.device) < len(positive)).to(picked.dtype))
            guess = torch.zeros_like(goal)
            for level, places, indices in anchors.per_level(positive):
                values = by_anchor(deltas[level], columns)[image, indices]
                guess = guess.index_put((places,), values.float())
            found.append(guess)
            wanted.append(goal)
        count = sum(len(part) for part in logits)
        # nothing may be sampled from a level, whose weights still have a gradient then: distributed training waits
        every = [by_anchor(level, 1)[:0].sum().float() for level in (*objectness, *deltas)]
        nothing = torch.stack(every).sum()
        return {
            "loss_objectness": nothing + F.binary_cross_entropy_with_logits(torch.cat(logits), torch.cat(targets)),
            "loss_rpn_box_reg": sparse_box_loss(torch.cat(found), torch.cat(wanted), count),
        }


def sparse_box_loss(found: Tensor, wanted: Tensor, count: int) -> Tensor:
    """Smooth L1 with β = 1/9 of the positives' deltas, summed and divided by the number of all samples."""
    return F.smooth_l1_loss(found, wanted, beta=1 / 9, reduction="sum") / max(count, 1)


def by_anchor(level: Tensor, columns: int) -> Tensor:
    """Numbers of a level in the order of its anchors, `(B, A * columns, *S) -> (B, voxels * A, columns)`."""
    return level.movedim(1, -1).reshape(len(level), -1, columns)
