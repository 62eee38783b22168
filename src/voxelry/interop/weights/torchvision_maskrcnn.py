"""torchvision's `MaskRCNN` and `FasterRCNN` as our `MaskRCNN`.

Understood are the published state dicts, of both versions and under the names of older releases. torchvision's
boxes are x before y, its deltas too, one group for each anchor or class: rows of the prediction layers change places.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from voxelry.backbones.base import Backbone
from voxelry.core.errors import CheckpointError
from voxelry.core.rank import per_axis
from voxelry.core.settings import plain
from voxelry.interop.weights import torchvision_resnet
from voxelry.interop.weights.state import build, check_rank, strip_prefix
from voxelry.models.mask_rcnn import MaskRCNN
from voxelry.models.mask_rcnn.settings import nested

__all__ = ["convert", "infer", "rebuild", "settings"]

NAME = "torchvision-maskrcnn"
STEM = "rpn.head.cls_logits.weight"

RENAMES = (
    (r"^rpn\.head\.conv\.(?=weight|bias)", "rpn.head.conv.0.0."),  # before torchvision 0.13
    (r"^roi_heads\.mask_head\.mask_fcn(\d)\.", lambda m: f"roi_heads.mask_head.{int(m[1]) - 1}.0."),
    (r"^rpn\.head\.conv\.(\d+)\.0\.", r"rpn.head.convs.\1.conv."),
    (r"^rpn\.head\.cls_logits\.", "rpn.head.objectness."),
    (r"^rpn\.head\.bbox_pred\.", "rpn.head.deltas."),
    (r"^roi_heads\.box_head\.(fc[67])\.", r"box_branch.head.\1."),
    (r"^roi_heads\.box_head\.(\d+)\.0\.", r"box_branch.head.convs.\1.conv."),
    (r"^roi_heads\.box_head\.(\d+)\.1\.", r"box_branch.head.convs.\1.norm."),
    (r"^roi_heads\.box_head\.\d+\.(?=weight|bias)", "box_branch.head.fc."),
    (r"^roi_heads\.box_predictor\.cls_score\.", "box_branch.predictor.classes."),
    (r"^roi_heads\.box_predictor\.bbox_pred\.", "box_branch.predictor.deltas."),
    (r"^roi_heads\.mask_head\.(\d+)\.0\.", r"mask_branch.head.convs.\1.conv."),
    (r"^roi_heads\.mask_head\.(\d+)\.1\.", r"mask_branch.head.convs.\1.norm."),
    (r"^roi_heads\.mask_predictor\.conv5_mask\.", "mask_branch.head.finer."),
    (r"^roi_heads\.mask_predictor\.mask_fcn_logits\.", "mask_branch.head.logits."),
)

OF_BACKBONE = (
    "block",
    "layers",
    "return_layers",
    "fpn_channels",
    "extra",
    "in_chans",
    "groups",
    "width_per_group",
    "replace_stride_with_dilation",
    "norm_layer",
    *torchvision_resnet.OWN,
)
SAME = (
    "num_classes",
    "min_size",
    "max_size",
    "size_divisible",
    "image_mean",
    "image_std",
    "skip_normalize",
    "sampling_ratio",
    "canonical_size",
    "canonical_level",
    "box_output_size",
    "mask_output_size",
    "box_detections_per_img",
    *(f"rpn_{when}_nms_top_n_{phase}" for when in ("pre", "post") for phase in ("train", "test")),
    *(f"{part}_{bound}_iou_thresh" for part in ("rpn", "box") for bound in ("fg", "bg")),
    *(
        f"{part}_{name}"
        for part in ("rpn", "box")
        for name in ("nms_thresh", "score_thresh", "batch_size_per_image", "positive_fraction")
    ),
)


def rebuild(case: Mapping[str, Any], weights: Mapping[str, Tensor], ndim: int | None = None) -> MaskRCNN:
    """A `MaskRCNN` with these weights.

    Lifted to 3-D, it finds in a volume what the original finds in each plane as far as planes go: objectness,
    classes and masks of a volume that is constant along z are those of the plane. Anchors are as deep as they are
    large, times each of `aspect_ratios_z`, whose scores start out the same; deltas along z start at zero. It takes
    strides from the backbone and doesn't resize, unless `skip_resize` is given as false.

    Args:
        case: arguments of `MaskRCNN` and `FasterRCNN` by their names; `anchors` (or `rpn_anchor_generator`) with
            `sizes`, `aspect_ratios` and `aspect_ratios_z`; `roi_levels` (numbers or names among `levels`);
            `box_output_size` and `mask_output_size`; those of `torchvision_resnet.rebuild`. What is left out is
            read from the weights, or torchvision's default.
        weights: the original's state dict.
        ndim: rank of the result; 3 lifts 2-D weights.

    Raises:
        CheckpointError: tensors of this architecture are missing or don't fit the case.
    """
    given = infer(weights)
    case = {**given, **case}
    weights = strip_prefix(weights, STEM)
    rank = weights[STEM].ndim - 2
    check_rank(NAME, rank, ndim)
    kept = {key: case[key] for key in OF_BACKBONE if key in case}
    backbone = torchvision_resnet.rebuild(kept, weights, ndim)
    if not isinstance(backbone, Backbone) or len(set(backbone.out_channels.values())) != 1:
        raise CheckpointError(f"{NAME}: expected a feature pyramid, found only a body")
    chosen = settings(case, backbone, rank=rank, ndim=ndim or rank)
    state = {f"backbone.{name}": value for name, value in backbone.state_dict().items()}
    state |= convert(weights, backbone, chosen, added=(ndim or rank) - rank)

    def make(*, ndim: int, **keywords: Any) -> MaskRCNN:
        return MaskRCNN(backbone, **nested(keywords))

    network = build(NAME, make, chosen, state, rank=rank, ndim=ndim)
    assert isinstance(network, MaskRCNN)
    return network


def infer(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """Constructor arguments as far as the tensors show them, with those of the backbone.

    The sizes and ratios of anchors are not shown: with 3 and with 15 for each voxel they are taken to be those
    that torchvision publishes. Tensors under the names of releases before 0.13 are taken to be those of the first
    published detectors, whose normalisations have no constant (`norm_eps` 0).

    Raises:
        CheckpointError: tensors of this architecture are missing.
    """
    weights = strip_prefix(weights, STEM)
    found = torchvision_resnet.infer(weights)
    try:
        found["num_classes"] = weights["roi_heads.box_predictor.cls_score.weight"].shape[0]
        width = weights[STEM].shape[1]
    except KeyError as fault:
        raise CheckpointError(f"{NAME}: expected a tensor named {fault.args[0]}, found none") from fault
    if "rpn.head.conv.weight" in weights:
        found["norm_eps"] = 0.0
    names = {renamed(name): value for name, value in weights.items()}
    convs = conv_widths(weights, "box_branch.head.convs")
    first = names.get("box_branch.head.fc6.weight", names.get("box_branch.head.fc.weight"))
    if first is not None:
        found["box_head"] = list(first.shape[::-1])
        found["box_output_size"] = round((first.shape[1] / (convs or [width])[-1]) ** (1 / (weights[STEM].ndim - 2)))
    found["rpn_depth"] = len(conv_widths(weights, "rpn.head.convs"))
    found["box_convs"] = convs
    found["mask_branch"] = "mask_branch.head.logits.weight" in names
    found["mask_head"] = conv_widths(weights, "mask_branch.head.convs")
    found["mask_normed"] = "mask_branch.head.convs.0.norm.weight" in names
    sizes = [32, 64, 128, 256, 512]
    count = weights[STEM].shape[0]
    levels = sum(bool(re.search(r"fpn\.inner_blocks\.\d+\.(0\.)?weight$", name)) for name in weights) + 1
    if count in (3, 15):
        chosen = [[size] for size in sizes[:levels]] if count == 3 else [sizes] * levels
        found["anchors"] = {"sizes": chosen, "aspect_ratios": [[0.5, 1.0, 2.0]] * levels}
    return found


def settings(case: Mapping[str, Any], backbone: Backbone, *, rank: int, ndim: int) -> dict[str, Any]:
    """Settings of our `MaskRCNN` over that backbone, for weights of rank `rank` in a network of rank `ndim`.

    Under torchvision's flat names, see `models.mask_rcnn.settings.nested`.

    Raises:
        CheckpointError: anchors that neither the case nor the weights tell, or unknown levels.
    """
    anchors = case.get("rpn_anchor_generator", case.get("anchors"))
    if not isinstance(anchors, Mapping) or "sizes" not in anchors:
        raise CheckpointError(f"{NAME}: anchors: expected sizes and aspect_ratios in the case, got {anchors!r}")
    levels = list(backbone.out_channels)
    names = [str(name) for name in case.get("levels", levels)]
    regions = [str(name) for name in case.get("roi_levels", [name for name in names if name != "pool"])]
    if len(names) != len(levels) or not set(regions) <= set(names):
        raise CheckpointError(f"{NAME}: roi_levels: expected some of {', '.join(levels)}, got {', '.join(regions)}")
    fixed = case.get("fixed_size")
    given = {
        "min_size": 800,
        "max_size": 1333,
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
        "skip_normalize": False,
        "size_divisible": 32,
        **{key: case[key] for key in SAME if case.get(key) is not None},
    }
    return {
        **given,
        "skip_resize": bool(case.get("skip_resize", ndim > rank)),
        "fixed_size": fixed if fixed is None or isinstance(fixed, int) else list(fixed)[::-1],
        "anchor_sizes": [list(level) for level in anchors["sizes"]],
        "anchor_ratios": plain(anchors.get("aspect_ratios", [0.5, 1.0, 2.0])),
        "anchor_z_ratios": plain(anchors.get("aspect_ratios_z", [1.0])),
        "round_anchors": True,
        "rpn_depth": case["rpn_depth"],
        "box_low": 0.0,
        "box_head": "conv" if case["box_convs"] else "mlp",
        "box_channels": case["box_head"][1],
        "box_convs": case["box_convs"],
        "bbox_reg_weights": delta_weights(case.get("bbox_reg_weights"), rank, ndim),
        "mask_branch": case["mask_branch"],
        "mask_convs": case["mask_head"],
        "mask_norm": "batch" if case["mask_normed"] else None,
        "roi_levels": [levels[names.index(name)] for name in regions],
        "torchvision_rules": ndim == rank,
    }


def delta_weights(weights: Sequence[float] | None, rank: int, ndim: int) -> list[list[float]]:
    """Weights of deltas (centres, then sizes, x first) as ours; axes that are new have those of y."""
    if weights is None:
        return [[10.0] * ndim, [5.0] * ndim]
    if len(weights) != 2 * rank:
        raise CheckpointError(f"{NAME}: bbox_reg_weights: expected {2 * rank} numbers, got {len(weights)}")
    parts = [list(weights[:rank])[::-1], list(weights[rank:])[::-1]]
    return [part[:1] * (ndim - rank) + part for part in parts]


def convert(
    weights: Mapping[str, Tensor], backbone: Backbone, chosen: Mapping[str, Any], *, added: int
) -> dict[str, Tensor]:
    """State dict of the heads with our names; `added` axes are put before those of the weights.

    Kernels keep their rank, for `models.inflate`; all else is lifted here.
    """
    ratios = chosen["anchor_z_ratios"]
    depths = len(ratios[0] if isinstance(ratios[0], list) else ratios) ** added
    channels = next(iter(backbone.out_channels.values()))
    found = {}
    for name, value in weights.items():
        if not name.startswith(("rpn.", "roi_heads.")):
            continue
        new = renamed(name)
        if new.startswith("rpn.head.objectness."):
            value = value.repeat_interleave(depths, dim=0)
        elif new.startswith("rpn.head.deltas."):
            value = reordered(value, backbone.ndim - added, added).repeat_interleave(depths, dim=0).flatten(0, 1)
        elif new.startswith("box_branch.predictor.deltas."):
            value = reordered(value, backbone.ndim - added, added).flatten(0, 1)
        elif added and new in ("box_branch.head.fc6.weight", "box_branch.head.fc.weight"):
            size, width = chosen.get("box_output_size", 7), (chosen["box_convs"] or [channels])[-1]
            value = spread(value, width, per_axis(size, backbone.ndim, "box_output_size"), added)
        found[new] = value
    return found


def reordered(rows: Tensor, rank: int, added: int) -> Tensor:
    """Rows of deltas by anchor or class, `(N * 2 * rank, ...) -> (N, 2 * ndim, ...)`: array order, new axes at rest."""
    parts = rows.unflatten(0, (-1, 2, rank)).flip(2)
    still = parts.new_zeros(parts.shape[0], 2, added, *parts.shape[3:])
    return torch.cat((still, parts), dim=2).flatten(1, 2)


def spread(weight: Tensor, channels: int, size: Sequence[int], added: int) -> Tensor:
    """A fully connected layer over features `(C, *size)`, each new axis the mean of what it was."""
    planes = weight.reshape(len(weight), channels, *(1,) * added, *size[added:])
    return planes.expand(len(weight), channels, *size).flatten(1) / math.prod(size[:added])


def renamed(name: str) -> str:
    """Our name of a tensor of the heads."""
    for pattern, replacement in RENAMES:
        name = re.sub(pattern, replacement, name)
    return name


def conv_widths(weights: Mapping[str, Tensor], stem: str) -> list[int]:
    """Channels of the convolutions in a row that our name `stem` holds."""
    pattern = re.compile(re.escape(stem) + r"\.(\d+)\.conv\.weight$")
    found = {int(match[1]): len(value) for name, value in weights.items() if (match := pattern.match(renamed(name)))}
    return [found[index] for index in sorted(found)]
