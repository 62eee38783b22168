"""What a detector finds in one image."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor

from voxelry.models.mask_rcnn.settings import BoxSettings
from voxelry.ops.boxes import clip, decode, valid
from voxelry.ops.nms import Separation, batched_nms, soft_nms, weighted_box_clustering

__all__ = ["Detections", "select"]

MIN_SIZE = 1e-2  # the least length of a detection along every axis, voxels


@dataclass
class Detections:
    """Objects of one image, best first.

    Attributes:
        boxes: `(K, 2 * ndim)` float32, all lows then all highs, index coordinates of the image.
        scores: `(K,)` float32 in [0, 1].
        classes: `(K,)` int64, from 1.
        masks: `(K, *M)` float32 probability on a grid over each box, or None without a mask branch; to be pasted
            by `ops.masks`.
    """

    boxes: Tensor
    scores: Tensor
    classes: Tensor
    masks: Tensor | None = None

    def __len__(self) -> int:
        return len(self.boxes)

    def replace(self, **changes: Any) -> Self:
        """A copy with some fields changed."""
        return replace(self, **changes)

    def to(self, device: torch.device | str) -> Self:
        """The detections with their tensors on `device`."""
        masks = None if self.masks is None else self.masks.to(device)
        return self.replace(
            boxes=self.boxes.to(device), scores=self.scores.to(device), classes=self.classes.to(device), masks=masks
        )


def select(
    logits: Tensor,
    deltas: Tensor,
    proposals: Tensor,
    shape: tuple[int, ...],
    settings: BoxSettings,
    *,
    low: float = -0.5,
    separate: Separation = "exact",
) -> Detections:
    """The best boxes of one image, each class for itself (Ren et al. 2015; torchvision's `postprocess_detections`).

    Args:
        logits: `(K, classes)`; class 0 is background and never selected.
        deltas: `(K, classes, 2 * ndim)`.
        proposals: `(K, 2 * ndim)`.
        shape: size of the image.
        settings: which are kept, and the weights of the deltas.
        low: where the image begins, see `ops.boxes.clip`.
        separate: how classes are kept apart, see `ops.nms.batched_nms`.
    """
    scores = logits.float().softmax(dim=1)[:, 1:]
    rows, columns = torch.where(scores > settings.score_thresh)  # before decoding: most are none
    boxes = decode(deltas[rows, columns + 1].float(), proposals[rows], settings.reg_weights)
    boxes, scores, classes = clip(boxes, shape, low=low), scores[rows, columns], columns + 1
    keep = torch.where(valid(boxes, MIN_SIZE))[0]
    boxes, scores, classes = boxes[keep], scores[keep], classes[keep]
    if settings.suppression == "nms" or not len(boxes):
        keep = batched_nms(boxes, scores, classes, settings.nms_thresh, separate=separate)
        boxes, scores, classes = boxes[keep], scores[keep], classes[keep]
    else:
        boxes, scores, classes = _joined(boxes, scores, classes, settings)
    best = slice(settings.detections_per_img)
    return Detections(boxes[best], scores[best], classes[best])


def _joined(boxes: Tensor, scores: Tensor, classes: Tensor, settings: BoxSettings) -> tuple[Tensor, Tensor, Tensor]:
    """Soft suppression or clusters of the boxes of each class, by falling new score."""
    parts = []
    for number in classes.unique():
        own = classes == number
        if settings.suppression == "soft_nms":
            keep, left = soft_nms(boxes[own], scores[own], min_score=settings.score_thresh)
            found = boxes[own][keep]
        else:
            found, left = weighted_box_clustering(
                boxes[own], scores[own], settings.nms_thresh, min_score=settings.score_thresh
            )
        parts.append((found, left, number.expand(len(found))))
    boxes, scores, classes = (torch.cat(part) for part in zip(*parts, strict=True))
    order = scores.argsort(descending=True, stable=True)
    return boxes[order], scores[order], classes[order]
