"""The settings of a detector, part by part.

Names and values are those of torchvision where it has them; defaults differ where volumes are not photographs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from voxelry.core.choice import check_choice
from voxelry.core.errors import SettingError

__all__ = [
    "AnchorSettings",
    "BoxSettings",
    "MaskRCNNSettings",
    "MaskSettings",
    "ProposalSettings",
    "RegionSettings",
    "TransformSettings",
    "Weights",
    "nested",
]

SUPPRESSIONS = ("nms", "soft_nms", "wbc")
BOX_LOSSES = ("smooth_l1", "giou")

Weights = tuple[float | Sequence[float], float | Sequence[float]]
"""Of deltas: of the centre and of the size, each one number or one per axis."""


@dataclass(frozen=True, kw_only=True)
class TransformSettings:
    """How images are brought to the network.

    Attributes:
        min_size: length in voxels that the shortest axis is brought to; of several, one is drawn for each image
            in training, and the last is taken otherwise. None: images are never made larger.
        max_size: what the longest axis may not exceed; None for no limit.
        fixed_size: resize every image to this size instead, one number or one per axis.
        image_mean, image_std: per channel, subtracted and divided by; None for neither.
        size_divisible: the batch is padded to a multiple of this, one number or one per axis.
        skip_resize, skip_normalize: leave the step out; None does so where there is no size, or no mean.
    """

    min_size: int | Sequence[int] | None = None
    max_size: int | None = None
    fixed_size: int | Sequence[int] | None = None
    image_mean: Sequence[float] | None = None
    image_std: Sequence[float] | None = None
    size_divisible: int | Sequence[int] = 1
    skip_resize: bool | None = None
    skip_normalize: bool | None = None


@dataclass(frozen=True, kw_only=True)
class AnchorSettings:
    """The anchors of every voxel, see `AnchorShapes`.

    Attributes:
        sizes: for each level of the backbone a list of sizes in voxels, each one number or one per axis; None for
            one of eight times the level's stride.
        ratios, z_ratios, rounded: as there.
    """

    sizes: Sequence[Sequence[Any]] | None = None
    ratios: Sequence[float] = (0.5, 1.0, 2.0)
    z_ratios: Sequence[float] = (0.5, 1.0, 2.0)
    rounded: bool = False


@dataclass(frozen=True, kw_only=True)
class ProposalSettings:
    """The region proposal network.

    Attributes:
        depth: convolutions before the outputs.
        pre_nms_top_n_train, pre_nms_top_n_test: proposals of a level before the suppression, in training and else.
        post_nms_top_n_train, post_nms_top_n_test: proposals of an image after it.
        nms_thresh: proposals of a level that overlap by a larger IoU with a better one are dropped.
        fg_iou_thresh, bg_iou_thresh: anchors with an IoU of at least / less than this are positive / negative. The
            best anchor of every object is positive in any case.
        batch_size_per_image, positive_fraction: anchors in the losses of an image, and the largest part of positives.
        score_thresh: the least objectness, in [0, 1].
    """

    depth: int = 1
    pre_nms_top_n_train: int = 2000
    pre_nms_top_n_test: int = 1000
    post_nms_top_n_train: int = 2000
    post_nms_top_n_test: int = 1000
    nms_thresh: float = 0.7
    fg_iou_thresh: float = 0.7
    bg_iou_thresh: float = 0.3
    batch_size_per_image: int = 256
    positive_fraction: float = 0.5
    score_thresh: float = 0.0


@dataclass(frozen=True, kw_only=True)
class RegionSettings:
    """Where the features of a region are read.

    Attributes:
        levels: of the backbone; None for all but "pool".
        sampling_ratio: samples per feature voxel and axis, 0 for as many as there are voxels.
        canonical_size, canonical_level: a region whose volume is that of a cube with this side is taken from the
            level whose stride is 2 to the power `canonical_level`.
    """

    levels: Sequence[str] | None = None
    sampling_ratio: int = 2
    canonical_size: float = 224.0
    canonical_level: float = 4.0


@dataclass(frozen=True, kw_only=True)
class BoxSettings:
    """Class and box of every region.

    Attributes:
        head: "mlp", two fully connected layers, or "conv", convolutions and one.
        channels: width of the fully connected layers.
        convs, norm: channels of the convolutions of "conv", and their normalisation.
        output_size: feature voxels of a region, one number or one per axis.
        score_thresh: scores must be larger.
        suppression: what becomes of boxes of one class that overlap. "nms": the best stays; "soft_nms": the more they
            overlap with a better one, the lower their scores become; "wbc": one box and score of each cluster, their
            weighted means. See `ops.nms`.
        nms_thresh: IoU with a better box above which "nms" drops one and "wbc" takes it into the better one's cluster.
        detections_per_img: the largest number of detections.
        fg_iou_thresh, bg_iou_thresh: regions whose IoU with an object is at least / less than this show it / show none.
        batch_size_per_image, positive_fraction: regions in the losses of an image, and the largest part of positives.
        loss: of the boxes of positive regions: "smooth_l1" of their deltas, or "giou", 1 less the generalised IoU
            with their object.
        reg_weights: of the deltas of regions: centre and size, each one number or one per axis.
    """

    head: str = "mlp"
    channels: int = 1024
    convs: Sequence[int] = (256, 256, 256, 256)
    norm: str | None = "batch"
    output_size: int | Sequence[int] = 7
    score_thresh: float = 0.05
    suppression: str = "nms"
    nms_thresh: float = 0.5
    detections_per_img: int = 100
    fg_iou_thresh: float = 0.5
    bg_iou_thresh: float = 0.5
    batch_size_per_image: int = 512
    positive_fraction: float = 0.25
    loss: str = "smooth_l1"
    reg_weights: Weights = (10.0, 5.0)

    def __post_init__(self) -> None:
        check_choice("box.suppression", self.suppression, SUPPRESSIONS)
        check_choice("box.loss", self.loss, BOX_LOSSES)


@dataclass(frozen=True, kw_only=True)
class MaskSettings:
    """The mask of every region.

    Attributes:
        convs: channels of each convolution.
        norm: name of a normalisation, see `nn.norm.make_norm`, or None.
        output_size: feature voxels of a region, one number or one per axis.
        upsample: a mask is finer than these by this, one number or one per axis.
        chunk: regions at a time in prediction, and in training with checkpointing: a 28³ mask needs 22 MB of
            features per region and layer.
        checkpointing: in training, work the head out again in the backward pass instead of keeping its features.
    """

    convs: Sequence[int] = (256, 256, 256, 256)
    norm: str | None = None
    output_size: int | Sequence[int] = 14
    upsample: int | Sequence[int] = 2
    chunk: int = 32
    checkpointing: bool = False

    def __post_init__(self) -> None:
        if self.chunk < 1:
            raise SettingError(f"mask.chunk: expected at least 1, got {self.chunk}")


@dataclass(frozen=True, kw_only=True)
class MaskRCNNSettings:
    """A detector around a backbone.

    Attributes:
        num_classes: with background, which is 0.
        transform, anchors, rpn, regions, box: the parts.
        mask: None to learn no masks.
        low: coordinate of the image's edge, about which boxes are scaled and to which they are cut: -0.5 where voxels
            are centred on integers, or 0 as torchvision has it.
        torchvision_rules: work out strides as torchvision does, for anchors the padded size over the level's,
            rounded down, for regions a power of two of the first axis; match objects that overlap no anchor; and keep
            levels and classes apart in the suppression as it does. Otherwise strides are those of the backbone.
    """

    num_classes: int = 2
    transform: TransformSettings = field(default_factory=TransformSettings)
    anchors: AnchorSettings = field(default_factory=AnchorSettings)
    rpn: ProposalSettings = field(default_factory=ProposalSettings)
    regions: RegionSettings = field(default_factory=RegionSettings)
    box: BoxSettings = field(default_factory=BoxSettings)
    mask: MaskSettings | None = field(default_factory=MaskSettings)
    low: float = -0.5
    torchvision_rules: bool = False

    def __post_init__(self) -> None:
        if self.num_classes < 2:
            raise SettingError(f"num_classes: expected at least 2 (background and one more), got {self.num_classes}")


_PREFIXES = {"rpn_": "rpn", "box_": "box", "mask_": "mask", "anchor_": "anchors"}
_FLAT = {
    "bbox_reg_weights": ("box", "reg_weights"),
    "round_anchors": ("anchors", "rounded"),
    "roi_levels": ("regions", "levels"),
    **{name: ("regions", name) for name in ("sampling_ratio", "canonical_size", "canonical_level")},
    **{one.name: ("transform", one.name) for one in fields(TransformSettings)},
}


def nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by part, from torchvision's flat names such as `rpn_nms_thresh`, which bundles of version 0.1 have.

    `mask_branch` says whether there are masks, and `box_low` is `low`. What is by part already stays.
    """
    found: dict[str, Any] = {}
    for name, value in flat.items():
        part, key = _FLAT.get(name, ("", name))
        for prefix, owner in _PREFIXES.items():
            if name.startswith(prefix):
                part, key = owner, name.removeprefix(prefix)
        if name == "box_low":
            found["low"] = value
        elif name != "mask_branch":
            place = found.setdefault(part, {}) if part else found
            place[key] = value
    if flat.get("mask_branch") is False:
        found["mask"] = None
    return found
