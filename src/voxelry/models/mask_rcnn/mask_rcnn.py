"""Mask R-CNN in any rank (He et al. 2017, arXiv:1703.06870; with a pyramid, Lin et al. 2017, arXiv:1612.03144)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from voxelry.backbones.base import Backbone
from voxelry.backbones.build import build_backbone
from voxelry.core.errors import DataError, SettingError
from voxelry.core.settings import Configured, plain, settle
from voxelry.models.mask_rcnn.anchors import AnchorShapes
from voxelry.models.mask_rcnn.detections import Detections
from voxelry.models.mask_rcnn.heads import MaskHead
from voxelry.models.mask_rcnn.mask_branch import MaskBranch
from voxelry.models.mask_rcnn.roi_heads import BoxBranch
from voxelry.models.mask_rcnn.roi_pool import RegionPool
from voxelry.models.mask_rcnn.rpn import RegionProposals
from voxelry.models.mask_rcnn.settings import AnchorSettings, MaskRCNNSettings
from voxelry.models.mask_rcnn.targets import check_targets
from voxelry.models.mask_rcnn.transform import Prepared, Transform, resize_boxes

__all__ = ["MaskRCNN"]

Images = Tensor | Sequence[Tensor]


class MaskRCNN(Configured, nn.Module):
    """Instances with boxes, classes, scores and masks.

    Boxes are `(K, 2 * ndim)`, all lows then all highs, in index coordinates: voxel `i` spans `i - 0.5` to `i + 0.5`.
    Its settings are those of `MaskRCNNSettings`, the parts as mappings or dataclasses: `MaskRCNN(backbone,
    num_classes=3, box={"channels": 256})`.

    Args:
        backbone: levels with as many channels each, or its description for `build_backbone`.

    Raises:
        SettingError: an unknown name, levels with unlike channels, numbers that don't fit together.
    """

    Settings = MaskRCNNSettings

    def __init__(self, backbone: Backbone | Mapping[str, Any], **settings: Any):
        super().__init__()
        own = self._settings = settle(MaskRCNNSettings, settings)
        self.backbone = build_backbone(backbone) if isinstance(backbone, Mapping) else backbone
        self.ndim, self.num_classes = self.backbone.ndim, own.num_classes
        self.torchvision_rules = own.torchvision_rules
        channels = one_width(self.backbone)
        self.roi_levels = levels_to_read(self.backbone, own.regions.levels)
        self.transform = Transform(own.transform, ndim=self.ndim, low=own.low)
        if not self.transform.skip_normalize and len(self.transform.mean) != self.backbone.in_channels:
            raise SettingError(
                f"transform.image_mean, image_std: expected {self.backbone.in_channels} of each, one per channel, got "
                f"{len(self.transform.mean)}"
            )
        self.rpn = RegionProposals(
            channels,
            anchor_shapes(self.backbone, own.anchors),
            own.rpn,
            low=own.low,
            torchvision_rules=own.torchvision_rules,
        )
        pool = partial(RegionPool, settings=own.regions, ndim=self.ndim)
        self.box_branch = BoxBranch(
            channels,
            pool(own.box.output_size, arranged=own.box.head == "conv"),
            own.num_classes,
            own.box,
            low=own.low,
            separate="torchvision" if own.torchvision_rules else "exact",
        )
        self.mask_branch: MaskBranch | None = None
        if own.mask is not None:
            self.mask_branch = MaskBranch(
                MaskHead(channels, own.num_classes, own.mask, ndim=self.ndim),
                pool(own.mask.output_size, arranged=True),
                own.mask,
            )

    def settings(self) -> dict[str, Any]:
        """Plain values from which `MaskRCNN(**settings)` builds this network again."""
        return {"backbone": plain(self.backbone.describe()), **super().settings()}

    @property
    def num_anchors(self) -> int:
        """Anchors per voxel of a level."""
        return self.rpn.shapes.num_anchors

    def losses(
        self,
        image: Images,
        boxes: Sequence[Tensor],
        classes: Sequence[Tensor] | None = None,
        masks: Images | None = None,
    ) -> dict[str, Tensor]:
        """The losses of training, each a 0-d float32, to be summed.

        `min_size`, anchors and regions are drawn from torch's generator, in torchvision's order.

        Args:
            image: `(B, C, *S)`, or images `(C, *S)` of any sizes.
            boxes: `(K, 2 * ndim)` per image; K may be 0.
            classes: `(K,)` per image, from 1; None for 1 everywhere.
            masks: `(B, *S)` ids, `k + 1` for box `k`; or per image ids, or one mask per box `(K, *S)`, which
                may overlap. Not used without a mask branch.

        Returns:
            `loss_classifier`, `loss_box_reg`, `loss_mask` (with a mask branch), `loss_objectness` and
            `loss_rpn_box_reg`.

        Raises:
            DataError: boxes, classes or masks that can't be learnt from; names the image and the box.
        """
        images = list(image)
        given = list(masks) if self.mask_branch is not None and masks is not None else None
        if self.mask_branch is not None and given is None:
            raise DataError("masks: expected them for the mask branch, got none")
        kinds = check_targets(images, boxes, classes, given, num_classes=self.num_classes)
        batch = self.transform(images, boxes, given, draw=True)
        features = self.backbone(batch.image)
        strides, scales = self.steps(batch, features)
        proposals, losses = self.rpn.losses(list(features.values()), strides, batch.shapes, batch.boxes)
        chosen = [features[name] for name in self.roi_levels]
        regions, box_losses = self.box_branch.losses(chosen, scales, proposals, batch.boxes, kinds)
        mask_loss = {}
        if self.mask_branch is not None:
            mask_loss = self.mask_branch.loss(chosen, scales, regions, batch.masks)
        return {**box_losses, **mask_loss, **losses}

    @torch.no_grad()
    def detect(self, image: Images) -> list[Detections]:
        """The objects of each image, best first; boxes in the index coordinates of the image as it is given.

        Args:
            image: `(B, C, *S)`, or images `(C, *S)` of any sizes.
        """
        batch = self.transform(list(image))
        features = self.backbone(batch.image)
        strides, scales = self.steps(batch, features)
        proposals = [boxes for boxes, _ in self.rpn(list(features.values()), strides, batch.shapes)]
        chosen = [features[name] for name in self.roi_levels]
        found = self.box_branch.detect(chosen, scales, batch.shapes, proposals)
        if self.mask_branch is not None:
            found = self.mask_branch.predict(chosen, scales, found)
        return [
            detections.replace(boxes=resize_boxes(detections.boxes, shape, original, low=self.transform.low))
            for detections, shape, original in zip(found, batch.shapes, batch.originals, strict=True)
        ]

    forward = detect

    def steps(
        self, batch: Prepared, features: Mapping[str, Tensor]
    ) -> tuple[list[tuple[float, ...]], list[tuple[float, ...]]]:
        """Voxels per feature voxel of every level, and feature voxels per voxel of those that regions are read from."""
        if not self.torchvision_rules:
            strides = {name: self.backbone.strides[name] for name in features}
            scales = [tuple(1 / step for step in strides[name]) for name in self.roi_levels]
            return [tuple(float(step) for step in steps) for steps in strides.values()], scales
        padded = batch.image.shape[2:]
        sizes = [
            [float(size // cells) for size, cells in zip(padded, x.shape[2:], strict=True)] for x in features.values()
        ]
        longest = max(shape[0] for shape in batch.shapes)
        scales = []
        for name in self.roi_levels:
            octave = torch.tensor(features[name].shape[2] / longest).log2().round()
            scales.append((2.0 ** float(octave),) * self.ndim)
        return [tuple(steps) for steps in sizes], scales


def one_width(backbone: Backbone) -> int:
    """Channels of every level.

    Raises:
        SettingError: they differ.
    """
    widths = set(backbone.out_channels.values())
    if len(widths) != 1:
        raise SettingError(f"backbone: expected as many channels on every level, got {backbone.out_channels}")
    return widths.pop()


def levels_to_read(backbone: Backbone, chosen: Sequence[str] | None) -> list[str]:
    """The levels that regions are read from.

    Raises:
        SettingError: none, or one that there isn't.
    """
    levels = list(backbone.out_channels)
    found = [name for name in levels if name != "pool"] if chosen is None else list(chosen)
    if not found or not set(found) <= set(levels):
        raise SettingError(f"regions.levels: expected some of {', '.join(levels)}, got {found}")
    return found


def anchor_shapes(backbone: Backbone, chosen: AnchorSettings) -> AnchorShapes:
    """The anchors of every level.

    Raises:
        SettingError: another number of levels, or sizes and ratios that can't be.
    """
    sizes = chosen.sizes
    if sizes is None:
        sizes = [[tuple(8 * step for step in strides)] for strides in backbone.strides.values()]
    if len(sizes) != len(backbone.strides):
        raise SettingError(f"anchors.sizes: expected {len(backbone.strides)} levels as the backbone, got {len(sizes)}")
    return AnchorShapes(sizes, chosen.ratios, chosen.z_ratios, ndim=backbone.ndim, rounded=chosen.rounded)
