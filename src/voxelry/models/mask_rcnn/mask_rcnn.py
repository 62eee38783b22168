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
from voxelry.core.settings import plain
from voxelry.models.mask_rcnn.anchors import AnchorShapes
from voxelry.models.mask_rcnn.detections import Detections, Weights
from voxelry.models.mask_rcnn.heads import BOX_HEADS, MaskHead
from voxelry.models.mask_rcnn.mask_branch import MaskBranch
from voxelry.models.mask_rcnn.roi_heads import BoxBranch
from voxelry.models.mask_rcnn.roi_pool import RegionPool
from voxelry.models.mask_rcnn.rpn import RegionProposals
from voxelry.models.mask_rcnn.targets import check_targets
from voxelry.models.mask_rcnn.transform import Prepared, Transform, resize_boxes

__all__ = ["MaskRCNN"]

Images = Tensor | Sequence[Tensor]


class MaskRCNN(nn.Module):
    """Instances with boxes, classes, scores and masks.

    Boxes are `(K, 2 * ndim)`, all lows then all highs, in index coordinates: voxel `i` spans `i - 0.5` to `i + 0.5`.
    The names of settings and their values are those of torchvision where it has them; the defaults differ where
    volumes are not photographs (`min_size`, `max_size`, `image_mean`, `image_std`: none; `round_anchors`, `box_low`,
    `torchvision_rules`).

    Args:
        backbone: levels with as many channels each, or its description for `build_backbone`.
        num_classes: with background, which is 0.
        min_size, max_size, fixed_size, image_mean, image_std, size_divisible, skip_resize, skip_normalize: see
            `Transform`.
        anchor_sizes: for each level of the backbone a list of sizes in voxels, each one number or one per axis;
            None for one of eight times the level's stride.
        anchor_ratios, anchor_z_ratios, round_anchors: see `AnchorShapes`.
        rpn_depth, rpn_*: see `RegionProposals`.
        box_low: coordinate of the image's edge that boxes are cut to: -0.5, or 0 as torchvision has it.
        box_head: "mlp", two fully connected layers, or "conv", convolutions and one.
        box_channels: width of the fully connected layers.
        box_convs, box_norm: channels of the convolutions of "conv", and their normalisation.
        box_output_size, mask_output_size: feature voxels of a region, one number or one per axis.
        sampling_ratio, canonical_size, canonical_level: see `RegionPool`.
        bbox_reg_weights: of the deltas of regions: centre and size, each one number or one per axis.
        box_*: see `BoxBranch`.
        mask_branch: learn masks.
        mask_convs, mask_norm, mask_upsample: see `MaskHead`; a mask has `mask_output_size * mask_upsample` voxels.
        mask_chunk, mask_checkpointing: see `MaskBranch`.
        roi_levels: levels that regions are read from; None for all but "pool".
        torchvision_rules: work out strides as torchvision does, for anchors the padded size over the level's,
            rounded down, for regions a power of two of the first axis; and see `RegionProposals`. Otherwise
            strides are those of the backbone.

    Raises:
        SettingError: an unknown name, levels with unlike channels, numbers that don't fit together.
    """

    def __init__(
        self,
        backbone: Backbone | Mapping[str, Any],
        *,
        num_classes: int = 2,
        min_size: int | Sequence[int] | None = None,
        max_size: int | None = None,
        fixed_size: int | Sequence[int] | None = None,
        image_mean: Sequence[float] | None = None,
        image_std: Sequence[float] | None = None,
        size_divisible: int | Sequence[int] = 1,
        skip_resize: bool | None = None,
        skip_normalize: bool | None = None,
        anchor_sizes: Sequence[Sequence[Any]] | None = None,
        anchor_ratios: Sequence[float] = (0.5, 1.0, 2.0),
        anchor_z_ratios: Sequence[float] = (0.5, 1.0, 2.0),
        round_anchors: bool = False,
        rpn_depth: int = 1,
        rpn_pre_nms_top_n_train: int = 2000,
        rpn_pre_nms_top_n_test: int = 1000,
        rpn_post_nms_top_n_train: int = 2000,
        rpn_post_nms_top_n_test: int = 1000,
        rpn_nms_thresh: float = 0.7,
        rpn_fg_iou_thresh: float = 0.7,
        rpn_bg_iou_thresh: float = 0.3,
        rpn_batch_size_per_image: int = 256,
        rpn_positive_fraction: float = 0.5,
        rpn_score_thresh: float = 0.0,
        box_low: float = -0.5,
        box_head: str = "mlp",
        box_channels: int = 1024,
        box_convs: Sequence[int] = (256, 256, 256, 256),
        box_norm: str | None = "batch",
        box_output_size: int | Sequence[int] = 7,
        box_score_thresh: float = 0.05,
        box_nms_thresh: float = 0.5,
        box_detections_per_img: int = 100,
        box_fg_iou_thresh: float = 0.5,
        box_bg_iou_thresh: float = 0.5,
        box_batch_size_per_image: int = 512,
        box_positive_fraction: float = 0.25,
        bbox_reg_weights: Weights = (10.0, 5.0),
        mask_branch: bool = True,
        mask_convs: Sequence[int] = (256, 256, 256, 256),
        mask_norm: str | None = None,
        mask_output_size: int | Sequence[int] = 14,
        mask_upsample: int | Sequence[int] = 2,
        mask_chunk: int = 32,
        mask_checkpointing: bool = False,
        sampling_ratio: int = 2,
        canonical_size: float = 224.0,
        canonical_level: float = 4.0,
        roi_levels: Sequence[str] | None = None,
        torchvision_rules: bool = False,
    ):
        settings = {name: value for name, value in locals().items() if name not in ("self", "__class__", "backbone")}
        super().__init__()
        self._settings = plain(settings)
        self.backbone = build_backbone(backbone) if isinstance(backbone, Mapping) else backbone
        self.ndim, self.num_classes = self.backbone.ndim, num_classes
        self.torchvision_rules = torchvision_rules
        if num_classes < 2:
            raise SettingError(f"num_classes: expected at least 2 (background and one more), got {num_classes}")
        if box_head not in BOX_HEADS:
            raise SettingError(f"box_head: expected one of {', '.join(BOX_HEADS)}, got {box_head!r}")
        if mask_chunk < 1:
            raise SettingError(f"mask_chunk: expected at least 1, got {mask_chunk}")
        levels = list(self.backbone.out_channels)
        self.roi_levels = [name for name in levels if name != "pool"] if roi_levels is None else list(roi_levels)
        if not self.roi_levels or not set(self.roi_levels) <= set(levels):
            raise SettingError(f"roi_levels: expected some of {', '.join(levels)}, got {self.roi_levels}")
        if len(set(self.backbone.out_channels.values())) != 1:
            raise SettingError(f"backbone: expected as many channels on every level, got {self.backbone.out_channels}")
        channels = self.backbone.out_channels[levels[0]]
        self.transform = Transform(
            ndim=self.ndim,
            min_size=min_size,
            max_size=max_size,
            fixed_size=fixed_size,
            mean=image_mean,
            std=image_std,
            size_divisible=size_divisible,
            skip_resize=skip_resize,
            skip_normalize=skip_normalize,
            low=box_low,
        )
        if not self.transform.skip_normalize and len(self.transform.mean) != self.backbone.in_channels:
            raise SettingError(
                f"image_mean, image_std: expected {self.backbone.in_channels} of each, one per channel, got "
                f"{len(self.transform.mean)}"
            )
        if anchor_sizes is None:
            anchor_sizes = [[tuple(8 * step for step in self.backbone.strides[name])] for name in levels]
        if len(anchor_sizes) != len(levels):
            raise SettingError(f"anchor_sizes: expected {len(levels)} levels as the backbone, got {len(anchor_sizes)}")
        self.rpn = RegionProposals(
            channels,
            AnchorShapes(anchor_sizes, anchor_ratios, anchor_z_ratios, ndim=self.ndim, rounded=round_anchors),
            depth=rpn_depth,
            foreground=rpn_fg_iou_thresh,
            background=rpn_bg_iou_thresh,
            batch_size=rpn_batch_size_per_image,
            positive_fraction=rpn_positive_fraction,
            pre_nms=(rpn_pre_nms_top_n_train, rpn_pre_nms_top_n_test),
            post_nms=(rpn_post_nms_top_n_train, rpn_post_nms_top_n_test),
            nms_threshold=rpn_nms_thresh,
            score_threshold=rpn_score_thresh,
            low=box_low,
            torchvision_rules=torchvision_rules,
        )
        pool = partial(
            RegionPool,
            ndim=self.ndim,
            sampling_ratio=sampling_ratio,
            canonical_size=canonical_size,
            canonical_level=canonical_level,
        )
        box_pool = pool(box_output_size)
        convs = {"convs": box_convs, "norm": box_norm} if box_head == "conv" else {}
        self.box_branch = BoxBranch(
            BOX_HEADS[box_head](channels, box_pool.output_size, ndim=self.ndim, width=box_channels, **convs),
            box_pool,
            num_classes,
            ndim=self.ndim,
            foreground=box_fg_iou_thresh,
            background=box_bg_iou_thresh,
            batch_size=box_batch_size_per_image,
            positive_fraction=box_positive_fraction,
            weights=bbox_reg_weights,
            score_threshold=box_score_thresh,
            nms_threshold=box_nms_thresh,
            limit=box_detections_per_img,
            low=box_low,
            separate="torchvision" if torchvision_rules else "exact",
        )
        self.mask_branch: MaskBranch | None = None
        if mask_branch:
            head = MaskHead(
                channels, num_classes, ndim=self.ndim, convs=mask_convs, norm=mask_norm, upsample=mask_upsample
            )
            self.mask_branch = MaskBranch(
                head, pool(mask_output_size), chunk=mask_chunk, checkpointing=mask_checkpointing
            )

    def settings(self) -> dict[str, Any]:
        """Plain values from which `MaskRCNN(**settings)` builds this network again."""
        return {"backbone": plain(self.backbone.describe()), **self._settings}

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
