"""torchvision's `ResNet` and `FeaturePyramidNetwork`, alone or together, as our backbones.

Understood are the names of `BackboneWithFPN` (`body.`, `fpn.`), also with what stands before them in a
detector (`backbone.`), and those of a bare `ResNet` (`conv1.weight`, ...), whose classifier is left out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from voxelry.backbones.base import Backbone
from voxelry.backbones.fpn import FPN
from voxelry.backbones.resnet import STAGES, ResNet
from voxelry.core.choice import check_choice
from voxelry.core.errors import CheckpointError
from voxelry.interop.weights.state import build, strip_prefix

__all__ = ["convert", "infer", "rebuild", "settings", "standard_names"]

NAME = "torchvision-resnet-fpn"
STEM = "layer1.0.conv1.weight"
BLOCKS = {"BasicBlock": "basic", "Bottleneck": "bottleneck"}
NORMS = {"BatchNorm2d": "batch", "FrozenBatchNorm2d": "frozen_batch"}
EXTRAS = {"LastLevelMaxPool": "maxpool", None: None}
# keywords of our own that a case may have too
OWN = ("stem_kernel", "stem_stride", "pool_kernel", "pool_stride", "stage_strides", "norm_eps")

RENAMES = (
    (r"^body\.conv1\.", "stem.conv."),
    (r"^body\.bn1\.", "stem.norm."),
    (r"^body\.layer(\d)\.(\d+)\.conv(\d)\.", lambda m: f"stages.{int(m[1]) - 1}.{m[2]}.layers.{int(m[3]) - 1}.conv."),
    (r"^body\.layer(\d)\.(\d+)\.bn(\d)\.", lambda m: f"stages.{int(m[1]) - 1}.{m[2]}.layers.{int(m[3]) - 1}.norm."),
    (r"^body\.layer(\d)\.(\d+)\.downsample\.0\.", lambda m: f"stages.{int(m[1]) - 1}.{m[2]}.shortcut.conv."),
    (r"^body\.layer(\d)\.(\d+)\.downsample\.1\.", lambda m: f"stages.{int(m[1]) - 1}.{m[2]}.shortcut.norm."),
    (r"^fpn\.inner_blocks\.(\d+)\.(?=weight|bias)", r"lateral.\1.0."),  # before torchvision 0.14
    (r"^fpn\.layer_blocks\.(\d+)\.(?=weight|bias)", r"merge.\1.0."),
    (r"^fpn\.inner_blocks\.", "lateral."),
    (r"^fpn\.layer_blocks\.", "merge."),
)


def rebuild(case: Mapping[str, Any], weights: Mapping[str, Tensor], ndim: int | None = None) -> nn.Module:
    """An `FPN` over a `ResNet`, or a `ResNet` where the weights have no pyramid, with these weights.

    Args:
        case: any of `block` ("BasicBlock", "Bottleneck"), `layers`, `return_layers` (layer → level),
            `fpn_channels`, `extra` ("LastLevelMaxPool" or None), `in_chans`, `groups`, `width_per_group`,
            `replace_stride_with_dilation`, `norm_layer` ("BatchNorm2d", "FrozenBatchNorm2d"), and, as our own,
            `norm_eps` (0 for torchvision's first detectors trained on COCO), `stem_stride`, `pool_stride` and
            `stage_strides` per axis. What is left out is read from the weights.
        weights: with the names said above.
        ndim: rank of the result; 3 lifts 2-D weights.

    Raises:
        CheckpointError: tensors of this architecture are missing or don't fit the case.
    """
    weights = standard_names(weights)
    chosen = settings({**infer(weights), **case}, weights)
    body = chosen["body"]
    frozen = body["norm"] == "frozen_batch"
    state = convert(weights, stages=1 + max(STAGES.index(level) for level in body["levels"]), counted=not frozen)
    if chosen["pyramid"] is not None:
        state = {name if name.startswith(("lateral.", "merge.")) else f"backbone.{name}": state[name] for name in state}
    return build(NAME, make, chosen, state, rank=weights[f"body.{STEM}"].ndim - 2, ndim=ndim)


def make(*, ndim: int, body: Mapping[str, Any], pyramid: Mapping[str, Any] | None) -> Backbone:
    """A `ResNet`, with an `FPN` over it where there are settings for one."""
    backbone = ResNet(ndim=ndim, **body)
    return backbone if pyramid is None else FPN(backbone, **pyramid)


def standard_names(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of body and pyramid, named `body.` and `fpn.` as in `BackboneWithFPN`.

    Raises:
        CheckpointError: there is no body.
    """
    found = {
        f"body.{name}": value
        for name, value in strip_prefix(weights, STEM).items()
        if re.match(r"(conv1|bn1|layer\d+)\.", name)
    }
    for name, value in weights.items():
        if match := re.search(r"(?:^|\.)(fpn\..*)$", name):
            found[match[1]] = value
    return found


def infer(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """Constructor arguments as far as the tensors show them.

    Not shown are `extra`, taken to be "LastLevelMaxPool", and `replace_stride_with_dilation`, taken to be off;
    batch normalisations without a count of batches are frozen ones.

    Raises:
        CheckpointError: tensors of this architecture are missing.
    """
    weights = standard_names(weights)
    bottleneck = "body.layer1.0.conv3.weight" in weights
    try:
        stem = weights["body.conv1.weight"]
        middle = weights["body.layer1.0.conv2.weight"]
    except KeyError as fault:
        raise CheckpointError(f"{NAME}: expected a tensor named {fault.args[0]}, found none") from fault
    blocks = {(int(m[1]), int(m[2])) for name in weights if (m := re.match(r"body\.layer(\d+)\.(\d+)\.", name))}
    stages = max(stage for stage, _ in blocks)
    found: dict[str, Any] = {
        "in_chans": stem.shape[1],
        "width": stem.shape[0],
        "block": "Bottleneck" if bottleneck else "BasicBlock",
        "layers": [sum(stage == number for number, _ in blocks) for stage in range(1, stages + 1)],
        "groups": 1,
        "width_per_group": 64,
        "replace_stride_with_dilation": [False] * 3,
        "norm_layer": "BatchNorm2d" if "body.bn1.num_batches_tracked" in weights else "FrozenBatchNorm2d",
    }
    if bottleneck:
        found["groups"] = middle.shape[0] // middle.shape[1]
        found["width_per_group"] = middle.shape[1] * 64 // stem.shape[0]
    channels = [weights[f"body.layer{stage}.0.conv{3 if bottleneck else 2}.weight"].shape[0] for stage in
                range(1, stages + 1)]  # fmt: skip
    taken = channels
    if lateral := pyramid_kernels(weights):
        taken = [kernel.shape[1] for kernel in lateral]
        found["fpn_channels"] = lateral[0].shape[0]
        extras = any(name.startswith("fpn.extra_blocks.") for name in weights)
        found["extra"] = "LastLevelP6P7" if extras else "LastLevelMaxPool"
    levels = [stage for stage, width in enumerate(channels) if width in taken]
    found["return_layers"] = {f"layer{stage + 1}": STAGES[stage] for stage in levels}
    return found


def pyramid_kernels(weights: Mapping[str, Tensor]) -> list[Tensor]:
    """The 1-wide kernels of the pyramid, fine to coarse; none without a pyramid."""
    kernels = {int(m[1]): value for name, value in weights.items()
               if (m := re.match(r"fpn\.inner_blocks\.(\d+)\.(?:0\.)?weight$", name))}  # fmt: skip
    return [kernels[index] for index in sorted(kernels)]


def settings(case: Mapping[str, Any], weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """Settings of our `ResNet` (`body`) and of `FPN` (`pyramid`, None without one), without `ndim`.

    Raises:
        CheckpointError: an argument that has no counterpart.
    """
    layers = case["return_layers"]
    unknown = [layer for layer in layers if layer not in ("layer1", "layer2", "layer3", "layer4")]
    for key, known in (("block", BLOCKS), ("norm_layer", NORMS), ("extra", EXTRAS)):
        if key in case:
            check_choice(f"{NAME}: {key}", case[key], known, CheckpointError)
    if unknown:
        raise CheckpointError(f"{NAME}: return_layers: expected layer1 to layer4, got {', '.join(unknown)}")
    body = {
        "in_channels": case["in_chans"],
        "block": BLOCKS[case["block"]],
        "layers": list(case["layers"]),
        "levels": {STAGES[int(layer[-1]) - 1]: str(name) for layer, name in sorted(layers.items())},
        "width": case["width"],
        "dilated": [False, *(case["replace_stride_with_dilation"] or [False] * 3)],
        "norm": NORMS[case["norm_layer"]],
        "groups": case["groups"],
        "group_width": case["width_per_group"],
        **{key: case[key] for key in OWN if key in case},
    }
    if not pyramid_kernels(weights):
        return {"body": body, "pyramid": None}
    normed = any(re.match(r"fpn\.inner_blocks\.0\.1\.", name) for name in weights)
    pyramid = {
        "out_channels": case["fpn_channels"],
        "extra": EXTRAS[case["extra"]],
        "norm": body["norm"] if normed else None,
        "norm_eps": case.get("norm_eps", 1e-5),
    }
    return {"body": body, "pyramid": pyramid}


def convert(weights: Mapping[str, Tensor], *, stages: int = 4, counted: bool = True) -> dict[str, Tensor]:
    """State dict with our names, of the first `stages` stages; with `counted` batches are counted, else not."""
    converted = {}
    for name, value in weights.items():
        if (stage := re.match(r"body\.layer(\d+)\.", name)) and int(stage[1]) > stages:
            continue
        new = name
        for pattern, replacement in RENAMES:
            new = re.sub(pattern, replacement, new)
        if not new.endswith(".num_batches_tracked"):
            converted[new] = value
        if counted and new.endswith(".running_mean"):
            count = name.removesuffix("running_mean") + "num_batches_tracked"
            converted[new.removesuffix("running_mean") + "num_batches_tracked"] = weights.get(count, torch.tensor(0))
    return converted
